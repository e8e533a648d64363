"""Carries out what the planner decided: each action runs beside the loop and wakes it when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Set

import structlog

from agent.accounts import Accounts
from agent.engine import Engine
from agent.errors import EngineError, EngineTimeout, EngineUnreachable
from agent.images import Images
from agent.patience import Patience
from agent.planner import Action, Container, Fetch, Freeze, Kill, Remove, Start, Terminate, Thaw
from agent.report import Board
from agent.spec import SlotSpec, Wanted

log = structlog.get_logger()

STARTS_AT_ONCE = 4
"""Given to the engine; the others can still be taken back."""
CONDEMNED_GRACE = 5.0
"""Seconds, at most, that a container has to stop which broke a limit."""

OnContainers = Callable[[tuple[Container, ...]], Coroutine[None, None, None]]


class Executor:
    """Knows what is under way: containers and slots that are busy, and each SIGKILL that is due.

    `wanted` answers what is wanted now, `wake` makes the loop look again.
    """

    def __init__(
        self,
        engine: Engine,
        accounts: Accounts,
        images: Images,
        board: Board,
        *,
        wanted: Callable[[], Wanted | None],
        wake: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._accounts = accounts
        self._images = images
        self._board = board
        self._wanted = wanted
        self._wake = wake
        self._actions: set[asyncio.Task[None]] = set()
        self._patience = Patience()
        self._starts = asyncio.Semaphore(STARTS_AT_ONCE)
        self._hasty = False
        self._busy_containers: set[str] = set()
        self.busy_instances: set[int] = set()
        """Slots whose start is under way."""
        self.deadlines: dict[str, float] = {}
        """Container id → when its SIGKILL is due, on the monotonic clock."""

    @property
    def is_idle(self) -> bool:
        """Nothing is under way."""
        return not self._actions

    def busy_containers(self) -> Set[str]:
        """Containers that no new action may touch now."""
        return self._busy_containers | self._patience.left_alone(time.monotonic())

    def is_moving(self) -> bool:
        """Whether something will change soon."""
        return bool(self._actions or self.deadlines or self._patience.left_alone(time.monotonic()))

    def hasten(self) -> None:
        """Let no container have more time."""
        self._hasty = True
        self.deadlines = dict.fromkeys(self.deadlines, 0.0)

    def forget_gone(self, present: Set[str]) -> None:
        """Only containers that are still there matter."""
        self.deadlines = {i: t for i, t in self.deadlines.items() if i in present}
        self._patience.forget_gone(present)

    async def finish(self) -> None:
        """Wait for what is under way."""
        await asyncio.gather(*self._actions, return_exceptions=True)

    def begin(self, action: Action) -> None:
        """Start one action."""
        match action:
            case Fetch(image):
                wanted = self._wanted()
                self._images.fetch(image, always=wanted is not None and wanted.always_pull)
            case Start(slot):
                self.busy_instances.add(slot.instance)
                self.spawn(self._start(slot))
            case Terminate(containers):
                now = time.monotonic()
                for c in containers:
                    self.deadlines[c.id] = now + self._time_to_stop(c)
                self._spawn_on(containers, self._terminate)
            case Kill(containers):
                self._spawn_on(containers, self._kill)
            case Freeze(containers):
                log.info("freezing", containers=[c.name for c in containers])
                self._spawn_on(containers, self._engine.freeze)
            case Thaw(containers):
                log.info("thawing", containers=[c.name for c in containers])
                self._spawn_on(containers, self._engine.thaw)
            case Remove(containers):
                self._spawn_on(containers, self._wind_up)

    def spawn(self, work: Coroutine[None, None, None]) -> None:
        """Run something beside the loop."""
        task = asyncio.ensure_future(work)
        self._actions.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._actions.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A defect of ours: say it loudly; the next tick plans again from the list.
            log.error("action failed unexpectedly", error=repr(error))
            self._board.error("internal", repr(error))
        self._wake()

    def _spawn_on(self, containers: tuple[Container, ...], call: OnContainers) -> None:
        ids = {c.id for c in containers}
        self._busy_containers |= ids

        async def work() -> None:
            try:
                await call(containers)
            except EngineError as error:
                # One that ended or went by itself meanwhile is no error; the next list tells.
                self._failed_on(containers, error)
            finally:
                self._busy_containers -= ids

        self.spawn(work())

    def _failed_on(self, containers: tuple[Container, ...], error: EngineError) -> None:
        log.debug("containers", error=str(error))
        for c in containers:
            if self._patience.failed(c.id, time.monotonic()):
                log.warning("a call fails again and again", container=c.name, error=str(error))
                self._board.error(error.kind, f"{c.name}: {error}", c.instance, task=c.task)

    def _time_to_stop(self, container: Container) -> float:
        if self._hasty:
            return 0.0
        if container.id in self._accounts.condemned:  # until it has ended it goes on filling the disk
            return min(container.stop_timeout, CONDEMNED_GRACE)
        return container.stop_timeout

    async def _start(self, slot: SlotSpec) -> None:
        try:
            async with self._starts:
                if not self._is_wanted(slot):
                    return  # no longer, while it waited
                await self._engine.start(slot)
                log.info("started", container=slot.name, cpu=slot.cpu)
        except (EngineTimeout, EngineUnreachable) as error:
            self._accounts.start_unanswered(slot, error)
        except EngineError as error:
            if self._is_wanted(slot):
                if error.kind == "no-image":  # removed behind our back
                    self._images.forget()
                self._accounts.start_failed(slot, error.kind, str(error))
        finally:
            self.busy_instances.discard(slot.instance)

    def _is_wanted(self, slot: SlotSpec) -> bool:
        wanted = self._wanted()
        return wanted is not None and slot in wanted.slots

    async def _terminate(self, containers: tuple[Container, ...]) -> None:
        log.info("stopping", containers=[c.name for c in containers])
        by_signal: dict[str, list[Container]] = {}
        for c in containers:
            by_signal.setdefault(c.stop_signal, []).append(c)
        try:
            calls = (self._engine.signal(some, signal) for signal, some in by_signal.items())
            failed = [e for e in await asyncio.gather(*calls, return_exceptions=True) if e is not None]
            if failed:
                unanswered = [e for e in failed if isinstance(e, EngineTimeout | EngineUnreachable)]
                raise (unanswered or failed)[0]
        except (EngineTimeout, EngineUnreachable):
            for c in containers:  # they may not have heard it: once more at the next look
                self.deadlines.pop(c.id, None)
            raise

    async def _kill(self, containers: tuple[Container, ...]) -> None:
        if not self._hasty:
            self._accounts.killed(containers)
        log.warning("killing", containers=[c.name for c in containers])
        await self._engine.signal(containers, "KILL")

    async def _wind_up(self, containers: tuple[Container, ...]) -> None:
        """Keep what is to be known of containers that ended, and remove them."""
        wanted = self._wanted()
        await asyncio.gather(
            *(self._accounts.settle(c, wanted, asked=c.id in self.deadlines) for c in containers)
        )
        full = [c.scratch for c in containers if c.scratch and self._accounts.filled_scratch(c.id)]
        await self._engine.remove(containers)
        if full:  # the next container would be stopped for it at once
            await self._engine.remove_scratch(full)
