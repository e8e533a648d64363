"""An early word from the engine that one of our containers changed.

Events only wake the loop; the list is the truth. Where the engine's socket cannot be read, or does not
answer, the tick alone does it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from agent import spec
from agent.engine_api import EngineApi
from agent.errors import EngineError

RETRY = 5.0
"""Seconds between attempts to listen."""
ACTIONS = ["die", "start", "destroy", "oom", "pause", "unpause"]


async def listen(owner: str, wake: Callable[[], None], api: EngineApi | None = None) -> None:
    """Call `wake` at each event of our containers, for ever; returns only where no socket can be read."""
    if api is None:
        own = EngineApi()
        try:
            await listen(owner, wake, own)
        finally:
            await own.close()
    elif api.reachable:
        await _listen(owner, wake, api)


async def _listen(owner: str, wake: Callable[[], None], api: EngineApi) -> None:
    filters = {"type": ["container"], "label": [f"{spec.OWNER}={owner}"], "event": ACTIONS}
    while True:
        try:
            async for _chunk in api.events(filters):
                wake()
        except EngineError:
            pass  # whoever lists the containers tells of it
        wake()  # whatever happened while nobody listened
        await asyncio.sleep(RETRY)
