"""What goes wrong for a while: told once when it begins and once when it ends, however often it is met.

For whatever would otherwise write a line for each request, each second or each attempt: a Redis that is away,
a disk that is full, no file descriptor that is left. Who meets it says so each time, which costs next to
nothing; the log gets one line of ours that says what is wrong and what to do, and later one that says for how
long it was so, and how often it was met:

    full = Condition("the disk is full", "there is room again", do="make room on it")
    full.meet(path=path)    # each time
    full.over()             # each time that it went well

What nobody sees end (no descriptor left: nothing says when there is one again) ends by itself once it was not
met for `quiet` seconds. That takes a running event loop, and is then of use in its thread only.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import structlog

log = structlog.get_logger()

MOST_KINDS = 16
"""Of one condition that are told: whoever causes it may word it anew each time."""


class Condition:
    """One thing that is so or not. `level` is that of the first line, in structlog's words."""

    def __init__(
        self,
        begins: str,
        ends: str,
        *,
        do: str = "",
        level: str = "warning",
        quiet: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`begins` and `ends` are the two lines; `do` says what to do, where that is always the same."""
        self.times = 0
        """How often it was met, since it began."""
        self._begins, self._ends, self._level = begins, ends, level
        self._do = {"do": do} if do else {}
        self._quiet = quiet
        self._clock = clock
        self._since: float | None = None
        self._last = 0.0
        self._told: set[str] = set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def is_met(self) -> bool:
        """Whether it is so now."""
        return self._since is not None

    @property
    def lasted(self) -> float | None:
        """Seconds for which it has been so; None when it is not."""
        return None if self._since is None else self._clock() - self._since

    def meet(self, kind: str = "", **about: Any) -> None:
        """It is so. Told if that is new; and once more for each other `kind` of it, such as another cause."""
        now = self._clock()
        if self._since is None:
            self._since, self.times, self._told = now, 0, set()
        self.times, self._last = self.times + 1, now
        if kind not in self._told and len(self._told) < MOST_KINDS:
            self._told.add(kind)
            getattr(log, self._level)(self._begins, **about, **self._do)
        if self._quiet is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._quiet, self._settle)

    def over(self, **about: Any) -> None:
        """It is so no more. Told if it was."""
        if self._since is None:
            return
        seconds, self._since = round(self._clock() - self._since, 1), None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        log.info(self._ends, seconds=seconds, times=self.times, **about)

    def _settle(self) -> None:
        """End it if it was not met for a while, else look again when that could be."""
        self._timer = None
        if self._since is None or self._quiet is None:
            return
        left = self._last + self._quiet - self._clock()
        if left > 0:
            self._timer = asyncio.get_running_loop().call_later(left, self._settle)
        else:
            self.over()
