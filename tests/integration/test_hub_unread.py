"""Clients that ask and never read: what a hub keeps for them is bounded, and so is the time it does."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from gridcore.protocol import (
    MAX_ERRORS,
    HeartbeatRequest,
    NodeErrorReport,
    RegisterRequest,
    TaskDefinition,
)
from hub import connection, http_server
from hub.app import build_app
from hub.lanes import Lanes
from hub.operations import add_task, heartbeat, register, start_next
from hub.settings import HubSettings
from hub.store_local import LocalStore, open_memory
from hub.waiters import Waiters
from tests.integration.hub_process import TOKEN, HubProcess
from tests.servers.children import wait_until

KIB, MIB = 1024, 1024 * 1024
HEAD = f"Host: hub\r\nAuthorization: Bearer {TOKEN}"
LARGE = "v" * 30_000
"""A value of a task's environment."""


def ask(path: str, *headers: str) -> bytes:
    lines = "\r\n".join([f"GET {path} HTTP/1.1", HEAD, *headers])
    return f"{lines}\r\n\r\n".encode()


class InProcess:
    """A hub in this process, whose sockets hold next to nothing: what is unread is in its memory."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * KIB)  # connections inherit it
        self.store: LocalStore = open_memory()
        self.waiters = Waiters()
        app = build_app(HubSettings(token=TOKEN, state="memory:"), self.store, self.waiters)
        self.lanes = Lanes(app.calls, app.bearers, app.rights, app.requests)
        self.stopping = asyncio.Event()
        self.serving = asyncio.create_task(
            http_server.answer_requests(app.quart, self.lanes, self.listener, None, self.stopping)
        )

    async def end(self) -> None:
        self.stopping.set()
        self.waiters.close()
        await self.serving

    def held(self) -> int:
        """Bytes that are kept for all clients."""
        return sum(
            len(lane.buffer)
            + (lane._visit.waiting if lane._visit else 0)
            + (lane.transport.get_write_buffer_size() if lane.transport else 0)
            for lane in self.lanes.all
        )

    async def pour(self, data: bytes, seconds: float) -> int:
        """Send this again and again and read nothing; the most that was held meanwhile."""
        loop, most = asyncio.get_running_loop(), 0
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
            client.setblocking(False)
            await loop.sock_connect(client, self.listener.getsockname())
            sending = asyncio.create_task(self._send(client, data))
            limit = loop.time() + seconds
            while loop.time() < limit:
                most = max(most, self.held())
                await asyncio.sleep(0.02)
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
        return most

    async def _send(self, client: socket.socket, data: bytes) -> None:
        while True:
            await asyncio.get_running_loop().sock_sendall(client, data)


@pytest.fixture
async def hub() -> AsyncIterator[InProcess]:
    hub = InProcess()
    facts = RegisterRequest(node_id="n", hostname="h", architecture="x86_64", cpu_count=1, agent_version="1")
    await hub.store.run(register(facts))
    for number in range(30):
        await hub.store.run(add_task(TaskDefinition(name=f"t{number}", image="x:1", env={"LARGE": LARGE})))
    await hub.store.run(start_next())
    yield hub
    await hub.end()


@pytest.mark.parametrize(
    ("asked", "largest"),
    [
        (ask("/gridnode/task?platform=linux%2Famd64&node_id=n"), 40 * KIB),
        (ask("/gridnode/task?platform=linux%2Famd64&node_id=n", "TE: trailers"), 40 * KIB),
        (ask("/api/tasks"), 200 * KIB),
        (ask("/metrics"), 40 * KIB),
        (ask("/openapi.json"), 400 * KIB),
    ],
    ids=["fast", "full", "tasks", "metrics", "description"],
)
async def test_what_is_kept_for_who_never_reads_is_little_and_ends(
    hub: InProcess, monkeypatch: pytest.MonkeyPatch, asked: bytes, largest: int
) -> None:
    most = await hub.pour(asked * 100, 3.0)
    ahead = max(256 * KIB, len(asked) * 100)  # what asyncio reads at once
    assert 0 < most < connection.MOST_UNREAD + largest + connection.MOST_AHEAD + ahead
    monkeypatch.setattr(connection, "STUCK", 0.3)
    monkeypatch.setattr(http_server, "TIDY_INTERVAL", 0.1)
    hub.lanes.tidy(http_server.KEEP_ALIVE)
    await asyncio.sleep(0.4)
    hub.lanes.tidy(http_server.KEEP_ALIVE)
    await asyncio.sleep(0.1)
    assert not hub.lanes.all


async def test_an_answer_of_megabytes_is_sent_in_pieces_and_arrives_whole(hub: InProcess) -> None:
    error = NodeErrorReport(kind="failed", message="m" * 1000)
    for number in range(100):
        facts = RegisterRequest(node_id=f"n{number}", hostname="h", architecture="x86_64", cpu_count=1)
        await hub.store.run(register(facts))
        beat = HeartbeatRequest(
            node_id=f"n{number}", status="Error", active_containers=0, errors=[error] * MAX_ERRORS
        )
        await hub.store.run(heartbeat(beat))
    most = await hub.pour(ask("/api/nodes"), 2.0)
    assert 0 < most < 2 * connection.MOST_UNREAD + connection.MOST_AHEAD + 256 * KIB
    reader, writer = await asyncio.open_connection(*hub.listener.getsockname(), limit=4 * KIB)
    writer.write(ask("/api/nodes", "Connection: close"))
    await asyncio.sleep(0.2)  # it waits for its reader
    answer = await reader.read()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert len(body) > 2 * MIB
    assert f"content-length: {len(body)}".encode() in head.lower()
    assert len(json.loads(body)) == 101


async def test_a_stream_of_events_that_nobody_reads_is_kept_in_little_and_ended(
    hub: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ExitStack() as stack:
        for _ in range(20):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 * KIB)
            client.setblocking(False)
            await asyncio.get_running_loop().sock_connect(client, hub.listener.getsockname())
            client.send(ask("/api/events?since=2026-01-01T00:00:00Z", "Accept: text/event-stream"))
        for number in range(2_000):
            await hub.store.run(add_task(TaskDefinition(name=f"more-{number}", image="x:1")))
        await asyncio.sleep(1)
        page = 100 * KIB
        assert 0 < hub.held() < 20 * (connection.MOST_UNREAD + page)
        monkeypatch.setattr(connection, "STUCK", 0.3)
        hub.lanes.tidy(http_server.KEEP_ALIVE)
        await asyncio.sleep(0.4)
        hub.lanes.tidy(http_server.KEEP_ALIVE)
        await asyncio.sleep(0.3)
        assert not hub.lanes.all
        assert len(hub.waiters) == 0


@pytest.fixture
def process(tmp_path: Path) -> Iterator[HubProcess]:
    hub = HubProcess(tmp_path)
    yield hub
    hub.end()


def test_the_memory_of_a_hub_does_not_grow_by_what_is_not_read(process: HubProcess) -> None:
    process.start()
    env = {f"LARGE_{number}": LARGE for number in range(2)}
    assert process.post("/api/tasks", {"name": "a", "image": "x:1", "env": env}).status == 201
    assert process.post("/api/tasks/next").status == 200
    data = ask("/gridnode/task?platform=linux%2Famd64&node_id=n") * 2_000
    assert process.process is not None
    status = Path(f"/proc/{process.process.pid}/status")

    def resident() -> int:
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmRSS:")]
        return int(line.split()[1]) * KIB

    before = resident()
    with socket.create_connection(("127.0.0.1", process.port)) as client:
        client.setblocking(False)
        for _ in range(20):
            with suppress(BlockingIOError):
                data = data[client.send(data) :]
            time.sleep(0.1)
        assert resident() - before < 16 * MIB
        assert process.get("/health").status == 200
        assert json.loads(process.get("/api/tasks").body)["current"] == "a"


# --- No file descriptors left ------------------------------------------------------------------------------


def test_without_file_descriptors_a_hub_says_so_once_and_again_when_it_has_some(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path, wrapper=("prlimit", "--nofile=64:64")).start()
    try:
        before = len(hub.log.splitlines())

        def told() -> list[str]:
            return hub.log.splitlines()[before:]

        clients = [socket.create_connection(("127.0.0.1", hub.port)) for _ in range(100)]
        wait_until(lambda: bool(told()), "it is told")
        time.sleep(4)
        (begins,) = told()
        assert "LimitNOFILE" in begins
        assert "descriptors=64" in begins
        for client in clients:
            client.close()
        wait_until(lambda: len(told()) > 1, "that it is over is told")
        (_begins, ends) = told()
        assert "accepted again" in ends
        assert hub.get("/health").status == 200
    finally:
        hub.end()
