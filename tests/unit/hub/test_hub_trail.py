"""`GET /api/events`: pages, filters, masks, and streams that go on."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from quart import Quart, Response

from gridcore.protocol import TaskDefinition
from hub.app import create_app
from hub.bearer import Bearers
from hub.events import Actor, Event, EventQuery, Recorded
from hub.operations import add_task, note, start_next
from hub.settings import HubSettings
from hub.store_local import LocalStore, open_memory
from hub.trail import BEGINNING, PAGE, Trail, event_view, stream_text
from hub.waiters import Waiters

TOKEN = "an-example-secret-of-some-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
STREAM = {**AUTH, "Accept": "text/event-stream"}


@pytest.fixture
def store() -> LocalStore:
    return open_memory()


@pytest.fixture
def waiters(store: LocalStore) -> Waiters:
    waiters = Waiters()
    store.listen(waiters.wake)
    return waiters


@pytest.fixture
def app(store: LocalStore, waiters: Waiters) -> Quart:
    return create_app(HubSettings(token=TOKEN, state="memory:"), store, waiters)


async def get(app: Quart, query: str = "", status: int = 200, **headers: str) -> Any:
    response: Response = await app.test_client().get(f"/api/events{query}", headers={**AUTH, **headers})
    assert response.status_code == status, await response.get_data()
    return await response.get_json()


async def tell(store: LocalStore, *kinds: str, time: float = 1.0, **about: Any) -> None:
    for kind in kinds:
        await store.run(note(Event(time, kind, about.pop("who", "hub"), **about)))


def kinds(page: Any) -> list[str]:
    return [event["kind"] for event in page["events"]]


async def test_an_event_has_all_its_fields(app: Quart, store: LocalStore) -> None:
    await store.run(add_task(TaskDefinition(name="a", image="x:1")), Actor("alice", "192.0.2.7"))
    (event,) = (await get(app))["events"]
    assert set(event) == {"id", "time", "kind", "who", "source", "task", "node", "result", "detail"}
    assert (event["kind"], event["who"], event["source"], event["task"], event["node"]) == (
        "task-added", "alice", "192.0.2.7", "a", None
    )  # fmt: skip
    assert event["time"].endswith("Z")


async def test_pages_lead_to_the_beginning_and_none_is_empty(app: Quart, store: LocalStore) -> None:
    await tell(store, *(f"k{number}" for number in range(6)))
    seen, place = list[str](), "limit=3"
    for _ in range(2):
        page = await get(app, f"?{place}")
        seen += kinds(page)
        place = f"limit=3&before={page['next']}"
    assert page["next"] is None
    assert seen == ["k5", "k4", "k3", "k2", "k1", "k0"]


async def test_after_a_place_the_oldest_comes_first(app: Quart, store: LocalStore) -> None:
    await tell(store, "a", "b", "c", "d")
    first = (await get(app))["events"][-1]["id"]
    page = await get(app, f"?after={first}&limit=2")
    assert kinds(page) == ["b", "c"]
    assert kinds(await get(app, f"?after={page['next']}")) == ["d"]


async def test_filters_select_and_kinds_add_up(app: Quart, store: LocalStore) -> None:
    await tell(store, "a", task="t", who="alice")
    await tell(store, "b", node="n", time=1_700_000_000.0)
    await tell(store, "c", time=1_800_000_000.0)
    assert kinds(await get(app, "?kind=a&kind=c")) == ["c", "a"]
    assert kinds(await get(app, "?task=t")) == ["a"]
    assert kinds(await get(app, "?node=n")) == ["b"]
    assert kinds(await get(app, "?who=alice")) == ["a"]
    assert kinds(await get(app, "?since=2023-11-14T22:13:20Z")) == ["c", "b"]
    assert kinds(await get(app, "?until=2023-11-14T22:13:20Z")) == ["a"]
    assert kinds(await get(app, "?kind=a&task=other")) == []


@pytest.mark.parametrize(
    "query",
    ["kinds=a", "limit=0", "limit=1001", "limit=x", "before=1&after=2", "task=a&task=b", "since=yesterday",
     "until=0.5", "since=2023-11-14T22:13:20", "after=%00", "after=", "kind="],
)  # fmt: skip
async def test_what_makes_no_sense_is_422(app: Quart, query: str) -> None:
    assert (await get(app, f"?{query}", 422))["type"].endswith("invalid-fields")


@pytest.mark.parametrize("query", ["before=1", "limit=5", "until=2023-11-14T22:13:20Z"])
async def test_a_stream_has_no_pages(app: Quart, query: str) -> None:
    problem = await get(app, f"?{query}", 422, Accept="text/event-stream")
    assert problem["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "application/json, text/event-stream"])
async def test_who_does_not_ask_for_a_stream_gets_pages(app: Quart, accept: str) -> None:
    assert await get(app, Accept=accept) == {"events": [], "next": None}


async def test_secrets_are_masked_wherever_they_stand(app: Quart, store: LocalStore) -> None:
    definition = {"name": "a", "image": "x:1", "env": {"KEY": "hunter2-and-more"}}
    await store.run(add_task(TaskDefinition.model_validate(definition)))
    secret, url = "of hunter2-and-more", "redis://:pass-word@host"
    await tell(
        store, "k", who=secret, task=secret, node=secret, result=url, detail={"a": [{"b": url}, secret]}
    )
    event = (await get(app))["events"][0]
    assert "hunter2" not in json.dumps(event)
    assert "pass-word" not in json.dumps(event)
    assert event["detail"]["a"][1] == "of ***"


# --- Streams -----------------------------------------------------------------------------------------------


class Follower:
    """Reads a stream, block by block."""

    def __init__(self, blocks: AsyncIterator[bytes]) -> None:
        self._blocks = blocks

    async def read(self) -> list[str]:
        """The kinds in the next block that has events."""
        async with asyncio.timeout(5):
            async for block in self._blocks:
                found = [line[7:] for line in block.decode().splitlines() if line.startswith("event: ")]
                if found:
                    return found
        return []

    async def end(self) -> None:
        async with asyncio.timeout(5):
            assert [block async for block in self._blocks if b"event:" in block] == []


def follow(trail: Trail, place: str, **query: Any) -> Follower:
    return Follower(trail.follow(EventQuery(**query), place, lambda: True))


async def test_a_stream_tells_what_was_and_what_comes(store: LocalStore, waiters: Waiters) -> None:
    trail = Trail(store, waiters)
    await tell(store, "a", "b")
    stream = follow(trail, BEGINNING)
    assert await stream.read() == ["a", "b"]
    later = asyncio.create_task(stream.read())
    await asyncio.sleep(0.01)
    await tell(store, "c")
    assert await later == ["c"]
    assert trail.streams == 1
    waiters.close()
    await stream.end()
    assert trail.streams == 0


async def test_a_stream_reads_a_long_past_page_by_page(store: LocalStore, waiters: Waiters) -> None:
    await tell(store, *(f"k{number}" for number in range(PAGE * 2 + 5)))
    stream = follow(Trail(store, waiters), BEGINNING)
    assert [len(await stream.read()) for _ in range(3)] == [PAGE, PAGE, 5]
    waiters.close()
    await stream.end()


async def test_a_stream_that_filters_finds_what_is_far_away(store: LocalStore, waiters: Waiters) -> None:
    await tell(store, *(["noise"] * (PAGE * 2)), "wanted")
    stream = follow(Trail(store, waiters), BEGINNING, kinds=frozenset({"wanted"}))
    assert await stream.read() == ["wanted"]
    waiters.close()
    await stream.end()


async def test_streams_at_one_place_share_one_reading(
    store: LocalStore, waiters: Waiters, monkeypatch: pytest.MonkeyPatch
) -> None:
    trail = Trail(store, waiters)
    read, real = list[str | None](), store.events

    async def counting(query: EventQuery) -> Any:
        read.append(query.after)
        return await real(query)

    monkeypatch.setattr(store, "events", counting)
    await tell(store, "a")
    streams = [follow(trail, BEGINNING) for _ in range(50)]
    assert await asyncio.gather(*(stream.read() for stream in streams)) == [["a"]] * 50
    assert len(read) <= 3
    waiters.close()
    await asyncio.gather(*(stream.end() for stream in streams))


async def test_a_stream_ends_when_its_token_no_longer_counts(store: LocalStore, waiters: Waiters) -> None:
    welcome = [True]
    stream = Follower(Trail(store, waiters).follow(EventQuery(), BEGINNING, lambda: welcome[0]))
    await tell(store, "a")
    assert await stream.read() == ["a"]
    welcome[0] = False
    await tell(store, "b")
    await stream.end()


@pytest.mark.parametrize(("header", "expected"), [("1", ["b", "c"]), ("\x00", ["c"]), ("", ["c"])])
async def test_a_client_that_comes_back_goes_on_where_it_was(
    app: Quart, store: LocalStore, waiters: Waiters, header: str, expected: list[str]
) -> None:
    await tell(store, "a", "b")
    request = app.test_client().request("/api/events", headers={**STREAM, "Last-Event-ID": header})
    async with request as connection:
        await connection.send_complete()
        received: list[bytes] = []
        received.append(await asyncio.wait_for(connection.receive(), 5))
        sent: Any = connection  # its protocol does not say what it got
        assert sent.status_code == 200
        assert sent.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        await tell(store, "c")
        while b"event: c" not in b"".join(received):
            received.append(await asyncio.wait_for(connection.receive(), 5))
        waiters.close()
    text = b"".join(received).decode()
    assert [line[7:] for line in text.splitlines() if line.startswith("event: ")] == expected


async def test_beyond_the_most_streams_another_is_503_and_told_when_to_try(
    app: Quart, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.trail.MOST_STREAMS", 0)
    response = await app.test_client().get("/api/events", headers=STREAM)
    assert (response.status_code, response.headers["Retry-After"]) == (503, "30")


async def test_a_revoked_token_is_not_welcome_any_more(store: LocalStore) -> None:
    bearers = Bearers(HubSettings(token=TOKEN, state="memory:"), store)
    assert bearers.identify([(b"authorization", f"Bearer {TOKEN}".encode())], None) is not None
    assert bearers.identify([(b"authorization", b"Bearer other")], None) is None


def test_a_block_of_a_stream_is_one_line_of_json() -> None:
    recorded = Recorded("7", Event(time.time(), "k", "hub", detail={"text": "two\nlines"}))
    place, kind, data = stream_text(recorded, str).decode().removesuffix("\n\n").split("\n")
    assert (place, kind) == ("id: 7", "event: k")
    assert json.loads(data.removeprefix("data: ")) == event_view(recorded, str)


async def test_a_switch_is_in_the_stream_of_its_task(store: LocalStore, waiters: Waiters) -> None:
    await store.run(add_task(TaskDefinition(name="a", image="x:1")))
    await store.run(start_next())
    stream = follow(Trail(store, waiters), BEGINNING, task="a")
    assert await stream.read() == ["task-added", "switched"]
    waiters.close()
    await stream.end()
