"""Everything that can be done to the state, each as an Operation: `await store.run(finish(guard), by)`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gridcore.protocol import HeartbeatRequest, RegisterRequest, TaskDefinition, TaskGuard
from hub import fleet_redis, registry
from hub.errors import NotSupported, UnknownNode
from hub.events import NODES_NAMED, Event, name_nodes
from hub.registry import Node, Presence, Registration
from hub.state import EVERYONE, Change, Mark, Moment, Operation, Outcome, View, ids_of
from hub.tasklist import Switch, Task, TaskList


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat is answered, and what was new in it."""

    known: bool
    stop_requested: bool = False
    drain: bool = False
    platform: str | None = None
    """Whose images the node runs."""
    is_back: bool = False
    """The node was Offline before."""
    is_failing: bool = False
    """It is in Error, and was not before."""
    has_recovered: bool = False
    """It was in Error before, and is not."""
    takes_up: str | None = None
    """The generation that it works on, if it reports that for the first time."""


@dataclass(frozen=True, slots=True)
class Swept:
    """The nodes that a sweep called Offline, and those that it forgot."""

    silent: tuple[Node, ...] = ()
    forgotten: tuple[Node, ...] = ()


SILENCE = "silence"
"""The mark of the nodes that fell silent and were not told of yet."""

QUIET, LONGEST_SILENCE = 8.0, 60.0
"""Seconds without a further silent node after which they are told, and after which they are told anyway."""


# --- Tasks -------------------------------------------------------------------------------------------------


def add_task(definition: TaskDefinition) -> Operation[tuple[Task, bool]]:
    """Append a pending task; False if the same definition was there.

    Raises TaskConflict, InvalidFields.
    """

    def decide(view: View, at: Moment) -> Outcome[tuple[Task, bool]]:
        tasks, task, is_new = view.tasks.add(definition, at.now.wall, at.entropy())
        if not is_new:
            return Outcome((task, False))
        fleet_redis.check(definition, tasks.fleet_redis)
        return Outcome((task, True), Change(tasks, events=at.tell("task-added", task=task.name)))

    return Operation(decide)


def start_next(guard: TaskGuard | None = None) -> Operation[Switch]:
    """Complete the current task, start the next one. Raises NotCurrent, NothingPending."""

    def decide(view: View, at: Moment) -> Outcome[Switch]:
        tasks, switch = view.tasks.start_next(guard, at.entropy(), at.now.wall)
        return switched(view, at, tasks, switch, "next")

    return Operation(decide)


def finish(guard: TaskGuard | None = None) -> Operation[Switch]:
    """Complete the current task, start the next one if any. Raises NotCurrent, NothingRunning."""

    def decide(view: View, at: Moment) -> Outcome[Switch]:
        tasks, switch = view.tasks.finish(guard, at.entropy(), at.now.wall)
        return switched(view, at, tasks, switch, "finish")

    return Operation(decide)


def switched(view: View, at: Moment, tasks: TaskList, switch: Switch, by: str) -> Outcome[Switch]:
    """The outcome of a switch to this list, called `by`; one that starts what was tried is a promotion."""
    detail = {"by": by, "previous": switch.previous, "current": switch.current}
    events = at.tell("switched", task=switch.current, detail=detail)
    canary = view.tasks.canary
    if canary is not None and tasks.canary is None:
        detail = {"by": by, "state": canary.state, **name_nodes(list(canary.nodes))}
        events += at.tell("canary-promoted", task=canary.task, detail=detail)
    return Outcome(switch, Change(tasks, events=events), EVERYONE)


# --- What nodes say ----------------------------------------------------------------------------------------


def register(request: RegisterRequest) -> Operation[Registration]:
    """Take a node in, under the id that it has, or under a new one."""

    def decide(view: View, at: Moment) -> Outcome[Registration]:
        known = view.node(request.node_id) if request.node_id else None
        registration = registry.register(known, request, at.new_id(), at.now)
        record = registration.node.record
        events: tuple[Event, ...] = ()
        if registration.is_new:
            detail = {"hostname": record.hostname, "platform": record.platform}
            detail |= {"copied_from": registration.clone_of} if registration.clone_of else {}
            events = at.tell("node-joined", node=record.id, detail=detail)
        return Outcome(registration, Change(nodes={record.id: registration.node}, events=events))

    return Operation(decide, nodes=(request.node_id,) if request.node_id else ())


