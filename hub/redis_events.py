"""Reading the audit trail in Redis, a portion at a time: Redis does one thing at a time."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from hub import codec
from hub.events import EventQuery, Recorded
from hub.redis_rows import DAMAGED

AT_ONCE = 500
"""Events that one answer of Redis holds at most."""

_PLACE = re.compile(r"\d{1,18}(-\d{1,18})?", re.ASCII)


async def read_events(
    call: Callable[..., Awaitable[list[Any]]], key: str, query: EventQuery
) -> Sequence[Recorded]:
    """The part of the trail that was asked for; raises what `call`, which asks Redis, does."""
    found: list[Recorded] = []
    span = _span(query)
    while span is not None and len(found) < query.limit:
        command = "XREVRANGE" if query.after is None else "XRANGE"
        (rows,) = await call((command, key, *span, "COUNT", AT_ONCE))
        for place, (_field, text) in rows:
            try:
                event = codec.load_event(json.loads(text))
            except DAMAGED:  # costs itself alone
                continue
            if query.takes(event):
                found.append(Recorded(place, event))
        span = (f"({rows[-1][0]}", span[1]) if len(rows) == AT_ONCE else None
    return found[: query.limit]


def _span(query: EventQuery) -> tuple[str, str] | None:
    """Where the part of the trail begins and ends, in the order that is asked for; None if it is empty."""
    if query.after is not None:
        return (f"({query.after}" if _is_place(query.after) else "-"), "+"
    if query.before is None:
        return "+", "-"
    return (f"({query.before}", "-") if _is_place(query.before) else None


def _is_place(text: str) -> bool:
    return bool(_PLACE.fullmatch(text)) and bool(text.strip("0-"))
