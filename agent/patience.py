"""Containers on which calls fail again and again are left alone for a while, and told of once."""

from __future__ import annotations

from collections.abc import Set

from agent.slots import doubled

FIRST, MOST = 1.0, 60.0
"""Seconds after the second failure in a row, doubled for each more, and at most."""
TELL_AFTER = 3
"""Failed calls on one container after which the operator hears of it."""


class Patience:
    """By container id; `now` on a monotonic clock."""

    def __init__(self) -> None:
        self._failures: dict[str, tuple[int, float]] = {}

    def failed(self, container_id: str, now: float) -> bool:
        """Count a failed call; True once, when it is time to tell."""
        times = self._failures.get(container_id, (0, 0.0))[0] + 1
        pause = doubled(FIRST, MOST, times - 1) if times > 1 else 0.0
        self._failures[container_id] = (times, now + pause)
        return times == TELL_AFTER

    def left_alone(self, now: float) -> Set[str]:
        """Ids on which no call is due yet."""
        return {i for i, (_, until) in self._failures.items() if until > now}

    def forget_gone(self, present: Set[str]) -> None:
        """Only containers that are still there matter."""
        self._failures = {i: f for i, f in self._failures.items() if i in present}
