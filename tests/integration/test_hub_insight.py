"""Progress, auto-finish and notifications of real hubs, with a real Redis and a receiver that hangs."""

from __future__ import annotations

import hashlib
import hmac
import json
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import HubProcess
from tests.servers.children import wait_until
from tests.servers.redis_server import FORGETFUL, RedisServer

SECRET = "a-secret-of-the-receiver"
NODE = {"node_id": "a", "hostname": "h", "architecture": "x86_64", "cpu_count": 1}


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis", FORGETFUL, password="hunter22") as server:
        yield server


def task(redis: RedisServer, **fields: Any) -> dict[str, Any]:
    queues = {
        "input_redis": redis.url,
        "output_redis": redis.url,
        "input_queue": "in",
        "output_queue": "out",
    }
    return {"name": "t", "image": "x:1", **queues, **fields}


def test_progress_is_seen_from_outside(tmp_path: Path, redis: RedisServer) -> None:
    hub = HubProcess(tmp_path).start()
    try:
        with redis.client() as client:
            client.lpush("in", *range(30))
            assert hub.post("/api/tasks", task(redis)).status == 201
            first = hub.get("/api/tasks/t/progress").json
            assert (first["status"], first["input"]["length"], first["output"]["length"]) == (
                "Pending",
                30,
                0,
            )
            assert first["rate"] is None
            assert (first["restarts"], first["cut_off"], first["may_be_lost"]) == (0, 0, None)
            client.rpop("in", 20)
            client.lpush("out", *range(20))
            wait_until(lambda: bool(hub.get("/api/tasks/t/progress").json["rate"]), "a rate is known")
            seen = hub.get("/api/tasks/t/progress").json
            assert (seen["input"]["length"], seen["output"]["length"]) == (10, 20)
            assert seen["left_seconds"] == pytest.approx(10 / seen["rate"], abs=0.06)  # told to a tenth
            redis.kill()

            def is_away() -> bool:
                return hub.get("/api/tasks/t/progress").json["input"]["length"] is None

            wait_until(is_away, "the queue is unknown")
            away = hub.get("/api/tasks/t/progress")
            assert "cannot be reached" in away.json["input"]["reason"]
            assert b"hunter22" not in away.body
        assert hub.get("/api/tasks/none/progress").status == 404
        assert hub.get("/api/tasks/t/progress?x=1").status == 422
        assert "hunter22" not in hub.log
    finally:
        hub.end()


@pytest.mark.slow
def test_two_hubs_finish_a_task_that_stands_still_once(tmp_path: Path, redis: RedisServer) -> None:
    with RedisServer(tmp_path / "state") as state:
        hubs = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            hubs.append(HubProcess(tmp_path / name, state=state.url))
        try:
            one, _two = [hub.start() for hub in hubs]
            assert one.post("/api/tasks", task(redis, auto_finish={"idle": 10})).status == 201
            assert one.post("/api/tasks", task(redis, name="u")).status == 201
            assert one.post("/api/tasks/next").status == 200
            wait_until(lambda: one.get("/api/tasks").json["current"] == "u", "it is finished", patience=60)
            events = one.get("/api/events?kind=switched").json["events"]
            assert [event["who"] for event in events if event["detail"]["by"] == "finish"] == ["auto-finish"]
        finally:
            for hub in hubs:
                hub.end()


class Receiver:
    """Takes messages on loopback; answers none while it hangs, and then with the status that it is told."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.status = 200
        self.messages: list[tuple[Any, bytes]] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.messages.append((self.headers, body))
                receiver.answers.wait(60)
                self.send_response(receiver.status)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook-of-a-secret"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def close(self) -> None:
        self.answers.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def events(self) -> list[str]:
        return [json.loads(body)["event"] for _, body in self.messages]


@pytest.mark.slow
def test_people_are_told_and_nobody_waits_for_their_receiver(tmp_path: Path, redis: RedisServer) -> None:
    receiver = Receiver()
    hub = HubProcess(tmp_path)
    with hub.config.open("a") as config:
        config.write(f'[[notify]]\nurl = "{receiver.url}"\nsecret = "{SECRET}"\nmin_interval = 0\n')
    try:
        hub.start()
        assert hub.post("/gridnode/register", NODE).status == 200
        with redis.client() as client:
            client.lpush("in", 1)
            assert hub.post("/api/tasks", task(redis)).status == 201
            assert hub.post("/api/tasks/next").status == 200
            wait_until(lambda: _length(hub) == 1, "the hub sees the item")
            wait_until(lambda: _remembers(hub), "the hub remembers the item")
            client.rpop("in")
        wait_until(lambda: receiver.events() == ["queue-empty"], "it is told", patience=30)
        # The receiver hangs. Whoever asks the hub meanwhile is answered.
        for _ in range(20):
            assert hub.get("/api/tasks").status == 200
            beat = {"node_id": "a", "status": "Running", "active_containers": 1}
            assert hub.post("/gridnode/heartbeat", beat).status == 200
        assert not receiver.answers.is_set()
        assert len(receiver.messages) == 1
        receiver.status = 500
        receiver.answers.set()
        wait_until(lambda: len(receiver.messages) >= 2, "it is tried again", patience=30)
        receiver.status = 200
        wait_until(lambda: _delivered(hub) == 1, "it is delivered", patience=60)
        ids = {json.loads(body)["id"] for _, body in receiver.messages}
        assert len(ids) == 1
        headers, body = receiver.messages[-1]
        signed = headers["X-GridCore-Timestamp"].encode() + body
        expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
        assert headers["X-GridCore-Signature"] == f"sha256={expected}"
        assert "hook-of-a-secret" not in hub.log
        assert hub.stop() == 0
    finally:
        hub.end()
        receiver.close()


def _length(hub: HubProcess) -> int | None:
    length: int | None = hub.get("/api/tasks/t/progress").json["input"]["length"]
    return length


def _remembers(hub: HubProcess) -> bool:
    """Whether the hub has noted, for a restart too, that the queue had items."""
    with closing(sqlite3.connect(hub.database)) as database:
        rows = database.execute("SELECT * FROM marks").fetchall()
    return any('"had_items": true' in str(value) for row in rows for value in row)


def _delivered(hub: HubProcess) -> int:
    text = hub.get("/metrics").body.decode()
    (line,) = [line for line in text.splitlines() if 'outcome="delivered"' in line]
    return int(float(line.split()[-1]))
