"""The *fixed* rows of the wire protocol, spoken as another program would: raw HTTP to a running hub."""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import TOKEN, Answer, HubProcess

SQUARES = {
    "name": "squares",
    "image": "registry:5000/squares:1",
    "input_redis": "redis://:s3cret@10.0.0.1:6379/0",
    "output_redis": "redis://:s3cret@10.0.0.1:6379/1",
    "input_queue": "squares:in",
    "output_queue": "squares:out",
}
MANDELBROT = {
    "name": "mandelbrot",
    "images": {"linux/amd64": "m:amd64", "linux/arm64": "m:arm64"},
}
NODE = {"node_id": None, "hostname": "pi-1", "architecture": "aarch64", "cpu_count": 4}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path)
    process.start()
    yield process
    process.end()


@pytest.fixture
def own_process(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path, fresh=True)
    process.start()
    yield process
    process.end()


def register(hub: HubProcess, **fields: Any) -> str:
    answer = hub.post("/gridnode/register", {**NODE, **fields})
    assert answer.status == 200
    node_id: str = answer.json["node_id"]
    return node_id


def beat(hub: HubProcess, node_id: str, **fields: Any) -> Any:
    body = {"node_id": node_id, "status": "Idle", "active_containers": 0, **fields}
    answer = hub.post("/gridnode/heartbeat", body)
    assert answer.status == 200
    return answer.json


def node(hub: HubProcess, node_id: str) -> Any:
    (found,) = [node for node in hub.get("/api/nodes").json if node["id"] == node_id]
    return found


class Held:
    """A request for the task that the hub holds, made in a thread."""

    def __init__(self, hub: HubProcess, etag: str | None, query: str = "", wait: int = 20) -> None:
        self.answer: Answer | None = None
        headers = {"Prefer": f"wait={wait}", **({"If-None-Match": etag} if etag else {})}

        def ask() -> None:
            self.answer = hub.get(f"/gridnode/task{query}", headers=headers)
            self.ended_at = time.monotonic()

        self._thread = threading.Thread(target=ask)
        self._thread.start()
        time.sleep(0.3)  # until it is held

    @property
    def is_held(self) -> bool:
        return self._thread.is_alive()

    def wait(self) -> Answer:
        self._thread.join(30)
        assert self.answer is not None
        return self.answer


def test_health_needs_no_token_and_says_ok(hub: HubProcess) -> None:
    answer = hub.get("/health", token=None)
    assert (answer.status, answer.body) == (200, b"OK")
    assert answer.headers.get_content_type() == "text/plain"


@pytest.mark.parametrize("token", [None, "", "wrong", TOKEN + "x", "t\xf6ken"])
def test_everything_else_answers_401_without_the_right_token(hub: HubProcess, token: str | None) -> None:
    for method, path in (
        ("GET", "/api/tasks"),
        ("POST", "/api/tasks/next"),
        ("GET", "/gridnode/task"),
        ("POST", "/gridnode/register"),
        ("GET", "/openapi.json"),
        ("GET", "/no/such/path"),
        ("DELETE", "/api/tasks"),
    ):
        answer = hub.request(method, path, token=token)
        assert answer.status == 401, path
        assert answer.headers["WWW-Authenticate"].startswith("Bearer")
        assert answer.headers.get_content_type() == "application/problem+json"


def test_a_task_is_added_pending_and_does_not_start_by_itself(hub: HubProcess) -> None:
    assert hub.post("/api/tasks", SQUARES).status == 201
    tasks = hub.get("/api/tasks").json
    assert (tasks["current"], tasks["pending"], tasks["completed"]) == (None, ["squares"], [])
    assert tasks["tasks"][0]["name"] == "squares"
    task = hub.get("/gridnode/task")
    assert task.status == 200
    assert task.json is None


def test_adding_the_same_again_changes_nothing_and_another_definition_conflicts(hub: HubProcess) -> None:
    assert hub.post("/api/tasks", SQUARES).status == 201
    assert hub.post("/api/tasks", SQUARES).status == 200
    assert hub.post("/api/tasks", {**SQUARES, "image": "other:1"}).status == 409
    assert hub.get("/api/tasks").json["pending"] == ["squares"]


