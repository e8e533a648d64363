"""Containers that fill the disk are told from those that do not: layer, /scratch and log, each with a limit.

Measuring a layer or a volume makes the engine walk its directories. So the free space of its disk, which
costs nothing, is looked at once a second, and a walk follows only when that fell, or now and then. What is
decided (when to measure, who is over) is pure; `now` is in seconds on one monotonic clock, sizes in bytes.
"""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from agent.engine_api import EngineApi
from agent.errors import EngineError
from agent.limits import Breach, Limit
from agent.planner import Container
from agent.settings import Settings
from gridcore.condition import Condition

log = structlog.get_logger()

MB = 2**20
LOOK = 1.0
"""Seconds between looks at the free space, and at whose log is due."""
SELDOM, BLIND = 300.0, 30.0
"""Seconds between measurements when nothing calls for one; when the free space cannot be seen."""
RETRY = 10.0
"""Seconds, at least, until the next attempt after a measurement that failed."""
LAYER_REST, VOLUME_REST = 10.0, 20.0
"""A measurement is followed by a rest of so many times its own length."""
LOG_LOOK, LOG_QUIET_MOST = 10.0, 60.0
"""Seconds between looks at a log; one that stays quiet is looked at less and less often, down to this."""
LOG_FOLLOW = 1.0
"""Seconds that a log is followed which is not quiet."""
LOG_STRIKES = 3
"""Looks in a row over the limit until a container is condemned."""
LOGS_AT_ONCE = 8

Condemned = tuple[str, Breach]
"""A container's id, and the limit that it broke."""


@dataclass
class Pace:
    """When to measure next: when the free space fell by `step` since the last time, or `SELDOM`."""

    step: float
    rest: float
    _ended: float = -math.inf
    _not_before: float = -math.inf
    _high: int | None = None

    def due(self, now: float, free: int | None) -> bool:
        """Whether to measure now, `free` bytes being free, or None where that cannot be told."""
        if free is not None:
            # The highest since the last time: what one container frees must not hide what another writes.
            self._high = free if self._high is None else max(self._high, free)
        if now < self._not_before:
            return False
        if free is None or self._high is None:
            return now - self._ended >= BLIND
        return self._high - free >= self.step or now - self._ended >= SELDOM

    def measured(self, began: float, now: float, free: int | None) -> None:
        """A measurement is over; `free` is what was free when it began."""
        self._ended = now
        self._not_before = now + self.rest * (now - began)
        self._high = free

    def failed(self, began: float, now: float) -> None:
        """A measurement did not succeed: what called for it still does, a little later."""
        self._not_before = now + max(RETRY, self.rest * (now - began))


@dataclass
class _Watched:
    due: float
    wait: float = LOG_LOOK
    strikes: int = 0


@dataclass
class LogPatience:
    """Whose log to look at, and who has written too much for too long. `limit` in bytes per second."""

    limit: float
    _watched: dict[str, _Watched] = field(default_factory=dict)

    def due(self, ids: Collection[str], now: float) -> list[str]:
        """Those of the running containers to look at now; all others are forgotten."""
        self._watched = {i: self._watched.get(i) or _Watched(now + LOG_LOOK) for i in ids}
        return [i for i, watched in self._watched.items() if watched.due <= now]

    def looked(self, container_id: str, rate: float, now: float) -> bool:
        """Enter a look's result; True when the container has to go."""
        watched = self._watched.get(container_id)
        if watched is None:
            return False
        watched.strikes = watched.strikes + 1 if rate > self.limit else 0
        quiet = rate < self.limit / 100
        watched.wait = min(LOG_QUIET_MOST, watched.wait * 2) if quiet else LOG_LOOK
        watched.due = now + watched.wait
        return watched.strikes >= LOG_STRIKES


def over_layer(sizes: Mapping[str, int], containers: Iterable[Container], limit_mb: int) -> list[Condemned]:
    """The containers whose writable layer is over the limit."""
    return [
        (c.id, Breach(Limit.LAYER, sizes[c.id] / MB, limit_mb))
        for c in containers
        if sizes.get(c.id, 0) > limit_mb * MB
    ]


def over_scratch(sizes: Mapping[str, int], containers: Iterable[Container], limit_mb: int) -> list[Condemned]:
    """The containers whose /scratch is over the limit; `sizes` by volume name."""
    held = [(c.id, sizes.get(c.scratch or "", 0)) for c in containers]
    return [(i, Breach(Limit.SCRATCH, size / MB, limit_mb)) for i, size in held if size > limit_mb * MB]


def _unseen(what: str) -> Condition:
    begins = f"the limit of {what} is not watched"
    return Condition(begins, f"the limit of {what} is watched again")


