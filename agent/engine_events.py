"""An early word from the engine that one of our containers changed.

The engine's own socket, read with aiohttp: a standing `docker events` child would cost more memory than the
whole agent. Events only wake the loop; the list is the truth. Where the engine is not on a local socket, or
does not answer, the tick alone does it.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path

import aiohttp

from agent import spec

RETRY = 5.0
"""Seconds between attempts to listen."""
ACTIONS = ["die", "start", "destroy", "oom", "pause", "unpause"]


def engine_socket() -> Path | None:
    """The engine's local socket, or None where it is somewhere else."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    return Path(host.removeprefix("unix://")) if host.startswith("unix://") else None


async def listen(owner: str, wake: Callable[[], None]) -> None:
    """Call `wake` at each event of our containers, for ever; returns only without a local socket."""
    path = engine_socket()
    if path is None:
        return
    filters = {"type": ["container"], "label": [f"{spec.OWNER}={owner}"], "event": ACTIONS}
    query = {"filters": json.dumps(filters)}
    while True:
        try:
            async with (
                aiohttp.ClientSession(connector=aiohttp.UnixConnector(str(path))) as session,
                session.get(
                    "http://engine/events", params=query, timeout=aiohttp.ClientTimeout(total=None)
                ) as stream,
            ):
                async for _chunk in stream.content.iter_any():
                    wake()
        except (aiohttp.ClientError, OSError):
            pass
        wake()  # whatever happened while nobody listened
        await asyncio.sleep(RETRY)
