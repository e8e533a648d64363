"""The owner's terms in time: hours, a pause on the spot, and making room for the machine's other work.

`decide` is pure. `Owner` looks at clock and load, and keeps the pause so that it survives agent and reboot.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import structlog

from agent.settings import Settings
from gridcore.files import write_private

log = structlog.get_logger()

PAUSE_FILE = "paused"
"""In the state directory: the wall time, in seconds since the epoch, since when the owner's pause lasts."""
LOOK_EVERY = 2.0
"""Seconds."""
LOAD_TIME_CONSTANT = 60.0
"""Seconds: over how long the kernel averages its first load number."""
YIELD_UNTIL = 0.8
"""Of `yield_load`: once yielding, the others' load must fall below this, so that nothing flaps."""
UNSURE = 10.0
"""Seconds: two of the kernel's samples; what it has counted in that time may differ from what we saw."""
SETTLE = 15.0
"""Seconds in which a new agent finds its running containers; until then their load looks like others'."""


@dataclass(frozen=True)
class Permit:
    """What the owner lets this machine do now."""

    refuse: str | None = None
    """Want no containers, for this reason."""
    freeze: str | None = None
    """Keep containers, frozen, for this reason; `refuse` wins."""
    paused: bool = False
    """The owner has paused it, whatever else holds."""


def within(hours: str, local: datetime) -> bool:
    """Whether a local time is in a span such as `22:00-07:00`; the first minute is in, the last is not."""
    begin, end = (int(text[:2]) * 60 + int(text[3:]) for text in hours.split("-"))
    now = local.hour * 60 + local.minute
    return begin <= now < end if begin < end else now >= begin or now < end


def yields(yield_load: float | None, others_load: float | None, yielding: bool) -> bool:
    """Whether containers make room now, where `yielding` says whether they did until now."""
    if yield_load is None or others_load is None:
        return False
    return others_load >= yield_load * YIELD_UNTIL if yielding else others_load > yield_load


def decide(
    settings: Settings,
    local: datetime,
    paused_for: float | None,
    others_load: float | None,
    yielding_for: float | None,
) -> Permit:
    """The permit at a moment of local time.

    `paused_for` and `yielding_for` are seconds since either began, or None. Of what forbids containers
    altogether the hours come first, since resuming would not help.
    """
    paused = paused_for is not None
    if settings.hours is not None and not within(settings.hours, local):
        return Permit(refuse=f"outside of the owner's hours {settings.hours}", paused=paused)
    refuse = freeze = None
    if paused_for is not None:
        freeze = "paused by its owner"
        refuse = None if paused_for < settings.freeze_max else freeze
    if refuse is None and yields(settings.yield_load, others_load, yielding_for is not None):
        text = f"yields: others' load is {others_load:.1f}, above {settings.yield_load:g}"
        freeze = freeze or text
        refuse = None if (yielding_for or 0.0) < settings.freeze_max else text
    return Permit(refuse=refuse, freeze=None if refuse else freeze, paused=paused)


class OwnLoad:
    """Our containers' part in the kernel's load average, averaged as the kernel does.

    So the load of containers that were frozen a moment ago, which the kernel still counts, is not taken for
    somebody else's. A container counts as one busy process, which one on one CPU is. The kernel samples every
    5 s, at a moment that we do not know, and we hear of a container a little late: hence a range. With 64
    containers one sample more or less is a load of 5.
    """

    def __init__(self) -> None:
        self._low = self._high = 0.0
        self._counts: deque[tuple[float, int]] = deque()
        self._clock = 0.0
        self._known = False

    def step(self, running: int, seconds: float) -> tuple[float, float]:
        """Our part now, at least and at most: `seconds` after the last step, with `running` containers."""
        self._clock += max(0.0, seconds)
        self._counts.append((self._clock, running))
        while self._counts[0][0] < self._clock - UNSURE:
            self._counts.popleft()
        fewest, most = (pick(count for _, count in self._counts) for pick in (min, max))
        if running and not self._known:
            # A new agent finds containers that have been running for long.
            self._known, self._low, self._high = True, float(running), float(running)
        self._low = _averaged(self._low, fewest, seconds)
        self._high = _averaged(self._high, most, seconds)
        ahead = (_averaged(self._low, fewest, UNSURE), _averaged(self._high, most, UNSURE))
        return min(self._low, ahead[0]), max(self._high, ahead[1])


def _averaged(average: float, busy: int, seconds: float) -> float:
    keep = math.exp(-max(0.0, seconds) / LOAD_TIME_CONSTANT)
    return average * keep + busy * (1 - keep)