def heartbeat(report: HeartbeatRequest) -> Operation[Beat]:
    """Note what a node reports; the orders that stand count as told once this has answered."""

    def decide(view: View, at: Moment) -> Outcome[Beat]:
        node = view.node(report.node_id)
        if node is None or node.record.presence is Presence.GONE:
            return Outcome(Beat(known=False))
        after = registry.heartbeat(node, report, at.now)
        beat = Beat(
            known=True,
            stop_requested=after.stop_requested,
            drain=after.draining,
            platform=after.record.platform,
            is_back=not node.is_online,
            is_failing=report.status == "Error" and node.live.runtime_status != "Error",
            has_recovered=report.status != "Error" and node.live.runtime_status == "Error",
            takes_up=None if report.generation == node.live.generation else report.generation,
        )
        return Outcome(beat, _one(after))

    return Operation(decide, nodes=(report.node_id,))


def hear(node_id: str) -> Operation[bool]:
    """Note that a request of this node arrived; True if it was Offline until then."""

    def decide(view: View, at: Moment) -> Outcome[bool]:
        node = view.node(node_id)
        if node is None or node.record.presence is Presence.GONE:
            return Outcome(False)
        return Outcome(not node.is_online, _one(registry.hear(node, at.now)))

    return Operation(decide, nodes=(node_id,))


def deregister(node_id: str) -> Operation[Node | None]:
    """Call a node Offline until it registers again; None if it was not there."""

    def decide(view: View, at: Moment) -> Outcome[Node | None]:
        node = view.node(node_id)
        if node is None or node.record.presence is Presence.GONE:
            return Outcome(None)
        after = registry.deregister(node)
        return Outcome(after, Change(nodes={node_id: after}, events=at.tell("node-left", node=node_id)))

    return Operation(decide, nodes=(node_id,))


def take_nudge(node_id: str) -> Operation[bool]:
    """Whether an untold order waits that has ended no held request yet; True only once an order."""

    def decide(view: View, _at: Moment) -> Outcome[bool]:
        node = view.node(node_id)
        if node is None or not registry.wants_nudge(node):
            return Outcome(False)
        return Outcome(True, _one(registry.nudge(node)))

    return Operation(decide, nodes=(node_id,))


# --- What operators order of nodes -------------------------------------------------------------------------


def order_stop(node_id: str) -> Operation[Node]:
    """Let a stop stand until a heartbeat has been told. Raises UnknownNode."""

    def decide(view: View, at: Moment) -> Outcome[Node]:
        return _ordered(registry.order_stop(known_node(view, node_id)), "stop-ordered", at)

    return Operation(decide, nodes=(node_id,))


def order_drain(node_id: str) -> Operation[Node]:
    """Let a node be without containers until it is taken back. Raises UnknownNode, NotSupported."""

    def decide(view: View, at: Moment) -> Outcome[Node]:
        node = known_node(view, node_id)
        if node.record.agent_version is None:
            raise NotSupported(node_id, "drain", "Use stop: POST /api/nodes/{id}/stop.")
        return _ordered(registry.order_drain(node), "drain-ordered", at)

    return Operation(decide, nodes=(node_id,))


def order_resume(node_id: str) -> Operation[Node]:
    """Take back a drain, and a stop that is still untold. Raises UnknownNode."""

    def decide(view: View, at: Moment) -> Outcome[Node]:
        return _ordered(registry.order_resume(known_node(view, node_id)), "resume-ordered", at)

    return Operation(decide, nodes=(node_id,))


def known_node(view: View, node_id: str) -> Node:
    """The node of this id. Raises UnknownNode."""
    node = view.node(node_id)
    if node is None:
        raise UnknownNode(node_id)
    return node


def _ordered(after: Node, kind: str, at: Moment) -> Outcome[Node]:
    node_id = after.record.id
    return Outcome(after, Change(nodes={node_id: after}, events=at.tell(kind, node=node_id)), node_id)