def test_curl_without_a_content_type_can_add_a_task(hub: HubProcess) -> None:
    body = b'{"name": "a", "image": "a:1"}'
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert hub.post("/api/tasks", body, headers=headers).status == 201


def test_next_walks_through_the_list(hub: HubProcess) -> None:
    hub.post("/api/tasks", SQUARES)
    hub.post("/api/tasks", MANDELBROT)
    first = hub.post("/api/tasks/next")
    assert (first.status, first.json) == (200, {"previous": None, "current": "squares"})
    assert hub.post("/api/tasks/next").json == {"previous": "squares", "current": "mandelbrot"}
    refused = hub.post("/api/tasks/next")
    assert refused.status == 400
    tasks = hub.get("/api/tasks").json
    assert (tasks["current"], tasks["pending"], tasks["completed"]) == ("mandelbrot", [], ["squares"])


def test_finish_starts_the_next_task_if_there_is_one(hub: HubProcess) -> None:
    assert hub.post("/api/tasks/finish").status == 400
    hub.post("/api/tasks", SQUARES)
    hub.post("/api/tasks", MANDELBROT)
    assert hub.post("/api/tasks/finish").status == 400
    hub.post("/api/tasks/next")
    first = hub.post("/api/tasks/finish")
    assert first.status == 200
    assert (first.json["completed"], first.json["started"]) == ("squares", "mandelbrot")
    assert first.json["message"]
    last = hub.post("/api/tasks/finish").json
    assert (last["completed"], last["started"]) == ("mandelbrot", None)
    assert hub.get("/gridnode/task").json is None
    assert hub.post("/api/tasks/finish").status == 400


@pytest.mark.parametrize("call", ["next", "finish"])
def test_a_guard_makes_the_second_press_a_409_that_changes_nothing(hub: HubProcess, call: str) -> None:
    for name in ("a", "b", "c"):
        hub.post("/api/tasks", {"name": name, "image": "x:1"})
    hub.post("/api/tasks/next")
    guard = {"task": "a"}
    assert hub.post(f"/api/tasks/{call}", guard).status == 200
    second = hub.post(f"/api/tasks/{call}", guard)
    assert second.status == 409
    assert second.json["current"] == "b"
    assert hub.get("/api/tasks").json["current"] == "b"
    stale = {"task": "b", "generation": "1-0000000000000000"}
    assert hub.post(f"/api/tasks/{call}", stale).status == 409
    generation = hub.get("/api/tasks").json["generation"]
    assert hub.post(f"/api/tasks/{call}", {"task": "b", "generation": generation}).status == 200


@pytest.mark.parametrize("content_type", ["application/json", "text/plain", None])
def test_an_empty_body_is_no_guard_whatever_its_content_type(
    hub: HubProcess, content_type: str | None
) -> None:
    hub.post("/api/tasks", SQUARES)
    headers = {"Content-Type": content_type} if content_type else {}
    assert hub.post("/api/tasks/next", b"", headers=headers).status == 200


def test_a_node_gets_a_uuid_and_the_current_task_with_its_secrets(hub: HubProcess) -> None:
    hub.post("/api/tasks", SQUARES)
    hub.post("/api/tasks/next")
    answer = hub.post("/gridnode/register", NODE)
    uuid.UUID(answer.json["node_id"])
    task = answer.json["current_task"]
    fixed = {key: task[key] for key in ("task_name", "image", "redis_url", *list(SQUARES)[2:])}
    assert fixed == {
        "task_name": "squares",
        "image": "registry:5000/squares:1",
        "redis_url": None,
        **{key: SQUARES[key] for key in list(SQUARES)[2:]},
    }


def test_a_node_keeps_the_id_that_it_brings(hub: HubProcess) -> None:
    assert register(hub, node_id="old-node.1") == "old-node.1"
    assert register(hub, node_id="old-node.1") == "old-node.1"
    assert len(hub.get("/api/nodes").json) == 1


