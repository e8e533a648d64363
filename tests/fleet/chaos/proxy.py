"""Stands between the agents and the hub, and behaves as the file beside it says. Runs on the control host.

    python3 proxy.py PORT HUB_PORT MODE_FILE LOG_FILE

The mode may change at any time, also for connections that are open and requests that are held:

    pass        byte for byte
    slow N      every answer waits N seconds
    hold        no answer ever comes
    error       500 at once, with a body that is not ours
    nonsense    200 with what no hub would say: bytes, HTML, and JSON of another shape, in turn
    reset       the connection is reset when the request is in
    revoked     the token is spoiled on its way, so that the hub itself says 401

Standard library only. The log has a line a request: the peer's address and the request line.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

NONSENSE = (
    b"\x00\xff\xfenot json\x80",
    b"<html><body>Welcome to your router</body></html>",
    b'{"node_id": 17, "current_task": ["?"], "stop_requested": "maybe", "known": {}}',
    b"[]",
    b"7",
)
GLANCE = 0.05  # s between looks at the mode file


class Proxy:
    """Forwards one port to another, as the mode of the moment says."""

    def __init__(self, hub_port: int, mode_file: Path, log_file: Path) -> None:
        self._hub_port = hub_port
        self._mode_file = mode_file
        self._log_file = log_file
        self._nonsense: Iterator[bytes] = cycle(NONSENSE)
        self._open: set[asyncio.StreamWriter] = set()
        self.mode = "pass"

    async def follow(self) -> None:
        """Read the mode again and again; a change cuts every connection, so that nothing old lingers."""
        while True:
            mode = self._mode_file.read_text().strip() if self._mode_file.exists() else "pass"
            if mode != self.mode:
                self.mode = mode
                for writer in list(self._open):
                    _reset(writer)
            await asyncio.sleep(GLANCE)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One agent's connection."""
        self._open.add(writer)
        try:
            hub_reader, hub_writer = await asyncio.open_connection("127.0.0.1", self._hub_port)
        except OSError:
            _reset(writer)  # what an agent sees of a hub that is down
            self._open.discard(writer)
            return
        answers = asyncio.ensure_future(self._answers(hub_reader, writer))
        try:
            while data := await reader.read(1 << 16):
                self._note(writer, data)
                if not await self._misbehave(writer):
                    break
                if self.mode == "revoked":
                    data = data.replace(b"Bearer ", b"Bearer no-longer-")
                hub_writer.write(data)
                await hub_writer.drain()
        except OSError:
            pass
        finally:
            answers.cancel()
            self._open.discard(writer)
            hub_writer.close()
            writer.close()

    async def _answers(self, hub_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await hub_reader.read(1 << 16):
                name, _, seconds = self.mode.partition(" ")
                if name == "slow":
                    await asyncio.sleep(float(seconds))
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()

    async def _misbehave(self, writer: asyncio.StreamWriter) -> bool:
        """Answer in the hub's place where the mode asks for it; False: this connection is over."""
        if self.mode == "hold":
            while self.mode == "hold":  # noqa: ASYNC110 # the mode is a file's, there is no event for it
                await asyncio.sleep(GLANCE)
            return False
        if self.mode == "reset":
            _reset(writer)
            return False
        if self.mode == "error":
            writer.write(_response("500 Internal Server Error", b"<h1>It is not you, it is us</h1>"))
        elif self.mode == "nonsense":
            writer.write(_response("200 OK", next(self._nonsense)))
        else:
            return True
        await writer.drain()
        return False

    def _note(self, writer: asyncio.StreamWriter, data: bytes) -> None:
        peer = (writer.get_extra_info("peername") or ["?"])[0]
        line = data.split(b"\r", 1)[0][:200].decode(errors="replace")
        with self._log_file.open("a") as log:
            log.write(f"{peer} {line}\n")


def _response(status: str, body: bytes) -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return f"{head}Connection: close\r\n\r\n".encode() + body


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with RST, as a crashed peer does."""
    sock = writer.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def main() -> None:
    """Serve until killed."""
    port, hub_port = int(sys.argv[1]), int(sys.argv[2])
    proxy = Proxy(hub_port, Path(sys.argv[3]), Path(sys.argv[4]))
    server = await asyncio.start_server(proxy.serve, "0.0.0.0", port)
    async with server:
        await proxy.follow()


if __name__ == "__main__":
    asyncio.run(main())
