"""The end of a container's log for an operator, who waits for it at the hub. Secrets are masked here."""

from __future__ import annotations

import json

from agent.engine import Engine
from agent.errors import EngineError
from agent.runs import Runs
from gridcore.masking import mask_values
from gridcore.protocol import MAX_LOG_BYTES, LogOrder

MOST_BYTES = MAX_LOG_BYTES - 4096
"""Of the text as JSON, so that the whole message fits."""


async def read(order: LogOrder, engine: Engine, runs: Runs) -> tuple[str, str | None]:
    """The text, or "" and why there is none."""
    if order.previous:
        kept = runs.log(order.instance, order.previous)
        if kept is None:
            return "", f"slot {order.instance} has no run {order.previous} before this one"
        return last_lines(kept[1].decode(errors="replace"), order.lines), None
    try:
        # Not those of the last look, which may have been replaced a moment ago.
        mine = [c for c in await engine.containers() if c.instance == order.instance]
        if not mine:
            return "", f"slot {order.instance} has no container now; previous=1 shows its last run"
        container = max(mine, key=lambda c: (not c.ended, c.started))
        tail = await engine.log_tail(container.id, order.lines, MOST_BYTES)
    except EngineError as error:
        return "", str(error)
    return last_lines(mask_values(tail.decode(errors="replace"), container.secrets), order.lines), None


def last_lines(text: str, lines: int) -> str:
    """The last lines, fewer where they would not fit into the message."""
    kept = text.splitlines(keepends=True)[-lines:]
    while kept and len(json.dumps("".join(kept))) > MOST_BYTES:
        kept = kept[len(kept) // 2 :] if len(kept) > 1 else [kept[0][-len(kept[0]) // 2 :]]
    return "".join(kept)