def test_nodes_show_the_fixed_fields(hub: HubProcess) -> None:
    node_id = register(hub)
    fresh = node(hub, node_id)
    assert fresh["status"] == "Online"
    assert fresh["runtime_status"] is None
    beat(hub, node_id, status="Running", active_containers=4)
    running = node(hub, node_id)
    assert running["hostname"] == "pi-1"
    assert running["architecture"] == "aarch64"
    assert running["cpu_count"] == 4
    assert running["last_seen"].endswith("Z")
    assert (running["runtime_status"], running["active_containers"]) == ("Running", 4)


def test_a_heartbeat_of_an_unknown_node_is_answered_and_says_so(hub: HubProcess) -> None:
    assert beat(hub, "stranger") == {"stop_requested": False, "known": False, "drain": False}


def test_nodes_messages_ignore_fields_that_this_hub_does_not_know(hub: HubProcess) -> None:
    node_id = register(hub, from_the_future=[1, 2])
    assert beat(hub, node_id, from_the_future={"a": 1})["known"] is True


@pytest.mark.parametrize(
    ("query", "image"),
    [
        ("", "m:amd64"),
        ("?platform=linux/amd64", "m:amd64"),
        ("?platform=linux/arm64", "m:arm64"),
        ("?platform=linux%2Farm64", "m:arm64"),
        ("?platform=linux/arm/v7", None),
    ],
)
def test_the_task_has_the_image_of_the_platform(hub: HubProcess, query: str, image: str | None) -> None:
    hub.post("/api/tasks", MANDELBROT)
    hub.post("/api/tasks/next")
    answer = hub.get(f"/gridnode/task{query}")
    assert answer.status == 200
    assert answer.headers["ETag"]
    assert (answer.json and answer.json["image"]) == image


def test_a_stop_arrives_with_the_next_heartbeat_and_ends_with_a_registration(hub: HubProcess) -> None:
    node_id = register(hub)
    assert hub.post("/api/nodes/nobody/stop").status == 404
    assert hub.post(f"/api/nodes/{node_id}/stop").status == 200
    assert hub.post("/gridnode/register", {**NODE, "node_id": node_id}).json["stop_requested"] is True
    assert beat(hub, node_id)["stop_requested"] is True
    assert beat(hub, node_id)["stop_requested"] is True
    register(hub, node_id=node_id)
    assert beat(hub, node_id)["stop_requested"] is False


def test_deregister_is_offline_at_once_until_the_node_registers_again(hub: HubProcess) -> None:
    assert hub.post("/gridnode/deregister", {"node_id": "nobody"}).status == 204
    node_id = register(hub)
    beat(hub, node_id, status="Running", active_containers=2)
    answer = hub.post("/gridnode/deregister", {"node_id": node_id})
    assert (answer.status, answer.body) == (204, b"")
    assert node(hub, node_id)["status"] == "Offline"
    assert node(hub, node_id)["active_containers"] == 0
    assert beat(hub, node_id)["known"] is False
    hub.get(f"/gridnode/task?node_id={node_id}")
    assert node(hub, node_id)["status"] == "Offline"
    register(hub, node_id=node_id)
    assert node(hub, node_id)["status"] == "Online"


def test_a_held_request_ends_with_the_new_task_at_once(hub: HubProcess) -> None:
    hub.post("/api/tasks", SQUARES)
    nothing = hub.get("/gridnode/task")
    held = Held(hub, nothing.headers["ETag"])
    assert held.is_held
    switched_at = time.monotonic()
    hub.post("/api/tasks/next")
    answer = held.wait()
    assert answer.status == 200
    assert answer.json["task_name"] == "squares"
    assert held.ended_at - switched_at < 1
    held = Held(hub, "W/" + answer.headers["ETag"])
    hub.post("/api/tasks/finish")
    ended = held.wait()
    assert (ended.status, ended.json) == (200, None)
    assert ended.headers["ETag"] not in (nothing.headers["ETag"], answer.headers["ETag"])


