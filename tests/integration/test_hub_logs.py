"""What goes from an operator to a node and back, though only nodes call hubs: orders and logs, raw HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import TOKEN, Answer, HubProcess

NODE = {"node_id": "n", "hostname": "pi-1", "architecture": "aarch64", "cpu_count": 4, "agent_version": "1"}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path)
    process.start()
    yield process
    process.end()


class Node:
    """A node as an agent would be it: a held request, a heartbeat when that ends, logs when asked for."""

    def __init__(self, hub: HubProcess, node_id: str = "n") -> None:
        self._hub = hub
        self._id = node_id
        self._stopping = False
        self.beats: list[Any] = []
        self.text = "the end of a log\n"
        assert hub.post("/gridnode/register", {**NODE, "node_id": node_id}).status == 200
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        time.sleep(0.3)  # until its request is held

    def stop(self) -> None:
        self._stopping = True
        self._thread.join(20)

    def _run(self) -> None:
        etag = self._hub.get("/gridnode/task").headers["ETag"]
        while not self._stopping:
            try:
                headers = {"If-None-Match": etag, "Prefer": "wait=2"}
                held = self._hub.get(f"/gridnode/task?node_id={self._id}", headers=headers)
                if held.headers["GridCore-Heartbeat"] == "now":
                    self._beat()
            except (OSError, http.client.HTTPException):
                return

    def _beat(self) -> None:
        message = {"node_id": self._id, "status": "Idle", "active_containers": 0}
        beat = self._hub.post("/gridnode/heartbeat", message).json
        self.beats.append(beat)
        for order in beat.get("logs", []):
            answer = {"node_id": self._id, "id": order["id"], "text": f"{order['instance']}: {self.text}"}
            assert self._hub.post("/gridnode/logs", answer).status == 204


@pytest.fixture
def node(hub: HubProcess) -> Iterator[Node]:
    made = Node(hub)
    yield made
    made.stop()


class Asking(threading.Thread):
    """An operator who waits for a log."""

    def __init__(self, hub: HubProcess, query: str = "", node_id: str = "n") -> None:
        super().__init__()
        self._hub, self._path = hub, f"/api/nodes/{node_id}/logs{query}"
        self.answer: Answer | None = None
        self.start()

    def run(self) -> None:
        self.answer = self._hub.get(self._path)

    def wait(self) -> Answer:
        self.join(30)
        assert self.answer is not None
        return self.answer


def test_a_log_comes_through_the_held_request_in_well_under_a_second(hub: HubProcess, node: Node) -> None:
    for instance in range(3):
        begun = time.monotonic()
        answer = hub.get(f"/api/nodes/n/logs?instance={instance}&lines=5")
        assert time.monotonic() - begun < 0.5
        assert (answer.status, answer.headers["Content-Type"]) == (200, "text/plain; charset=utf-8")
        assert answer.body == f"{instance}: the end of a log\n".encode()
    assert [len(beat["logs"]) for beat in node.beats] == [1, 1, 1]


def test_operators_who_ask_at_once_each_get_theirs(hub: HubProcess, node: Node) -> None:
    asking = [Asking(hub, f"?instance={instance}") for instance in range(10)]
    for instance, operator in enumerate(asking):
        assert operator.wait().body.startswith(f"{instance}: ".encode())


def test_a_megabyte_comes_through_and_one_byte_more_than_that_does_not(hub: HubProcess, node: Node) -> None:
    node.text = "a\n" * 340_000  # 3 bytes each in JSON
    assert len(hub.get("/api/nodes/n/logs").body) == 680_003
    empty = json.dumps({"node_id": "n", "id": "x", "text": ""})
    most = 1024 * 1024 - len(empty)
    assert hub.post("/gridnode/logs", {"node_id": "n", "id": "x", "text": "a" * most}).status == 204
    assert hub.post("/gridnode/logs", {"node_id": "n", "id": "x", "text": "a" * (most + 1)}).status == 413


def test_secrets_of_the_tasks_are_masked_in_logs(hub: HubProcess, node: Node) -> None:
    task = {
        "name": "a",
        "image": "x:1",
        "input_redis": "redis://:hunter%40two@h/0",
        "env": {"KEY": "value-of-key"},
    }
    assert hub.post("/api/tasks", task).status == 201
    node.text = "hunter@two, value-of-key, postgres://me:anything@db\n"
    assert hub.get("/api/nodes/n/logs").body == b"0: ***, ***, postgres://me:***@db\n"


def test_drain_and_resume_arrive_in_under_a_second_through_the_held_request(
    hub: HubProcess, node: Node
) -> None:
    for order, level in (("drain", True), ("resume", False)):
        ordered_at = time.monotonic()
        answer = hub.post(f"/api/nodes/n/{order}")
        assert answer.json == {"node_id": "n", "draining": level, "stop_requested": False}
        while not node.beats:
            assert time.monotonic() - ordered_at < 1
            time.sleep(0.01)
        assert node.beats.pop()["drain"] is level
        assert hub.post(f"/api/nodes/n/{order}").status == 200
        time.sleep(0.5)
        assert node.beats == [], "an order that was told ends no wait"
        time.sleep(0.3)


def test_a_drain_survives_a_restart_of_the_hub(hub: HubProcess) -> None:
    hub.post("/gridnode/register", NODE)
    hub.post("/api/nodes/n/drain")
    hub.kill()
    hub.start()
    assert hub.get("/api/nodes/n").json["draining"] is True
    assert hub.post("/gridnode/register", NODE).json["drain"] is True
    beat = {"node_id": "n", "status": "Idle", "active_containers": 0}
    assert hub.post("/gridnode/heartbeat", beat).json["drain"] is True


def test_a_node_that_does_not_answer_makes_the_operator_wait_10_s_and_no_longer(hub: HubProcess) -> None:
    hub.post("/gridnode/register", NODE)
    begun = time.monotonic()
    answer = hub.get("/api/nodes/n/logs")
    assert answer.status == 504
    assert answer.headers.get_content_type() == "application/problem+json"
    assert 9.5 < time.monotonic() - begun < 12


@pytest.mark.shutdown
def test_sigterm_answers_who_waits_for_a_log(hub: HubProcess) -> None:
    hub.post("/gridnode/register", NODE)
    asking = [Asking(hub) for _ in range(5)]
    time.sleep(0.5)
    begun = time.monotonic()
    assert hub.stop() == 0
    assert time.monotonic() - begun < 2
    assert [operator.wait().status for operator in asking] == [503] * 5
    assert "Traceback" not in hub.log


def test_operators_who_vanish_free_their_places(hub: HubProcess) -> None:
    hub.post("/gridnode/register", NODE)
    for _ in range(40):
        with socket.create_connection(("127.0.0.1", hub.port)) as raw:
            request = f"GET /api/nodes/n/logs HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
            raw.sendall(request.encode())
            time.sleep(0.02)
    time.sleep(0.5)
    asking = Asking(hub)
    time.sleep(0.3)
    beat = {"node_id": "n", "status": "Idle", "active_containers": 0}
    (order,) = hub.post("/gridnode/heartbeat", beat).json["logs"]
    hub.post("/gridnode/logs", {"node_id": "n", "id": order["id"], "text": "still here"})
    assert asking.wait().body == b"still here"
    assert "Traceback" not in hub.log
