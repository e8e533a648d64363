"""The store port: what the hub asks of whatever keeps its state, one atomic transaction for each question.

An operation that answers has been kept: what a store acknowledged, a crash does not take back. One that
raises has changed nothing. Heartbeats are the exception: what they report is live, and kept now and then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from gridcore.protocol import HeartbeatRequest, RegisterRequest, TaskDefinition, TaskGuard
from hub.registry import Node, Registration
from hub.state import Beat, Swept
from hub.tasklist import Switch, Task, TaskList

Wake = Callable[[str], None]
"""Called after a change was kept: with the id of the node that it concerns, or with EVERYONE."""


class Store(Protocol):
    """All operations may raise StoreUnavailable; nothing has changed then, and asking again is right."""

    def listen(self, wake: Wake) -> None:
        """Have `wake` called from now on, in the event loop's thread."""

    async def tasks(self) -> TaskList:
        """The task list as it is now."""

    async def add_task(self, definition: TaskDefinition) -> tuple[Task, bool]:
        """Append a pending task; False if the same definition was there. Raises TaskConflict."""

    async def start_next(self, guard: TaskGuard | None) -> Switch:
        """Complete the current task, start the next one. Raises NotCurrent, NothingPending."""

    async def finish(self, guard: TaskGuard | None) -> Switch:
        """Complete the current task, start the next one if any. Raises NotCurrent, NothingRunning."""

    async def nodes(self) -> Sequence[Node]:
        """All nodes, in the order in which they first came."""

    async def node(self, node_id: str) -> Node:
        """One node. Raises UnknownNode."""

    async def register(self, request: RegisterRequest) -> Registration:
        """Take a node in, under the id that it has, or under a new one."""

    async def heartbeat(self, report: HeartbeatRequest) -> Beat:
        """Note what a node reports; the orders that stand count as told once this has answered."""

    async def hear(self, node_id: str) -> bool:
        """Note that a request of this node arrived; True if it was Offline until then."""

    async def deregister(self, node_id: str) -> Node | None:
        """Call a node Offline until it registers again; None if it was not there."""

    async def order_stop(self, node_id: str) -> Node:
        """Let a stop stand until a heartbeat has been told. Raises UnknownNode."""

    async def order_drain(self, node_id: str) -> Node:
        """Let a node be without containers until it is taken back. Raises UnknownNode, NotSupported."""

    async def order_resume(self, node_id: str) -> Node:
        """Take back a drain, and a stop that is still untold. Raises UnknownNode."""

    async def take_nudge(self, node_id: str) -> bool:
        """Whether an untold order waits that has ended no held request yet; True only once an order."""

    async def sweep(self, retention: float) -> Swept:
        """Call silent nodes Offline, forget those not seen for `retention` seconds."""

    async def flush(self) -> None:
        """Keep what is live: when nodes were last seen, and what they reported."""

    async def close(self) -> None:
        """Keep everything and let go of files and threads; no operation may follow."""
