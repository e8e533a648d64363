"""The store port: what the hub asks of whatever keeps its state.

An operation that answers has been kept: what a store acknowledged, a crash does not take back. One that
raises has changed nothing. Heartbeats are the exception: what they report is live, and kept now and then.

Operations (`operations.py`) are pure and the same for every store; a store runs each as one atomic
transaction. Only what happens very often, or looks at all nodes at once, has a name of its own here, so
that a store may do it in a cheaper way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from hub.access import Access, TokenRecord
from hub.events import HUB, Actor, EventQuery, Recorded
from hub.operations import Swept
from hub.registry import Node
from hub.state import Operation
from hub.tasklist import TaskList

T = TypeVar("T")

Wake = Callable[[str], None]
"""Called after a change was kept: with the id of the node that it concerns, EVERYONE, or AUDIT."""


class Store(Protocol):
    """All operations may raise StoreUnavailable; nothing has changed then, and asking again is right."""

    def listen(self, wake: Wake) -> None:
        """Have `wake` called from now on, in the event loop's thread."""

    async def run(self, operation: Operation[T], by: Actor = HUB) -> T:
        """Do an operation, as this actor. Raises what the operation raises."""

    async def tasks(self) -> TaskList:
        """The task list as it is now."""

    @property
    def latest_tasks(self) -> TaskList:
        """The task list as this hub last saw it: never older than what it last woke somebody for."""

    async def nodes(self) -> Sequence[Node]:
        """All nodes, in the order in which they first came."""

    async def node(self, node_id: str) -> Node:
        """One node. Raises UnknownNode."""

    async def hear(self, node_id: str) -> bool:
        """Note that a request of this node arrived; True if it was Offline until then."""

    async def take_nudge(self, node_id: str) -> bool:
        """Whether an untold order waits that has ended no held request yet; True only once an order."""

    async def sweep(self, retention: float) -> Swept:
        """Call silent nodes Offline, forget those that were absent for `retention` seconds; what counts is
        only time in which a hub could have heard them."""

    @property
    def access(self) -> Access:
        """What it takes to judge a token, as this hub last saw it: at most a second old.

        StoreUnavailable: it never saw it.
        """

    async def tokens(self) -> Sequence[TokenRecord]:
        """All tokens that were given out and not dropped, the oldest first."""

    async def events(self, query: EventQuery) -> Sequence[Recorded]:
        """The part of the audit trail that was asked for, at most `query.limit` events."""

    async def forget_events(self, before: float) -> int:
        """Drop what the audit trail has from before this time (seconds since the epoch); how many."""

    async def flush(self) -> None:
        """Keep what is live: when nodes were last seen, and what they reported."""

    async def close(self) -> None:
        """Keep everything and let go of files and threads; no operation may follow."""
