"""The state as JSON values and back, the same for every store.

Readers take what they know and give the rest its default, so that what an earlier version wrote is read as
it is, and so is what a later one wrote beside this hub. Not so a task's definition: without a field that this
hub does not know it would be another task.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar

from gridcore.protocol import TaskDefinition
from hub.access import Role, SigningKey, TokenRecord
from hub.events import Event
from hub.registry import DrainOrder, Live, Node, NodeRecord, Presence, StopOrder
from hub.reports import ContainerState, LastExit, NodeError
from hub.tasklist import Aborted, Canary, Task, TaskList, TaskStatus

_KINDS = (
    Aborted,
    Canary,
    ContainerState,
    Event,
    LastExit,
    Live,
    NodeError,
    NodeRecord,
    SigningKey,
    TokenRecord,
)
_NAMES: dict[Any, frozenset[str]] = {kind: frozenset(field.name for field in fields(kind)) for kind in _KINDS}
T = TypeVar("T")


def dump_head(tasks: TaskList) -> dict[str, Any]:
    """A task list without its tasks."""
    return {
        "revision": tasks.revision,
        "is_held": tasks.is_held,
        "canary": asdict(tasks.canary) if tasks.canary else None,
        "fleet_redis": tasks.fleet_redis,
    }


def load_list(head: Mapping[str, Any], tasks: tuple[Task, ...], written: str | None = None) -> TaskList:
    """A task list from its head and its tasks, which are in order.

    A task without a revision was written last by a hub of an earlier version: it gets one that follows from
    `written`, which names this state of the list and by default is the list's own revision.
    """
    canary = head.get("canary")
    unnamed = f"list-{head['revision'] if written is None else written}"
    return TaskList(
        head["revision"],
        tuple(task if task.revision else replace(task, revision=unnamed) for task in tasks),
        is_held=head.get("is_held", False),
        canary=_of(Canary, canary, nodes=tuple(canary["nodes"])) if canary else None,
        fleet_redis=head.get("fleet_redis"),
    )


def dump_task(task: Task) -> dict[str, Any]:
    """A task with its secrets, as they are."""
    return {
        "definition": task.definition.to_stored(),
        "added_at": task.added_at,
        "status": task.status.value,
        "started_at": task.started_at,
        "completed_at": task.completed_at,
        "earlier": [definition.to_stored() for definition in task.earlier],
        "aborted": asdict(task.aborted) if task.aborted else None,
        "revision": task.revision,
    }


def load_task(kept: Mapping[str, Any]) -> Task:
    return Task(
        TaskDefinition.model_validate(kept["definition"]),
        kept["added_at"],
        TaskStatus(kept["status"]),
        kept["started_at"],
        kept["completed_at"],
        tuple(TaskDefinition.model_validate(definition) for definition in kept.get("earlier", ())),
        _of(Aborted, kept["aborted"]) if kept.get("aborted") else None,
        kept.get("revision", ""),
    )


def dump_record(record: NodeRecord) -> dict[str, Any]:
    """What is kept of a node over a restart."""
    return asdict(record)


def load_record(kept: Mapping[str, Any]) -> NodeRecord:
    return _of(
        NodeRecord,
        kept,
        presence=Presence(kept["presence"]),
        stop=StopOrder(kept["stop"]),
        drain=DrainOrder(kept.get("drain", DrainOrder.NONE)),
    )


_KEPT = [field.name for field in fields(Live) if field.name not in ("heard", "nudged")]
"""What of a Live outlasts this run of the hub."""


def live_text(live: Live) -> str:
    """The live part of a node as JSON text, without what has no meaning for another hub or a later run."""
    # `asdict` copies deeply: too slow for the containers of a fleet.
    return json.dumps({name: getattr(live, name) for name in _KEPT}, default=_fields_of)


def _fields_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def load_live(kept: Mapping[str, Any], heard: float, *, nudged: bool = False) -> Live:
    """A live part; `heard` is when the node was, by the clock that now counts."""
    return _of(
        Live,
        kept,
        heard=heard,
        nudged=nudged,
        errors=tuple(_of(NodeError, error) for error in kept["errors"]),
        containers=tuple(_load_container(container) for container in kept.get("containers", ())),
        warnings=tuple(kept.get("warnings", ())),
    )


def _load_container(kept: Mapping[str, Any]) -> ContainerState:
    ended = kept["last_exit"]
    return _of(ContainerState, kept, last_exit=_of(LastExit, ended) if ended else None)


def restore_node(
    record: Mapping[str, Any], live: Mapping[str, Any], now: float = 0.0, heard: float | None = None
) -> Node:
    """A node as a starting hub finds it; times by the clock of `observed.py`. One that is Online was heard
    `now`, whenever that was; one that is not was `heard` then, or is taken for heard now."""
    loaded = load_record(record)
    is_absent = loaded.presence is not Presence.ONLINE and heard is not None
    return Node(loaded, load_live(live, min(heard or 0.0, now) if is_absent else now))


def dump_token(token: TokenRecord) -> dict[str, Any]:
    return asdict(token)


def load_token(kept: Mapping[str, Any]) -> TokenRecord:
    return _of(TokenRecord, kept, role=Role(kept["role"]))


def dump_key(key: SigningKey) -> dict[str, Any]:
    """A key with its secret, as it is."""
    return asdict(key)


def load_key(kept: Mapping[str, Any]) -> SigningKey:
    return _of(SigningKey, kept)


def dump_event(event: Event) -> dict[str, Any]:
    return asdict(event)


def load_event(kept: Mapping[str, Any]) -> Event:
    return _of(Event, kept)


def _of(kind: type[T], kept: Mapping[str, Any], **parts: Any) -> T:
    """A `kind` (a dataclass) from what is known of it in `kept`; `parts` in place of what stands there."""
    names = _NAMES[kind]
    known = kept if kept.keys() <= names else {name: kept[name] for name in names & kept.keys()}
    return kind(**{**known, **parts})
