"""The loop that makes the engine's containers what the hub wants, as far as the owner allows it.

Each tick lists afresh, asks the planner, and starts the actions it names; actions run beside the loop and
wake it when they end. What is remembered between ticks (histories, deadlines, the image) is not needed for
safety: an agent that starts anew finds its way from the list alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace

import structlog

from agent import spec
from agent.accounts import Accounts
from agent.engine import Engine
from agent.errors import EngineError, EngineTimeout, EngineUnreachable
from agent.images import Images
from agent.patience import Patience
from agent.planner import (
    Action,
    Container,
    Fetch,
    Freeze,
    Kill,
    Remove,
    Start,
    State,
    Terminate,
    Thaw,
    keepers,
    next_deadline,
    plan,
)
from agent.report import Board, report_of
from agent.scratch import Scratch
from agent.terms import Permit
from gridcore.systemd import notify

log = structlog.get_logger()

TICK = 10.0
"""Seconds between looks when nothing wakes the loop."""
BRISK = 1.0
"""Seconds between looks while containers are on their way out or in."""
GATHER = 0.05
"""Seconds between the first word of a change and the look: what happens together is looked at together."""
CONDEMNED_GRACE = 5.0
"""Seconds, at most, that a container has to stop which broke a limit."""
ENGINE_GRACE, HASTY_GRACE = 60.0, 5.0
"""Seconds that a stop waits, beyond the containers' own time, for an engine that does not answer."""


OnContainers = Callable[[tuple[Container, ...]], Coroutine[None, None, None]]