def _one(node: Node) -> Change:
    return Change(nodes={node.record.id: node})


# --- What the hub notes by itself --------------------------------------------------------------------------


def sweep(node_ids: tuple[str, ...], retention: float) -> Operation[Swept]:
    """Of these nodes, call the silent ones Offline, and forget those absent for `retention` seconds."""

    def decide(view: View, at: Moment) -> Outcome[Swept]:
        nodes = [node for node in map(view.node, node_ids) if node is not None]
        silent = tuple(registry.fall_silent(node) for node in nodes if registry.is_silent(node, at.now))
        forgotten = tuple(node for node in nodes if registry.is_forgotten(node, retention, at.now))
        changed: dict[str, Node | None] = {node.record.id: node for node in silent}
        changed |= {node.record.id: None for node in forgotten}
        before = view.mark(SILENCE)
        silence, told = gather_silence(before, list(ids_of(silent)), at.now.wall)
        lost = None if told is None else _still_lost(view, told, frozenset(ids_of(silent)))
        events = tell_nodes(at, "nodes-forgotten", forgotten)
        if lost is not None:
            node_id = lost["nodes"][0] if lost["count"] == 1 else None
            events += at.tell("nodes-offline", node=node_id, detail=lost)
        marks = {SILENCE: silence} if silence != before else {}
        return Outcome(Swept(silent, forgotten), Change(nodes=changed, marks=marks, events=events))

    return Operation(decide, nodes=node_ids, marks=(SILENCE,))


def gather_silence(kept: Mark | None, silent: list[str], now: float) -> tuple[Mark | None, Mark | None]:
    """What is kept of nodes that fell silent, and those of which it is to be told now, if anything is.

    Half a fleet that is lost at once was last heard at different moments, so it falls silent in several
    sweeps. It is told as one event, once no more follow.
    """
    if silent:
        had = kept or {"since": now, "count": 0, "nodes": []}
        count = had["count"] + len(silent)
        kept = {**had, "last": now, "count": count, "nodes": [*had["nodes"], *silent]}
    if kept is None:
        return None, None
    is_quiet = not silent and not 0 <= now - kept["last"] < QUIET
    if not is_quiet and 0 <= now - kept["since"] < LONGEST_SILENCE:
        return kept, None
    return None, kept


def _still_lost(view: View, silence: Mark, silent: frozenset[str]) -> Mark | None:
    """What is told of nodes that fell silent, some of them right now: of those that are still Offline. None
    if all are back."""

    def is_lost(node_id: str) -> bool:
        node = view.node(node_id)
        return node_id in silent or (node is not None and node.record.presence is Presence.OFFLINE)

    lost = list(filter(is_lost, dict.fromkeys(silence["nodes"])))
    # A hub of an earlier version named only a few of them.
    count = silence["count"] - len(silence["nodes"]) + len(lost)
    return {"count": count, "nodes": lost[:NODES_NAMED]} if count > 0 else None


def note(*events: Event) -> Operation[None]:
    """Put into the audit trail what changes nothing else, such as what was refused."""
    return Operation(lambda _view, _at: Outcome(None, Change(events=events)))


def take_lease(name: str, holder: str, seconds: float) -> Operation[bool]:
    """Whether this holder has the lease, now for `seconds` more: of several hubs one does a thing.

    One that ends later than it could was taken by a clock that has been set back since, and binds nobody.
    """

    def decide(view: View, at: Moment) -> Outcome[bool]:
        kept = view.mark(name)
        now = at.now.wall
        if kept is not None and kept["holder"] != holder and now < kept["until"] <= now + seconds:
            return Outcome(False)
        mark = {"holder": holder, "until": now + seconds}
        return Outcome(True, Change(marks={name: mark}))

    return Operation(decide, marks=(name,))


def tell_nodes(at: Moment, kind: str, nodes: Iterable[Node]) -> tuple[Event, ...]:
    """One event about all of these nodes, however many they are; none about none."""
    ids = list(ids_of(nodes))
    return at.tell(kind, node=ids[0] if len(ids) == 1 else None, detail=name_nodes(ids)) if ids else ()
