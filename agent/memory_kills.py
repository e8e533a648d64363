"""Whether the kernel killed a container for want of memory: only its own word counts.

Of a container it speaks through the engine: the cgroup's own `oom_kill` counter (v2: `memory.events`, v1:
`memory.oom_control`) is gone with the last process, so whoever starts containers watches it, and tells by an
`oom` event and by OOMKilled. Not every engine hears it in time. Of the machine it speaks through a counter
that stays, `oom_kill` of /proc/vmstat, the same under v1 and v2: it rises with each process that is killed
for memory. So a container that was killed while it stood still was killed by something else.

Neither says which process it was. A container may outlive a kill in it (a pool that lost one of its workers)
and be killed by something else much later. And the engine speaks late, also of others that have not ended:
so whoever is not spoken of is judged last, by what is left of the counter's rise. Where nothing is left, it
was not the kernel. Where something is, it may have been any process of the machine: no container is told to
be it.
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
HEARSAY = 2.0
"""Seconds that the engine has to say whom a rise is about, before that is called unknown."""
REMEMBERS = 5.0
"""Seconds after the watch began in which the engine may still say what it remembers from before."""
EVENT_LATE = 10.0
"""Seconds, at most, between a kill and the engine's event: 2 s on a machine that had too much to do."""
KEPT = 64
"""Rises that are remembered."""
REPEATED = 256
"""Events that an engine remembers, and tells again to whoever asks for what was."""


class Word(Enum):
    """What the kernel says of a container that was killed."""

    CONTAINER = "it was this container"
    EARLIER = "it killed in this container, and that went on for long"
    MACHINE = "it killed some process of this machine for memory at about that time, and nothing says which"
    NOTHING = "it killed none for memory"
    UNKNOWN = "it cannot be asked here"


@dataclass
class _Rise:
    after: float
    before: float
    count: int


class MemoryKills:
    """The counter's rises, which the engine's word explains one by one; times in seconds since the epoch.

    `count` answers the machine's kills since it booted, or None where that cannot be read; `now` is when the
    watch begins.
    """

    def __init__(self, count: Callable[[], int | None], now: float) -> None:
        self._count = count
        self._total = count()
        self._began = self._counts_since = self._looked = now
        self._rises: deque[_Rise] = deque(maxlen=KEPT)
        self._told: dict[str, float] = {}
        self._outlived: set[str] = set()

    def look(self, now: float) -> None:
        """Read the counter: now and then, and before what ended is judged."""
        total = self._count()
        if total is not None and self._total is not None and total > self._total:
            self._rises.append(_Rise(self._looked, now, total - self._total))
        if self._total is None:
            self._counts_since = now
        self._total, self._looked = total, now

    async def watch(self) -> None:
        """Look for ever."""
        while True:
            self.look(time.time())
            await asyncio.sleep(LOOK)

    def told(self, container_id: str, at: float, now: float) -> None:
        """The engine says that the kernel killed in this container: that explains one of its kills.

        The engine may say it again, when it is asked what it remembers.
        """
        self.look(now)
        if at <= self._told.get(container_id, 0.0):
            return
        self._claim(at, EVENT_LATE)
        self._told[container_id] = at

    def forget_gone(self, present: Set[str]) -> None:
        """Of what is gone, only so much is remembered as the engine may tell once more."""
        gone = [i for i in self._told if i not in present]
        for container_id in gone[: max(0, len(gone) - REPEATED)]:
            del self._told[container_id]
        self._outlived &= present

    def outlived(self, container_id: str, now: float) -> bool:
        """Of a container that runs: True once, when a kill in it has evidently not ended it.

        One from before the watch is no news: an agent that is restarted would tell it each time.
        """
        at = self._told.get(container_id)
        if at is None or at < self._began or now - at < UNSURE or container_id in self._outlived:
            return False
        self._outlived.add(container_id)
        return True

    def is_open(self, container_id: str, ended: float, *, by_engine: bool) -> bool:
        """Whether the engine may still say that a kill of just then was in this container, or in which."""
        if by_engine or container_id in self._told:
            return False
        is_remembered = ended < self._counts_since and self._looked < self._counts_since + REMEMBERS
        return is_remembered or self._find(ended, UNSURE) is not None

    def word(self, container_id: str, ended: float, *, by_engine: bool, killed: bool) -> Word:
        """Of a container that ended: whether OOMKilled is set, and whether SIGKILL ended it, unasked."""
        at = self._told.get(container_id)
        if by_engine or at is not None:
            is_claimed = at is None and self._claim(ended, LATE)
            return Word.EARLIER if not is_claimed and self._is_old(at, ended) else Word.CONTAINER
        if self._total is None or ended < self._counts_since:
            return Word.UNKNOWN
        # Nothing is claimed: of two that may be it, neither is cleared by the other.
        return Word.MACHINE if killed and self._find(ended, UNSURE) else Word.NOTHING

    def _is_old(self, at: float | None, ended: float) -> bool:
        """Whether the last kill in a container was long before its end; `at`: when the engine told of it."""
        since = ended - UNSURE
        if at is not None:
            return at < since
        was_watched = self._total is not None and self._counts_since <= since
        return was_watched and not any(r.after <= ended + LATE and r.before >= since for r in self._rises)

    def _claim(self, moment: float, late: float) -> bool:
        rise = self._find(moment, late)
        if rise is not None:
            rise.count -= 1
        return rise is not None

    def _find(self, moment: float, late: float) -> _Rise | None:
        """The last rise, not yet explained, that may have come to light at a moment.

        The last, since an earlier one that is left over still casts its doubt on whoever ended after both.
        """
        rises = reversed(self._rises)
        return next((r for r in rises if r.count and r.after <= moment <= r.before + late), None)


def machine_kills(path: Path = VMSTAT) -> int | None:
    """Processes that the kernel has killed for want of memory since it booted; None before Linux 4.13."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith(_COUNTER + " ")), None)