def free_bytes(path: Path) -> int | None:
    """What is free on the file system at `path`; None where that cannot be told."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    return disk.f_bfree * disk.f_frsize


class DiskWatch:
    """Measures what containers write, and condemns those that write too much.

    `running` answers the containers as last listed; `condemn` is called once a container, with its id and
    the limit that it broke; `free` the bytes that are free on the engine's disk (default: asked of its own
    directory).
    """

    def __init__(
        self,
        api: EngineApi,
        settings: Settings,
        owner: str,
        running: Callable[[], Sequence[Container]],
        condemn: Callable[[str, Breach], None],
        free: Callable[[], int | None] | None = None,
    ) -> None:
        self._api = api
        self._settings = settings
        self._owner = owner
        self._running = running
        self._condemn = condemn
        self._free = free
        self._root: Path | None = None
        self._condemned: set[str] = set()
        self._layers_unseen = _unseen("layers")
        self._volumes_unseen = _unseen("/scratch")
        self._logs_unseen = _unseen("logs")
        smallest = min(size for size in (settings.container_disk, settings.scratch_size) if size)
        self._layers = Pace(smallest * MB / 4, LAYER_REST)
        self._volumes = Pace(smallest * MB / 4, VOLUME_REST)
        self._logs = LogPatience(settings.log_rate * MB)

    async def run(self) -> None:
        """Watch for ever; returns only where the engine's socket cannot be read. Errors are logged once."""
        if not self._api.reachable:
            log.warning("what containers write cannot be measured: the engine's socket is not here")
            return
        async with asyncio.TaskGroup() as group:
            group.create_task(self._for_ever(self._layers_unseen, self._look_at_layers))
            group.create_task(self._for_ever(self._volumes_unseen, self._look_at_volumes))
            group.create_task(self._for_ever(self._logs_unseen, self._look_at_logs))

    async def _for_ever(self, unseen: Condition, look: Callable[[], Awaitable[bool]]) -> None:
        """`look` answers whether it has measured."""
        while True:
            try:
                if await look():
                    unseen.over()
            except Exception as error:  # whatever it is, the agent and its containers go on
                unseen.meet(error=str(error) or repr(error))
            await asyncio.sleep(LOOK)

    async def _look_at_layers(self) -> bool:
        return bool(self._alive()) and await self._measured(self._layers, self._measure_layers)

    async def _look_at_volumes(self) -> bool:
        has_any = any(c.scratch for c in self._alive())
        return has_any and await self._measured(self._volumes, self._measure_volumes)

    async def _measured(self, pace: Pace, measure: Callable[[], Awaitable[None]]) -> bool:
        free, began = await self._free_space(), time.monotonic()
        if not pace.due(began, free):
            return False
        try:
            await measure()
        except BaseException as error:
            if isinstance(error, EngineError) and error.kind == "busy":
                return False  # with somebody else's question: again at the next look
            pace.failed(began, time.monotonic())
            raise
        pace.measured(began, time.monotonic(), free)
        return True

    async def _measure_layers(self) -> None:
        sizes = await self._api.sizes(self._owner)
        self._sentence(over_layer(sizes, self._alive(), self._settings.container_disk))

    async def _measure_volumes(self) -> None:
        sizes = await self._api.volume_sizes(self._owner)
        self._sentence(over_scratch(sizes, self._alive(), self._settings.scratch_size))

    async def _look_at_logs(self) -> bool:
        at_once = asyncio.Semaphore(LOGS_AT_ONCE)
        ids = self._logs.due([c.id for c in self._alive() if c.status == "running"], time.monotonic())

        async def look(container_id: str) -> None:
            try:
                async with at_once:
                    rate = await self._api.log_rate(container_id, LOG_FOLLOW, self._logs.limit)
            except EngineError as error:
                if error.kind == "gone":
                    return
                self._logs.looked(container_id, 0.0, time.monotonic())
                raise
            if self._logs.looked(container_id, rate, time.monotonic()):
                self._sentence([(container_id, Breach(Limit.LOG, rate / MB, self._settings.log_rate))])

        results = await asyncio.gather(*map(look, ids), return_exceptions=True)
        if failed := [result for result in results if isinstance(result, BaseException)]:
            raise failed[0]
        return bool(ids)

    def _alive(self) -> list[Container]:
        containers = self._running()
        self._condemned &= {c.id for c in containers}
        return [c for c in containers if not c.ended and c.id not in self._condemned]

    def _sentence(self, condemned: Iterable[Condemned]) -> None:
        for container_id, breach in condemned:
            if container_id not in self._condemned:
                self._condemned.add(container_id)
                self._condemn(container_id, breach)

    async def _free_space(self) -> int | None:
        if self._free is not None:
            return self._free()
        if not self._api.local:
            return None
        if self._root is None:
            self._root = await self._api.root()
        return free_bytes(self._root)