def test_a_wait_without_news_ends_with_304_and_the_etag(hub: HubProcess) -> None:
    etag = hub.get("/gridnode/task").headers["ETag"]
    begun_at = time.monotonic()
    answer = hub.get("/gridnode/task", headers={"If-None-Match": f'"other", {etag}', "Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - begun_at < 3
    assert (answer.status, answer.body, answer.headers["ETag"]) == (304, b"", etag)
    assert hub.get("/gridnode/task", headers={"If-None-Match": etag}).status == 304
    assert hub.get("/gridnode/task", headers={"If-None-Match": '"other"', "Prefer": "wait=9"}).status == 200
    assert hub.get("/gridnode/task", headers={"If-None-Match": etag, "Prefer": "wait=soon"}).status == 304


def test_a_remote_stop_arrives_in_under_a_second_through_the_held_request(hub: HubProcess) -> None:
    node_id = register(hub)
    etag = hub.get("/gridnode/task").headers["ETag"]
    other = Held(hub, etag, "?node_id=other", wait=3)
    held = Held(hub, etag, f"?node_id={node_id}")
    ordered_at = time.monotonic()
    hub.post(f"/api/nodes/{node_id}/stop")
    answer = held.wait()
    assert (answer.status, answer.headers["GridCore-Heartbeat"]) == (304, "now")
    assert beat(hub, node_id)["stop_requested"] is True
    assert time.monotonic() - ordered_at < 1
    assert other.is_held
    again = Held(hub, etag, f"?node_id={node_id}", wait=1)
    assert again.is_held
    assert "GridCore-Heartbeat" not in again.wait().headers
    other.wait()


def test_operators_never_see_a_secret(hub: HubProcess) -> None:
    task = {**SQUARES, "env": {"API_KEY": "hidden-value"}}
    answers = [hub.post("/api/tasks", task), hub.get("/api/tasks"), hub.get("/api/tasks/squares")]
    for answer in answers:
        assert answer.status in (200, 201)
        assert b"s3cret" not in answer.body
        assert b"hidden-value" not in answer.body
        assert b"redis://:***@10.0.0.1:6379/0" in answer.body
    assert "s3cret" not in hub.log
    assert TOKEN not in hub.log


def test_a_masked_answer_cannot_be_sent_back_as_a_definition(hub: HubProcess) -> None:
    masked = {**SQUARES, "input_redis": "redis://:***@10.0.0.1:6379/0", "env": {"KEY": "***"}}
    answer = hub.post("/api/tasks", masked)
    assert answer.status == 422
    assert [error["field"] for error in answer.json["errors"]] == ["input_redis", "env.KEY"]


@pytest.mark.parametrize(
    ("path", "body", "status", "field"),
    [
        ("/api/tasks", b"{", 400, None),
        ("/api/tasks", b"[1]", 400, None),
        ("/api/tasks", b'{"name": "\xff"}', 400, None),
        ("/api/tasks", b"[" * 60_000, 400, None),
        ("/api/tasks", b'{"memory": NaN}', 400, None),
        ("/api/tasks", b'{"memory": ' + b"9" * 5_000 + b"}", 400, None),
        ("/api/tasks", {"name": "a"}, 422, "(body)"),
        ("/api/tasks", {"name": "a b", "image": "x"}, 422, "name"),
        ("/api/tasks", {"name": "a", "image": "x", "input_que": "q"}, 422, "input_que"),
        ("/api/tasks", {"name": "a", "image": "x", "env": {"TASK_NAME": "b"}}, 422, "env"),
        ("/api/tasks", {"name": "a", "image": "x", "input_queue": "a\nb"}, 422, "input_queue"),
        ("/api/tasks/next", {"tsak": "a"}, 422, "task"),
        ("/api/tasks/next", b"{", 400, None),
        ("/gridnode/register", {"hostname": "a"}, 422, "architecture"),
        ("/gridnode/register", {**NODE, "node_id": "../x"}, 422, "node_id"),
        ("/gridnode/heartbeat", {"node_id": "a", "status": "Busy", "active_containers": 1}, 422, "status"),
        ("/gridnode/deregister", {}, 422, "node_id"),
    ],
)
def test_a_bad_body_is_refused_with_the_field_named(
    hub: HubProcess, path: str, body: object, status: int, field: str | None
) -> None:
    answer = hub.post(path, body)
    assert answer.status == status, answer.body
    assert answer.headers.get_content_type() == "application/problem+json"
    problem = answer.json
    assert problem["type"]
    assert problem["title"]
    assert problem["detail"]
    if field:
        assert field in [error["field"] for error in problem["errors"]]


def test_unknown_paths_are_404_and_wrong_methods_405(hub: HubProcess) -> None:
    assert hub.get("/nothing/here").status == 404
    assert hub.get("/api/tasks/nothing").status == 404
    assert hub.get("/api/tasks/").status == 404
    assert hub.get("/api/nodes/nothing").status == 404
    refused = hub.request("PUT", "/api/tasks", b"")
    assert refused.status == 405
    assert "POST" in refused.headers["Allow"]


@pytest.mark.parametrize("size", [64 * 1024 + 1, 1_000_000, 4_000_000])
@pytest.mark.parametrize("is_chunked", [False, True])
def test_a_body_over_64_kib_is_413_with_and_without_a_length(
    hub: HubProcess, size: int, is_chunked: bool
) -> None:
    connection = hub.connect()
    body = iter([b"x" * 10_000] * (size // 10_000 + 1)) if is_chunked else b"x" * size
    headers = {"Authorization": f"Bearer {TOKEN}"}
    connection.request("POST", "/api/tasks", body=body, headers=headers, encode_chunked=is_chunked)
    response = connection.getresponse()
    assert response.status == 413
    assert response.headers.get_content_type() == "application/problem+json"
    connection.close()


def test_a_body_of_64_kib_is_read(hub: HubProcess) -> None:
    definition = b'{"name": "a", "image": "x:1"}'
    assert hub.post("/api/tasks", definition + b" " * (64 * 1024 - len(definition))).status == 201


def test_filters_select_nodes_and_refuse_what_they_do_not_know(hub: HubProcess) -> None:
    arm = register(hub)
    x86 = register(hub, architecture="x86_64")
    hub.post("/gridnode/deregister", {"node_id": x86})
    assert [found["id"] for found in hub.get("/api/nodes?status=Online").json] == [arm]
    assert [found["id"] for found in hub.get("/api/nodes?architecture=x86_64").json] == [x86]
    assert hub.get("/api/nodes?status=Offline&architecture=aarch64").json == []
    assert hub.get("/api/nodes?status=online").status == 422
    assert hub.get("/api/nodes?stauts=Online").status == 422


@pytest.mark.parametrize("end", ["SIGTERM", "kill -9"])
def test_a_restart_loses_no_task_no_position_and_no_node(own_process: HubProcess, end: str) -> None:
    hub = own_process
    for name in ("a", "b", "c"):
        hub.post("/api/tasks", {"name": name, "image": "x:1", "env": {"KEY": "value"}})
    hub.post("/api/tasks/next")
    hub.post("/api/tasks/next")
    online, gone, stopping = register(hub), register(hub), register(hub)
    hub.post("/gridnode/deregister", {"node_id": gone})
    hub.post(f"/api/nodes/{stopping}/stop")
    etag = hub.get("/gridnode/task").headers["ETag"]
    if end == "SIGTERM":
        assert hub.stop() == 0
    else:
        hub.kill()
    hub.start()
    tasks = hub.get("/api/tasks").json
    assert (tasks["current"], tasks["pending"], tasks["completed"]) == ("b", ["c"], ["a"])
    task = hub.get("/gridnode/task")
    assert (task.headers["ETag"], task.json["env"]) == (etag, {"KEY": "value"})
    states = {found["id"]: found["status"] for found in hub.get("/api/nodes").json}
    assert states == {online: "Online", gone: "Offline", stopping: "Online"}
    assert beat(hub, online)["known"] is True
    assert beat(hub, gone)["known"] is False
    assert beat(hub, stopping)["stop_requested"] is True


def test_a_client_that_vanishes_while_it_is_held_does_no_harm(hub: HubProcess) -> None:
    etag = hub.get("/gridnode/task").headers["ETag"]
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", hub.port)) as raw:
            raw.sendall(
                f"GET /gridnode/task HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {TOKEN}\r\n"
                f"If-None-Match: {etag}\r\nPrefer: wait=40\r\n\r\n".encode()
            )
            time.sleep(0.02)
    hub.post("/api/tasks", SQUARES)
    assert hub.post("/api/tasks/next").status == 200
    assert hub.get("/gridnode/task").json["task_name"] == "squares"
    assert "Traceback" not in hub.log
