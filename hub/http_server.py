"""The hub's one port: each connection begins in a fast lane, and goes on at Hypercorn where it has to.

Hypercorn's own `serve` opens its listening socket itself and could not share it. So its parts are put
together here: its TCPServer for a connection, its lifespan, its configuration.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from functools import partial
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config

from hub.lane import Lane, Lanes
from hub.tls import Tls, TlsConfig

GRACE = 1.5
"""Seconds that open requests get to end once the hub stops."""

KEEP_ALIVE = 75.0
"""Seconds that an idle connection stays open: longer than a heartbeat interval, which saves a handshake."""

TIDY_INTERVAL = 5.0
"""Seconds between two looks for connections on which nothing happens."""

BACKLOG = 4096
"""Connections that may wait to be accepted: a whole fleet comes back at once after a restart."""

ACCEPTED_AT_ONCE = 128
"""Connections that are accepted before others have their turn."""


class _Connection(TCPServer):
    """Hypercorn's, but one that its client has closed ends at once and not with the keep-alive timeout."""

    async def _read_data(self) -> None:
        await super()._read_data()
        await self.idle_task.stop()


def configure(tls: Tls | None) -> Config:
    """Hypercorn's configuration for this hub."""
    config = TlsConfig(tls) if tls else Config()
    config.keep_alive_timeout = KEEP_ALIVE
    config.keep_alive_max_requests = 1_000_000
    config.include_server_header = False
    config.errorlog = logging.getLogger("hypercorn.error")  # its warnings go where all logs go
    return config


async def answer_requests(
    app: Any, lanes: Lanes, listener: socket.socket, tls: Tls | None, stopping: asyncio.Event
) -> None:
    """Serve until `stopping`, and then for GRACE seconds at most."""
    config, loop = configure(tls), asyncio.get_running_loop()
    wrapped = ASGIWrapper(app)
    lifespan = Lifespan(wrapped, config, loop, {})
    living = loop.create_task(lifespan.handle_lifespan())
    await lifespan.wait_for_startup()
    context, connections = WorkerContext(None), set[asyncio.Task[None]]()

    async def take_over(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101  a coroutine runs in a task
        connections.add(task)
        task.add_done_callback(connections.discard)
        await _Connection(wrapped, loop, config, context, {}, reader, writer)

    server = await loop.create_server(
        partial(Lane, lanes, take_over),
        sock=listener,
        backlog=ACCEPTED_AT_ONCE,
        ssl=config.create_ssl_context() if tls else None,
        ssl_handshake_timeout=config.ssl_handshake_timeout if tls else None,
    )
    listener.listen(BACKLOG)  # create_server has just set its own
    try:
        while not stopping.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(TIDY_INTERVAL):
                    await stopping.wait()
            lanes.tidy(KEEP_ALIVE)
    finally:
        server.close()
        await context.terminated.set()
        await _end(lanes, connections)
        await lifespan.wait_for_shutdown()
        living.cancel()


async def _end(lanes: Lanes, connections: set[asyncio.Task[None]]) -> None:
    """Let what is open end by itself for a while, and then end it."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + GRACE
    lanes.close_idle()
    while (lanes.all or lanes.tasks or connections) and loop.time() < limit:
        await asyncio.sleep(0.02)
        lanes.close_idle()
    for task in [*connections, *lanes.tasks]:
        task.cancel()
    await asyncio.gather(*connections, *lanes.tasks, return_exceptions=True)
