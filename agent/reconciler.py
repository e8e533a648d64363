"""The loop that makes the engine's containers what the hub wants.

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
from random import Random

import structlog

from agent import spec
from agent.engine import Engine
from agent.errors import EngineError, EngineTimeout, EngineUnreachable
from agent.planner import (
    Container,
    Fetch,
    Image,
    Kill,
    Remove,
    Start,
    State,
    Terminate,
    keepers,
    next_deadline,
    plan,
)
from agent.report import Board, report_of
from agent.slots import SlotMemory, after_exit, after_failure, describe_exit, doubled, jittered
from gridcore.systemd import notify

log = structlog.get_logger()

TICK = 10.0
"""Seconds between looks when nothing wakes the loop."""
BRISK = 1.0
"""Seconds between looks while containers are on their way out or in."""
GATHER = 0.05
"""Seconds between the first word of a change and the look: what happens together is looked at together."""
ENGINE_GRACE, HASTY_GRACE = 60.0, 5.0
"""Seconds that a stop waits, beyond the containers' own time, for an engine that does not answer."""
PASSING_FIRST, PASSING_MOST = 5.0, 300.0
PERMANENT_FIRST, PERMANENT_MOST = 15.0, 600.0


OnContainers = Callable[[tuple[Container, ...]], Coroutine[None, None, None]]


