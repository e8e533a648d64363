"""What is kept is read as far as it is known: an earlier and a later hub may write into the same state."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

import pytest

from gridcore.protocol import HeartbeatRequest, RegisterRequest
from hub import codec, registry
from hub.access import Role, SigningKey, TokenRecord
from hub.events import Event
from hub.observed import Instant
from hub.registry import Node
from hub.reports import ContainerState, LastExit, NodeError
from hub.tasklist import Canary, TaskList

NOW = Instant(monotonic=100, wall=1_000)
REQUEST = RegisterRequest(hostname="h", architecture="aarch64", cpu_count=4)
BEAT = HeartbeatRequest.model_validate(
    {
        "node_id": "n",
        "status": "Error",
        "active_containers": 1,
        "reason": "full",
        "errors": [{"instance": 0, "kind": "exit", "message": "exit code 1"}],
        "containers": [
            {
                "instance": 0,
                "cpu": 0,
                "state": "running",
                "restarts": 1,
                "age": 5.0,
                "last_exit": {"kind": "exit", "exit_code": 1, "message": "no", "ago": 6.0, "ran": 1.0},
            }
        ],
    }
)


def reported() -> Node:
    node = registry.register(None, REQUEST, "n", NOW).node
    return registry.heartbeat(node, BEAT, NOW)


def later(kept: Any) -> Any:
    """The same as a later version would write it: each object has one field more."""
    if isinstance(kept, dict):
        return {name: later(value) for name, value in kept.items()} | {"of_a_later_version": [1]}
    return [later(value) for value in kept] if isinstance(kept, list | tuple) else kept


def test_a_node_that_a_later_hub_wrote_is_read_as_far_as_it_is_known() -> None:
    node = reported()
    assert [type(part) for part in (node.live.errors[0], node.live.containers[0])] == [
        NodeError,
        ContainerState,
    ]
    assert isinstance(node.live.containers[0].last_exit, LastExit)
    record, live = codec.dump_record(node.record), json.loads(codec.live_text(node.live))
    labels = record["labels"]
    found = codec.restore_node({**later(record), "labels": labels}, later(live), NOW.monotonic)
    assert found == node


@pytest.mark.parametrize(
    "kept",
    [
        TokenRecord("t", Role.VIEWER, "a viewer", 1.0, 2.0, "somebody"),
        SigningKey("k", "secret", 1.0),
        Event(2.0, "task-added", "somebody", task="squares"),
    ],
)
def test_tokens_keys_and_events_of_a_later_hub_are_read_too(kept: TokenRecord | SigningKey | Event) -> None:
    load: Any = {TokenRecord: codec.load_token, SigningKey: codec.load_key, Event: codec.load_event}[
        type(kept)
    ]
    assert load(json.loads(json.dumps(asdict(kept))) | {"of_a_later_version": 1}) == kept


def test_a_list_of_a_later_hub_is_read_with_its_canary() -> None:
    tasks = TaskList("7-x", (), canary=Canary("t", "7-y", ("n",), 1.0, 60.0))
    head = json.loads(json.dumps(codec.dump_head(tasks)))
    assert codec.load_list(later(head), ()) == tasks
