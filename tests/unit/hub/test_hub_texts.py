"""Text that nothing can hold, names that are given twice, bodies that are compressed: refused, and why."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest

from gridcore.json_values import HALF, TWICE
from tests.unit.hub.operated_hub import AUTH, OperatedHub

HALVED = "a\ud800"
TASK = {"name": "b", "image": "b:1"}
FACTS = {"node_id": "m", "hostname": "h", "architecture": "aarch64", "cpu_count": 4}
BEAT = {"node_id": "n", "status": "Idle", "active_containers": 0}


@pytest.fixture
async def hub() -> OperatedHub:
    hub = OperatedHub()
    await hub.add("a")
    await hub.join("n")
    return hub


async def told(hub: OperatedHub, method: str, path: str, body: bytes, **headers: str) -> tuple[int, Any]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    response = await getattr(hub.app.test_client(), method.lower())(
        path, data=body, headers={**AUTH, **named}
    )
    text = await response.get_data(as_text=True)
    return response.status_code, json.loads(text) if text else None


def fields(answer: tuple[int, Any]) -> tuple[int, dict[str, str]]:
    status, problem = answer
    return status, {error["field"]: error["message"] for error in problem.get("errors", ())}


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/api/tasks", {**TASK, "input_queue": HALVED}, "input_queue"),
        ("POST", "/api/tasks", {**TASK, "output_queue": HALVED}, "output_queue"),
        ("POST", "/api/tasks", {**TASK, "input_redis": f"redis://{HALVED}"}, "input_redis"),
        ("POST", "/api/tasks", {**TASK, "env": {"KEY": HALVED}}, "env.KEY"),
        ("POST", "/api/tasks", {**TASK, "env": {HALVED: "x"}}, "env.a\\ud800"),
        ("POST", "/api/tasks", {**TASK, "command": ["sh", HALVED]}, "command.1"),
        ("POST", "/api/tasks", {**TASK, "name": HALVED}, "name"),
        ("POST", "/api/tasks", {**TASK, "images": {"linux/amd64": HALVED}}, "images.linux/amd64"),
        ("POST", "/api/tasks", {**TASK, HALVED: 1}, "a\\ud800"),
        ("PATCH", "/api/tasks/a", {"input_queue": HALVED}, "input_queue"),
        ("PATCH", "/api/tasks/a", {"env": {"KEY": HALVED}}, "env.KEY"),
        ("POST", "/api/tasks/a/move", {"before": HALVED}, "before"),
        ("POST", "/api/tasks/next", {"task": None, "generation": HALVED}, "generation"),
        ("POST", "/api/tasks/finish", {"task": "a", "generation": HALVED}, "generation"),
        ("POST", "/api/tasks/promote", {"task": HALVED}, "task"),
        ("POST", "/api/tasks/a/revert", {HALVED: 1}, "a\\ud800"),
        ("POST", "/api/nodes/drain", {"labels": {"room": HALVED}}, "labels.room"),
        ("POST", "/api/nodes/drain", {"architecture": HALVED}, "architecture"),
        ("POST", "/api/tokens", {"role": "viewer", "ttl": 60, "name": HALVED}, "name"),
        ("POST", "/gridnode/register", {**FACTS, "hostname": HALVED}, "hostname"),
        ("POST", "/gridnode/register", {**FACTS, "labels": {"room": HALVED}}, "labels.room"),
        ("POST", "/gridnode/register", {**FACTS, "machine": HALVED}, "machine"),
        ("POST", "/gridnode/heartbeat", {**BEAT, "reason": HALVED}, "reason"),
        ("POST", "/gridnode/heartbeat", {**BEAT, "warnings": ["x", HALVED]}, "warnings.1"),
    ],
)
async def test_half_a_character_is_refused_with_its_field_and_changes_nothing(
    hub: OperatedHub, method: str, path: str, body: dict[str, Any], field: str
) -> None:
    before = await hub.tasks()
    status, found = fields(await told(hub, method, path, json.dumps(body).encode()))
    assert (status, list(found)) == (422, [field])
    assert HALF in found[field]
    assert await hub.tasks() == before
    assert [node["id"] for node in await hub.do("GET", "/api/nodes")] == ["n"]


@pytest.mark.parametrize(
    "path",
    ["/api/nodes?label=room=%FF", "/api/events?who=%ed%a0%80", "/api/tokens?name=%ff", "/api/problems?%ff=1"],
)
async def test_a_query_that_is_no_utf8_is_refused_with_its_parameter(hub: OperatedHub, path: str) -> None:
    name = path.partition("?")[2].partition("=")[0].replace("%ff", "\\udcff")
    assert fields(await told(hub, "GET", path, b"")) == (422, {name: "expected UTF-8"})


@pytest.mark.parametrize(
    ("method", "path", "body", "field"),
    [
        ("POST", "/api/tasks", b'{"name": "b", "image": "b:1", "name": "c"}', "name"),
        ("POST", "/api/tasks", b'{"name": "b", "image": "b:1", "env": {"A": "1", "A": "1"}}', "env.A"),
        ("PATCH", "/api/tasks/a", b'{"memory": 512, "memory": null}', "memory"),
        ("POST", "/api/tasks/next", b'{"task": null, "task": "a"}', "task"),
        ("POST", "/api/tasks/next", b'{"canary": 1, "canary": 200}', "canary"),
        ("POST", "/api/tasks/finish", b'{"task": null, "task": "a"}', "task"),
        ("POST", "/api/nodes/drain", b'{"labels": {"a": "1"}, "labels": {"a": "2"}}', "labels"),
        ("POST", "/api/tokens", b'{"role": "viewer", "ttl": 60, "role": "admin"}', "role"),
    ],
)
async def test_a_name_that_an_operator_gives_twice_is_refused(
    hub: OperatedHub, method: str, path: str, body: bytes, field: str
) -> None:
    before = await hub.tasks()
    assert fields(await told(hub, method, path, body)) == (422, {field: TWICE})
    assert await hub.tasks() == before


async def test_of_a_name_that_a_node_gives_twice_the_last_one_counts(hub: OperatedHub) -> None:
    body = b'{"node_id": "m", "node_id": "n", "status": "Idle", "active_containers": 0}'
    status, answer = await told(hub, "POST", "/gridnode/heartbeat", body)
    assert (status, answer["known"]) == (200, True)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate, gzip", "GZIP"])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/tasks"),
        ("PATCH", "/api/tasks/a"),
        ("POST", "/api/tasks/finish"),
        ("POST", "/gridnode/heartbeat"),
    ],
)
async def test_a_compressed_body_is_refused_as_one(
    hub: OperatedHub, method: str, path: str, encoding: str
) -> None:
    body = gzip.compress(json.dumps(TASK).encode())
    response = await getattr(hub.app.test_client(), method.lower())(
        path, data=body, headers={**AUTH, "Content-Encoding": encoding}
    )
    problem = await response.get_json()
    assert (response.status_code, response.headers["Accept-Encoding"]) == (415, "identity")
    assert "Content-Encoding" in problem["detail"]
    assert "UTF-8" not in problem["detail"]


async def test_an_encoding_that_is_none_and_a_mark_of_utf8_are_taken(hub: OperatedHub) -> None:
    body = b"\xef\xbb\xbf" + json.dumps(TASK).encode()
    assert (await told(hub, "POST", "/api/tasks", body, Content_Encoding="identity"))[0] == 201
    assert (await told(hub, "POST", "/api/tasks/next", b"", Content_Encoding="gzip"))[0] == 200


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("instance", -1),
        ("instance", 10**18),
        ("cpu", 10**18),
        ("restarts", -(10**18)),
        ("restarts", 10**400),
        ("last_exit", {"kind": "failed", "exit_code": 10**18}),
    ],
)
async def test_a_number_that_no_node_can_mean_is_refused(hub: OperatedHub, field: str, value: Any) -> None:
    report = {"instance": 0, "state": "running", field: value}
    status, found = fields(
        await told(hub, "POST", "/gridnode/heartbeat", json.dumps({**BEAT, "containers": [report]}).encode())
    )
    assert status == 422
    assert all(name.startswith(f"containers.0.{field}") for name in found)
