"""The audit trail for operators: `GET /api/events`, in pages or as a stream that goes on.

A stream holds no queue: it has a place in the trail and reads on from there, page by page, when something was
told. So a reader who is slow, or comes back after a day, costs as much memory as one who is fast, and misses
nothing. Streams at the same place share one reading.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Annotated, Any, NamedTuple

import structlog
from pydantic import (
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)
from quart import Blueprint, Request, Response, request
from quart_schema import document_querystring, document_response, tag

from hub.batcher import Batcher
from hub.bearer import Bearers
from hub.bodies import parse_query
from hub.description import document_text
from hub.door import actor
from hub.errors import InvalidFields, StoreUnavailable, TooManyStreams
from hub.events import MOST_EVENTS, EventQuery, Recorded
from hub.operators import answer
from hub.redaction import Hide, hiding
from hub.state import AUDIT
from hub.store import Store
from hub.views import rfc3339
from hub.waiters import Waiters

MOST_STREAMS = 256
"""Clients that follow the trail at the same time."""

KEEP_ALIVE = 15.0
"""Seconds after which a stream says that it is still there, and looks whether it still may be."""

GATHER = 0.05
"""Seconds that a stream lets pass between two readings, so that a busy hub does not read for each event."""

PAGE = 100
"""Events that a stream holds at once."""

BEGINNING = ""
"""A place before all others."""

STREAM_TYPE = "text/event-stream"
STREAM_HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep events until it has a few kilobytes
}

_YEAR = re.compile(r"\d{4}-", re.ASCII)

Place = Annotated[str, StringConstraints(pattern=r"^[0-9A-Za-z-]{1,64}$")]
Text = Annotated[str, StringConstraints(min_length=1, max_length=128)]


def _written_out(value: Any) -> Any:
    """Not a bare number, which would be taken for seconds since 1970."""
    if isinstance(value, str) and not _YEAR.match(value):
        raise ValueError("expected a time with a zone, such as 2026-11-24T00:00:00Z")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_written_out)]

log = structlog.get_logger()


class EventsQuery(BaseModel):
    """Which events; `kind` may be given several times. Places are the ids of events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: list[Text] = Field(default_factory=list)
    task: Text | None = None
    node: Text | None = None
    who: Text | None = None
    since: Time | None = None
    until: Time | None = None
    before: Place | None = None
    after: Place | None = None
    limit: int = Field(default=100, ge=1, le=MOST_EVENTS)

    @model_validator(mode="after")
    def _check_places(self) -> EventsQuery:
        if self.before is not None and self.after is not None:
            raise ValueError("before and after: expected one of them")
        return self

    def selection(self, limit: int) -> EventQuery:
        """The same for a store."""
        return EventQuery(
            after=self.after,
            before=self.before,
            kinds=frozenset(self.kind),
            task=self.task,
            node=self.node,
            who=self.who,
            since=self.since.timestamp() if self.since else None,
            until=self.until.timestamp() if self.until else None,
            limit=limit,
        )


class EventView(BaseModel):
    """One event; its texts with every secret masked."""

    id: str
    time: str
    kind: str
    who: str
    source: str | None
    task: str | None
    node: str | None
    result: str
    detail: dict[str, Any]


class EventsAnswer(BaseModel):
    """A page of the trail, and the place with which the next one begins; null at the end."""

    events: list[EventView]
    next: str | None


class _Read(NamedTuple):
    recorded: Recorded
    text: bytes
    """As a stream has it."""


class Trail:
    """Reads the trail for all who follow it."""

    def __init__(self, store: Store, waiters: Waiters) -> None:
        self._store = store
        self._waiters = waiters
        self._pages: Batcher[str, Sequence[_Read]] = Batcher(self._read_pages)
        self.streams = 0
        """Clients that follow it now."""

    async def end(self) -> str:
        """The place of the newest event."""
        newest = await self._store.events(EventQuery(limit=1))
        return newest[0].id if newest else BEGINNING

    async def follow(
        self, query: EventQuery, place: str, is_welcome: Callable[[], bool]
    ) -> AsyncIterator[bytes]:
        """Events after a place, and those to come, as text of a stream; ends when the hub stops, or when the
        client is not welcome any more."""
        clock = asyncio.get_running_loop().time
        self.streams += 1
        try:
            with self._waiters.holding(AUDIT) as waiter:
                yield b"retry: 2000\n\n"
                told, said_at = place, clock()
                while not self._waiters.is_closed and is_welcome():
                    page = await self._read(place)
                    wanted = [read for read in page if query.takes(read.recorded.event)]
                    place = page[-1].recorded.id if page else place
                    if wanted:
                        yield b"".join(read.text for read in wanted)
                        told, said_at = wanted[-1].recorded.id, clock()
                    elif clock() >= said_at + KEEP_ALIVE:
                        # Who filters comes back to where it stood, and not to what it was last told.
                        yield (
                            b": still here\n" + (f"id: {place}\n".encode() if place != told else b"") + b"\n"
                        )
                        told, said_at = place, clock()
                    if len(page) < PAGE:
                        await waiter.wait(said_at + KEEP_ALIVE)
                        await self._waiters.pause(GATHER)
        finally:
            self.streams -= 1

    async def _read(self, place: str) -> Sequence[_Read]:
        try:
            return await self._pages.do(place)
        except StoreUnavailable:  # what keeps the state is away: the stream stays, and looks again
            return ()

    async def _read_pages(self, places: Sequence[str]) -> Sequence[Sequence[_Read]]:
        hide = hiding(await self._store.tasks())
        pages: dict[str, Sequence[_Read]] = {}
        for place in dict.fromkeys(places):
            found = await self._store.events(EventQuery(after=place, limit=PAGE))
            pages[place] = [_Read(recorded, stream_text(recorded, hide)) for recorded in found]
        return [pages[place] for place in places]


