"""How fast a task goes, worked out from what its queues were at some moments. Pure.

Nobody counts items: the hub only sees two lengths. While all results stay where they are, the output's growth
is what was done. Where it says nothing (unset, unreachable, collected meanwhile, or standing still), the
input's shrinkage is, as long as nobody fills it meanwhile. Where neither can tell, the rate is unknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from hub.queues import Queues

WINDOW = 60.0
"""Seconds over which a rate is worked out."""

KEPT = 180.0
"""Seconds that samples are kept."""

MOST_KEPT = 400
"""Samples of one task that are kept."""

SHORTEST = 1.0
"""Seconds that samples must lie apart to say how fast something goes."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A look at a task's queues: when it was over, by the monotonic clock and for people."""

    at: float
    wall: float
    queues: Queues


class History:
    """The samples of one task of the last few minutes."""

    def __init__(self, samples: Iterable[Sample] = ()) -> None:
        self._samples = deque(samples, MOST_KEPT)

    def add(self, sample: Sample) -> None:
        """Put in the newest, drop what is too old."""
        self._samples.append(sample)
        while sample.at - self._samples[0].at > KEPT:
            self._samples.popleft()

    @property
    def latest(self) -> Sample | None:
        return self._samples[-1] if self._samples else None

    def rate(self) -> float | None:
        """Items a second over the last WINDOW seconds before the newest sample; None if that is unknown."""
        latest = self.latest
        if latest is None:
            return None
        recent = [sample for sample in self._samples if latest.at - sample.at <= WINDOW]
        seconds = latest.at - recent[0].at
        if seconds < SHORTEST:
            return None
        grown = _one_way([sample.queues.output.items for sample in recent])
        shrunk = _one_way([-items if (items := s.queues.input.items) is not None else None for s in recent])
        known = [items for items in (grown, shrunk) if items is not None]
        if not known:
            return None
        return (grown or shrunk or 0) / seconds


def _one_way(lengths: Sequence[int | None]) -> int | None:
    """By how much these have grown; None if one is unknown, or if they ever went the other way."""
    known = [length for length in lengths if length is not None]
    if len(known) < len(lengths) or any(after < before for before, after in pairwise(known)):
        return None
    return known[-1] - known[0]


def seconds_left(items: int | None, rate: float | None) -> float | None:
    """Until an input of so many items is empty at this rate; None if that is unknown, or never."""
    if items == 0:
        return 0.0
    if items is None or not rate:
        return None
    return items / rate
