"""What operators tried in vain stands in the audit trail, and a loop does not fill it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from quart import Quart

from gridcore.protocol import TaskDefinition
from hub.app import create_app
from hub.errors import StoreUnavailable
from hub.events import Actor, EventQuery
from hub.journal_memory import MemoryJournal
from hub.operations import add_task, start_next
from hub.refused_acts import MINUTE, MOST_OF_ALL, MOST_OF_ONE, Allowance
from hub.settings import HubSettings
from hub.state import Change, State
from hub.store_local import LocalStore, open_memory
from hub.tasklist import TaskList

TOKEN = "an-example-secret-of-some-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
SETTINGS = HubSettings(token=TOKEN, state="memory:")


@pytest.fixture
def store() -> LocalStore:
    return open_memory()


@pytest.fixture
def app(store: LocalStore) -> Quart:
    return create_app(SETTINGS, store)


async def send(app: Quart, method: str, path: str, body: object = None, **headers: str) -> int:
    data = b"" if body is None else json.dumps(body).encode()
    client: Any = app.test_client()
    response = await client.open(path, method=method, data=data, headers={**AUTH, **headers})
    return int(response.status_code)


async def told(store: LocalStore) -> list[Any]:
    return [kept.event for kept in await store.events(EventQuery(kinds=frozenset({"refused"})))]


@pytest.mark.parametrize(
    ("method", "path", "body", "slug", "route"),
    [
        ("POST", "/api/tasks/next", None, "nothing-pending", "/api/tasks/next"),
        ("POST", "/api/tasks/finish", {"task": "b"}, "not-current", "/api/tasks/finish"),
        ("POST", "/api/tasks", {"name": "c"}, "invalid-fields", "/api/tasks"),
        ("POST", "/api/nodes/gone/stop", None, "unknown-node", "/api/nodes/{}/stop"),
        ("DELETE", "/api/tasks", None, "method-not-allowed", "(no such path)"),
        ("POST", "/api/such/a/secret", None, "not-found", "(no such path)"),
    ],
)
async def test_a_refused_act_is_one_event_with_who_what_and_why(
    app: Quart, store: LocalStore, method: str, path: str, body: object, slug: str, route: str
) -> None:
    await store.run(add_task(TaskDefinition(name="a", image="x:1")))
    await store.run(start_next())
    status = await send(app, method, path, body)
    (event,) = await told(store)
    assert event.result == f"refused: {slug}"
    assert event.detail == {"method": method, "route": route, "status": status}
    assert event.who == "shared token"
    assert event.node == ("gone" if "gone" in path else None)


async def test_what_is_no_act_or_not_refused_is_not_told(app: Quart, store: LocalStore) -> None:
    assert await send(app, "GET", "/api/tasks/none") == 404
    assert await send(app, "POST", "/api/tasks", {"name": "a", "image": "x:1"}) == 201
    assert await send(app, "POST", "/gridnode/heartbeat", {}) == 422
    assert await send(app, "POST", "/api/tasks/next", Authorization="Bearer other") == 401
    assert await told(store) == []


async def test_a_loop_is_told_so_often_and_then_counted(app: Quart, store: LocalStore) -> None:
    for _ in range(MOST_OF_ONE + 7):
        assert await send(app, "POST", "/api/tasks/next") == 400
    assert len(await told(store)) == MOST_OF_ONE


def test_the_next_minute_tells_how_many_were_left_out() -> None:
    now = [0.0]
    allowance = Allowance(lambda: now[0])
    loop, other = Actor("alice", "192.0.2.1"), Actor("bob")
    assert [allowance.take(loop) for _ in range(MOST_OF_ONE + 3)] == [0] * MOST_OF_ONE + [None] * 3
    now[0] = MINUTE
    assert allowance.take(other) == 3
    assert allowance.take(loop) == 0


def test_many_addresses_together_are_bounded_too() -> None:
    allowance = Allowance(lambda: 0.0)
    taken = [allowance.take(Actor("alice", f"192.0.2.{number}")) for number in range(MOST_OF_ALL + 50)]
    assert taken.count(None) == 50


class FullDisk(MemoryJournal):
    async def commit(self, change: Change) -> None:
        raise StoreUnavailable("full")


async def test_a_refusal_that_cannot_be_kept_is_answered_all_the_same() -> None:
    app = create_app(SETTINGS, LocalStore(State(TaskList.empty(0)), FullDisk()))
    assert await send(app, "POST", "/api/tasks/next") == 400