class Reconciler:
    """Owns what the node runs: `set_wanted` says what that is; `run` ends when told to stop or hand over."""

    def __init__(
        self,
        engine: Engine,
        board: Board,
        accounts: Accounts,
        make_images: Callable[[Callable[[], None]], Images],
        warnings: tuple[str, ...] = (),
    ) -> None:
        self._engine = engine
        self._board = board
        self._accounts = accounts
        self._warnings = warnings
        self._asked: spec.Wanted | None = None
        self._permit = Permit()
        self._containers: tuple[Container, ...] = ()
        self._deadlines: dict[str, float] = {}
        self._busy_containers: set[str] = set()
        self._busy_instances: set[int] = set()
        self._patience = Patience()
        self._engine_error: EngineError | None = None
        self._was_away = True  # until the first look: what ended before it was seen by nobody
        self._actions: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._hasty = False
        self._handing_over = False
        self._give_up_at = math.inf
        self._scratch = Scratch(engine)
        self.images = make_images(self.wake)

    def set_wanted(self, wanted: spec.Wanted) -> None:
        """Replace the desired state; histories of another task's slots are forgotten."""
        if self._stopping or self._asked == wanted:
            return
        old, self._asked = self._asked, wanted
        if old is None or old.key != wanted.key:
            self._accounts.begin_task()
            self.images.forget()
            self._scratch.task_changed()
        self._board.secrets = wanted.slots[0].secrets if wanted.slots else ()
        if wanted.warning:
            log.warning("more containers than CPUs", detail=wanted.warning)
        log.info("wanted", task=wanted.task, containers=len(wanted.slots), reason=wanted.reason)
        self.wake()

    def set_permit(self, permit: Permit) -> None:
        """The owner's terms as they stand now."""
        if permit == self._permit:
            return
        self._permit = permit
        log.info(
            "the owner's terms", run=not (permit.refuse or permit.freeze), why=permit.refuse or permit.freeze
        )
        self.wake()

    def condemn(self, container_id: str, why: str) -> None:
        """A container broke a limit: it is stopped, and that is a failure of its slot."""
        log.warning("over the limit", container=container_id[:12], why=why)
        self._accounts.condemn(container_id, why)
        self.wake()

    def stop(self, reason: str, *, give_up: bool) -> None:
        """Want nothing from now on; `run` returns when no container of ours is left.

        `give_up`: not wait for ever for an engine that does not answer.
        """
        self.set_wanted(spec.Wanted(reason=reason))
        self._stopping = True
        if give_up:
            longest = max((c.stop_timeout for c in self._containers), default=0.0)
            self._give_up_at = time.monotonic() + longest + ENGINE_GRACE
        self.wake()

    def hasten(self) -> None:
        """Let no container, and no engine that does not answer, have more time."""
        self._hasty = True
        self._deadlines = dict.fromkeys(self._deadlines, 0.0)
        self._give_up_at = min(self._give_up_at, time.monotonic() + HASTY_GRACE)
        self.wake()

    def hand_over(self) -> None:
        """Return from `run` once the calls under way are done, and touch no container."""
        self._handing_over = True
        self.wake()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    @property
    def containers(self) -> tuple[Container, ...]:
        """Containers of ours at the last look."""
        return self._containers

    @property
    def running(self) -> tuple[Container, ...]:
        """Those that ran at the last look."""
        return tuple(c for c in self._containers if c.status == "running")

    @property
    def permit(self) -> Permit:
        """The owner's terms as they stand now."""
        return self._permit

    async def run(self) -> None:
        """Tick until told to stop or to hand over, and that is done.

        Raises:
            EngineError: the engine did not answer while a stop that may give up waited for it.
        """
        while not self._handing_over:
            self._wake.clear()
            looked = await self._tick()
            # A loop that hangs says nothing here, and systemd starts another agent.
            notify("WATCHDOG=1")
            if looked and self._stopping and not self._containers and not self._actions:
                break
            if self._engine_error is not None and time.monotonic() > self._give_up_at:
                raise self._engine_error
            await self._rest()
        await asyncio.gather(*self._actions, return_exceptions=True)
        self.images.abandon()

    async def _tick(self) -> bool:
        # Before listing: what ends meanwhile is not in the list yet and must still count as under way.
        busy_containers, busy_instances = frozenset(self._busy_containers), frozenset(self._busy_instances)
        try:
            self._containers = await self._engine.containers()
        except EngineError as error:
            if self._engine_error is None:
                log.error("engine", error=str(error))  # noqa: TRY400 # the text says it all
                self._board.error(error.kind, str(error))
            self._engine_error = error
            self._was_away = True
            self._show()
            return False
        if self._engine_error is not None:
            log.info("engine answers again")
            self._engine_error = None
        self._forget_the_gone()
        if self._was_away:
            self._was_away = False
            self._accounts.interrupted(self._containers)
        state = self._state(busy_containers, busy_instances)
        if not self._handing_over:
            for action in plan(state):
                self._begin(action)
            if self._scratch.is_due(self._asked, self._containers):
                self._spawn(self._scratch.tidy(self._asked.key if self._asked else None))
        self._accounts.seen_running(keepers(self._state()).values())
        self._show()
        return True

    @property
    def _wanted(self) -> spec.Wanted | None:
        if self._permit.refuse is None or self._stopping:
            return self._asked
        return replace(self._asked or spec.Wanted(), slots=(), reason=self._permit.refuse)

    @property
    def _frozen(self) -> bool:
        return self._permit.freeze is not None and self._permit.refuse is None and not self._stopping

    def _state(
        self, busy_containers: frozenset[str] | None = None, busy_instances: frozenset[int] | None = None
    ) -> State:
        now = time.monotonic()
        return State(
            wanted=self._wanted,
            containers=self._containers,
            now=now,
            memory=self._accounts.memory,
            deadlines=self._deadlines,
            busy_containers=(busy_containers or frozenset())
            | self._busy_containers
            | self._patience.left_alone(now),
            busy_instances=self._busy_instances if busy_instances is None else busy_instances,
            image=self.images.current,
            frozen=self._frozen,
            condemned=self._accounts.condemned.keys(),
        )

    async def _rest(self) -> None:
        moving = self._actions or self._deadlines or self._patience.left_alone(time.monotonic())
        pause = BRISK if moving or self._stopping else TICK
        deadline = next_deadline(self._state())
        if deadline is not None:
            pause = min(pause, max(0.0, deadline - time.monotonic()) + 0.01)
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER)

    def _begin(self, action: Action) -> None:
        match action:
            case Fetch(image):
                self.images.fetch(image, always=self._asked is not None and self._asked.always_pull)
            case Start(slot):
                self._busy_instances.add(slot.instance)
                self._spawn(self._start(slot))
            case Terminate(containers):
                now = time.monotonic()
                for c in containers:
                    self._deadlines[c.id] = now + self._time_to_stop(c)
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

    def _time_to_stop(self, container: Container) -> float:
        if self._hasty:
            return 0.0
        if container.id in self._accounts.condemned:  # until it has ended it goes on filling the disk
            return min(container.stop_timeout, CONDEMNED_GRACE)
        return container.stop_timeout

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._actions.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._actions.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A defect of ours: say it loudly; the next tick plans again from the list.
            log.error("action failed unexpectedly", error=repr(error))
            self._board.error("internal", repr(error))
        self._wake.set()

    async def _start(self, slot: spec.SlotSpec) -> None:
        before = self._asked
        try:
            await self._engine.start(slot)
            log.info("started", container=slot.name, cpu=slot.cpu)
        except (EngineTimeout, EngineUnreachable):
            pass  # the list will tell what became of it
        except EngineError as error:
            if self._asked is before:
                if error.kind == "no-image":  # removed behind our back
                    self.images.forget()
                self._accounts.start_failed(slot, error.kind, str(error))
        finally:
            self._busy_instances.discard(slot.instance)

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

        self._spawn(work())

    def _failed_on(self, containers: tuple[Container, ...], error: EngineError) -> None:
        log.debug("containers", error=str(error))
        for c in containers:
            if self._patience.failed(c.id, time.monotonic()):
                log.warning("a call fails again and again", container=c.name, error=str(error))
                self._board.error(error.kind, f"{c.name}: {error}", c.instance)

    async def _wind_up(self, containers: tuple[Container, ...]) -> None:
        wanted = self._wanted
        await asyncio.gather(
            *(self._accounts.settle(c, wanted, asked=c.id in self._deadlines) for c in containers)
        )
        full = [c.scratch for c in containers if c.scratch and self._accounts.filled_scratch(c.id)]
        await self._engine.remove(containers)
        if full:  # the next container would be stopped for it at once
            await self._engine.remove_scratch(full)

    async def _terminate(self, containers: tuple[Container, ...]) -> None:
        log.info("stopping", containers=[c.name for c in containers])
        try:
            await self._engine.signal(containers, "TERM")
        except (EngineTimeout, EngineUnreachable):
            for c in containers:  # they may not have heard it: once more at the next look
                self._deadlines.pop(c.id, None)
            raise

    async def _kill(self, containers: tuple[Container, ...]) -> None:
        if not self._hasty:
            self._accounts.killed(containers)
        log.warning("killing", containers=[c.name for c in containers])
        await self._engine.signal(containers, "KILL")

    def _forget_the_gone(self) -> None:
        present = {c.id for c in self._containers}
        self._deadlines = {i: t for i, t in self._deadlines.items() if i in present}
        self._patience.forget_gone(present)
        self._accounts.forget_gone(present)

    def _show(self) -> None:
        report = report_of(
            self._state(),
            self._engine_error,
            held=self._permit.freeze if self._frozen else None,
            paused=self._permit.paused,
            warnings=self._warnings,
            last=self._accounts.last,
        )
        if self._board.show(report):
            notify(f"STATUS={report.sentence()}")
