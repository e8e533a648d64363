"""Whether the kernel killed a container for want of memory: only its own word counts.

Of a container it speaks through the engine: the cgroup's own `oom_kill` counter (v2: `memory.events`, v1:
`memory.oom_control`) is gone with the last process, so whoever starts containers watches it, and tells by an
`oom` event and by OOMKilled. Not every engine hears it in time. Of the machine it speaks through a counter
that stays, `oom_kill` of /proc/vmstat, the same under v1 and v2: it rises with each process that is killed
for memory. So a container that was killed while it stood still was killed by something else.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Set
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

VMSTAT = Path("/proc/vmstat")
_COUNTER = "oom_kill"
LOOK = 1.0
"""Seconds between looks at the counter: what is killed otherwise at another moment is told from it."""
LATE = 2.0
"""Seconds, at most, between a kill and the end of its container, as the engine notes it."""
UNSURE = 30.0
"""The same on a busy machine, where what is left of a container waits long for a CPU: perhaps."""
KEPT = 64
"""Rises that are remembered."""


class Word(Enum):
    """What the kernel says of a container that was killed."""

    CONTAINER = "it was this container"
    MACHINE = "it killed some process of this machine for memory just then, and nothing says which"
    NOTHING = "it killed none for memory"
    UNKNOWN = "it cannot be asked here"


@dataclass
class _Rise:
    after: float
    before: float
    count: int


class MemoryKills:
    """The counter's rises, each of which explains one container; times in seconds since the epoch.

    `count` answers the machine's kills since it booted, or None where that cannot be read; `now` is when the
    watch begins.
    """

    def __init__(self, count: Callable[[], int | None], now: float) -> None:
        self._count = count
        self._total = count()
        self._began = self._looked = now
        self._rises: deque[_Rise] = deque(maxlen=KEPT)
        self._told: set[str] = set()

    def look(self, now: float) -> None:
        """Read the counter: now and then, and before what ended is judged."""
        total = self._count()
        if total is not None and self._total is not None and total > self._total:
            self._rises.append(_Rise(self._looked, now, total - self._total))
        if self._total is None:
            self._began = now
        self._total, self._looked = total, now

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            self.look(time.time())
            await asyncio.sleep(LOOK)

    def told(self, container_id: str) -> None:
        """The engine says that the kernel killed in this container."""
        self._told.add(container_id)

    def forget_gone(self, present: Set[str]) -> None:
        """Only containers that are still there matter."""
        self._told &= present

    def word(self, container_id: str, ended: float, *, by_engine: bool, killed: bool) -> Word:
        """Of a container that ended: whether OOMKilled is set, and whether SIGKILL ended it, unasked."""
        is_sure = by_engine or container_id in self._told
        rise = self._claim(ended) if is_sure or killed else None
        if is_sure:
            return Word.CONTAINER
        if self._total is None or ended < self._began:
            return Word.UNKNOWN
        if rise is None:
            return Word.UNKNOWN if self._is_near(ended) else Word.NOTHING
        return Word.MACHINE

    def _is_near(self, ended: float) -> bool:
        """Whether there was a kill that explains nothing yet, and may explain this end."""
        return any(rise.count and rise.after <= ended <= rise.before + UNSURE for rise in self._rises)

    def _claim(self, ended: float) -> _Rise | None:
        for rise in self._rises:
            if rise.count and rise.after <= ended <= rise.before + LATE:
                rise.count -= 1
                return rise
        return None


def machine_kills(path: Path = VMSTAT) -> int | None:
    """Processes that the kernel has killed for want of memory since it booted; None before Linux 4.13."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(_COUNTER + " ")), None)
