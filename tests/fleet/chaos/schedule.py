"""Which fault comes when, on which host, and how hard: decided by the seed alone. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random

Seconds = tuple[float, float]
"""The shortest and the longest that a fault may last."""


@dataclass(frozen=True)
class Injection:
    """One fault, to be made happen. `fraction` (0 to 1) is for whatever else the fault has to choose."""

    number: int
    fault: str
    host: int
    seconds: float
    fraction: float

    def __str__(self) -> str:
        return f"{self.number}: {self.fault} on node {self.host + 1} for {self.seconds:.1f} s"


def schedule(seed: int, faults: Mapping[str, Seconds], hosts: int) -> Iterator[Injection]:
    """An endless plan, the same for the same arguments.

    Every fault comes once before any comes twice, and none comes twice in a row. All numbers are drawn when
    a round is shuffled, so how long the faults take to inject never changes the plan.
    """
    random = Random(f"{seed} {sorted(faults.items())} {hosts}")
    numbers = count(1)
    last: str | None = None
    while True:
        for name in _one_round(random, sorted(faults), last):
            last = name
            shortest, longest = faults[name]
            yield Injection(
                number=next(numbers),
                fault=name,
                host=random.randrange(hosts),
                seconds=round(random.uniform(shortest, longest), 1),
                fraction=round(random.random(), 3),
            )


def choose(wanted: Sequence[str], known: Sequence[str]) -> list[str]:
    """The faults of a `name,name` list, all of them where it is empty.

    Raises:
        ValueError: one that does not exist; the text names those that do.
    """
    if unknown := sorted(set(wanted) - set(known)):
        raise ValueError(f"no such fault: {', '.join(unknown)}; there are {', '.join(sorted(known))}")
    return [name for name in known if name in wanted or not wanted]


def draw(seed: int, known: Sequence[str], most: int) -> list[str]:
    """So many of the faults, others for another seed: all of them come up within a few seeds."""
    return sorted(Random(f"{seed} {sorted(known)}").sample(sorted(known), min(most, len(known))))


def _one_round(random: Random, names: list[str], last: str | None) -> list[str]:
    shuffled = random.sample(names, len(names))
    if len(shuffled) > 1 and shuffled[0] == last:
        shuffled.append(shuffled.pop(0))
    return shuffled
