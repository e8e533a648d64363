"""The fast way in on a real hub: it answers what the real server answers, and hands over all the rest."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import TOKEN, HubProcess

# A header that the real server ignores, and for which a request is not plain.
SLOW_WAY = {"TE": "trailers"}
FACTS = {"node_id": "n", "hostname": "h", "architecture": "x86_64", "cpu_count": 4, "agent_version": "1"}
BEAT = {"node_id": "n", "status": "Idle", "active_containers": 0}

SLOT = {"instance": 0, "state": "running"}


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    hub = HubProcess(tmp_path_factory.mktemp("lane")).start()
    assert hub.post("/api/tasks", {"name": "a", "image": "a:1", "env": {"K": "v"}}).status == 201
    assert hub.post("/api/tasks/next").status == 200
    assert hub.post("/gridnode/register", FACTS).status == 200
    yield hub
    hub.end()


class Wire:
    """One connection, and raw bytes on it."""

    def __init__(self, hub: HubProcess) -> None:
        self.socket = socket.create_connection(("127.0.0.1", hub.port), timeout=20)
        self._rest = b""

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def read(self) -> tuple[int, dict[str, str], bytes]:
        """The next answer."""
        while b"\r\n\r\n" not in self._rest:
            self._receive()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        size = int(headers.get("content-length", 0))
        while len(self._rest) < size:
            self._receive()
        body, self._rest = self._rest[:size], self._rest[size:]
        return int(first.split()[1]), headers, body

    def _receive(self) -> None:
        chunk = self.socket.recv(65_536)
        if not chunk:
            raise ConnectionError("closed")
        self._rest += chunk


def question(**headers: str) -> bytes:
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items()]
    first = "GET /gridnode/task?platform=linux%2Famd64&node_id=n HTTP/1.1\r\nHost: hub\r\n"
    return f"{first}Authorization: Bearer {TOKEN}\r\n{''.join(lines)}\r\n".encode()


def heartbeat(body: object = BEAT) -> bytes:
    sent = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"POST /gridnode/heartbeat HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {TOKEN}\r\n"
    return f"{head}Content-Length: {len(sent)}\r\n\r\n".encode() + sent


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/gridnode/heartbeat", BEAT),
        ("POST", "/gridnode/heartbeat", {**BEAT, "node_id": "nobody"}),
        ("POST", "/gridnode/heartbeat", {**BEAT, "errors": [{"kind": "k", "message": "m"}], "more": 1}),
        ("POST", "/gridnode/heartbeat", {"node_id": "n"}),
        ("POST", "/gridnode/heartbeat", b"no json"),
        ("POST", "/gridnode/heartbeat", b"[]"),
        ("POST", "/gridnode/heartbeat", {**BEAT, "reason": "\ud800"}),
        ("POST", "/gridnode/heartbeat", {**BEAT, "more": {"\ud800": 1}}),
        ("POST", "/gridnode/heartbeat", b'{"node_id": "m", ' + json.dumps(BEAT).encode()[1:]),
        ("POST", "/gridnode/heartbeat", {**BEAT, "more": float("nan")}),
        ("POST", "/gridnode/heartbeat", {**BEAT, "containers": [{**SLOT, "age": float("inf")}]}),
        ("POST", "/gridnode/heartbeat", {**BEAT, "containers": [{**SLOT, "restarts": 10**30}]}),
        ("POST", "/gridnode/heartbeat", {**BEAT, "containers": [{**SLOT, "instance": -1}]}),
        ("POST", "/gridnode/heartbeat", b'{"more": ' + b"9" * 5_000 + b", " + json.dumps(BEAT).encode()[1:]),
        (
            "POST",
            "/gridnode/heartbeat",
            b'{"more": ' + b"[" * 500 + b"]" * 500 + b", " + json.dumps(BEAT).encode()[1:],
        ),
        ("POST", "/gridnode/heartbeat", b"\xef\xbb\xbf" + json.dumps(BEAT).encode()),
        ("GET", "/gridnode/task", None),
        ("GET", "/gridnode/task?node_id=n", None),
        ("GET", "/gridnode/task?node_id=nobody&platform=linux%2Farm64", None),
        ("GET", "/gridnode/task?node_id=n&node_id=m", None),
        ("GET", "/gridnode/task?platform=nonsense&node_id=n", None),
    ],
)
def test_both_ways_answer_the_same(hub: HubProcess, method: str, path: str, body: object) -> None:
    plain, slow = (hub.request(method, path, body, headers=headers) for headers in ({}, SLOW_WAY))
    assert (plain.status, plain.body) == (slow.status, slow.body)
    for name in ("etag", "content-type", "content-length"):
        assert plain.headers[name] == slow.headers[name]
    assert plain.headers["date"]


def test_a_compressed_body_is_refused_as_one(hub: HubProcess) -> None:
    for method, path in (("POST", "/gridnode/heartbeat"), ("POST", "/api/tasks"), ("PATCH", "/api/tasks/a")):
        answer = hub.request(method, path, b"\x1f\x8b\x08", headers={"Content-Encoding": "gzip"})
        assert (answer.status, answer.headers["Accept-Encoding"]) == (415, "identity"), path
        assert answer.json["type"].endswith(":encoded-body")


@pytest.mark.parametrize("token", [None, "wrong"])
def test_who_has_no_token_gets_the_doors_answer(hub: HubProcess, token: str | None) -> None:
    for headers in ({}, SLOW_WAY):
        answer = hub.request("GET", "/gridnode/task?node_id=n", headers=headers, token=token)
        assert answer.status == 401
        assert answer.json["type"].endswith(":unauthorized")


def test_a_connection_goes_on_after_it_was_handed_over_and_before(hub: HubProcess) -> None:
    with Wire(hub) as wire:
        for _ in range(2):
            wire.send(heartbeat())
            assert wire.read()[0] == 200
        wire.send(f"GET /health HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {TOKEN}\r\n\r\n".encode())
        assert wire.read()[2] == b"OK"
        wire.send(heartbeat())
        assert json.loads(wire.read()[2])["known"] is True


def test_requests_that_come_in_one_piece_or_in_many_are_answered_in_order(hub: HubProcess) -> None:
    data = heartbeat() + question() + heartbeat({**BEAT, "node_id": "nobody"}) + question(TE="trailers")
    for size in (len(data), 7):
        with Wire(hub) as wire:
            for start in range(0, len(data), size):
                wire.send(data[start : start + size])
            answers = [wire.read() for _ in range(4)]
            assert [status for status, _, _ in answers] == [200] * 4
            assert [json.loads(body).get("known") for _, _, body in answers] == [True, None, False, None]


def test_a_held_question_ends_when_its_time_is_up_and_when_there_is_news(hub: HubProcess) -> None:
    with Wire(hub) as wire:
        wire.send(question())
        etag = wire.read()[1]["etag"]
        wire.send(question(If_None_Match=etag, Prefer="wait=1"))
        status, headers, _ = wire.read()
        assert (status, headers["etag"]) == (304, etag)
        wire.send(question(If_None_Match=etag, Prefer="wait=25"))
        time.sleep(0.2)
        hub.post("/api/tasks", {"name": "b", "image": "b:1"})
        assert hub.post("/api/tasks/next").status == 200
        status, headers, body = wire.read()
        assert (status, json.loads(body)["task_name"]) == (200, "b")
        assert headers["etag"] != etag


def test_an_order_ends_a_held_question_once(hub: HubProcess) -> None:
    with Wire(hub) as wire:
        wire.send(question())
        etag = wire.read()[1]["etag"]
        wire.send(question(If_None_Match=etag, Prefer="wait=25"))
        time.sleep(0.2)
        assert hub.post("/api/nodes/n/drain").status == 200
        status, headers, _ = wire.read()
        assert (status, headers.get("gridcore-heartbeat")) == (304, "now")
        wire.send(question(If_None_Match=etag, Prefer="wait=1"))
        assert "gridcore-heartbeat" not in wire.read()[1]
        wire.send(heartbeat())
        assert json.loads(wire.read()[2])["drain"] is True
        hub.post("/api/nodes/n/resume")


def test_what_follows_a_held_question_waits_for_its_answer(hub: HubProcess) -> None:
    with Wire(hub) as wire:
        wire.send(question())
        etag = wire.read()[1]["etag"]
        wire.send(question(If_None_Match=etag, Prefer="wait=1") + heartbeat())
        assert [wire.read()[0], wire.read()[0]] == [304, 200]


def test_a_client_that_leaves_is_held_no_more(hub: HubProcess) -> None:
    def held() -> float:
        text = hub.get("/metrics").body.decode()
        (line,) = [line for line in text.splitlines() if line.startswith("gridcore_held_requests ")]
        return float(line.split()[1])

    def until(number: float) -> None:
        for _ in range(100):
            if held() == number:
                return
            time.sleep(0.05)
        raise AssertionError(f"{held()} are held, not {number}")

    with Wire(hub) as wire:
        wire.send(question(If_None_Match="*", Prefer="wait=25"))
        until(1)
    until(0)


def test_a_request_that_stops_half_way_is_taken_over_and_timed_by_the_real_server(hub: HubProcess) -> None:
    data = heartbeat()
    with Wire(hub) as wire:
        wire.send(data[:-5])
        time.sleep(11)  # longer than a lane waits
        wire.send(data[-5:])
        assert wire.read()[0] == 200


@pytest.mark.parametrize("way", ["plain", "slow"])
def test_a_hub_that_stops_answers_what_it_holds(tmp_path: Path, way: str) -> None:
    hub = HubProcess(tmp_path).start()
    try:
        with Wire(hub) as held, Wire(hub) as idle:
            idle.send(heartbeat())
            idle.read()
            headers: dict[str, Any] = SLOW_WAY if way == "slow" else {}
            held.send(question(If_None_Match="*", Prefer="wait=40", **headers))
            time.sleep(0.3)
            assert hub.stop(timeout=5) == 0
            assert held.read()[0] == 304
    finally:
        hub.end()
