"""What is known of the containers that ended: each slot's history, and a record of its last runs.

A container is settled once, before it is removed: its log's end is kept, its exit is told in the operator's
words, and its slot learns how long to wait before the next.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import replace
from random import Random

import structlog

from agent.engine import Engine
from agent.errors import EngineError
from agent.exits import SIGKILLED, Circumstances, Exit, classify
from agent.limits import Breach, Limit
from agent.memory_kills import HEARSAY, MemoryKills, Word
from agent.planner import Container
from agent.reasons import Reason
from agent.report import Board
from agent.runs import Run, Runs
from agent.slots import (
    FAILURE_MOST,
    SlotMemory,
    after_exit,
    after_failed_start,
    after_interruption,
    seen_running,
)
from agent.spec import SlotSpec, Wanted
from gridcore.masking import mask_values

log = structlog.get_logger()

LOG_LINES = 2000
PASSING, PASSING_MOST = ("name-taken", "disk-full", "engine"), 10.0
"""What keeps a container from starting that is not the task's fault, and the most seconds until the next try:
looking again costs nothing, and its end is not told."""
QUIET = ("finished", "stopped", "killed")
"""Exits that are no news to the operator, or (killed) have been told when they happened."""


class Accounts:
    """`memory` is each slot's history within the task; `condemned` the containers that broke a limit."""

    def __init__(self, engine: Engine, runs: Runs, board: Board, random: Random, kills: MemoryKills) -> None:
        self._engine = engine
        self._kills = kills
        self._runs = runs
        self._board = board
        self._random = random
        self._settled: set[str] = set()
        self._killed: set[str] = set()
        self._interrupted: set[str] = set()
        self._running_since: dict[str, float] = {}
        self._unanswered: dict[int, tuple[SlotSpec, EngineError]] = {}
        self.memory: dict[int, SlotMemory] = {}
        self.condemned: dict[str, Breach] = {}

    def last(self, instance: int) -> Run | None:
        """A slot's last run."""
        return self._runs.last(instance)

    def begin_task(self) -> None:
        """Another task's histories say nothing about this one."""
        self.memory.clear()

    def condemn(self, container_id: str, breach: Breach) -> None:
        """This container broke a limit and has to go."""
        self.condemned.setdefault(container_id, breach)

    def filled_scratch(self, container_id: str) -> bool:
        """Whether it has to go because of what is in its /scratch."""
        breach = self.condemned.get(container_id)
        return breach is not None and breach.limit is Limit.SCRATCH

    def killed(self, containers: Iterable[Container]) -> None:
        """These did not stop in their time."""
        for c in containers:
            self._killed.add(c.id)
            self._board.error(
                "killed",
                f"{c.name} did not stop within {c.stop_timeout:g} s",
                c.instance,
                task=c.task,
            )

    def interrupted(self, containers: Iterable[Container]) -> None:
        """These ended while the engine was away, or before this agent came."""
        self._interrupted |= {c.id for c in containers if c.ended}

    def forget_gone(self, present: Set[str]) -> None:
        """Only containers that are still there matter."""
        self._settled &= present
        self._killed &= present
        self._interrupted &= present
        self._kills.forget_gone(present)
        self.condemned = {i: breach for i, breach in self.condemned.items() if i in present}

    def out_of_memory(self, container_id: str, at: float) -> None:
        """The engine says that the kernel killed in this container for want of memory, and when."""
        self._kills.told(container_id, at, time.time())

    def run_on(self, running: Iterable[Container]) -> None:
        """These run: of a kill for memory that did not end one of them, nothing else tells."""
        for c in running:
            if self._kills.outlived(c.id, time.time()):
                text = f"{c.name}: the kernel killed a process of it for memory (limit {c.memory_mb} MB)"
                log.warning("killed within", container=c.name, limit_mb=c.memory_mb)
                self._board.error("out-of-memory", f"{text}, and it runs on", c.instance, task=c.task)

    def seen_running(self, kept: Mapping[str, int], now: float) -> None:
        """The containers that stay, by id, with their slots: trouble that they are over is forgotten."""
        self._running_since = {i: self._running_since.get(i, now) for i in kept}
        for container_id, instance in kept.items():
            if (memory := self.memory.get(instance)) is not None:
                self.memory[instance] = seen_running(memory, now - self._running_since[container_id])

    def start_unanswered(self, slot: SlotSpec, error: EngineError) -> None:
        """The engine did not say what became of a slot's start: the next list tells."""
        self._unanswered[slot.instance] = slot, error

    def engine_away(self) -> None:
        """No list either: that is what is told, and no slot is to blame."""
        self._unanswered.clear()

    def listed(self, containers: Iterable[Container], wanted: Wanted | None, busy: Set[int]) -> None:
        """The engine has listed its containers; the slots `busy` were being started when it was asked."""
        live = {c.spec for c in containers if not c.ended}
        known = {i: start for i, start in self._unanswered.items() if i not in busy}
        for instance, (slot, error) in known.items():
            del self._unanswered[instance]
            if slot.digest not in live and wanted is not None and slot in wanted.slots:
                self.start_failed(slot, error.kind, str(error))

    def vanished(self, containers: Iterable[Container], wanted: Wanted | None, *, asked: Set[str]) -> None:
        """These ran at the last look, and are there no more: somebody else removed them."""
        for c in containers:
            if c.id in asked or c.instance is None:
                continue
            now = time.time()
            end = Exit("removed", "removed by something else while it ran", True)
            ran = max(0.0, now - c.started)
            self._keep(replace(c, finished=now), c.instance, end, b"", exit_code=None)
            if wanted is not None and c.spec in {slot.digest for slot in wanted.slots}:
                self._remember(c.instance, end, ran, c.secrets)
            log.warning("removed by something else", container=c.name, seconds=round(ran, 1))
            self._board.error(end.kind, f"{c.name}: {end.text}", c.instance, task=c.task)

    def start_failed(self, slot: SlotSpec, kind: str, text: str) -> None:
        """A slot's container could not be started."""
        text = mask_values(text, slot.secrets)
        memory = self.memory.get(slot.instance, SlotMemory())
        most = PASSING_MOST if kind in PASSING else FAILURE_MOST
        self.memory[slot.instance] = after_failed_start(
            memory, Reason(kind, text), time.monotonic(), self._random, most
        )
        self._board.error(kind, text, slot.instance, task=slot.task)
        log.warning("start failed", instance=slot.instance, error=text)
        now = time.time()
        run = Run(
            instance=slot.instance,
            task=slot.task,
            generation=slot.generation,
            container=f"{slot.name} at {now:.3f}",  # there is none
            image=slot.image,
            started=now,
            ended=now,
            exit_code=None,
            kind=kind,
            message=text,
        )
        self._runs.keep(run, b"")

    async def settle(self, container: Container, wanted: Wanted | None, *, asked: bool) -> None:
        """Keep what is to be known of a container that has ended; the second time does nothing."""
        if container.id in self._settled or container.status == "created":
            return  # a start that failed has been told already
        self._settled.add(container.id)
        known = Circumstances(
            asked=asked,
            killed=container.id in self._killed,
            condemned=self.condemned.get(container.id),
            interrupted=container.id in self._interrupted,
            kernel=await self._kernels_word(container, asked=asked),
        )
        tail = await self._log_tail(container)
        end = classify(container, tail, known)
        ran = max(0.0, container.finished - container.started)
        if container.instance is not None:
            self._keep(container, container.instance, end, tail, exit_code=container.exit_code)
            mine = wanted is not None and container.spec in {slot.digest for slot in wanted.slots}
            if mine and (not asked or known.condemned):
                self._remember(container.instance, end, ran, container.secrets)
        log.info(
            "ended",
            container=container.name,
            how=end.kind,
            exit_code=container.exit_code,
            seconds=round(ran, 1),
        )
        if end.kind not in QUIET:
            text = mask_values(end.text, container.secrets)
            self._board.error(end.kind, f"{container.name}: {text}", container.instance, task=container.task)

    async def _kernels_word(self, container: Container, *, asked: bool) -> Word:
        self._kills.look(time.time())
        killed = container.exit_code == SIGKILLED and not asked
        if killed and self._kills.is_open(container.id, container.finished, by_engine=container.oom):
            await asyncio.sleep(HEARSAY)
        return self._kills.word(container.id, container.finished, by_engine=container.oom, killed=killed)

    def _remember(self, instance: int, end: Exit, ran: float, secrets: Collection[str]) -> None:
        memory = self.memory.get(instance, SlotMemory())
        if end.kind == "interrupted":
            self.memory[instance] = after_interruption(memory)
        else:
            failure = Reason(end.kind, mask_values(end.text, secrets)) if end.is_failure else None
            self.memory[instance] = after_exit(memory, failure, ran, time.monotonic(), self._random)

    def _keep(
        self, container: Container, instance: int, end: Exit, tail: bytes, *, exit_code: int | None
    ) -> None:
        run = Run(
            instance=instance,
            task=container.task,
            generation=container.generation,
            container=container.id,  # a slot's containers all have one name
            image=container.image,
            started=container.started,
            ended=container.finished,
            exit_code=exit_code,
            kind=end.kind,
            message=mask_values(end.text, container.secrets),
        )
        text = mask_values(tail.decode(errors="replace"), container.secrets)
        self._runs.keep(run, text.encode())

    async def _log_tail(self, container: Container) -> bytes:
        try:
            return await self._engine.log_tail(container.id, LOG_LINES, Runs.LOG_BYTES)
        except EngineError as error:
            log.debug("no log", container=container.name, error=str(error))
            return b""
