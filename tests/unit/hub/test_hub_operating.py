"""What operators see and order, on a store in memory: containers, drains, logs, problems, prefetching."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from quart import Quart, Response

from gridcore.protocol import RegisterRequest, TaskDefinition
from hub.app import create_app
from hub.logdesk import LogDesk
from hub.operations import add_task, deregister, register, start_next
from hub.settings import HubSettings
from hub.store_local import LocalStore, open_memory
from hub.waiters import Waiters

TOKEN = "an-example-secret-of-some-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
PATIENCE = 0.3


class Hub:
    """The application, and short words to say to it."""

    def __init__(self, **settings: Any) -> None:
        self.store: LocalStore = open_memory()
        self.waiters = Waiters()
        self.desk = LogDesk(self.waiters, patience=PATIENCE)
        configured = HubSettings(token=TOKEN, state="memory:", **settings)
        self.app: Quart = create_app(configured, self.store, self.waiters, self.desk)

    async def get(self, path: str) -> Response:
        response: Response = await self.app.test_client().get(path, headers=AUTH)
        return response

    async def show(self, path: str) -> Any:
        return await (await self.get(path)).get_json()

    async def post(self, path: str, body: object = None) -> Response:
        data = b"" if body is None else json.dumps(body).encode()
        response: Response = await self.app.test_client().post(path, data=data, headers=AUTH)
        return response

    async def join(self, node_id: str, architecture: str = "aarch64", version: str | None = "1") -> None:
        await self.store.run(
            register(
                RegisterRequest(
                    node_id=node_id,
                    hostname=f"host-{node_id}",
                    architecture=architecture,
                    cpu_count=4,
                    agent_version=version,
                )
            )
        )

    async def beat(self, node_id: str, **fields: Any) -> Any:
        body = {"node_id": node_id, "status": "Idle", "active_containers": 0, **fields}
        response = await self.post("/gridnode/heartbeat", body)
        assert response.status_code == 200
        return await response.get_json()

    async def add(self, name: str, **fields: Any) -> None:
        await self.store.run(
            add_task(TaskDefinition.model_validate({"name": name, "image": f"{name}:1", **fields}))
        )


@pytest.fixture
def hub() -> Hub:
    return Hub()


async def problem_of(response: Response) -> Any:
    assert response.content_type == "application/problem+json"
    return await response.get_json()


# --- Nodes -------------------------------------------------------------------------------------------------


async def test_a_node_shows_its_containers_warnings_and_pause(hub: Hub) -> None:
    await hub.join("n")
    fresh = await hub.show("/api/nodes/n")
    assert (fresh["containers"], fresh["warnings"], fresh["paused"]) == ([], [], False)
    last_exit = {"kind": "failed", "exit_code": 1, "message": "no redis://:hidden@h", "ago": 70, "ran": 2.5}
    await hub.beat(
        "n",
        containers=[
            {"instance": 0, "cpu": 1, "state": "running", "age": 60, "restarts": 2, "last_exit": last_exit},
            {"instance": 1, "state": "waiting"},
        ],
        warnings=["the kernel enforces no memory limit"],
        paused=True,
    )
    shown = await hub.show("/api/nodes/n")
    assert (await hub.show("/api/nodes"))[0] == shown
    assert (shown["warnings"], shown["paused"]) == (["the kernel enforces no memory limit"], True)
    first, second = shown["containers"]
    assert first.pop("started").endswith("Z")
    assert len(first["last_exit"].pop("time")) == len("2026-01-01T00:00:00Z")
    assert first == {
        "instance": 0,
        "cpu": 1,
        "state": "running",
        "restarts": 2,
        "last_exit": {"kind": "failed", "exit_code": 1, "message": "no redis://:***@h", "ran": 2.5},
    }
    assert second == {
        "instance": 1, "cpu": None, "state": "waiting", "started": None, "restarts": 0, "last_exit": None,
    }  # fmt: skip


async def test_secrets_of_tasks_are_hidden_in_all_that_nodes_say(hub: Hub) -> None:
    await hub.join("n")
    await hub.add("a", env={"KEY": "hidden-value"}, input_redis="redis://:hidden-word@h")
    text = "hidden-value and hidden-word"
    container = {"instance": 0, "state": "exited", "last_exit": {"kind": "failed", "message": text}}
    await hub.beat(
        "n",
        status="Error",
        reason=text,
        warnings=[text],
        errors=[{"kind": "failed", "message": text}],
        containers=[container],
    )
    for path in ("/api/nodes", "/api/nodes/n", "/api/problems"):
        body = await (await hub.get(path)).get_data()
        assert b"*** and ***" in body
        assert b"hidden" not in body


async def test_a_drain_is_told_by_heartbeats_and_registrations_until_resume(hub: Hub) -> None:
    await hub.join("n")
    ordered = await hub.post("/api/nodes/n/drain")
    assert ordered.status_code == 200
    assert await ordered.get_json() == {"node_id": "n", "draining": True, "stop_requested": False}
    assert (await hub.show("/api/nodes/n"))["draining"] is True
    assert (await hub.beat("n"))["drain"] is True
    node = {"node_id": "n", "hostname": "h", "architecture": "aarch64", "cpu_count": 4, "agent_version": "2"}
    assert (await (await hub.post("/gridnode/register", node)).get_json())["drain"] is True
    assert (await (await hub.post("/api/nodes/n/resume")).get_json())["draining"] is False
    assert (await hub.beat("n"))["drain"] is False


async def test_what_cannot_be_drained_is_refused_with_what_to_do(hub: Hub) -> None:
    for order in ("drain", "resume"):
        assert (await hub.post(f"/api/nodes/nobody/{order}")).status_code == 404
    await hub.join("old", version=None)
    refused = await hub.post("/api/nodes/old/drain")
    assert refused.status_code == 409
    problem = await problem_of(refused)
    assert problem["type"] == "urn:idm-gridcore:problem:not-supported"
    assert "Use stop: POST /api/nodes/old/stop" in problem["detail"]
    assert (await hub.post("/api/nodes/old/resume")).status_code == 200


# --- Logs --------------------------------------------------------------------------------------------------


async def test_a_log_is_brought_by_the_node_and_masked(hub: Hub) -> None:
    await hub.join("n")
    await hub.add("a", env={"KEY": "hidden-value"})
    asking = asyncio.create_task(hub.get("/api/nodes/n/logs?instance=1&lines=5&previous=2"))
    await asyncio.sleep(0.05)
    (order,) = (await hub.beat("n"))["logs"]
    assert {**order, "id": ""} == {"id": "", "instance": 1, "lines": 5, "previous": 2}
    assert "logs" not in await hub.beat("n")
    text = "ü: redis://:hidden@h\nKEY=hidden-value\n"
    brought = await hub.post("/gridnode/logs", {"node_id": "n", "id": order["id"], "text": text})
    assert brought.status_code == 204
    answer = await asking
    assert (answer.status_code, answer.content_type) == (200, "text/plain; charset=utf-8")
    assert await answer.get_data(as_text=True) == "ü: redis://:***@h\nKEY=***\n"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"


async def test_halves_of_characters_do_no_harm(hub: Hub) -> None:
    await hub.join("n")
    asking = asyncio.create_task(hub.get("/api/nodes/n/logs"))
    await asyncio.sleep(0.05)
    (order,) = (await hub.beat("n"))["logs"]
    await hub.post("/gridnode/logs", {"node_id": "n", "id": order["id"], "text": "a\ud800b"})
    assert await (await asking).get_data() == b"a?b"


async def test_why_a_node_has_no_log_is_told(hub: Hub) -> None:
    await hub.join("n")
    asking = asyncio.create_task(hub.get("/api/nodes/n/logs?instance=9"))
    await asyncio.sleep(0.05)
    (order,) = (await hub.beat("n"))["logs"]
    await hub.post("/gridnode/logs", {"node_id": "n", "id": order["id"], "error": "there is no slot 9"})
    answer = await asking
    assert answer.status_code == 404
    problem = await problem_of(answer)
    assert (problem["type"], problem["detail"]) == ("urn:idm-gridcore:problem:no-log", "there is no slot 9")


async def test_a_node_that_does_not_answer_is_504(hub: Hub) -> None:
    await hub.join("n")
    answer = await hub.get("/api/nodes/n/logs")
    assert answer.status_code == 504
    assert (await problem_of(answer))["type"] == "urn:idm-gridcore:problem:node-silent"


async def test_who_cannot_answer_is_not_asked(hub: Hub) -> None:
    await hub.join("old", version=None)
    await hub.join("gone")
    await hub.store.run(deregister("gone"))
    for node_id, status, slug in (
        ("nobody", 404, "unknown-node"),
        ("old", 409, "not-supported"),
        ("gone", 409, "node-offline"),
    ):
        answer = await asyncio.wait_for(hub.get(f"/api/nodes/{node_id}/logs"), PATIENCE / 2)
        assert answer.status_code == status
        assert (await problem_of(answer))["type"].endswith(slug)


@pytest.mark.parametrize(
    ("query", "fields"),
    [
        ("instance=-1", ["instance"]),
        ("lines=0&previous=4", ["lines", "previous"]),
        ("lines=10001", ["lines"]),
        ("instance=a", ["instance"]),
        ("instance=", ["instance"]),
        ("line=5", ["line"]),
        ("lines=1&lines=2", ["lines"]),
    ],
)
async def test_a_bad_query_is_422_and_names_each_field(hub: Hub, query: str, fields: list[str]) -> None:
    await hub.join("n")
    answer = await hub.get(f"/api/nodes/n/logs?{query}")
    assert answer.status_code == 422
    assert [error["field"] for error in (await problem_of(answer))["errors"]] == fields


async def test_too_many_who_wait_for_one_node_are_told_when_to_come_again(hub: Hub) -> None:
    await hub.join("n")
    waiting = [asyncio.create_task(hub.get("/api/nodes/n/logs")) for _ in range(16)]
    await asyncio.sleep(0.1)
    refused = await hub.get("/api/nodes/n/logs")
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "10")
    assert len((await hub.beat("n"))["logs"]) == 16
    assert {answer.status_code for answer in await asyncio.gather(*waiting)} == {504}
    assert len(hub.desk) == 0


async def test_a_hub_that_stops_answers_who_waits_for_a_log(hub: Hub) -> None:
    await hub.join("n")
    asking = asyncio.create_task(hub.get("/api/nodes/n/logs"))
    await asyncio.sleep(0.05)
    hub.waiters.close()
    answer = await asyncio.wait_for(asking, PATIENCE / 2)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]


async def test_an_operator_who_disconnects_leaves_no_question_behind(hub: Hub) -> None:
    await hub.join("n")
    async with hub.app.test_client().request("/api/nodes/n/logs", headers=AUTH) as connection:
        await connection.send_complete()
        await asyncio.sleep(0.05)
        assert len(hub.desk) == 1
        await connection.disconnect()
    await asyncio.sleep(0.05)
    assert len(hub.desk) == 0


async def test_only_a_log_may_be_large_and_only_with_the_token(hub: Hub) -> None:
    message = {"node_id": "n", "id": "x", "text": "a" * (1024 * 1024 - 100)}
    assert (await hub.post("/gridnode/logs", message)).status_code == 204
    assert (await hub.post("/gridnode/logs", {**message, "text": "a" * 1024 * 1024})).status_code == 413
    assert (await hub.post("/gridnode/heartbeat", {**message, "text": "a" * 65_536})).status_code == 413
    stranger = await hub.app.test_client().post("/gridnode/logs", data=b"a" * 100_000)
    assert stranger.status_code == 401


# --- Problems ----------------------------------------------------------------------------------------------


async def test_problems_are_grouped_by_cause(hub: Hub) -> None:
    for number in range(4):
        await hub.join(f"n{number}")
    for number in range(3):
        errors = [{"kind": "wrong-platform", "message": f"idm-a-n{number}-0: exec format error"}]
        await hub.beat(f"n{number}", status="Error", reason="exec format error", errors=errors)
    (problem,) = await hub.show("/api/problems")
    assert problem.pop("first").endswith("Z")
    assert problem.pop("last").endswith("Z")
    assert problem == {
        "kind": "wrong-platform",
        "cause": "exec format error",
        "nodes": 3,
        "of": 4,
        "summary": "3 of 4 nodes: exec format error",
        "node_ids": ["n0", "n1", "n2"],
        "example": "idm-a-n0-0: exec format error",
    }


async def test_a_healthy_fleet_has_no_problems_and_a_new_task_forgets_the_old_ones(hub: Hub) -> None:
    await hub.join("n")
    assert await hub.show("/api/problems") == []
    await hub.beat("n", errors=[{"kind": "failed", "message": "exit code 1"}])
    assert len(await hub.show("/api/problems")) == 1
    await hub.add("a")
    await hub.store.run(start_next(None))
    assert await hub.show("/api/problems") == []
    assert (await hub.get("/api/problems?kind=failed")).status_code == 422


# --- Tasks -------------------------------------------------------------------------------------------------


async def test_the_next_tasks_image_is_announced_only_where_the_configuration_asks_for_it() -> None:
    for prefetch in (False, True):
        hub = Hub(prefetch=prefetch)
        await hub.join("arm")
        await hub.join("x86", "x86_64")
        assert "prefetch" not in await hub.beat("arm")
        await hub.add("a")
        await hub.store.run(start_next(None))
        assert "prefetch" not in await hub.beat("arm")
        await hub.add("b", image="b:1", images={"linux/arm64": "b:arm"})
        await hub.add("c")
        expected = ("b:arm", "b:1") if prefetch else (None, None)
        assert ((await hub.beat("arm")).get("prefetch"), (await hub.beat("x86")).get("prefetch")) == expected
        await hub.store.run(start_next(None))
        assert (await hub.beat("arm")).get("prefetch") == ("c:1" if prefetch else None)
        assert "prefetch" not in await hub.beat("stranger")


async def test_a_platform_that_the_next_task_has_no_image_for_prefetches_nothing() -> None:
    hub = Hub(prefetch=True)
    await hub.join("arm")
    await hub.store.run(
        add_task(TaskDefinition.model_validate({"name": "a", "images": {"linux/amd64": "x:1"}}))
    )
    assert "prefetch" not in await hub.beat("arm")


async def test_the_pull_policy_is_shown_and_passed_on(hub: Hub) -> None:
    posted = await hub.post("/api/tasks", {"name": "a", "image": "x:1", "pull_policy": "always"})
    assert (await posted.get_json())["pull_policy"] == "always"
    await hub.add("b")
    assert [task["pull_policy"] for task in (await hub.show("/api/tasks"))["tasks"]] == ["always", None]
    await hub.store.run(start_next(None))
    assert (await hub.show("/gridnode/task"))["pull_policy"] == "always"
    await hub.store.run(start_next(None))
    assert "pull_policy" not in await hub.show("/gridnode/task")
    refused = await hub.post("/api/tasks", {"name": "c", "image": "x:1", "pull_policy": "never"})
    assert refused.status_code == 422
    changed = await hub.post("/api/tasks", {"name": "b", "image": "b:1", "pull_policy": "missing"})
    assert changed.status_code == 409
