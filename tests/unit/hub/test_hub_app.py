"""The application on a store in memory, where a real socket would only be in the way."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest
from quart import Quart, Response

from gridcore.protocol import RegisterRequest, TaskDefinition
from hub.app import create_app
from hub.errors import StoreUnavailable
from hub.journal_memory import MemoryJournal
from hub.operations import add_task, order_stop, register, start_next
from hub.serve import bind
from hub.settings import HubSettings
from hub.state import Change, State
from hub.store_local import LocalStore, open_memory
from hub.tasklist import TaskList
from hub.waiters import Waiters

TOKEN = "an-example-secret-of-some-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
SETTINGS = HubSettings(token=TOKEN, state="memory:")


@pytest.fixture
def store() -> LocalStore:
    return open_memory()


@pytest.fixture
def waiters() -> Waiters:
    return Waiters()


@pytest.fixture
def app(store: LocalStore, waiters: Waiters) -> Quart:
    return create_app(SETTINGS, store, waiters)


async def task(app: Quart, query: str = "", **headers: str) -> Response:
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    response: Response = await app.test_client().get(f"/gridnode/task{query}", headers={**AUTH, **given})
    return response


async def switch(store: LocalStore, name: str) -> None:
    await store.run(add_task(TaskDefinition(name=name, image="x:1")))
    await store.run(start_next(None))


async def test_a_client_that_disconnects_leaves_no_waiter_behind(app: Quart, waiters: Waiters) -> None:
    headers = {**AUTH, "If-None-Match": "*", "Prefer": "wait=50"}
    async with app.test_client().request("/gridnode/task?node_id=n", headers=headers) as connection:
        await connection.send_complete()
        await asyncio.sleep(0.05)
        assert len(waiters) == 1
        await connection.disconnect()
    await asyncio.sleep(0.05)
    assert len(waiters) == 0


async def test_a_star_waits_for_the_next_change(app: Quart, store: LocalStore, waiters: Waiters) -> None:
    asking = asyncio.create_task(task(app, If_None_Match="*", Prefer="wait=50"))
    await asyncio.sleep(0.05)
    assert len(waiters) == 1
    await switch(store, "a")
    answer = await asking
    assert answer.status_code == 200
    assert (await answer.get_json())["task_name"] == "a"


async def test_what_does_not_change_the_current_task_ends_no_wait(app: Quart, store: LocalStore) -> None:
    asking = asyncio.create_task(task(app, "?node_id=n", If_None_Match="*", Prefer="wait=50"))
    await asyncio.sleep(0.05)
    await store.run(add_task(TaskDefinition(name="a", image="x:1")))
    await store.run(register(RegisterRequest(node_id="m", hostname="h", architecture="arm", cpu_count=1)))
    await store.run(order_stop("m"))
    await asyncio.sleep(0.05)
    assert not asking.done()
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)


async def test_closing_ends_all_waits_and_lets_none_begin(app: Quart, waiters: Waiters) -> None:
    asking = asyncio.create_task(task(app, If_None_Match="*", Prefer="wait=50"))
    await asyncio.sleep(0.05)
    waiters.close()
    assert (await asking).status_code == 304
    assert (await task(app, If_None_Match="*", Prefer="wait=50")).status_code == 304


async def test_an_order_from_before_the_request_ends_it_at_once(app: Quart, store: LocalStore) -> None:
    await store.run(register(RegisterRequest(node_id="n", hostname="h", architecture="arm", cpu_count=1)))
    await store.run(order_stop("n"))
    without_wait = await task(app, "?node_id=n", If_None_Match="*")
    assert "GridCore-Heartbeat" not in without_wait.headers
    nudged = await task(app, "?node_id=n", If_None_Match="*", Prefer="wait=50")
    assert (nudged.status_code, nudged.headers["GridCore-Heartbeat"]) == (304, "now")


@pytest.mark.parametrize("node_id", ["", "%00", "a/b", "x" * 500, "%ff"])
async def test_an_id_that_cannot_be_one_keeps_nobody_from_the_task(app: Quart, node_id: str) -> None:
    assert (await task(app, f"?node_id={node_id}")).status_code == 200


async def test_a_node_whose_task_has_no_image_for_it_shows_why_it_is_idle(
    app: Quart, store: LocalStore
) -> None:
    await store.run(register(RegisterRequest(node_id="n", hostname="h", architecture="arm", cpu_count=1)))
    await store.run(add_task(TaskDefinition.model_validate({"name": "a", "images": {"linux/amd64": "x:1"}})))
    await store.run(start_next(None))
    response = await app.test_client().get("/api/nodes/n", headers=AUTH)
    assert (await response.get_json())["reason"] == "task a has no image for linux/arm/v7"


class FullDisk(MemoryJournal):
    async def commit(self, change: Change) -> None:
        raise StoreUnavailable("/hub.db: database or disk is full")


async def test_a_state_that_cannot_be_written_is_503_and_nothing_has_changed() -> None:
    app = create_app(SETTINGS, LocalStore(State(TaskList.empty(0)), FullDisk()))
    body = b'{"name": "a", "image": "x:1"}'
    answer = await app.test_client().post("/api/tasks", data=body, headers=AUTH)
    assert answer.status_code == 503
    problem: dict[str, Any] = await answer.get_json()
    assert problem["type"] == "urn:idm-gridcore:problem:store-unavailable"
    assert "hub.db" not in problem["detail"]
    listed = await app.test_client().get("/api/tasks", headers=AUTH)
    assert (await listed.get_json())["pending"] == []


async def test_the_schema_lists_every_path(app: Quart) -> None:
    response = await app.test_client().get("/openapi.json", headers=AUTH)
    schema = await response.get_json()
    assert set(schema["paths"]) >= {
        "/health",
        "/api/tasks",
        "/api/tasks/next",
        "/api/tasks/finish",
        "/api/tasks/{name}",
        "/api/nodes",
        "/api/nodes/{node_id}",
        "/api/nodes/{node_id}/stop",
        "/api/nodes/{node_id}/drain",
        "/api/nodes/{node_id}/resume",
        "/api/nodes/{node_id}/logs",
        "/api/problems",
        "/gridnode/register",
        "/gridnode/heartbeat",
        "/gridnode/task",
        "/gridnode/deregister",
        "/gridnode/logs",
    }
    parameters = schema["paths"]["/api/nodes/{node_id}/logs"]["get"]["parameters"]
    assert {parameter["name"] for parameter in parameters} == {"node_id", "instance", "lines", "previous"}


@pytest.mark.parametrize("bind", ["0.0.0.0:8080", "[::1]:0", "hub.lan:80", "[fe80::1%eth0.2]:80"])
def test_an_address_is_host_and_port(bind: str) -> None:
    host, port = HubSettings(token=TOKEN, bind=bind).address
    assert f"{host}:{port}" == bind.replace("[", "").replace("]", "")


@pytest.mark.parametrize(
    "bind",
    [
        "8080",
        "::1:80",
        "host",
        "host:99999",
        "host:",
        "ho st:1",
        ":80",
        "[fe80::1%]:80",
        "[%eth0]:80",
        "host%eth0:80",
        "[fe80::1%a/b]:80",
        "[fe80::1%a%b]:80",
    ],
)
def test_anything_else_is_none(bind: str) -> None:
    with pytest.raises(ValueError, match="HOST:PORT"):
        HubSettings(token=TOKEN, bind=bind)


@pytest.mark.parametrize(
    ("bind", "told"),
    [("[fe80::1]:80", r"needs its interface, as \[fe80::1%eth0\]:80"), ("[::1::]:80", "is no IPv6 address")],
)
def test_what_is_wrong_with_an_ipv6_address_is_said(bind: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        HubSettings(token=TOKEN, bind=bind)


def test_answers_do_not_wait_for_the_client_to_confirm_their_first_part() -> None:
    with (
        bind(HubSettings(token=TOKEN, bind="127.0.0.1:0")) as listener,
        socket.create_connection(listener.getsockname()),
        listener.accept()[0] as accepted,
    ):
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_the_token_is_not_in_the_settings_text() -> None:
    assert TOKEN not in repr(SETTINGS)
