"""All that a hub holds, the changes to it, and the operations that decide them.

An operation is a pure function: it looks at the state through a View and returns an Outcome, that is, what
to answer and what to change. It changes nothing itself. Whoever runs it makes the change durable first,
then real, and wakes whom it concerns last.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

from gridcore.protocol import HeartbeatRequest, RegisterRequest, TaskDefinition, TaskGuard
from hub import registry
from hub.errors import NotSupported, UnknownNode
from hub.registry import Instant, Node, Presence, Registration
from hub.tasklist import Switch, Task, TaskList

T_co = TypeVar("T_co", covariant=True)


@dataclass(frozen=True, slots=True)
class Change:
    """A new task list, if it changed, and the nodes that changed; None is a node that is forgotten."""

    tasks: TaskList | None = None
    nodes: Mapping[str, Node | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T_co]):
    """What an operation decided. `wake` is whose held requests end: a node's id, or EVERYONE."""

    answer: T_co
    change: Change = Change()
    wake: str | None = None


EVERYONE = ""
"""Stands where a node's id could: no node has an empty one."""


class View(Protocol):
    """The state as an operation sees it."""

    @property
    def tasks(self) -> TaskList: ...
    def node(self, node_id: str) -> Node | None: ...
    def nodes(self) -> Iterable[Node]: ...


class State:
    """What everybody sees: only changes that are on disk."""

    def __init__(self, tasks: TaskList, nodes: Iterable[Node] = ()) -> None:
        self.tasks = tasks
        self._nodes = {node.record.id: node for node in nodes}

    def node(self, node_id: str) -> Node | None:
        return self._nodes.get(node_id)

    def nodes(self) -> Iterable[Node]:
        return self._nodes.values()

    def apply(self, change: Change) -> None:
        """Make a change real."""
        if change.tasks is not None:
            self.tasks = change.tasks
        for node_id, node in change.nodes.items():
            if node is None:
                self._nodes.pop(node_id, None)
            else:
                self._nodes[node_id] = node

    def is_durable(self, change: Change) -> bool:
        """Whether the change touches what must survive a crash."""
        return change.tasks is not None or any(
            self._is_record_new(node_id, node) for node_id, node in change.nodes.items()
        )

    def durable_part(self, change: Change) -> Change:
        """The change without the nodes of which nothing but the live part is new."""
        nodes = {
            node_id: node for node_id, node in change.nodes.items() if self._is_record_new(node_id, node)
        }
        return Change(change.tasks, nodes)

    def _is_record_new(self, node_id: str, node: Node | None) -> bool:
        before = self._nodes.get(node_id)
        return node is None or before is None or before.record is not node.record


class Draft:
    """A state with changes on top that are not on disk yet: what the operations of one commit see."""

    def __init__(self, base: State) -> None:
        self._base = base
        self._tasks: TaskList | None = None
        self._nodes: dict[str, Node | None] = {}

    @property
    def tasks(self) -> TaskList:
        return self._tasks or self._base.tasks

    def node(self, node_id: str) -> Node | None:
        return self._nodes[node_id] if node_id in self._nodes else self._base.node(node_id)

    def nodes(self) -> Iterator[Node]:
        yield from (node for node in self._base.nodes() if node.record.id not in self._nodes)
        yield from (node for node in self._nodes.values() if node is not None)

    def apply(self, change: Change) -> None:
        """Put a change on top."""
        self._tasks = change.tasks or self._tasks
        self._nodes.update(change.nodes)

    @property
    def change(self) -> Change:
        """All changes on top, as one."""
        return Change(self._tasks, self._nodes)


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat is answered, whether the node was Offline before, and whose images it runs."""

    known: bool
    stop_requested: bool = False
    drain: bool = False
    platform: str | None = None
    is_back: bool = False


@dataclass(frozen=True, slots=True)
class Swept:
    """The nodes that a sweep called Offline, and those that it forgot."""

    silent: tuple[Node, ...] = ()
    forgotten: tuple[Node, ...] = ()


def add_task(view: View, definition: TaskDefinition, now: Instant) -> Outcome[tuple[Task, bool]]:
    tasks, task, is_new = view.tasks.add(definition, now.wall)
    return Outcome((task, is_new), Change(tasks if is_new else None))


def start_next(view: View, guard: TaskGuard | None, entropy: int, now: Instant) -> Outcome[Switch]:
    tasks, switch = view.tasks.start_next(guard, entropy, now.wall)
    return Outcome(switch, Change(tasks), EVERYONE)


def finish(view: View, guard: TaskGuard | None, entropy: int, now: Instant) -> Outcome[Switch]:
    tasks, switch = view.tasks.finish(guard, entropy, now.wall)
    return Outcome(switch, Change(tasks), EVERYONE)


def register(view: View, request: RegisterRequest, new_id: str, now: Instant) -> Outcome[Registration]:
    known = view.node(request.node_id) if request.node_id else None
    registration = registry.register(known, request, new_id, now)
    return Outcome(registration, _one(registration.node))


def heartbeat(view: View, report: HeartbeatRequest, now: Instant) -> Outcome[Beat]:
    node = view.node(report.node_id)
    if node is None or node.record.presence is Presence.GONE:
        return Outcome(Beat(known=False))
    after = registry.heartbeat(node, report, now)
    beat = Beat(
        known=True,
        stop_requested=after.stop_requested,
        drain=after.draining,
        platform=after.record.platform,
        is_back=not node.is_online,
    )
    return Outcome(beat, _one(after))


def hear(view: View, node_id: str, now: Instant) -> Outcome[bool]:
    node = view.node(node_id)
    if node is None or node.record.presence is Presence.GONE:
        return Outcome(False)
    return Outcome(not node.is_online, _one(registry.hear(node, now)))


def deregister(view: View, node_id: str) -> Outcome[Node | None]:
    node = view.node(node_id)
    if node is None or node.record.presence is Presence.GONE:
        return Outcome(None)
    after = registry.deregister(node)
    return Outcome(after, _one(after))


def order_stop(view: View, node_id: str) -> Outcome[Node]:
    return _order(registry.order_stop(_known(view, node_id)))


def order_drain(view: View, node_id: str) -> Outcome[Node]:
    node = _known(view, node_id)
    if node.record.agent_version is None:
        raise NotSupported(node_id, "drain", "Use stop: POST /api/nodes/{id}/stop.")
    return _order(registry.order_drain(node))


def order_resume(view: View, node_id: str) -> Outcome[Node]:
    return _order(registry.order_resume(_known(view, node_id)))


def _known(view: View, node_id: str) -> Node:
    node = view.node(node_id)
    if node is None:
        raise UnknownNode(node_id)
    return node


def _order(after: Node) -> Outcome[Node]:
    return Outcome(after, _one(after), after.record.id)


def take_nudge(view: View, node_id: str) -> Outcome[bool]:
    node = view.node(node_id)
    if node is None or not registry.wants_nudge(node):
        return Outcome(False)
    return Outcome(True, _one(registry.nudge(node)))


def sweep(view: View, retention: float, now: Instant) -> Outcome[Swept]:
    silent = tuple(registry.fall_silent(node) for node in view.nodes() if registry.is_silent(node, now))
    forgotten = tuple(node for node in view.nodes() if registry.is_forgotten(node, retention, now))
    nodes: dict[str, Node | None] = {node.record.id: node for node in silent}
    nodes |= {node.record.id: None for node in forgotten}
    return Outcome(Swept(silent, forgotten), Change(nodes=nodes))


def _one(node: Node) -> Change:
    return Change(nodes={node.record.id: node})
