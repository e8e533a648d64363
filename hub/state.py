"""All that a hub holds, and the form in which it changes.

An operation is a pure function: it looks at the state through a View, at the moment and its actor, and
returns an Outcome, that is, what to answer and what to change. It changes nothing itself. Whoever runs it
makes the change durable first, then real, and wakes whom it concerns last. `operations.py` has them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Generic, Protocol, TypeVar

from hub.access import Access, SigningKey, TokenRecord
from hub.events import HUB, Actor, Event
from hub.observed import Instant
from hub.registry import Node
from hub.tasklist import TaskList

T_co = TypeVar("T_co", covariant=True)
V = TypeVar("V")

EVERYONE = ""
"""Whose held requests end: stands where a node's id could, since no node has an empty one."""

BLANK = " "
"""Between the ids of several nodes whose held requests end; no id holds one."""

AUDIT = "\0events"
"""Stands there too, for those who follow the audit trail."""


Mark = Mapping[str, Any]
"""A few JSON values that the hub keeps for itself under a name, such as a lease or how far it has come."""


@dataclass(frozen=True, slots=True)
class Change:
    """A new task list, if it changed; the nodes, tokens, keys and marks that changed, where None is one that
    is gone; and what the audit trail tells of it."""

    tasks: TaskList | None = None
    nodes: Mapping[str, Node | None] = field(default_factory=dict)
    tokens: Mapping[str, TokenRecord | None] = field(default_factory=dict)
    keys: Mapping[str, SigningKey | None] = field(default_factory=dict)
    marks: Mapping[str, Mark | None] = field(default_factory=dict)
    events: tuple[Event, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T_co]):
    """What an operation decided. `wake` is whose held requests end: a node's id, several (`wake_of`), or
    EVERYONE."""

    answer: T_co
    change: Change = Change()
    wake: str | None = None


class View(Protocol):
    """The state as an operation sees it: of nodes, tokens and marks those that it named, and no others."""

    @property
    def tasks(self) -> TaskList: ...
    @property
    def keys(self) -> Mapping[str, SigningKey]: ...
    def node(self, node_id: str) -> Node | None: ...
    def token(self, token_id: str) -> TokenRecord | None: ...
    def mark(self, name: str) -> Mark | None: ...


@dataclass(frozen=True, slots=True)
class Moment:
    """When and by whom an operation is done, and the randomness that it may use."""

    now: Instant
    entropy: Callable[[], int]
    """64 random bits."""
    new_id: Callable[[], str]
    """An id that nothing has."""
    by: Actor = HUB

    def tell(self, kind: str, **about: Any) -> tuple[Event, ...]:
        """One event of this moment: `task`, `node`, `result` and `detail` are what else it has."""
        return (Event(self.now.wall, kind, self.by.who, self.by.source, **about),)


@dataclass(frozen=True, slots=True)
class Operation(Generic[T_co]):
    """A decision, and the ids of the nodes and tokens, and the names of the marks, that it looks at."""

    decide: Callable[[View, Moment], Outcome[T_co]]
    nodes: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    marks: tuple[str, ...] = ()


