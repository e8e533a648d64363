"""A fleet that is held, and a task that is tried, as nodes of the fixed protocol and ours see it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import HubProcess

OLD = {"name": "old", "image": "old:1", "input_queue": "q"}
NODE = {"node_id": None, "hostname": "pi-1", "architecture": "aarch64", "cpu_count": 4}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    """Task `old` is current, `new` waits."""
    process = HubProcess(tmp_path)
    process.start()
    for task in (OLD, {"name": "new", "image": "new:1"}):
        assert process.post("/api/tasks", task).status == 201
    process.post("/api/tasks/next")
    yield process
    process.end()


def join(hub: HubProcess, **fields: Any) -> str:
    node_id: str = hub.post("/gridnode/register", {**NODE, **fields}).json["node_id"]
    return node_id


def beat(hub: HubProcess, node_id: str, status: str, **fields: Any) -> None:
    body = {"node_id": node_id, "status": status, "active_containers": 1, **fields}
    assert hub.post("/gridnode/heartbeat", body).status == 200


def given(hub: HubProcess, node_id: str | None = None) -> tuple[str | None, Any]:
    """The ETag, and the task of a node; without an id as the fixed protocol asks."""
    query = f"?platform=linux/arm64&node_id={node_id}" if node_id else "?platform=linux/arm64"
    answer = hub.get(f"/gridnode/task{query}")
    assert answer.status == 200
    return answer.headers["ETag"], answer.json


def eventually(check: Callable[[], bool], seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_node_of_the_fixed_protocol_stops_while_the_fleet_is_held_also_after_a_restart(
    hub: HubProcess,
) -> None:
    node_id = join(hub)
    before, task = given(hub)
    assert task["task_name"] == "old"
    assert hub.post("/api/tasks/hold").json == {"held": True, "current": "old"}
    assert given(hub)[1] is None
    hub.stop()
    hub.start()
    held, task = given(hub)
    assert (task, hub.get("/api/tasks").json["held"]) == (None, True)
    assert hub.post("/gridnode/register", {**NODE, "node_id": node_id}).json["current_task"] is None
    hub.post("/api/tasks/release")
    after, task = given(hub)
    assert task["task_name"] == "old"
    assert len({before, held, after}) == 3


def test_fixed_calls_see_nothing_of_a_task_that_is_tried(hub: HubProcess) -> None:
    join(hub)
    assert hub.post("/api/tasks/next", {"canary": 1}).status == 409
    ours = join(hub, agent_version="1")
    before = given(hub)
    tried = hub.post("/api/tasks/next", {"canary": 2})
    assert (tried.status, tried.json["canary"]["nodes"]) == (200, [ours])
    assert given(hub) == before
    assert hub.post("/gridnode/register", NODE).json["current_task"] == before[1]
    listed = hub.get("/api/tasks").json
    assert (listed["current"], listed["pending"], listed["completed"]) == ("old", ["new"], [])
    revision, task = given(hub, ours)
    assert (task["task_name"], f'"{task["generation"]}"') == ("new", revision)
    finished = hub.post("/api/tasks/finish", {"task": "old"})
    assert (finished.status, finished.json["started"]) == (200, "new")
    assert given(hub) == (revision, task) == given(hub, ours)


def test_the_hub_by_itself_calls_a_canary_healthy_or_ends_it(hub: HubProcess) -> None:
    ours = join(hub, agent_version="1")
    before = given(hub, ours)

    def canary() -> Any:
        return hub.get("/api/tasks").json["canary"]

    hub.post("/api/tasks/next", {"canary": 1, "healthy_after": 1})
    _, task = given(hub, ours)
    beat(hub, ours, "Error", generation=task["generation"], reason="no such image")
    eventually(lambda: canary() is None)
    assert given(hub, ours) == before
    hub.post("/api/tasks/next", {"canary": 1, "healthy_after": 1})
    _, task = given(hub, ours)
    beat(hub, ours, "Running", generation=task["generation"])
    eventually(lambda: canary()["state"] == "healthy")
    assert hub.post("/api/tasks/promote", {"task": "new"}).json == {"previous": "old", "current": "new"}
