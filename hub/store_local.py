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
from typing import Any, Protocol, TypeVar

from hub import operations
from hub.access import Access, TokenRecord
from hub.errors import StoreUnavailable, UnknownNode
from hub.events import HUB, Actor, EventQuery, Recorded
from hub.journal_memory import MemoryJournal
from hub.observed import Instant, ObservedClock
from hub.operations import Swept
from hub.registry import Node
from hub.state import AUDIT, Change, Draft, Moment, Operation, Outcome, State
from hub.store import Wake
from hub.tasklist import TaskList

T = TypeVar("T")

_STEADY = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux has one that goes on while the machine is suspended."""


class Journal(Protocol):
    """Where changes are kept. Each call is one transaction; StoreUnavailable means that nothing was kept."""

    async def commit(self, change: Change) -> None:
        """Keep a change; it is on disk when this returns."""

    async def keep_live(self, nodes: Sequence[Node], observed: float) -> None:
        """Keep the live part of nodes that are known already, and nothing else of them; and how far the clock
        of `observed.py` has come."""

    async def events(self, query: EventQuery) -> Sequence[Recorded]:
        """The part of the audit trail that was asked for."""

    async def forget_events(self, before: float) -> int:
        """Drop the events from before this time."""

    async def close(self) -> None:
        """Let go of files and threads."""


def read_clock() -> Instant:
    """This moment, by the machine's two clocks; the first goes on while the machine is suspended."""
    return Instant(time.clock_gettime(_STEADY), time.time())


def new_entropy() -> int:
    """64 random bits."""
    return secrets.randbits(64)


def new_node_id() -> str:
    """An id for a node that has none."""
    return str(uuid.uuid4())


@dataclass(frozen=True, slots=True)
class _Waiting:
    operation: Operation[Any]
    moment: Moment
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
        self._clock = ObservedClock(clock, state.observed)
        self._entropy = entropy
        self._new_id = node_id
        self._wake: Wake = _wake_nobody
        self._queue: list[_Waiting] = []
        self._committer: asyncio.Task[None] | None = None
        self._being_written: frozenset[str] = frozenset()
        self._dirty: set[str] = set()

    def listen(self, wake: Wake) -> None:
        self._wake = wake

    def observe(self) -> Instant:
        """Note that the hub is there to hear its nodes; this moment."""
        return self._clock.look()

    async def tasks(self) -> TaskList:
        return self._state.tasks

    @property
    def latest_tasks(self) -> TaskList:
        return self._state.tasks

    async def nodes(self) -> Sequence[Node]:
        return list(self._state.nodes())

    async def node(self, node_id: str) -> Node:
        node = self._state.node(node_id)
        if node is None:
            raise UnknownNode(node_id)
        return node

    async def hear(self, node_id: str) -> bool:
        return await self.run(operations.hear(node_id))

    async def take_nudge(self, node_id: str) -> bool:
        return await self.run(operations.take_nudge(node_id))

    async def sweep(self, retention: float) -> Swept:
        node_ids = tuple(node.record.id for node in self._state.nodes())
        return await self.run(operations.sweep(node_ids, retention))

    @property
    def access(self) -> Access:
        return self._state.access

    async def tokens(self) -> Sequence[TokenRecord]:
        return list(self._state.tokens())

    async def events(self, query: EventQuery) -> Sequence[Recorded]:
        return await self._journal.events(query)

    async def forget_events(self, before: float) -> int:
        return await self._journal.forget_events(before)

    async def run(self, operation: Operation[T], by: Actor = HUB) -> T:
        moment = Moment(self.observe(), self._entropy, self._new_id, by)
        # A node that is being written has a newer record than the state shows: its operations wait in line.
        if not self._queue and self._being_written.isdisjoint(operation.nodes):
            outcome = operation.decide(self._state, moment)
            if not self._state.is_durable(outcome.change):
                self._make_real(outcome.change)
                return outcome.answer
        waiting = _Waiting(operation, moment, asyncio.get_running_loop().create_future())
        self._queue.append(waiting)
        if self._committer is None or self._committer.done():
            self._committer = asyncio.create_task(self._commit_all())
        answer: T = await waiting.answer
        return answer

    async def flush(self) -> None:
        dirty, self._dirty = self._dirty, set()
        nodes = [node for node_id in dirty if (node := self._state.node(node_id)) is not None]
        try:
            await self._journal.keep_live(nodes, self.observe().monotonic)
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

    async def _commit_all(self) -> None:
        while self._queue:
            batch, self._queue = self._queue, []
            draft = Draft(self._state)
            decided = [(waiting, _decide(waiting, draft)) for waiting in batch]
            try:
                await self._write(draft.change)
            except Exception as error:  # whatever it is: nobody may wait for ever
                decided = [(waiting, error) for waiting in batch]
            else:
                self._make_real(draft.change)
            for waiting, outcome in decided:
                self._deliver(waiting.answer, outcome)

    def _deliver(self, answer: asyncio.Future[Any], outcome: Outcome[Any] | Exception) -> None:
        if isinstance(outcome, Outcome):
            if outcome.wake is not None:
                self._wake(outcome.wake)
            if outcome.change.events:
                self._wake(AUDIT)
        if answer.done():  # who asked has gone
            return
        if isinstance(outcome, Outcome):
            answer.set_result(outcome.answer)
        else:
            answer.set_exception(outcome)

    async def _write(self, change: Change) -> None:
        durable = self._state.durable_part(change)
        if not self._state.is_durable(durable):
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


def _decide(waiting: _Waiting, draft: Draft) -> Outcome[Any] | Exception:
    try:
        outcome = waiting.operation.decide(draft, waiting.moment)
    except Exception as refusal:  # told only after the commit, as it may rest on what is being written
        return refusal
    draft.apply(outcome.change)
    return outcome


def open_memory(clock: Callable[[], Instant] = read_clock) -> LocalStore:
    """A store that forgets everything when it is closed."""
    return LocalStore(State(TaskList.empty(new_entropy())), MemoryJournal(), clock=clock)
