"""What people are told of, decided from what was seen. Pure: what was known, what is seen now, what to tell.

Levels become edges: an empty queue is told once, when it becomes empty, not at every look. What is remembered
for that is kept by the hub beside how far it has read the audit trail, so that a restart tells nothing twice.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hub.events import NODES_NAMED, Recorded

QUEUE_EMPTY, TASK_FAILING, NODES_GONE, CANARY, TEST = (
    "queue-empty",
    "task-failing",
    "nodes-gone",
    "canary",
    "test",
)

SETTLING = 60.0
"""Seconds after a switch in which no task is called failing: nodes still speak of the last one."""

CALM = 0.5
"""Part of its share below which a failing task must fall before it can be told of again."""

OLDEST = 3600.0
"""Seconds: what happened longer ago, while no hub ran, is told to nobody any more."""

CANARY_EVENTS: Mapping[str, str] = {
    "canary-healthy": "is healthy: it can be promoted",
    "canary-aborted": "was aborted",
    "canary-promoted": "was promoted: all nodes work on it now",
}


@dataclass(frozen=True, slots=True)
class Notification:
    """One thing to tell: `id` is the same however often it is sent, `time` seconds since the epoch."""

    id: str
    event: str
    time: float
    task: str | None
    text: str
    detail: Mapping[str, Any] = field(default_factory=dict)
    share: float | None = None
    """Of TASK_FAILING: only those who set this share are told."""


@dataclass(frozen=True, slots=True)
class Seen:
    """How things are: None where it is not known or does not exist."""

    time: float
    task: str | None = None
    revision: str = ""
    started_at: float | None = None
    input_items: int | None = None
    online: int = 0
    failing: int = 0
    healthy: str | None = None
    """The task that is tried, and is healthy."""


@dataclass(frozen=True, slots=True)
class Now:
    """How things are when something is sent: `lost` are the nodes that are Offline and did not say so."""

    seen: Seen
    lost: Collection[str] = ()


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered: how far the trail was read, whose input had items, which shares are exceeded."""

    cursor: str
    task: str | None = None
    had_items: bool = False
    exceeded: tuple[float, ...] = ()

    def dump(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "cursor": self.cursor,
            "task": self.task,
            "had_items": self.had_items,
            "exceeded": list(self.exceeded),
        }

    @classmethod
    def load(cls, kept: Mapping[str, Any]) -> Memory:
        return cls(kept["cursor"], kept["task"], kept["had_items"], tuple(kept["exceeded"]))


def judge(
    memory: Memory, seen: Seen, happened: Sequence[Recorded], shares: Iterable[float]
) -> tuple[Memory, list[Notification]]:
    """What to remember now, and what to tell; `happened` is what the trail has after the cursor, in order."""
    if seen.task != memory.task:
        memory = replace(memory, task=seen.task, had_items=False)
    memory, emptied = _watch_queue(memory, seen)
    memory, failing = _watch_failures(memory, seen, sorted(set(shares)))
    told = [note for recorded in happened if (note := _of_event(recorded, seen.time)) is not None]
    if happened:
        memory = replace(memory, cursor=happened[-1].id)
    return memory, [*told, *emptied, *failing]


def _watch_queue(memory: Memory, seen: Seen) -> tuple[Memory, list[Notification]]:
    if seen.task is None or seen.input_items is None:  # what is not known is not empty
        return memory, []
    if seen.input_items > 0:
        return (memory if memory.had_items else replace(memory, had_items=True)), []
    if not memory.had_items:
        return memory, []
    text = f"The input queue of task {seen.task} is empty."
    note = Notification(
        f"queue-empty-{seen.revision}-{seen.time:.0f}", QUEUE_EMPTY, seen.time, seen.task, text
    )
    return replace(memory, had_items=False), [note]


