"""What operators tried and the hub refused, told in the audit trail; who may not ask at all is told elsewhere
(`refusals.py`). Bounded, so that a program that asks in a loop does not fill the disk.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from quart import Quart, Request, Response, request

from hub.door import actor
from hub.errors import StoreUnavailable
from hub.events import Actor
from hub.problems import TYPE_PREFIX
from hub.roles import plain
from hub.state import Change, Moment, Operation, Outcome, View
from hub.store import Store

ACTS = frozenset({"POST", "PUT", "PATCH", "DELETE"})
TOLD_ELSEWHERE = frozenset({401, 403})

MINUTE = 60.0
MOST_OF_ONE = 20
"""Refusals that one actor at one address is told of in a minute."""
MOST_OF_ALL = 300
"""And all of them together."""

LONGEST_NAME = 128
"""Characters of a name out of a path."""


class Allowance:
    """Who may still be told of in this minute, and how many were left out."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._begun = clock()
        self._told: Counter[tuple[str, str | None]] = Counter()
        self._left_out = 0

    def take(self, by: Actor) -> int | None:
        """How many were left out since one was last told of; None where this one is left out, too."""
        if self._clock() >= self._begun + MINUTE:
            self._begun = self._clock()
            self._told.clear()
        key = (by.who, by.source)
        if self._told[key] >= MOST_OF_ONE or self._told.total() >= MOST_OF_ALL:
            self._left_out += 1
            return None
        self._told[key] += 1
        left_out, self._left_out = self._left_out, 0
        return left_out


def refused_act(slug: str, about: dict[str, str | None], detail: dict[str, Any]) -> Operation[None]:
    """Tell that what the actor asked for was refused."""

    def decide(_view: View, at: Moment) -> Outcome[None]:
        events = at.tell("refused", result=f"refused: {slug}", detail=detail, **about)
        return Outcome(None, Change(events=events))

    return Operation(decide)


def tell_refused_acts(app: Quart, store: Store, allowance: Allowance | None = None) -> None:
    """Have each act under `/api` that this application refuses be an event, before it is answered."""
    allowance = Allowance() if allowance is None else allowance

    @app.after_request
    async def tell(response: Response) -> Response:
        if _is_told(request, response):
            by = actor(request)
            left_out = allowance.take(by)
            if left_out is not None:
                slug = _slug(await response.get_data(as_text=True))
                detail = _detail(request, response.status_code, left_out)
                with suppress(StoreUnavailable):  # the refusal stands all the same
                    await store.run(refused_act(slug, _about(request), detail), by)
        return response


def _is_told(asked: Request, response: Response) -> bool:
    return (
        400 <= response.status_code < 500
        and response.status_code not in TOLD_ELSEWHERE
        and asked.method in ACTS
        and asked.path.startswith("/api/")
    )


def _slug(body: str) -> str:
    """The last part of a problem's type."""
    try:
        return str(json.loads(body)["type"]).removeprefix(TYPE_PREFIX)
    except (ValueError, KeyError, TypeError):
        return "unknown"


def _about(asked: Request) -> dict[str, str | None]:
    parts = asked.view_args or {}
    return {
        "task": str(parts["name"])[:LONGEST_NAME] if "name" in parts else None,
        "node": str(parts["node_id"])[:LONGEST_NAME] if "node_id" in parts else None,
    }


def _detail(asked: Request, status: int, left_out: int) -> dict[str, Any]:
    """What was asked for; a path that there is not is nobody's business."""
    rule = plain(asked.url_rule.rule) if asked.url_rule else "(no such path)"
    detail: dict[str, Any] = {"method": asked.method, "route": rule, "status": status}
    return {**detail, "left_out": left_out} if left_out else detail
