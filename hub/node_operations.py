"""What operators do with nodes beside ordering one: forget it, and order many; each as an Operation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gridcore.orders import NodeSelection
from gridcore.platforms import canonical_platform
from hub import registry
from hub.errors import NodeOnline
from hub.operations import known_node
from hub.registry import Node
from hub.state import Change, Moment, Operation, Outcome, View, wake_of
from hub.token_operations import revoke_all

CHUNK = 200
"""Nodes that one operation orders: where many hubs write, a larger one would hardly ever get its turn."""

ManyOrder = Literal["drain", "resume"]

UNKNOWN = "there is no such node"
NOT_SUPPORTED = "its agent does not know drain; use stop"


@dataclass(frozen=True, slots=True)
class Ordered:
    """What became of some nodes: which ones changed, how many did not have to, and which were left out."""

    changed: tuple[str, ...] = ()
    unchanged: int = 0
    skipped: Mapping[str, str] = field(default_factory=dict)
    """The ids of those left out, and why."""

    def __add__(self, other: Ordered) -> Ordered:
        return Ordered(
            self.changed + other.changed,
            self.unchanged + other.unchanged,
            {**self.skipped, **other.skipped},
        )


def forget_node(node_id: str, token_ids: tuple[str, ...] = ()) -> Operation[Node]:
    """Drop a node that is Offline, and end these tokens of its own. Raises UnknownNode, NodeOnline."""

    def decide(view: View, at: Moment) -> Outcome[Node]:
        node = known_node(view, node_id)
        if node.is_online:
            raise NodeOnline(node_id)
        revoked = revoke_all(view, at, token_ids)
        events = at.tell("node-forgotten", node=node_id, detail={"hostname": node.record.hostname})
        change = Change(nodes={node_id: None}, tokens=revoked.tokens, events=events + revoked.events)
        return Outcome(node, change)

    return Operation(decide, nodes=(node_id,), tokens=token_ids)


def select(nodes: Iterable[Node], wanted: NodeSelection) -> list[str]:
    """The ids of the nodes that are all that is wanted, in the nodes' order; those named but unknown last."""
    known = {node.record.id: node for node in nodes}
    named = None if wanted.nodes is None else dict.fromkeys(wanted.nodes)
    platform = canonical_platform(wanted.platform) if wanted.platform is not None else None
    labels = (wanted.labels or {}).items()
    chosen = [
        node_id
        for node_id, node in known.items()
        if (named is None or node_id in named)
        and wanted.architecture in (None, node.record.architecture)
        and platform in (None, node.record.platform)
        and labels <= node.record.labels.items()
    ]
    return chosen + [node_id for node_id in named or () if node_id not in known]


def order_many(
    node_ids: tuple[str, ...], order: ManyOrder, told: Mapping[str, Any] | None = None
) -> Operation[Ordered]:
    """Order these nodes to drain or to resume; at most CHUNK. `told` is the detail of the event, if this part
    of a larger whole is to tell of it."""

    def decide(view: View, at: Moment) -> Outcome[Ordered]:
        changed: dict[str, Node | None] = {}
        skipped: dict[str, str] = {}
        for node_id in node_ids:
            node = view.node(node_id)
            if node is None:
                skipped[node_id] = UNKNOWN
            elif order == "drain" and node.record.agent_version is None:
                skipped[node_id] = NOT_SUPPORTED
            elif (after := _ORDERS[order](node)) is not node:
                changed[node_id] = after
        unchanged = len(node_ids) - len(changed) - len(skipped)
        events = () if told is None else at.tell(f"{order}-ordered", detail=told)
        answer = Ordered(tuple(changed), unchanged, skipped)
        return Outcome(answer, Change(nodes=changed, events=events), wake_of(changed))

    return Operation(decide, nodes=node_ids)


_ORDERS: Mapping[ManyOrder, Callable[[Node], Node]] = {
    "drain": registry.order_drain,
    "resume": registry.order_resume,
}