class State:
    """What everybody sees: only changes that are on disk."""

    def __init__(
        self,
        tasks: TaskList,
        nodes: Iterable[Node] = (),
        tokens: Iterable[TokenRecord] = (),
        keys: Iterable[SigningKey] = (),
        marks: Mapping[str, Mark] | None = None,
        observed: float = 0.0,
    ) -> None:
        """`observed` is how far the clock of `observed.py` had come when this was kept."""
        self.tasks = tasks
        self.observed = observed
        self._nodes = {node.record.id: node for node in nodes}
        self._tokens = {token.id: token for token in tokens}
        self._marks = dict(marks or {})
        self.access = Access({key.id: key for key in keys}, self._revoked())

    @property
    def keys(self) -> Mapping[str, SigningKey]:
        return self.access.keys

    def node(self, node_id: str) -> Node | None:
        return self._nodes.get(node_id)

    def nodes(self) -> Iterable[Node]:
        return self._nodes.values()

    def token(self, token_id: str) -> TokenRecord | None:
        return self._tokens.get(token_id)

    def mark(self, name: str) -> Mark | None:
        return self._marks.get(name)

    def tokens(self) -> Iterable[TokenRecord]:
        return self._tokens.values()

    def apply(self, change: Change) -> None:
        """Make a change real."""
        if change.tasks is not None:
            self.tasks = change.tasks
        _put(self._nodes, change.nodes)
        _put(self._marks, change.marks)
        if change.tokens or change.keys:
            _put(self._tokens, change.tokens)
            keys = dict(self.access.keys)
            _put(keys, change.keys)
            revokes = any(token is None or token.revoked for token in change.tokens.values())
            self.access = Access(keys, self._revoked() if revokes else self.access.revoked)

    def _revoked(self) -> frozenset[str]:
        return frozenset(token.id for token in self._tokens.values() if token.revoked is not None)

    def is_durable(self, change: Change) -> bool:
        """Whether the change touches what must survive a crash."""
        return (
            change.tasks is not None
            or bool(change.tokens or change.keys or change.marks or change.events)
            or any(self._is_record_new(node_id, node) for node_id, node in change.nodes.items())
        )

    def durable_part(self, change: Change) -> Change:
        """The change without the nodes of which nothing but the live part is new."""
        nodes = {
            node_id: node for node_id, node in change.nodes.items() if self._is_record_new(node_id, node)
        }
        return replace(change, nodes=nodes)

    def _is_record_new(self, node_id: str, node: Node | None) -> bool:
        before = self._nodes.get(node_id)
        return node is None or before is None or before.record is not node.record


class Draft:
    """A state with changes on top that are not on disk yet: what the operations of one commit see."""

    def __init__(self, base: View) -> None:
        self._base = base
        self._tasks: TaskList | None = None
        self._nodes: dict[str, Node | None] = {}
        self._tokens: dict[str, TokenRecord | None] = {}
        self._keys: dict[str, SigningKey | None] = {}
        self._marks: dict[str, Mark | None] = {}
        self._events: list[Event] = []

    @property
    def tasks(self) -> TaskList:
        return self._tasks or self._base.tasks

    @property
    def keys(self) -> Mapping[str, SigningKey]:
        if not self._keys:
            return self._base.keys
        keys = dict(self._base.keys)
        _put(keys, self._keys)
        return keys

    def node(self, node_id: str) -> Node | None:
        return self._nodes[node_id] if node_id in self._nodes else self._base.node(node_id)

    def token(self, token_id: str) -> TokenRecord | None:
        return self._tokens[token_id] if token_id in self._tokens else self._base.token(token_id)

    def mark(self, name: str) -> Mark | None:
        return self._marks[name] if name in self._marks else self._base.mark(name)

    def apply(self, change: Change) -> None:
        """Put a change on top."""
        self._tasks = change.tasks or self._tasks
        self._nodes.update(change.nodes)
        self._tokens.update(change.tokens)
        self._keys.update(change.keys)
        self._marks.update(change.marks)
        self._events.extend(change.events)

    @property
    def change(self) -> Change:
        """All changes on top, as one."""
        parts = (self._nodes, self._tokens, self._keys, self._marks)
        return Change(self._tasks, *parts, tuple(self._events))


def _put(kept: dict[str, V], changed: Mapping[str, V | None]) -> None:
    for key, value in changed.items():
        if value is None:
            kept.pop(key, None)
        else:
            kept[key] = value


def wake_of(node_ids: Iterable[str]) -> str | None:
    """What wakes the held requests of these nodes, and no others."""
    return BLANK.join(node_ids) or None


def ids_of(nodes: Iterable[Node]) -> Iterator[str]:
    """The ids of nodes."""
    return (node.record.id for node in nodes)
