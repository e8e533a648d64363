"""An early word from the engine that one of our containers changed.

Events wake the loop; the list is the truth. One event says what not every list does: that the kernel killed
in a container for want of memory. So those that the engine remembers are asked for, too: it may have happened
while nobody listened. Where the engine's socket cannot be read, or does not answer, the tick alone does it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from agent import spec
from agent.engine_api import EngineApi
from agent.errors import EngineError

RETRY = 5.0
"""Seconds between attempts to listen."""
OOM = "oom"
ACTIONS = ["die", "start", "destroy", OOM, "pause", "unpause"]
LONGEST = 64 * 1024
"""Bytes of one event; what is longer is not looked into."""


async def listen(
    owner: str,
    wake: Callable[[], None],
    api: EngineApi | None = None,
    *,
    on_oom: Callable[[str, float], None] = lambda _container_id, _at: None,
) -> None:
    """Call `wake` at each event of our containers, for ever; returns only where no socket can be read.

    `on_oom` is called before, with the id of a container in which the kernel killed for want of memory, and
    when: once or more for each kill.
    """
    if api is None:
        own = EngineApi()
        try:
            await listen(owner, wake, own, on_oom=on_oom)
        finally:
            await own.close()
    elif api.reachable:
        await _listen(owner, wake, api, on_oom)


async def _listen(
    owner: str, wake: Callable[[], None], api: EngineApi, on_oom: Callable[[str, float], None]
) -> None:
    filters = {"type": ["container"], "label": [f"{spec.OWNER}={owner}"], "event": ACTIONS}
    while True:
        events = EventLines()
        try:
            async for chunk in api.events(filters):
                for container_id, at in events.out_of_memory(chunk):
                    on_oom(container_id, at)
                wake()
        except EngineError:
            pass  # whoever lists the containers tells of it
        wake()  # whatever happened while nobody listened
        await asyncio.sleep(RETRY)


class EventLines:
    """A stream of JSON lines that comes in pieces of any length."""

    def __init__(self) -> None:
        self._rest = b""

    def out_of_memory(self, chunk: bytes) -> list[tuple[str, float]]:
        """The containers that an `oom` event completed by this piece is about, with its time."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        self._rest = rest if len(rest) <= LONGEST else b""
        return [kill for line in lines if (kill := _oom_of(line)) is not None]


def _oom_of(line: bytes) -> tuple[str, float] | None:
    try:
        event = json.loads(line)
        if event["Action"] != OOM:
            return None
        return str(event["Actor"]["ID"]), int(event["timeNano"]) / 1e9
    except (ValueError, KeyError, TypeError):
        return None  # not what we know: it has woken the loop