class Reconciler:
    """Owns what the node runs: `set_wanted` says what that is; `run` ends when told to stop or hand over."""

    def __init__(self, engine: Engine, board: Board, random: Random | None = None) -> None:
        self._engine = engine
        self._board = board
        self._random = random or Random()  # noqa: S311 # jitter, not a secret
        self._wanted: spec.Wanted | None = None
        self._containers: tuple[Container, ...] = ()
        self._memory: dict[int, SlotMemory] = {}
        self._deadlines: dict[str, float] = {}
        self._accounted: set[str] = set()
        self._busy_containers: set[str] = set()
        self._busy_instances: set[int] = set()
        self._image: Image | None = None
        self._engine_error: EngineError | None = None
        self._actions: set[asyncio.Task[None]] = set()
        self._pulls: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._stopping = False
        self._hasty = False
        self._handing_over = False
        self._give_up_at = math.inf

    def set_wanted(self, wanted: spec.Wanted) -> None:
        """Replace the desired state; histories of another task's slots are forgotten."""
        if self._stopping:
            return
        old = self._wanted
        if old == wanted:
            return
        if old is None or old.key != wanted.key:
            self._memory.clear()
            self._image = None
        if wanted.warning:
            log.warning("more containers than CPUs", detail=wanted.warning)
        self._wanted = wanted
        log.info("wanted", task=wanted.task, containers=len(wanted.slots), reason=wanted.reason)
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
    def remaining(self) -> int:
        """Containers of ours at the last look."""
        return len(self._containers)

    async def run(self) -> None:
        """Tick until told to stop or to hand over, and that is done.

        Raises:
            EngineError: the engine did not answer while a stop that may give up waited for it.
        """
        while not self._handing_over:
            self._wake.clear()
            looked = await self._tick()
            if looked and self._stopping and not self._containers and not self._actions:
                break
            if self._engine_error is not None and time.monotonic() > self._give_up_at:
                raise self._engine_error
            await self._rest()
        # A pull may take an hour, and the engine keeps the layers that are done: it is left alone.
        await asyncio.gather(*self._actions, return_exceptions=True)
        for pull in self._pulls:
            pull.cancel()

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
            self._show()
            return False
        if self._engine_error is not None:
            log.info("engine answers again")
            self._engine_error = None
        self._forget_the_gone()
        state = self._state(busy_containers, busy_instances)
        if not self._handing_over:
            for action in plan(state):
                self._begin(action)
        self._note_the_running()
        self._show()
        return True

    def _state(
        self, busy_containers: frozenset[str] | None = None, busy_instances: frozenset[int] | None = None
    ) -> State:
        return State(
            wanted=self._wanted,
            containers=self._containers,
            now=time.monotonic(),
            memory=self._memory,
            deadlines=self._deadlines,
            busy_containers=self._busy_containers if busy_containers is None else busy_containers,
            busy_instances=self._busy_instances if busy_instances is None else busy_instances,
            image=self._image,
        )

    async def _rest(self) -> None:
        pause = BRISK if self._actions or self._deadlines or self._stopping else TICK
        deadline = next_deadline(self._state())
        if deadline is not None:
            pause = min(pause, max(0.0, deadline - time.monotonic()) + 0.01)
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER)

    def _begin(self, action: Fetch | Start | Terminate | Kill | Remove) -> None:
        match action:
            case Fetch(image):
                failures = self._image.failures if self._image and self._image.name == image else 0
                self._image = Image(image, "fetching", failures)
                self._spawn(self._fetch(self._image), self._pulls)
            case Start(slot):
                self._busy_instances.add(slot.instance)
                self._spawn(self._start(slot), self._actions)
            case Terminate(containers):
                now = time.monotonic()
                for c in containers:
                    self._deadlines[c.id] = now + (0.0 if self._hasty else c.stop_timeout)
                self._spawn_on(containers, self._terminate)
            case Kill(containers):
                self._spawn_on(containers, self._kill)
            case Remove(containers):
                for c in containers:
                    self._account(c)
                self._spawn_on(containers, self._engine.remove)

    def _spawn(self, work: Coroutine[None, None, None], group: set[asyncio.Task[None]]) -> None:
        task = asyncio.ensure_future(work)
        group.add(task)
        task.add_done_callback(lambda done: self._ended(done, group))

    def _ended(self, task: asyncio.Task[None], group: set[asyncio.Task[None]]) -> None:
        group.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # A defect of ours: say it loudly; the next tick plans again from the list.
            log.error("action failed unexpectedly", error=repr(error))
            self._board.error("internal", repr(error))
        self._wake.set()

    async def _fetch(self, image: Image) -> None:
        try:
            if not await self._engine.has_image(image.name):
                log.info("pulling", image=image.name)
                started = time.monotonic()
                await self._engine.pull(image.name)
                log.info("pulled", image=image.name, seconds=round(time.monotonic() - started, 1))
        except EngineError as error:
            failures = image.failures + 1
            first, most = (
                (PERMANENT_FIRST, PERMANENT_MOST) if error.permanent else (PASSING_FIRST, PASSING_MOST)
            )
            wait = jittered(doubled(first, most, failures), self._random)
            if self._image is image:  # or another task has come meanwhile, with an image of its own
                due = time.monotonic() + wait
                self._image = Image(image.name, "failed", failures, due, str(error))
                self._board.error(error.kind, str(error))
                log.warning("image", image=image.name, error=str(error), next_try=f"in {wait:.0f} s")
        else:
            if self._image is image:
                self._image = Image(image.name, "ready")

    async def _start(self, slot: spec.SlotSpec) -> None:
        before = self._wanted
        try:
            await self._engine.start(slot)
            log.info("started", container=slot.name, cpu=slot.cpu)
        except (EngineTimeout, EngineUnreachable):
            pass  # the list will tell what became of it
        except EngineError as error:
            if self._wanted is before:
                if error.kind == "no-image":  # removed behind our back
                    self._image = None
                self._fail(slot.instance, error.kind, str(error))
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
                log.debug("containers", error=str(error))
            finally:
                self._busy_containers -= ids

        self._spawn(work(), self._actions)

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
            for c in containers:
                self._board.error("killed", f"{c.name} did not stop within {c.stop_timeout:g} s", c.instance)
        log.warning("killing", containers=[c.name for c in containers])
        await self._engine.signal(containers, "KILL")

    def _account(self, container: Container) -> None:
        """Enter the exit of a container into its slot's history, once."""
        if container.id in self._accounted:
            return
        self._accounted.add(container.id)
        slots = self._wanted.slots if self._wanted else ()
        slot = next((s for s in slots if s.digest == container.spec), None)
        if slot is None or container.id in self._deadlines or container.status == "created":
            return  # it was asked to end, is of another task, or its start has been told already
        kind, text = describe_exit(
            container.exit_code, oom=container.oom, memory_mb=container.memory_mb, error=container.error
        )
        ran = max(0.0, container.finished - container.started)
        memory = self._memory.get(slot.instance, SlotMemory())
        self._memory[slot.instance] = after_exit(
            memory, container.exit_code, ran, text, time.monotonic(), self._random
        )
        log.info("exited", container=container.name, exit_code=container.exit_code, seconds=round(ran, 1))
        if container.exit_code != 0:
            self._board.error(kind, f"{container.name}: {text}", slot.instance)

    def _fail(self, instance: int, kind: str, text: str) -> None:
        memory = self._memory.get(instance, SlotMemory())
        self._memory[instance] = after_failure(memory, text, time.monotonic(), self._random)
        self._board.error(kind, text, instance)
        log.warning("start failed", instance=instance, error=text)

    def _forget_the_gone(self) -> None:
        present = {c.id for c in self._containers}
        self._deadlines = {i: t for i, t in self._deadlines.items() if i in present}
        self._accounted &= present

    def _note_the_running(self) -> None:
        for instance in keepers(self._state()).values():
            memory = self._memory.get(instance)
            if memory is not None and memory.error is not None:
                self._memory[instance] = replace(memory, error=None)

    def _show(self) -> None:
        report = report_of(self._state(), self._engine_error)
        if self._board.show(report):
            notify(f"STATUS={report.sentence()}")