def _watch_failures(memory: Memory, seen: Seen, shares: Sequence[float]) -> tuple[Memory, list[Notification]]:
    if seen.started_at is None or seen.time - seen.started_at < SETTLING:
        return memory, []
    share = seen.failing / seen.online if seen.online else 0.0
    exceeded, notes = [], []
    for limit in shares:
        was_over = limit in memory.exceeded
        if share > (limit * CALM if was_over else limit):
            exceeded.append(limit)
            if not was_over:
                notes.append(_failing(seen, limit))
    after = tuple(exceeded)
    return (memory if after == memory.exceeded else replace(memory, exceeded=after)), notes


def _failing(seen: Seen, limit: float) -> Notification:
    text = f"Task {seen.task} fails on {seen.failing} of {seen.online} nodes. GET /api/problems says why."
    detail = {"failing": seen.failing, "online": seen.online, "share": limit}
    note_id = f"task-failing-{seen.revision}-{limit:g}-{seen.time:.0f}"
    return Notification(note_id, TASK_FAILING, seen.time, seen.task, text, detail, limit)


def _of_event(recorded: Recorded, now: float) -> Notification | None:
    """What an event of the trail is told as, if it is one to be told and not too old."""
    event, note_id = recorded.event, f"event-{recorded.id}"
    if now - event.time > OLDEST:
        return None
    if event.kind == "nodes-offline":
        return nodes_gone(note_id, event.time, event.detail.get("count", 1), event.detail.get("nodes", []))
    if event.kind in CANARY_EVENTS:
        reason = event.detail.get("reason")
        text = f"The canary of task {event.task} {CANARY_EVENTS[event.kind]}" + (
            f": {reason}." if reason else "."
        )
        detail = {**event.detail, "result": event.kind.removeprefix("canary-")}
        return Notification(note_id, CANARY, event.time, event.task, text, detail)
    return None


def nodes_gone(note_id: str, time: float, count: int, nodes: Sequence[str]) -> Notification:
    """That so many nodes are gone; some of them by name."""
    text = f"Node {nodes[0]} is gone." if count == 1 and nodes else f"{count} nodes are gone."
    return Notification(note_id, NODES_GONE, time, None, text, {"count": count, "nodes": list(nodes)})


def as_it_is(note: Notification, now: Now) -> Notification | None:
    """What is told of this as things are now: between the look and the message there may be minutes, since
    messages wait and are sent again. None if it is over."""
    seen, task = now.seen, now.seen.task
    if note.event == NODES_GONE:
        return _still_gone(note, now.lost)
    if note.event == QUEUE_EMPTY:
        return note if task == note.task and seen.input_items in (0, None) else None
    if note.event == TASK_FAILING and note.share is not None:
        is_over = task != note.task or not seen.online or seen.failing / seen.online <= note.share * CALM
        return None if is_over else replace(_failing(seen, note.share), id=note.id, time=note.time)
    if note.event == CANARY and note.detail.get("result") == "healthy":
        return note if seen.healthy == note.task else None
    return note


def _still_gone(note: Notification, lost: Collection[str]) -> Notification | None:
    names = [name for name in note.detail["nodes"] if name in lost]
    unnamed = note.detail["count"] - len(note.detail["nodes"])
    # Of those without a name no more are gone than are gone at all.
    count = min(len(names) + unnamed, len(lost))
    if count == note.detail["count"]:
        return note
    return nodes_gone(note.id, note.time, count, names) if count > 0 else None


def merge(waiting: Notification, newer: Notification) -> Notification:
    """One to tell in place of two of the same kind, as the first could not be told yet."""
    if newer.event == NODES_GONE:
        named = [*waiting.detail["nodes"], *newer.detail["nodes"]]
        nodes = list(dict.fromkeys(named))  # who came back in between is gone once
        count = waiting.detail["count"] + newer.detail["count"] + len(nodes) - len(named)
        return nodes_gone(newer.id, newer.time, count, nodes[:NODES_NAMED])
    earlier = waiting.detail.get("earlier", 0) + 1
    return replace(newer, detail={**newer.detail, "earlier": earlier})
