"""A simulated node sends what our agent's client sends, over the connections over which that sends it."""

from __future__ import annotations

import asyncio
import re

from gridcore.client import AiohttpTransport, HubClient
from gridcore.protocol import HeartbeatRequest, RegisterRequest
from tests.load.links import Loop
from tests.load.pool import Pool
from tests.load.wire import Requests

SAID = re.compile(rb"\r\nUser-Agent: [^\r]+")


class Recorder:
    """Answers every request with an empty object, and notes it and its connection's number."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, bytes]] = []
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        number = self.connections
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = re.search(rb"Content-Length: (\d+)", head)
                body = await reader.readexactly(int(length[1])) if length else b""
                self.seen.append((number, head + body))
                await asyncio.sleep(0.02)
                answer = b'{"node_id": "n", "stop_requested": false}' if body else b"null"
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(answer), answer))
        except asyncio.IncompleteReadError:
            writer.close()

    def heads(self) -> list[bytes]:
        return [SAID.sub(b"", request.partition(b"\r\n\r\n")[0]) for _, request in self.seen]


async def test_the_heads_of_its_requests_are_those_of_the_client() -> None:
    recorder = Recorder()
    async with await asyncio.start_server(recorder.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        facts = {"hostname": "h", "architecture": "x86_64", "cpu_count": 4}
        async with AiohttpTransport(f"http://127.0.0.1:{port}") as transport:
            client = HubClient(transport, "secret")
            await client.register(RegisterRequest(node_id="n", **facts))
            await client.heartbeat(HeartbeatRequest(node_id="n", status="Idle", active_containers=0))
            await client.task("linux/amd64", "n", None, None)
            await client.task("linux/amd64", "n", '"7-a"', 25)
    requests = Requests(port, "secret")
    mine = [requests.register("n"), requests.beat("n", b'"7-a"', 1.0), requests.ask("n", None, 0)]
    mine.append(requests.ask("n", b'"7-a"', 25))

    def lines(head: bytes) -> list[bytes]:
        first, *headers = head.partition(b"\r\n\r\n")[0].split(b"\r\n")
        return [first, *sorted(line for line in headers if not line.startswith(b"Content-Length"))]

    assert [lines(head) for head in recorder.heads()] == [lines(SAID.sub(b"", data)) for data in mine]


async def test_its_requests_share_connections_as_those_of_the_client_do() -> None:
    """Two at once, then one, then two: which connection each takes."""
    recorder, mine = Recorder(), Recorder()
    async with (
        await asyncio.start_server(recorder.serve, "127.0.0.1", 0) as server,
        await asyncio.start_server(mine.serve, "127.0.0.1", 0) as other,
    ):
        port, mine_port = (each.sockets[0].getsockname()[1] for each in (server, other))
        async with AiohttpTransport(f"http://127.0.0.1:{port}") as transport:
            client = HubClient(transport, "secret")
            for at_once in (1, 2, 1, 1, 2, 1):
                await asyncio.gather(*(client.task("linux/amd64", "n") for _ in range(at_once)))
        await asyncio.to_thread(_pooled, mine_port)
    assert [number for number, _ in mine.seen] == [number for number, _ in recorder.seen]


def _pooled(port: int) -> None:
    loop, left = Loop(), 0
    pool = Pool(loop, port, 15.0)

    def ask() -> None:
        nonlocal left
        left += 1
        link = pool.take()

        def answered(_answer: object) -> None:
            nonlocal left
            left -= 1
            pool.give_back(link, is_last=False)

        link.on_answer = answered
        link.send(Requests(port, "secret").ask("n", None, 0))

    for at_once in (1, 2, 1, 1, 2, 1):
        for _ in range(at_once):
            ask()
        loop.run(lambda: left == 0)
    pool.close()
