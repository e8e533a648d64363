"""Orders to many nodes at once, forgetting a node, and the filters of the list of nodes."""

from __future__ import annotations

from typing import Any

import pytest

from hub import node_operations
from hub.errors import StoreUnavailable
from tests.unit.hub.operated_hub import OperatedHub


@pytest.fixture
async def hub() -> OperatedHub:
    hub = OperatedHub()
    await hub.join("a1", "a2", labels={"room": "1"})
    await hub.join("x1", architecture="x86_64", labels={"room": "1", "rack": "7"})
    await hub.join("old", version=None, labels={"room": "2"})
    return hub


async def draining(hub: OperatedHub) -> set[str]:
    return {node["id"] for node in await hub.do("GET", "/api/nodes") if node["draining"]}


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"all": True}, {"a1", "a2", "x1"}),
        ({"architecture": "aarch64"}, {"a1", "a2"}),
        ({"platform": "linux/amd64"}, {"x1"}),
        ({"labels": {"room": "1"}}, {"a1", "a2", "x1"}),
        ({"labels": {"room": "1", "rack": "7"}}, {"x1"}),
        ({"labels": {"room": "1"}, "architecture": "aarch64", "nodes": ["a2", "x1"]}, {"a2"}),
        ({"labels": {"room": "9"}}, set()),
    ],
)
async def test_nodes_that_are_all_that_is_given_are_drained(
    hub: OperatedHub, selection: object, expected: set[str]
) -> None:
    answer = await hub.do("POST", "/api/nodes/drain", selection)
    assert set(answer["nodes"]) == expected == await draining(hub)
    assert answer["count"] == len(expected)
    again = await hub.do("POST", "/api/nodes/drain", selection)
    assert (again["count"], again["unchanged"]) == (0, len(expected))


async def test_an_answer_names_who_was_left_out_and_why(hub: OperatedHub) -> None:
    answer = await hub.do("POST", "/api/nodes/drain", {"nodes": ["old", "nobody", "a1"]})
    assert answer["nodes"] == ["a1"]
    assert {skipped["id"]: skipped["why"] for skipped in answer["skipped"]} == {
        "old": "its agent does not know drain; use stop",
        "nobody": "there is no such node",
    }


async def test_resume_takes_back_what_a_selection_was_ordered(hub: OperatedHub) -> None:
    await hub.do("POST", "/api/nodes/drain", {"all": True})
    await hub.do("POST", "/api/nodes/old/stop")
    answer = await hub.do("POST", "/api/nodes/resume", {"all": True})
    assert answer == {"nodes": ["a1", "a2", "x1", "old"], "count": 4, "unchanged": 0, "skipped": []}
    assert await draining(hub) == set()


@pytest.mark.parametrize(
    "selection",
    [
        {}, {"all": False}, {"all": True, "nodes": ["a1"]}, {"labels": {}}, {"nodes": []},
        {"label": {"a": "b"}}, {"nodes": "a1"}, {"labels": {"a": 1}}, {"nodes": ["a b"]},
    ],
)  # fmt: skip
async def test_a_selection_must_say_which(hub: OperatedHub, selection: object) -> None:
    assert (await hub.refused("POST", "/api/nodes/drain", selection))[0] == 422
    assert await draining(hub) == set()


async def test_no_body_is_no_selection(hub: OperatedHub) -> None:
    assert (await hub.refused("POST", "/api/nodes/drain"))[0] == 400


async def test_many_nodes_are_one_event(hub: OperatedHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hub.nodes_api.CHUNK", 2)
    await hub.do("POST", "/api/nodes/drain", {"all": True})
    (event,) = await hub.events("drain-ordered")
    assert (event["selection"], event["count"]) == ({"all": True}, 4)
    assert await draining(hub) == {"a1", "a2", "x1"}


async def test_a_state_that_is_lost_on_the_way_leaves_a_part_done(
    hub: OperatedHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.nodes_api.CHUNK", 2)
    order_many, calls = node_operations.order_many, []

    def breaking(node_ids: Any, *rest: Any) -> Any:
        calls.append(node_ids)
        if len(calls) == 2:
            raise StoreUnavailable("gone")
        return order_many(node_ids, *rest)

    monkeypatch.setattr(node_operations, "order_many", breaking)
    assert await hub.refused("POST", "/api/nodes/drain", {"all": True}) == (503, "partly-done")
    assert await draining(hub) == {"a1", "a2"}


async def test_only_the_nodes_that_are_ordered_are_woken(hub: OperatedHub) -> None:
    woken: list[str] = []
    hub.store.listen(woken.append)
    await hub.do("POST", "/api/nodes/drain", {"architecture": "aarch64"})
    assert "a1 a2" in woken
    with hub.waiters.holding("a2") as second, hub.waiters.holding("x1") as other:
        hub.waiters.wake("a1 a2")
        await second.wait(deadline=1e12)
        await other.wait(deadline=0)


async def test_a_node_that_is_offline_can_be_forgotten(hub: OperatedHub) -> None:
    assert await hub.refused("DELETE", "/api/nodes/a1") == (409, "node-online")
    await hub.do("POST", "/gridnode/deregister", {"node_id": "a1"})
    await hub.do("DELETE", "/api/nodes/a1")
    assert await hub.refused("GET", "/api/nodes/a1") == (404, "unknown-node")
    assert await hub.refused("DELETE", "/api/nodes/a1") == (404, "unknown-node")
    (event,) = await hub.events("node-forgotten")
    assert (event["node"], event["hostname"]) == ("a1", "host-a1")


async def test_a_forgotten_node_takes_its_own_tokens_with_it(hub: OperatedHub) -> None:
    made = await hub.do("POST", "/api/tokens", {"role": "node", "ttl": 3600, "node": "a1"})
    await hub.do("POST", "/gridnode/deregister", {"node_id": "a1"})
    await hub.do("DELETE", "/api/nodes/a1")
    (record,) = [record for record in await hub.do("GET", "/api/tokens") if record["id"] == made["id"]]
    assert record["status"] == "revoked"


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("platform=linux/arm64", {"a1", "a2", "old"}),
        ("label=room=1", {"a1", "a2", "x1"}),
        ("label=room=1&label=rack=7", {"x1"}),
        ("label=room=1&architecture=aarch64&status=Online", {"a1", "a2"}),
        ("label=room=", set()),
    ],
)
async def test_the_list_of_nodes_can_be_narrowed(hub: OperatedHub, query: str, expected: set[str]) -> None:
    assert {node["id"] for node in await hub.do("GET", f"/api/nodes?{query}")} == expected


@pytest.mark.parametrize("query", ["label=room", "label==1", "labels=room=1"])
async def test_a_filter_that_says_nothing_is_refused(hub: OperatedHub, query: str) -> None:
    assert (await hub.refused("GET", f"/api/nodes?{query}"))[0] == 422
