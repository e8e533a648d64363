"""The registry's tables, and what a node may not do to itself. The contract suite tests the rest by use."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridcore.protocol import HeartbeatRequest, RegisterRequest
from hub import codec, registry
from hub.observed import Instant
from hub.registry import DRAIN, PRESENCE, STOP, DrainOrder, Node, Presence, StopOrder

NOW = Instant(monotonic=100, wall=1_000)
REQUEST = RegisterRequest(hostname="h", architecture="aarch64", cpu_count=4)
BEAT = HeartbeatRequest(node_id="n", status="Idle", active_containers=0)


def new_node() -> Node:
    return registry.register(None, REQUEST, "n", NOW).node


def test_the_tables_say_what_becomes_of_every_state() -> None:
    assert all(set(row) == set(Presence) for row in PRESENCE.values())
    assert all(set(row) == set(StopOrder) for row in STOP.values())
    assert all(set(row) == set(DrainOrder) for row in DRAIN.values())


def test_only_a_registration_brings_back_a_node_that_left() -> None:
    back = [event for event, row in PRESENCE.items() if row[Presence.GONE] is not Presence.GONE]
    assert back == ["registered"]


@pytest.mark.parametrize(
    ("architecture", "platform", "expected"),
    [
        ("aarch64", None, "linux/arm64"),
        ("armv7l", None, "linux/arm/v7"),
        ("riscv64", None, "linux/amd64"),
        ("aarch64", "linux/arm/v7", "linux/arm/v7"),
        ("x86_64", "linux/arm64/v8", "linux/arm64"),
    ],
)
def test_the_platform_is_the_engines_or_follows_from_the_architecture(
    architecture: str, platform: str | None, expected: str
) -> None:
    request = REQUEST.model_copy(update={"architecture": architecture, "platform": platform})
    assert registry.register(None, request, "n", NOW).node.record.platform == expected


def test_a_registration_that_brings_nothing_new_keeps_the_record_and_so_writes_nothing() -> None:
    node = new_node()
    again = registry.register(node, REQUEST.model_copy(update={"node_id": "n"}), "m", NOW).node
    assert again.record is node.record


def test_a_heartbeat_of_an_online_node_keeps_the_record_and_so_writes_nothing() -> None:
    node = new_node()
    assert registry.heartbeat(node, BEAT, NOW).record is node.record
    assert registry.hear(node, NOW).record is node.record


def test_a_new_order_nudges_again_after_the_first_was_obeyed() -> None:
    node = registry.nudge(registry.order_stop(new_node()))
    assert not registry.wants_nudge(node)
    node = registry.heartbeat(node, BEAT, NOW)
    node = registry.register(node, REQUEST.model_copy(update={"node_id": "n"}), "m", NOW).node
    assert registry.wants_nudge(registry.order_stop(node))


def test_a_clone_of_a_node_that_was_offline_before_the_hubs_restart_is_none() -> None:
    first = registry.register(None, REQUEST.model_copy(update={"machine": "m1"}), "n", NOW).node
    silent = registry.fall_silent(first)
    found = codec.restore_node(codec.dump_record(silent.record), json.loads(codec.live_text(silent.live)))
    other = REQUEST.model_copy(update={"machine": "m2", "node_id": "n"})
    assert registry.register(found, other, "m", NOW).node.record.id == "n"


@given(st.lists(st.sampled_from(("register", "beat", "stop", "leave", "silence")), max_size=30))
def test_a_stop_is_never_lost_before_it_is_told(events: list[str]) -> None:
    node, standing = new_node(), False
    again = REQUEST.model_copy(update={"node_id": "n"})
    for event in events:
        if event == "register":
            node = registry.register(node, again, "m", NOW).node
        elif event == "beat" and node.record.presence is not Presence.GONE:
            node = registry.heartbeat(node, BEAT, NOW)
            assert node.stop_requested or not standing
            standing = False
        elif event == "stop":
            standing = standing or node.record.stop is not StopOrder.TOLD
            node = registry.order_stop(node)
        elif event == "leave":
            node = registry.deregister(node)
        elif event == "silence":
            node = registry.fall_silent(node)
        assert node.stop_requested or not standing


class Believer:
    """A node as it sees itself: it does what it was last told."""

    def __init__(self) -> None:
        self.node, self.draining = new_node(), False
        self.asked = False

    def order(self, drain: bool) -> None:
        self.node = registry.order_drain(self.node) if drain else registry.order_resume(self.node)
        self.asked = drain

    def hear(self, event: str) -> None:
        if event == "register" or self.node.record.presence is Presence.GONE:
            self.node = registry.register(
                self.node, REQUEST.model_copy(update={"node_id": "n"}), "m", NOW
            ).node
        else:
            self.node = registry.heartbeat(self.node, BEAT, NOW)
        self.draining = self.node.draining


@given(st.lists(st.sampled_from(("drain", "resume", "register", "beat", "leave", "nudge")), max_size=30))
def test_a_node_is_nudged_exactly_while_it_believes_something_else_than_was_ordered(
    events: list[str],
) -> None:
    it, orders_nudged = Believer(), True
    for event in events:
        if event in ("drain", "resume"):
            before = it.node.record
            it.order(event == "drain")
            orders_nudged = orders_nudged and it.node.record is before
        elif event in ("register", "beat"):
            it.hear(event)
        elif event == "leave":
            it.node = registry.deregister(it.node)
        elif registry.wants_nudge(it.node):
            it.node, orders_nudged = registry.nudge(it.node), True
        assert it.node.draining is it.asked
        assert registry.wants_nudge(it.node) is (it.draining is not it.asked and not orders_nudged)
