"""Connections of a real hub: which way their requests take, how they end, who does not read."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.integration.hub_process import TOKEN, HubProcess
from tests.integration.test_hub_tls import TlsHub
from tests.servers.authority import Authority

CONNECTIONS = 100
BEAT = {"status": "Running", "active_containers": 3}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path)
    yield process
    process.end()


def request(method: str, path: str, body: object = None) -> bytes:
    sent = b"" if body is None else json.dumps(body).encode()
    length = f"Content-Length: {len(sent)}\r\n" if sent else ""
    head = f"{method} {path} HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {TOKEN}\r\n{length}\r\n"
    return head.encode() + sent


def register(node: str) -> bytes:
    facts = {"node_id": node, "hostname": node, "architecture": "x86_64", "cpu_count": 4}
    return request("POST", "/gridnode/register", facts)


def ask(node: str, known: str | None = None, wait: int = 25) -> bytes:
    held = "" if known is None else f"If-None-Match: {known}\r\nPrefer: wait={wait}\r\n"
    target = f"/gridnode/task?platform=linux%2Famd64&node_id={node}"
    return f"GET {target} HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {TOKEN}\r\n{held}\r\n".encode()


def beat(node: str) -> bytes:
    return request("POST", "/gridnode/heartbeat", {"node_id": node, **BEAT})


class Kept:
    """One connection that is kept, as a client's."""

    def __init__(self, hub: HubProcess) -> None:
        connection = hub.connect()
        connection.connect()
        self.socket = connection.sock

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> http.client.HTTPResponse:
        """The next whole answer. Raises OSError, http.client.HTTPException where there is none."""
        response = http.client.HTTPResponse(self.socket)
        response.begin()
        response.read()
        return response

    def ask(self, data: bytes) -> int:
        self.send(data)
        return self.answer().status

    def close(self) -> None:
        self.socket.close()


def ways(hub: HubProcess) -> dict[tuple[str, str], float]:
    """What the hub counted, by route and way."""
    text = hub.get("/metrics").body.decode()
    found = re.findall(r'gridcore_requests_total{route="([^"]+)",way="([^"]+)"} (\S+)', text)
    return {(route, way): float(count) for route, way, count in found}


# --- Which way requests take -------------------------------------------------------------------------------


def test_a_connection_on_which_a_node_registered_is_as_fast_as_any_other(hub: HubProcess) -> None:
    hub.start()
    first = {("gridnode-heartbeat", "fast"): 0, ("gridnode-heartbeat", "full"): 0}
    assert first.items() <= ways(hub).items()
    node = Kept(hub)
    for _ in range(3):
        assert node.ask(register("n")) == 200
        assert node.ask(ask("n")) == 200
        assert node.ask(beat("n")) == 200
        assert node.ask(request("GET", "/api/tasks")) == 200
        assert node.ask(request("GET", "/nowhere")) == 404
        assert node.ask(request("POST", "/api/tasks", {"nonsense": 1})) == 422
    counted = ways(hub)
    assert counted[("gridnode-task", "fast")] == counted[("gridnode-heartbeat", "fast")] == 3
    assert counted[("gridnode-task", "full")] == counted[("gridnode-heartbeat", "full")] == 0
    assert counted[("gridnode-register", "full")] == 3
    node.close()


def test_requests_of_both_ways_that_come_at_once_are_answered_in_order(hub: HubProcess) -> None:
    hub.start()
    node = Kept(hub)
    node.send(
        b"".join([register("n"), beat("n"), request("GET", "/nowhere"), ask("n"), register("n"), beat("n")])
    )
    stream = node.socket.makefile("rb")
    statuses = []
    for _ in range(6):
        statuses.append(int(stream.readline().split()[1]))
        size = 0
        while (line := stream.readline()) != b"\r\n":
            if line.lower().startswith(b"content-length:"):
                size = int(line.split(b":")[1])
        stream.read(size)
    assert statuses == [200, 200, 404, 200, 200, 200]
    assert ways(hub)[("gridnode-heartbeat", "fast")] == 2
    node.close()


@pytest.mark.parametrize("last", ["HTTP/1.1\r\nConnection: close", "HTTP/1.0"])
@pytest.mark.parametrize("after", [b"\r\n", request("POST", "/api/tasks/next"), b"x" * 100_000])
def test_the_last_request_of_a_connection_is_answered_whatever_follows_it(
    hub: HubProcess, last: str, after: bytes
) -> None:
    hub.start()
    for name in ("a", "b"):
        hub.post("/api/tasks", {"name": name, "image": "x:1"})
    client = Kept(hub)
    with suppress(OSError):  # it may be gone before all of that is sent
        client.send(request("POST", "/api/tasks/next").replace(b"HTTP/1.1", last.encode()) + after)
    assert client.answer().status == 200
    client.close()
    assert hub.get("/api/tasks").json["current"] == "a", "and what follows is not done"


def until_its_end(client: Kept) -> bytes:
    """All that still comes of a connection whose client sends no more."""
    client.socket.shutdown(socket.SHUT_WR)
    client.socket.settimeout(5)
    return b"".join(iter(lambda: client.socket.recv(65536), b""))


@pytest.mark.parametrize("seconds", [0, 0.001, 0.003])
def test_who_sends_no_more_is_answered_all_that_it_asked(hub: HubProcess, seconds: float) -> None:
    hub.start()
    for number in range(10):
        client = Kept(hub)
        client.send(request("POST", "/api/tasks", {"name": f"t{number}", "image": "x:1"}))
        time.sleep(seconds)
        assert until_its_end(client).startswith(b"HTTP/1.1 201")
        client.close()
    assert hub.get("/api/tasks").json["pending"] == [f"t{number}" for number in range(10)]


