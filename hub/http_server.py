"""The hub's one port: each connection begins in a fast lane, and visits Hypercorn for what is not plain.

Hypercorn's own `serve` gives a connection to its HTTP for good. So its parts are put together here: its
lifespan, its configuration, and for each request what `full_way.py` takes of it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from hypercorn.asyncio.lifespan import Lifespan
from hypercorn.config import Config

from hub.full_way import FullWay
from hub.lane import Lane
from hub.lanes import Lanes
from hub.tls import Tls, TlsConfig

GRACE = 1.5
"""Seconds that clients get to read their answers once the hub stops."""

PATIENCE = 10.0
"""Seconds until answers that are worked out then have to be ready: a request that was read is answered."""

KEEP_ALIVE = 75.0
"""Seconds that an idle connection stays open: longer than a heartbeat interval, which saves a handshake."""

TIDY_INTERVAL = 5.0
"""Seconds between two looks for connections on which nothing happens."""

BACKLOG = 4096
"""Connections that may wait to be accepted: a whole fleet comes back at once after a restart."""

ACCEPTED_AT_ONCE = 128
"""Connections that are accepted before others have their turn."""


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
    way = FullWay(app, config)
    lifespan = Lifespan(way.app, config, loop, {})
    living = loop.create_task(lifespan.handle_lifespan())
    await lifespan.wait_for_startup()
    server = await loop.create_server(
        partial(Lane, lanes, way.visit),
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
        lanes.close()
        await way.context.terminated.set()
        await _end(lanes, way.tasks)
        await lifespan.wait_for_shutdown()
        living.cancel()


async def _end(lanes: Lanes, tasks: set[asyncio.Task[None]]) -> None:
    """Let what is open end by itself for a while, and then end it."""

    async def wait(seconds: float, meanwhile: Callable[[], None]) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while lanes.all or lanes.tasks or tasks:
                    meanwhile()
                    await asyncio.sleep(0.02)

    await wait(GRACE, lambda: None)
    await wait(PATIENCE, lambda: lanes.end(also_owing=False))
    lanes.end(also_owing=True)
    left = [*tasks, *lanes.tasks]
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)
