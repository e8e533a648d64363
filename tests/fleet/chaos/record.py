"""What was seen of each fault, and the table of it. Pure, but for printing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from rich.table import Table


@dataclass(frozen=True)
class Seen:
    """One injection; `recovered` in seconds after the fault's end, None if not while we waited.

    `taken` is how many items workers had taken from the queue once all was well again; `lost` how many were
    in hand at this fault and never became a result. Only a fault that `hurt` containers may lose any.
    """

    fault: str
    recovered: float | None
    violations: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    hurt: bool = True
    taken: int = 0
    lost: int = 0


@dataclass
class Record:
    """All of a run."""

    seen: list[Seen] = field(default_factory=list)
    afterwards: list[str] = field(default_factory=list)
    """Violations that belong to no single fault, such as a wrong result."""

    @property
    def violations(self) -> int:
        """How many invariants were violated in all."""
        return sum(len(one.violations) for one in self.seen) + len(self.afterwards)

    def count_lost(self, missing: Iterable[int]) -> None:
        """Lay each item without a result to the fault that had it in hand; they are numbered as taken.

        What was in hand at a fault was taken before all was well after it, and after all was well before it.
        """
        lost = [0] * len(self.seen)
        marks = [one.taken for one in self.seen]
        for item in missing:
            if (at := bisect_right(marks, item)) < len(lost):
                lost[at] += 1
        for at, number in enumerate(lost):
            one = self.seen[at]
            wrong = (f"{number} items lost, and no container was to end",) if number and not one.hurt else ()
            self.seen[at] = replace(one, lost=number, violations=one.violations + wrong)

    def rows(self) -> list[tuple[str, str, str, str, str]]:
        """Fault, times, recovered within (min / median / max s), items lost, violations."""
        return [
            (
                name,
                str(len(runs)),
                spread(one.recovered for one in runs),
                str(sum(one.lost for one in runs)),
                str(sum(len(r.violations) for r in runs)),
            )
            for name, runs in sorted(self._by_fault().items())
        ]

    def table(self) -> Table:
        """For a person."""
        table = Table(title="After each fault, until everything held again")
        table.add_column("fault", no_wrap=True)
        table.add_column("times", justify="right")
        table.add_column("recovered within s:\nmin / median / max", justify="right", no_wrap=True)
        table.add_column("items\nlost", justify="right", no_wrap=True)
        table.add_column("invariants\nviolated", justify="right", no_wrap=True)
        for row in self.rows():
            table.add_row(*row, style="red" if row[-1] != "0" else "")
        return table

    def _by_fault(self) -> dict[str, list[Seen]]:
        groups: dict[str, list[Seen]] = {}
        for one in self.seen:
            groups.setdefault(one.fault, []).append(one)
        return groups


def spread(times: Iterable[float | None]) -> str:
    """`min / median / max`, and how many never came."""
    all_times: Sequence[float | None] = list(times)
    known = [time for time in all_times if time is not None]
    never = len(all_times) - len(known)
    shown = f"{min(known):.1f} / {median(known):.1f} / {max(known):.1f}" if known else "-"
    return f"{shown} ({never} never)" if never else shown