class Courtesy:
    """Whether our containers make room for the machine's other work, and since when. `now` is monotonic."""

    def __init__(self, yield_load: float, now: float) -> None:
        self._limit = yield_load
        self._own = OwnLoad()
        self._began = self._looked = now
        self._above_since: float | None = None
        self.since: float | None = None
        """When it began to yield; None while it does not."""
        self.load: float | None = None
        """The others' load that it yields to, as it was then: the reason must not change with every look."""

    def look(self, now: float, running: int, load: float) -> None:
        """Take in a load average while `running` containers of ours run."""
        least, most = self._own.step(running, now - self._looked)
        self._looked = now
        yielding = self.since is not None
        # In doubt, what goes on goes on: work until others' load is sure, make room until it surely went.
        others = max(0.0, load - (least if yielding else most))
        if now - self._began < SETTLE or not yields(self._limit, others, yielding):
            self.since = self.load = self._above_since = None
        elif self._above_since is None:
            self._above_since = now
        elif not yielding and now - self._above_since >= UNSURE:
            self.since, self.load = now, others


class Owner:
    """Watches over the owner's terms and tells `on_permit` of every change.

    `running` answers how many containers of ours run unfrozen. `state_directory` is made when needed.
    """

    def __init__(
        self,
        settings: Settings,
        state_directory: Path,
        running: Callable[[], int],
        on_permit: Callable[[Permit], None],
    ) -> None:
        self._settings = settings
        self._file = state_directory / PAUSE_FILE
        self._running = running
        self._on_permit = on_permit
        now = time.monotonic()
        self._courtesy = Courtesy(settings.yield_load, now) if settings.yield_load else None
        # The wall clock counts while no agent runs; from then on only the monotonic one.
        since = _read_pause(self._file)
        self._paused_at = None if since is None else now - max(0.0, time.time() - since)
        self._permit = self._now()

    @property
    def permit(self) -> Permit:
        """What held when it was last looked at."""
        return self._permit

    @property
    def paused_for(self) -> float | None:
        """Seconds since the owner paused, or None."""
        return None if self._paused_at is None else max(0.0, time.monotonic() - self._paused_at)

    def pause(self) -> dict[str, Any]:
        """Pause at once; the answer is what `gridnode pause` shows. Pausing twice changes nothing."""
        answer: dict[str, Any] = {"already": self._paused_at is not None, "warning": None}
        if self._paused_at is None:
            self._paused_at = time.monotonic()
            try:
                self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                write_private(self._file, f"{time.time():.3f}\n")
            except OSError as error:
                # The owner's word holds now, whatever the disk says.
                answer["warning"] = f"does not survive a restart: {self._file}: {error.strerror}"
                log.warning("the owner's pause cannot be kept", path=str(self._file), error=error.strerror)
        self._look()
        return answer | self._terms()

    def resume(self) -> dict[str, Any]:
        """Take the pause back; the answer is what `gridnode resume` shows."""
        answer: dict[str, Any] = {"already": self._paused_at is None, "warning": None}
        self._paused_at = None
        try:
            self._file.unlink(missing_ok=True)
        except OSError as error:
            answer["warning"] = f"returns with a restart: {self._file}: {error.strerror}"
            log.warning("the owner's pause cannot be removed", path=str(self._file), error=error.strerror)
        self._look()
        return answer | self._terms()

    async def run(self) -> None:
        """Look every 2 s, for ever; tells the permit once at the start."""
        self._permit = self._now()
        self._on_permit(self._permit)
        while True:
            await asyncio.sleep(LOOK_EVERY)
            if self._courtesy:
                with suppress(OSError):  # a machine that hides its load: no reason to end the work
                    self._courtesy.look(time.monotonic(), self._running(), os.getloadavg()[0])
            self._look()

    def _terms(self) -> dict[str, Any]:
        return {
            "paused_for": self.paused_for,
            "freeze_max": self._settings.freeze_max,
            "permit": asdict(self._permit),
        }

    def _look(self) -> None:
        permit = self._now()
        if permit != self._permit:
            self._permit = permit
            self._on_permit(permit)

    def _now(self) -> Permit:
        time.tzset()  # a laptop travels: /etc/localtime may have changed
        local = datetime.now().astimezone()
        load = since = None
        if self._courtesy:
            load, since = self._courtesy.load, self._courtesy.since
        yielding_for = None if since is None else time.monotonic() - since
        return decide(self._settings, local, self.paused_for, load, yielding_for)


def _read_pause(path: Path) -> float | None:
    """Since when the owner's pause lasts; a file that cannot be understood is a pause that begins now."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("the owner's pause cannot be read: not paused", path=str(path), error=error.strerror)
        return None
    try:
        since = float(text)
    except ValueError:
        since = math.nan
    return since if math.isfinite(since) else time.time()
