"""A store for one hub: the state in memory, its changes kept by a journal before they become real.

Operations that change nothing durable (almost all heartbeats) are done at once. The others queue for a
commit; what arrives while one is being written joins the next, so that a thousand registrations cost a few
writes, not a thousand. Decisions and memory stay in the event loop; only the journal works elsewhere.
"""

from __future__ import annotations

import asyncio
import secrets
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

from gridcore.protocol import HeartbeatRequest, RegisterRequest, TaskDefinition, TaskGuard
from hub import state as operations
from hub.errors import StoreUnavailable, UnknownNode
from hub.registry import Instant, Node, Registration
from hub.state import Beat, Change, Draft, Outcome, State, Swept, View
from hub.store import Wake
from hub.tasklist import Switch, Task, TaskList

T = TypeVar("T")
Operation = Callable[[View], Outcome[T]]


class Journal(Protocol):
    """Where changes are kept. Each call is one transaction; StoreUnavailable means that nothing was kept."""

    async def commit(self, change: Change) -> None:
        """Keep a change; it is on disk when this returns."""

    async def keep_live(self, nodes: Sequence[Node]) -> None:
        """Keep the live part of nodes that are known already, and nothing else of them."""

    async def close(self) -> None:
        """Let go of files and threads."""


class NoJournal:
    """Keeps nothing: for tests, and for trying things out."""

    async def commit(self, change: Change) -> None:
        pass

    async def keep_live(self, nodes: Sequence[Node]) -> None:
        pass

    async def close(self) -> None:
        pass


def read_clock() -> Instant:
    """This moment, by the machine's two clocks."""
    return Instant(time.monotonic(), time.time())


def new_entropy() -> int:
    """64 random bits."""
    return secrets.randbits(64)


def new_node_id() -> str:
    """An id for a node that has none."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class _Waiting:
    operation: Operation[Any]
    answer: asyncio.Future[Any]


class LocalStore:
    """The Store over a State and a Journal; clock and random sources can be replaced by tests."""

    def __init__(
        self,
        state: State,
        journal: Journal,
        *,
        clock: Callable[[], Instant] = read_clock,
        entropy: Callable[[], int] = new_entropy,
        node_id: Callable[[], str] = new_node_id,
    ) -> None:
        self._state = state
        self._journal = journal
        self._clock = clock
        self._entropy = entropy
        self._new_id = node_id
        self._wake: Wake = _wake_nobody
        self._queue: list[_Waiting] = []
        self._committer: asyncio.Task[None] | None = None
        self._being_written: frozenset[str] = frozenset()
        self._dirty: set[str] = set()

    def listen(self, wake: Wake) -> None:
        self._wake = wake

    async def tasks(self) -> TaskList:
        return self._state.tasks

    async def add_task(self, definition: TaskDefinition) -> tuple[Task, bool]:
        return await self._run(partial(operations.add_task, definition=definition, now=self._clock()))

    async def start_next(self, guard: TaskGuard | None) -> Switch:
        entropy, now = self._entropy(), self._clock()
        return await self._run(partial(operations.start_next, guard=guard, entropy=entropy, now=now))

    async def finish(self, guard: TaskGuard | None) -> Switch:
        entropy, now = self._entropy(), self._clock()
        return await self._run(partial(operations.finish, guard=guard, entropy=entropy, now=now))

    async def nodes(self) -> Sequence[Node]:
        return list(self._state.nodes())

    async def node(self, node_id: str) -> Node:
        node = self._state.node(node_id)
        if node is None:
            raise UnknownNode(node_id)
        return node

    async def register(self, request: RegisterRequest) -> Registration:
        new_id, now = self._new_id(), self._clock()
        operation = partial(operations.register, request=request, new_id=new_id, now=now)
        return await self._run(operation, request.node_id or new_id)

    async def heartbeat(self, report: HeartbeatRequest) -> Beat:
        operation = partial(operations.heartbeat, report=report, now=self._clock())
        return await self._run(operation, report.node_id)

    async def hear(self, node_id: str) -> bool:
        return await self._run(partial(operations.hear, node_id=node_id, now=self._clock()), node_id)

    async def deregister(self, node_id: str) -> Node | None:
        return await self._run(partial(operations.deregister, node_id=node_id), node_id)

    async def order_stop(self, node_id: str) -> Node:
        return await self._run(partial(operations.order_stop, node_id=node_id), node_id)

    async def order_drain(self, node_id: str) -> Node:
        return await self._run(partial(operations.order_drain, node_id=node_id), node_id)

    async def order_resume(self, node_id: str) -> Node:
        return await self._run(partial(operations.order_resume, node_id=node_id), node_id)

    async def take_nudge(self, node_id: str) -> bool:
        return await self._run(partial(operations.take_nudge, node_id=node_id), node_id)

    async def sweep(self, retention: float) -> Swept:
        return await self._run(partial(operations.sweep, retention=retention, now=self._clock()))

    async def flush(self) -> None:
        dirty, self._dirty = self._dirty, set()
        nodes = [node for node_id in dirty if (node := self._state.node(node_id)) is not None]
        if not nodes:
            return
        try:
            await self._journal.keep_live(nodes)
        except StoreUnavailable:
            self._dirty |= dirty
            raise

    async def close(self) -> None:
        if self._committer is not None:
            await self._committer
        try:
            await self.flush()
        finally:
            await self._journal.close()

    async def _run(self, operation: Operation[T], node_id: str | None = None) -> T:
        # A node that is being written has a newer record than the state shows: its operations wait in line.
        if not self._queue and node_id not in self._being_written:
            outcome = operation(self._state)
            if not self._state.is_durable(outcome.change):
                self._make_real(outcome.change)
                return outcome.answer
        waiting = _Waiting(operation, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit_all())
        answer: T = await waiting.answer
        return answer

    async def _commit_all(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            draft = Draft(self._state)
            decided = [(waiting, _decide(waiting.operation, draft)) for waiting in batch]
            try:
                await self._write(draft.change)
            except Exception as error:  # whatever it is: nobody may wait for ever
                decided = [(waiting, error) for waiting in batch]
            else:
                self._make_real(draft.change)
            for waiting, outcome in decided:
                self._deliver(waiting.answer, outcome)

    def _deliver(self, answer: asyncio.Future[Any], outcome: Outcome[Any] | Exception) -> None:
        if isinstance(outcome, Outcome) and outcome.wake is not None:
            self._wake(outcome.wake)
        if answer.done():  # who asked has gone
            return
        if isinstance(outcome, Outcome):
            answer.set_result(outcome.answer)
        else:
            answer.set_exception(outcome)

    async def _write(self, change: Change) -> None:
        durable = self._state.durable_part(change)
        if durable.tasks is None and not durable.nodes:
            return
        self._being_written = frozenset(change.nodes)
        try:
            await self._journal.commit(durable)
        finally:
            self._being_written = frozenset()

    def _make_real(self, change: Change) -> None:
        self._state.apply(change)
        self._dirty.update(change.nodes)


def _wake_nobody(_whom: str) -> None:
    """Until somebody listens."""


def _decide(operation: Operation[Any], draft: Draft) -> Outcome[Any] | Exception:
    try:
        outcome = operation(draft)
    except Exception as refusal:  # told only after the commit, as it may rest on what is being written
        return refusal
    draft.apply(outcome.change)
    return outcome


def open_memory(clock: Callable[[], Instant] = read_clock) -> LocalStore:
    """A store that forgets everything when it is closed."""
    return LocalStore(State(TaskList.empty(new_entropy())), NoJournal(), clock=clock)
