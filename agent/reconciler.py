"""The loop that makes the engine's containers what the hub wants, as far as the owner allows it.

Each tick lists afresh, asks the planner, and gives its actions to the executor. What is remembered between
ticks (histories, deadlines, the image) is not needed for safety: an agent that starts anew finds its way from
the list alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Set
from dataclasses import replace

import structlog

from agent import spec
from agent.accounts import Accounts
from agent.engine import Engine
from agent.errors import EngineError, EngineTimeout
from agent.executor import Executor
from agent.images import Images
from agent.limits import Breach
from agent.planner import Container, State, keepers, next_deadline, plan
from agent.reasons import OWNER, STOPPING, Reason
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
SILENT = 15.0
"""Seconds after which a look without an answer is told: of an engine that hangs, nothing else would tell."""
ENGINE_GRACE, HASTY_GRACE = 60.0, 5.0
"""Seconds that a stop waits, beyond the containers' own time, for an engine that does not answer."""


class Reconciler:
    """Owns what the node runs: `set_wanted` says what that is; `run` ends when told to stop or hand over."""

    def __init__(
        self,
        engine: Engine,
        board: Board,
        accounts: Accounts,
        make_images: Callable[[Callable[[], None]], Images],
        warnings: Callable[[], tuple[str, ...]] = tuple,
    ) -> None:
        self._engine = engine
        self._board = board
        self._accounts = accounts
        self._warnings = warnings
        self._asked: spec.Wanted | None = None
        self._permit = Permit()
        self._containers: tuple[Container, ...] = ()
        self._engine_error: EngineError | None = None
        self._was_away = True  # until the first look: what ended before it was seen by nobody
        self._wake = asyncio.Event()
        self._stopping = False
        self._handing_over = False
        self._give_up_at = math.inf
        self._scratch = Scratch(engine)
        self.images = make_images(self.wake)
        self._executor = Executor(
            engine, accounts, self.images, board, wanted=lambda: self._wanted, wake=self.wake
        )

    def set_wanted(self, wanted: spec.Wanted) -> None:
        """Replace the desired state; histories of another task's slots are forgotten."""
        if self._stopping or self._asked == wanted:
            return
        old, self._asked = self._asked, wanted
        if old is None or old.key != wanted.key:
            self._accounts.begin_task()
            self._board.begin_task()
            self.images.forget()
            self._scratch.task_changed()
        if wanted.is_word:
            self.images.need(slot.image for slot in wanted.slots)
        self._board.secrets = wanted.slots[0].secrets if wanted.slots else ()
        if wanted.warning:
            log.warning("more containers than CPUs", detail=wanted.warning)
        why = wanted.reason.text if wanted.reason else None
        log.info("wanted", task=wanted.task, containers=len(wanted.slots), reason=why)
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

    def condemn(self, container_id: str, breach: Breach) -> None:
        """A container broke a limit: it is stopped, and that is a failure of its slot."""
        log.warning("over the limit", container=container_id[:12], why=str(breach))
        self._accounts.condemn(container_id, breach)
        self.wake()

    def stop(self, reason: str, *, give_up: bool) -> None:
        """Want nothing from now on; `run` returns when no container of ours is left.

        `give_up`: not wait for ever for an engine that does not answer.
        """
        self.set_wanted(spec.Wanted(reason=Reason(STOPPING, reason)))
        self._stopping = True
        if give_up:
            longest = max((c.stop_timeout for c in self._containers), default=0.0)
            self._give_up_at = time.monotonic() + longest + ENGINE_GRACE
        self.wake()

    def hasten(self) -> None:
        """Let no container, and no engine that does not answer, have more time."""
        self._executor.hasten()
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
            if looked and self._stopping and not self._containers and self._executor.is_idle:
                break
            if self._engine_error is not None and time.monotonic() > self._give_up_at:
                raise self._engine_error
            await self._rest()
        await self._executor.finish()
        self.images.abandon()

    async def _tick(self) -> bool:
        # Before listing: what ends meanwhile is not in the list yet and must still count as under way.
        busy_containers = frozenset(self._executor.busy_containers())
        busy_instances = frozenset(self._executor.busy_instances)
        before = self._containers
        silent = asyncio.get_running_loop().call_later(SILENT, self._engine_is_silent)
        try:
            self._containers = await self._engine.containers()
        except EngineError as error:
            self._engine_fails(error)
            self._was_away = True
            self._accounts.engine_away()
            return False
        finally:
            silent.cancel()
        if self._engine_error is not None:
            log.info("engine answers again")
            self._engine_error = None
        present = {c.id for c in self._containers}
        gone = [c for c in before if not c.ended and c.id not in present]
        self._accounts.vanished(gone, self._wanted, asked=self._executor.deadlines.keys())
        self._accounts.listed(self._containers, self._wanted, busy_instances)
        self._executor.forget_gone(present)
        self._accounts.forget_gone(present)
        if self._was_away:
            self._was_away = False
            self._accounts.interrupted(self._containers)
        state = self._state(busy_containers, busy_instances)
        if not self._handing_over:
            for action in plan(state):
                self._executor.begin(action)
            if self._scratch.is_due(self._asked, self._containers):
                self._executor.spawn(self._scratch.tidy(self._asked.key if self._asked else None))
        self._accounts.seen_running(keepers(self._state()), time.monotonic())
        self._accounts.run_on(self.running)
        self._show()
        return True

    def _engine_is_silent(self) -> None:
        """A look has taken long, and may still be answered: what was seen last need not be so now."""
        if self._engine_error is None:
            text = f"the container engine has not answered for {SILENT:.0f} s; it is waited for"
            self._engine_fails(EngineTimeout("engine", text))

    def _engine_fails(self, error: EngineError) -> None:
        if self._engine_error is None:
            log.error("engine", error=str(error))
            self._board.error(error.kind, str(error))
        self._engine_error = error
        self._show()

    @property
    def _wanted(self) -> spec.Wanted | None:
        if self._permit.refuse is None or self._stopping:
            return self._asked
        refused = Reason(OWNER, self._permit.refuse)
        return replace(self._asked or spec.Wanted(), slots=(), reason=refused)

    @property
    def _frozen(self) -> bool:
        return self._permit.freeze is not None and self._permit.refuse is None and not self._stopping

    def _state(
        self, busy_containers: Set[str] = frozenset(), busy_instances: Set[int] = frozenset()
    ) -> State:
        """What is known now; also busy is what was so when the list was asked for."""
        now = time.monotonic()
        return State(
            wanted=self._wanted,
            containers=self._containers,
            now=now,
            memory=self._accounts.memory,
            deadlines=self._executor.deadlines,
            busy_containers=busy_containers | self._executor.busy_containers(),
            busy_instances=busy_instances | self._executor.busy_instances,
            image=self.images.current,
            frozen=self._frozen,
            condemned=self._accounts.condemned.keys(),
        )

    async def _rest(self) -> None:
        pause = BRISK if self._executor.is_moving() or self._stopping else TICK
        deadline = next_deadline(self._state())
        if deadline is not None:
            pause = min(pause, max(0.0, deadline - time.monotonic()) + 0.01)
        try:
            async with asyncio.timeout(pause):
                await self._wake.wait()
        except TimeoutError:
            return
        await asyncio.sleep(GATHER)

    def _show(self) -> None:
        report = report_of(
            self._state(),
            self._engine_error,
            held=self._permit.freeze if self._frozen else None,
            paused=self._permit.paused,
            warnings=self._warnings(),
            last=self._accounts.last,
        )
        if self._board.show(report):
            notify(f"STATUS={report.sentence()}")