def test_who_sends_no_more_in_the_middle_of_the_answers_gets_all_of_them(hub: HubProcess) -> None:
    hub.start()
    name = {"name": "t", "image": "x:1"}
    asked = [register("n"), beat("n"), request("POST", "/api/tasks", name), beat("n"), ask("n")]
    short = []
    for number in range(60):  # each moment between the first answer and the last
        client = Kept(hub)
        client.send(b"".join(asked))
        time.sleep(number * 0.0002)
        said = until_its_end(client).count(b"HTTP/1.1 ")
        client.close()
        if said != len(asked):
            short.append((number, said))
    assert short == []


def test_what_is_held_is_answered_at_once_to_who_sends_no_more(hub: HubProcess) -> None:
    hub.start()
    for before in (register("n"), b""):  # on a connection that was handed over, and one that was not
        client = Kept(hub)
        if before:
            assert client.ask(before) == 200
        client.send(ask("n"))
        revision = client.answer().headers["ETag"]
        client.send(ask("n", revision))
        time.sleep(0.2)
        assert until_its_end(client).startswith(b"HTTP/1.1 304")
        client.close()


def test_a_stream_of_events_ends_for_who_sends_no_more(hub: HubProcess) -> None:
    hub.start()
    client = Kept(hub)
    head = request("GET", "/api/events")
    client.send(head.replace(b"\r\n\r\n", b"\r\nAccept: text/event-stream\r\n\r\n"))
    time.sleep(0.2)
    assert b"text/event-stream" in until_its_end(client)
    client.close()


def test_a_long_answer_is_whole_for_who_sends_no_more_and_reads_slowly(hub: HubProcess) -> None:
    hub.start()
    for number in range(300):
        body = {"name": f"t{number}", "image": "x:1", "command": ["x" * 4000] * 8}
        assert hub.post("/api/tasks", body).status == 201
    client = Kept(hub)
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
    client.send(request("GET", "/api/tasks"))
    client.socket.shutdown(socket.SHUT_WR)
    time.sleep(2)
    response = http.client.HTTPResponse(client.socket)
    response.begin()
    assert len(json.loads(response.read())["tasks"]) == 300
    client.close()


@pytest.mark.parametrize("sent", [b"", b"GET /he", beat("n")[:-3], register("n")[:-3], b"\r\n"])
def test_who_sends_no_more_in_the_middle_of_a_request_is_let_go(hub: HubProcess, sent: bytes) -> None:
    hub.start()
    client = Kept(hub)
    client.send(sent)
    time.sleep(0.05)
    said = until_its_end(client)
    assert said == b"" or said.startswith(b"HTTP/1.1 400")
    client.close()
    assert hub.get("/api/nodes").json == []


# --- The end -----------------------------------------------------------------------------------------------


@pytest.mark.shutdown
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("before", [0, 1, 10, 50, 90])
def test_what_comes_while_the_hub_stops_is_answered_or_not_done(
    tmp_path: Path, is_tls: bool, before: int
) -> None:
    hub = TlsHub(tmp_path, Authority(tmp_path)) if is_tls else HubProcess(tmp_path)
    hub.start()
    names = [f"n-{number:03d}" for number in range(CONNECTIONS)]
    kept = {name: Kept(hub) for name in names}
    for name, connection in kept.items():
        assert connection.ask(register(name)) == 200
    answered, sent = set(), []
    try:
        for number, (name, connection) in enumerate(kept.items()):
            if number == before:
                assert hub.process is not None
                hub.process.send_signal(signal.SIGTERM)
            task = request("POST", "/api/tasks", {"name": name, "image": "x:1"})
            with suppress(OSError):
                connection.send(task if number % 2 else beat(name))
                sent.append(name)
        for name in sent:
            with suppress(OSError, http.client.HTTPException):
                assert kept[name].answer().status in (200, 201)
                answered.add(name)
        assert hub.process is not None
        assert hub.process.wait(10) == 0
        assert "Traceback" not in hub.log
        hub.start()
        done = set(hub.get("/api/tasks").json["pending"])
        done |= {node["id"] for node in hub.get("/api/nodes").json if node["active_containers"]}
        assert done == answered
    finally:
        for connection in kept.values():
            connection.close()
        hub.end()


@pytest.mark.shutdown
@pytest.mark.parametrize(
    "sent", [b"", b"DELETE /api/ta", b"POST /gridnode/heartb"], ids=["idle", "other", "plain"]
)
def test_connections_on_which_little_has_arrived_cost_a_stop_nothing(hub: HubProcess, sent: bytes) -> None:
    hub.start()
    kept = [Kept(hub) for _ in range(10)]
    for number, connection in enumerate(kept):
        assert connection.ask(register(f"n-{number}")) == 200
        connection.send(sent)
    time.sleep(0.3)
    began = time.monotonic()
    assert hub.stop() == 0
    assert time.monotonic() - began < 5  # it would wait ten for an answer that is worked out
    assert "Traceback" not in hub.log
    for connection in kept:
        assert connection.socket.recv(100) == b""
        connection.close()


@pytest.mark.shutdown
@pytest.mark.parametrize("path", ["/openapi.json", "/gridnode/task?node_id=n"], ids=["full", "fast"])
def test_who_does_not_read_its_answers_does_not_hold_up_a_stop(hub: HubProcess, path: str) -> None:
    hub.start()
    assert hub.post("/api/tasks", {"name": "a", "image": "x:1", "env": {"LARGE": "v" * 30_000}}).status == 201
    assert hub.post("/api/tasks/next").status == 200
    kept = Kept(hub)
    kept.send(request("GET", path) * 400)
    time.sleep(1)
    began = time.monotonic()
    assert hub.stop() == 0
    assert time.monotonic() - began < 5
    assert "Traceback" not in hub.log
    kept.close()
