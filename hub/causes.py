"""What goes wrong in the fleet, by cause: "58 of 60 nodes: exec format error" in place of 58 messages.

A cause is a message without what differs from node to node and from slot to slot. Pure, and of use with a
fleet in which every node has twenty errors: each different message of a node is looked at once.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hub.redaction import Hide
from hub.registry import Node
from hub.reports import NodeError

RECENT = 3600.0
"""Seconds after which an error no longer counts, however long it lasts: then its node's reason tells it."""

WELL = 60.0
"""Seconds that a slot must run again before its last error is over."""

MOST = 100
"""Causes that are told: those of the most nodes."""

NODES_SHOWN = 20

GAP = "…"
"""Stands where messages differ."""

UNKNOWN_KIND = "error"
"""Of a reason for an Error whose kind its agent, an older one, does not tell."""

_VARIES = re.compile(
    r"""
    (?<![\w.])(?=[i0-9A-Fa-f])(?:                        # at most words it ends here
      idm-[A-Za-z0-9][\w.-]*-\d+\b                        # a container's name
    | [0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}\b  # a UUID
    | (?=[A-Fa-f]*\d)[0-9A-Fa-f]{12,128}\b                # a container's or an image's id
    | \d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d+)?(?:Z|[+-]\d\d:?\d\d)?  # a time
    | (?:\d+(?:\.\d+)?[ ]?(?:[nuµm]?s|m|h|secs?|seconds?|mins?|minutes?|hours?))+(?!\w)  # a span
    | (?:(?<=slot[ ])|(?<=instance[ ])|(?<=container[ ])|(?<=cpu[ ])|(?<=CPU[ ])|(?<=pid[ ]))\d+\b
    | \d{1,3}(?:\.\d{1,3}){3}:\d+(?=->)                   # the node's end of a connection
    )
    """,
    re.VERBOSE,
)
_WORD = re.compile(r"[\w.-]+")
_SUBJECT = re.compile(rf"^(?:(?:[\w-]+ )?{GAP}:\s+)+")
"""`idm-…: exit code 1` is `exit code 1`: whom it happened to is no part of the cause."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One cause and the nodes that have it, in the order in which they first came; times since the epoch."""

    kind: str
    cause: str
    node_ids: Sequence[str]
    online: int
    first: float
    last: float
    example: str

    @property
    def summary(self) -> str:
        """In one line, for people."""
        return f"{len(self.node_ids)} of {self.online} nodes: {self.cause}"


@dataclass(frozen=True, slots=True)
class _Sighting:
    kind: str
    message: str
    first: float
    last: float


@dataclass(slots=True)
class _Found:
    first: float
    last: float
    example: str
    node_ids: dict[str, None] = field(default_factory=dict)  # an ordered set

    def add(self, node_id: str, seen: _Sighting) -> None:
        self.node_ids[node_id] = None
        self.first, self.last = min(self.first, seen.first), max(self.last, seen.last)


def find_causes(
    nodes: Iterable[Node], since: float, now: float, hide: Hide, running: Collection[str]
) -> list[Cause]:
    """The causes of what Online nodes reported after `since` and what lasts `now`, those of the most nodes
    first; both in seconds since the epoch. An error about a container counts if its task is `running`.

    A node that is in Error now counts with its reason, however long ago its errors were, unless that is what
    it last said of another task.
    """
    online = [node for node in nodes if node.is_online]
    found: dict[tuple[str, str], _Found] = {}
    for node in online:
        for seen in _sightings(node, since, now, running):
            message = hide(seen.message)
            key = seen.kind, cause_of(message, node.record.id, node.record.hostname)
            found.setdefault(key, _Found(seen.first, seen.last, message)).add(node.record.id, seen)
    causes = [
        Cause(kind, cause, list(group.node_ids), len(online), group.first, group.last, group.example)
        for (kind, cause), group in found.items()
    ]
    return sorted(causes, key=lambda cause: (-len(cause.node_ids), cause.kind, cause.cause))[:MOST]


def recent_since(now: float, started: float | None) -> float:
    """Since when errors count: RECENT seconds, or since the current task started if that is shorter."""
    return max(now - RECENT, started or 0.0)


def cause_of(message: str, node_id: str, hostname: str) -> str:
    """The message without names of this node, containers, ids, slots, times and spans."""
    text = _VARIES.sub(GAP, " ".join(message.split()))
    if node_id in text or hostname in text:
        names = {node_id, hostname}
        text = _WORD.sub(lambda word: _without_names(word[0], names), text)
    return _SUBJECT.sub("", text) or text or GAP


def _without_names(word: str, names: set[str]) -> str:
    bare = word.rstrip(".-")
    return GAP + word[len(bare) :] if bare in names else word


def _sightings(node: Node, since: float, now: float, running: Collection[str]) -> Iterator[_Sighting]:
    """Each different message of a node once."""
    recent = [
        error
        for error in node.live.errors
        if error.time >= since and (error.task is None or error.task in running)
    ]
    newest = {error.instance: error for error in recent}
    lasting = {
        (slot, error.kind, error.message) for slot, error in newest.items() if _lasts(node, error, now)
    }
    live = node.live
    times: dict[tuple[str, str], tuple[float, float]] = {}
    for error in recent:
        if (error.instance, error.kind, error.message) in lasting:
            first, _ = times.get((error.kind, error.message), (error.time, 0.0))
            times[error.kind, error.message] = first, error.time
    is_about_now = live.task is None or live.task in running
    now_wrong = live.reason if live.runtime_status == "Error" and is_about_now else None
    for (kind, message), (first, last) in times.items():
        is_reason = now_wrong is not None and kind == live.reason_kind
        yield _Sighting(kind, message, first, max(last, live.last_seen) if is_reason else last)
    if now_wrong and not _is_told(live.reason_kind, {kind for kind, _ in times}):
        yield _Sighting(live.reason_kind or UNKNOWN_KIND, now_wrong, live.last_seen, live.last_seen)


def _is_told(reason_kind: str | None, lasting: Collection[str]) -> bool:
    """Whether errors of these kinds, which last, tell the node's reason; of a reason without a kind they
    may, and a trouble that is told under one name is not told under two."""
    return bool(lasting) if reason_kind is None else reason_kind in lasting


def _lasts(node: Node, error: NodeError, now: float) -> bool:
    """Whether the last error of a slot, or of the whole node, is not over."""
    is_failing = node.live.runtime_status == "Error"
    if error.instance is None:
        reason_kind = node.live.reason_kind
        is_reason = is_failing if reason_kind is None else error.kind == reason_kind
        return is_reason or now - error.time < WELL
    slot = next((slot for slot in node.live.containers if slot.instance == error.instance), None)
    if slot is None:  # it is not wanted any more, or the node does not tell of its slots
        return is_failing and not node.live.containers
    has_run = slot.state == "running" and slot.started is not None and now - slot.started >= WELL
    return not has_run
