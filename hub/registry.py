"""The node registry: what the hub knows of a node, and what each message from it changes.

Everything is about one node and pure: a node goes in, a node comes out, `now` is passed in. A node is two
values. Its *record* is kept on disk before anybody is told of a change. What is *live* (when it was heard,
what it last reported) changes with every heartbeat, and a heartbeat must not cost a disk write.

Silence is measured by a clock that goes only while a hub is there to hear (`observed.py`), so that neither a
restart, a pause nor a step of the wall clock calls a node Offline or has it forgotten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal

from gridcore.platforms import canonical_platform, platform_of
from gridcore.protocol import MAX_ERRORS, HeartbeatRequest, RegisterRequest
from hub.observed import Instant
from hub.reports import ContainerState, NodeError, read_containers

OFFLINE_AFTER = 60.0
"""Seconds without a word after which a node is Offline."""


class Presence(StrEnum):
    """GONE is a node that deregistered: Offline, and only a registration brings it back."""

    ONLINE = "online"
    OFFLINE = "offline"
    GONE = "gone"


class StopOrder(StrEnum):
    """Whether a stop stands, and whether a heartbeat has been told."""

    NONE = "none"
    ASKED = "asked"
    TOLD = "told"


class DrainOrder(StrEnum):
    """Whether the node is to have no containers, and what it has been told of that.

    LIFTED is a drain that was told and then taken back, while the node still believes in it.
    """

    NONE = "none"
    ASKED = "asked"
    TOLD = "told"
    LIFTED = "lifted"


PRESENCE: Mapping[Literal["registered", "heard", "silent", "deregistered"], Mapping[Presence, Presence]] = {
    "registered": dict.fromkeys(Presence, Presence.ONLINE),
    "heard": {
        Presence.ONLINE: Presence.ONLINE,
        Presence.OFFLINE: Presence.ONLINE,
        Presence.GONE: Presence.GONE,
    },
    "silent": {
        Presence.ONLINE: Presence.OFFLINE,
        Presence.OFFLINE: Presence.OFFLINE,
        Presence.GONE: Presence.GONE,
    },
    "deregistered": dict.fromkeys(Presence, Presence.GONE),
}

STOP: Mapping[Literal["ordered", "told", "registered", "left", "resumed"], Mapping[StopOrder, StopOrder]] = {
    # An order that was told is being obeyed: the second press of the button is not a second order.
    "ordered": {
        StopOrder.NONE: StopOrder.ASKED,
        StopOrder.ASKED: StopOrder.ASKED,
        StopOrder.TOLD: StopOrder.TOLD,
    },
    "told": {
        StopOrder.NONE: StopOrder.NONE,
        StopOrder.ASKED: StopOrder.TOLD,
        StopOrder.TOLD: StopOrder.TOLD,
    },
    # Who registers after being told has stopped in between; who registers before has not heard yet.
    "registered": {
        StopOrder.NONE: StopOrder.NONE,
        StopOrder.ASKED: StopOrder.ASKED,
        StopOrder.TOLD: StopOrder.NONE,
    },
    # Who leaves after being told has stopped: the order is done.
    "left": {
        StopOrder.NONE: StopOrder.NONE,
        StopOrder.ASKED: StopOrder.ASKED,
        StopOrder.TOLD: StopOrder.NONE,
    },
    # What was told is being obeyed, and cannot be taken back.
    "resumed": {
        StopOrder.NONE: StopOrder.NONE,
        StopOrder.ASKED: StopOrder.NONE,
        StopOrder.TOLD: StopOrder.TOLD,
    },
}

DRAIN: Mapping[Literal["drained", "told", "resumed"], Mapping[DrainOrder, DrainOrder]] = {
    "drained": {
        DrainOrder.NONE: DrainOrder.ASKED,
        DrainOrder.ASKED: DrainOrder.ASKED,
        DrainOrder.TOLD: DrainOrder.TOLD,
        DrainOrder.LIFTED: DrainOrder.TOLD,
    },
    # By the answer of a heartbeat or of a registration: a drain is a level, and both carry it.
    "told": {
        DrainOrder.NONE: DrainOrder.NONE,
        DrainOrder.ASKED: DrainOrder.TOLD,
        DrainOrder.TOLD: DrainOrder.TOLD,
        DrainOrder.LIFTED: DrainOrder.NONE,
    },
    "resumed": {
        DrainOrder.NONE: DrainOrder.NONE,
        DrainOrder.ASKED: DrainOrder.NONE,
        DrainOrder.TOLD: DrainOrder.LIFTED,
        DrainOrder.LIFTED: DrainOrder.LIFTED,
    },
}


UNTOLD_DRAINS = frozenset({DrainOrder.ASKED, DrainOrder.LIFTED})


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """What is kept of a node over a restart of the hub."""

    id: str
    hostname: str
    architecture: str
    cpu_count: int
    platform: str
    agent_version: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    gpu_count: int | None = None
    machine: str | None = None
    presence: Presence = Presence.ONLINE
    stop: StopOrder = StopOrder.NONE
    drain: DrainOrder = DrainOrder.NONE


@dataclass(frozen=True, slots=True)
class Live:
    """What changes with every message; `heard` is by the clock of `observed.py`, `last_seen` for people."""

    heard: float
    last_seen: float
    runtime_status: str | None = None
    active_containers: int = 0
    task: str | None = None
    generation: str | None = None
    reason: str | None = None
    reason_kind: str | None = None
    """None from an agent that gives its reasons no kind."""
    errors: tuple[NodeError, ...] = ()
    containers: tuple[ContainerState, ...] = ()
    warnings: tuple[str, ...] = ()
    paused: bool = False
    nudged: bool = False
    """Whether the last order that stands untold has ended a held request of this node already."""


@dataclass(frozen=True, slots=True)
class Node:
    record: NodeRecord
    live: Live

    @property
    def is_online(self) -> bool:
        return self.record.presence is Presence.ONLINE

    @property
    def stop_requested(self) -> bool:
        return self.record.stop is not StopOrder.NONE

    @property
    def draining(self) -> bool:
        return self.record.drain in (DrainOrder.ASKED, DrainOrder.TOLD)


@dataclass(frozen=True, slots=True)
class Registration:
    """The outcome of `register`; `clone_of` is the id that the node came with and may not have."""

    node: Node
    is_new: bool
    clone_of: str | None = None


def register(known: Node | None, request: RegisterRequest, new_id: str, now: Instant) -> Registration:
    """Take a node in; `known` is the node of the id that the request carries, if there is one.

    A copied disk brings its id to a second machine. The id stays with the machine that was heard in the
    last minute, and the other one gets `new_id`.
    """
    if known is not None and _is_in_use_elsewhere(known, request, now):
        return Registration(_enter(None, request, new_id, now), is_new=True, clone_of=known.record.id)
    node_id = request.node_id or new_id
    return Registration(_enter(known, request, node_id, now), is_new=known is None)


def _is_in_use_elsewhere(known: Node, request: RegisterRequest, now: Instant) -> bool:
    return (
        request.machine is not None
        and known.record.machine is not None
        and request.machine != known.record.machine
        and known.is_online
        and now.monotonic - known.live.heard < OFFLINE_AFTER
    )


def _enter(known: Node | None, request: RegisterRequest, node_id: str, now: Instant) -> Node:
    record = NodeRecord(
        id=node_id,
        hostname=request.hostname,
        architecture=request.architecture,
        cpu_count=request.cpu_count,
        platform=canonical_platform(request.platform)
        if request.platform
        else platform_of(request.architecture),
        agent_version=request.agent_version,
        labels=request.labels,
        gpu_count=request.gpu_count,
        machine=request.machine,
        presence=PRESENCE["registered"][known.record.presence if known else Presence.GONE],
        stop=STOP["registered"][known.record.stop if known else StopOrder.NONE],
        drain=DRAIN["told"][known.record.drain if known else DrainOrder.NONE],
    )
    if known is None:
        return Node(record, Live(heard=now.monotonic, last_seen=now.wall))
    # An equal record is the old one: nothing to write.
    record = known.record if record == known.record else record
    return Node(record, replace(known.live, heard=now.monotonic, last_seen=now.wall))


def hear(node: Node, now: Instant) -> Node:
    """A message of the node arrived; one that deregistered is not heard."""
    if node.record.presence is Presence.GONE:
        return node
    return Node(
        _moved(node.record, presence=PRESENCE["heard"][node.record.presence]),
        replace(node.live, heard=now.monotonic, last_seen=now.wall),
    )


def heartbeat(node: Node, report: HeartbeatRequest, now: Instant) -> Node:
    """The node after a heartbeat whose answer tells it of the orders that stand; not for one that is GONE."""
    errors = [
        NodeError(error.instance, error.kind, error.message, now.wall, error.task) for error in report.errors
    ]
    return Node(
        _moved(
            node.record,
            presence=PRESENCE["heard"][node.record.presence],
            stop=STOP["told"][node.record.stop],
            drain=DRAIN["told"][node.record.drain],
        ),
        Live(
            heard=now.monotonic,
            last_seen=now.wall,
            runtime_status=report.status,
            active_containers=report.active_containers,
            task=report.task,
            generation=report.generation,
            reason=report.reason,
            reason_kind=report.reason_kind,
            errors=(*node.live.errors, *errors)[-MAX_ERRORS:] if errors else node.live.errors,
            containers=read_containers(report.containers or (), node.live.containers, now.wall),
            warnings=tuple(report.warnings),
            paused=report.paused,
            nudged=node.live.nudged,
        ),
    )


def order_stop(node: Node) -> Node:
    """The node with a stop that stands until a heartbeat has told it."""
    return _ordered(node, _moved(node.record, stop=STOP["ordered"][node.record.stop]))


def order_drain(node: Node) -> Node:
    """The node with a drain that stands until it is taken back."""
    return _ordered(node, _moved(node.record, drain=DRAIN["drained"][node.record.drain]))


def order_resume(node: Node) -> Node:
    """The node without a drain, and without a stop that it has not been told of."""
    stop, drain = STOP["resumed"][node.record.stop], DRAIN["resumed"][node.record.drain]
    return _ordered(node, _moved(node.record, stop=stop, drain=drain))


def _ordered(node: Node, record: NodeRecord) -> Node:
    # An order that changes nothing is no new one, and ends no second held request.
    return node if record is node.record else Node(record, replace(node.live, nudged=False))


def wants_nudge(node: Node) -> bool:
    """Whether a held request of this node should end, so that its heartbeat comes at once."""
    is_untold = node.record.stop is StopOrder.ASKED or node.record.drain in UNTOLD_DRAINS
    return is_untold and not node.live.nudged


def nudge(node: Node) -> Node:
    """The node once an order has ended a held request: the same order ends no second one."""
    return Node(node.record, replace(node.live, nudged=True))


def deregister(node: Node) -> Node:
    """The node after its last word: its containers are gone."""
    live = node.live
    return Node(
        _moved(
            node.record,
            presence=PRESENCE["deregistered"][node.record.presence],
            stop=STOP["left"][node.record.stop],
        ),
        Live(heard=live.heard, last_seen=live.last_seen, errors=live.errors, nudged=live.nudged),
    )


def is_silent(node: Node, now: Instant) -> bool:
    """Whether an Online node has not been heard for so long, without a gap, that it is Offline."""
    return node.is_online and now.monotonic - max(node.live.heard, now.since) >= OFFLINE_AFTER


def fall_silent(node: Node) -> Node:
    """The node once it is called Offline; what it last reported stays to be seen."""
    return Node(_moved(node.record, presence=PRESENCE["silent"][node.record.presence]), node.live)


def is_forgotten(node: Node, retention: float, now: Instant) -> bool:
    """Whether a node that is not Online could have been heard for more than `retention` seconds since."""
    return not node.is_online and now.monotonic - node.live.heard > retention


def _moved(
    record: NodeRecord,
    presence: Presence | None = None,
    stop: StopOrder | None = None,
    drain: DrainOrder | None = None,
) -> NodeRecord:
    """The record with these states; the very same one if that changes nothing, so that nothing is written."""
    presence, stop, drain = presence or record.presence, stop or record.stop, drain or record.drain
    if presence is record.presence and stop is record.stop and drain is record.drain:
        return record
    return replace(record, presence=presence, stop=stop, drain=drain)