def trail_api(store: Store, waiters: Waiters, bearers: Bearers) -> Blueprint:
    """The route, over this store; `bearers` says whether a stream's token still counts."""
    api = Blueprint("trail", __name__, url_prefix="/api")
    trail = Trail(store, waiters)

    @api.get("/events")
    @tag(["events"])
    @document_querystring(EventsQuery)
    @document_response(EventsAnswer)
    @document_text(STREAM_TYPE, "A page, or with `Accept: text/event-stream` a stream of what comes.")
    async def list_events() -> Response:
        """The audit trail, newest first; with `Accept: text/event-stream` a stream of what comes."""
        wanted = parse_query(request, EventsQuery, several=frozenset({"kind"}))
        if request.method == "GET" and request.accept_mimetypes.best_match(
            ["application/json", STREAM_TYPE]
        ) == (STREAM_TYPE):
            return await _stream(wanted, request)
        found = await store.events(wanted.selection(wanted.limit + 1))
        shown, hide = found[: wanted.limit], hiding(await store.tasks())
        following = shown[-1].id if len(found) > len(shown) else None

        def view() -> Response:
            return answer({"events": [event_view(recorded, hide) for recorded in shown], "next": following})

        return await asyncio.to_thread(view)  # a thousand events take their time

    async def _stream(wanted: EventsQuery, asked: Request) -> Response:
        _refuse_pages(asked)
        if trail.streams >= MOST_STREAMS:
            raise TooManyStreams(MOST_STREAMS)
        by, headers = actor(asked), list(asked.scope["headers"])
        place = _last_event_id(asked) or wanted.after
        if place is None:
            place = await trail.end() if wanted.since is None else BEGINNING
        stream = trail.follow(
            wanted.selection(PAGE), place, lambda: bearers.identify(headers, by.source) is not None
        )
        response = Response(stream, headers=STREAM_HEADERS, content_type=f"{STREAM_TYPE}; charset=utf-8")
        response.timeout = None
        return response

    return api


def event_view(recorded: Recorded, hide: Hide) -> dict[str, Any]:
    """An event as operators see it."""
    event = recorded.event

    def hidden(text: str | None) -> str | None:
        return hide(text) if text else text

    return {
        "id": recorded.id,
        "time": rfc3339(event.time),
        "kind": event.kind,
        "who": hide(event.who),
        "source": hidden(event.source),
        "task": hidden(event.task),
        "node": hidden(event.node),
        "result": hide(event.result),
        "detail": _hide_all(dict(event.detail), hide),
    }


def stream_text(recorded: Recorded, hide: Hide) -> bytes:
    """An event as a stream has it."""
    text = json.dumps(event_view(recorded, hide))
    return f"id: {recorded.id}\nevent: {recorded.event.kind}\ndata: {text}\n\n".encode()


def _hide_all(value: Any, hide: Hide) -> Any:
    if isinstance(value, str):
        return hide(value)
    if isinstance(value, dict):
        return {hide(name): _hide_all(part, hide) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_hide_all(part, hide) for part in value]
    return value


def _refuse_pages(asked: Request) -> None:
    """Raises InvalidFields: what only a page can have."""
    names = [name for name in ("before", "until", "limit") if name in asked.args]
    if names:
        raise InvalidFields(
            [{"field": name, "message": "does not go with a stream; use after or since"} for name in names]
        )


def _last_event_id(asked: Request) -> str | None:
    """Where a client that comes back was; None if it does not say, or nonsense."""
    said: str = asked.headers.get("Last-Event-ID", "")
    return said if 0 < len(said) <= 64 and said.isascii() and said.replace("-", "").isalnum() else None
