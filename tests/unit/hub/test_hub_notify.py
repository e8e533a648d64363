"""Delivery to a real receiver that hangs, refuses, redirects and recovers."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from click.testing import CliRunner

from gridcore.protocol import RegisterRequest
from hub.cli import main
from hub.crier import Crier
from hub.events import Event, EventQuery
from hub.insight import Insight
from hub.metrics import Counts
from hub.notify import MOST_WAITING, TRIES, Messenger, NotDelivered
from hub.notify_rules import Notification, nodes_gone
from hub.notify_target import NotifyTarget
from hub.operations import deregister, note, register
from hub.outlook import Outlook
from hub.registry import fall_silent
from hub.state import Change, Operation, Outcome
from hub.store_local import LocalStore, open_memory
from hub.waiters import Waiters

SECRET = "a-secret-of-the-receiver"
GONE = nodes_gone("event-1", 1_700_000_000.0, 3, ["a"])


class Receiver:
    """Answers each message with the next status; where there is none left, with 200. `hang` never does."""

    def __init__(self) -> None:
        self.statuses: list[int] = []
        self._answers = asyncio.Event()
        self._answers.set()
        self.messages: list[tuple[dict[str, str], bytes]] = []
        self.arrived = asyncio.Event()
        self.redirected = 0
        self.url = ""

    async def take(self, request: web.Request) -> web.Response:
        self.messages.append((dict(request.headers), await request.read()))
        self.arrived.set()
        await self._answers.wait()
        status = self.statuses.pop(0) if self.statuses else 200
        headers = {"Location": "/elsewhere"} if status == 307 else {}
        return web.Response(status=status, headers=headers)

    async def take_elsewhere(self, request: web.Request) -> web.Response:
        self.redirected += 1
        return web.Response()

    def hang(self) -> None:
        self._answers.clear()

    def recover(self) -> None:
        self._answers.set()

    @property
    def bodies(self) -> list[Any]:
        return [json.loads(body) for _, body in self.messages]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    app = web.Application()
    app.router.add_post("/hook-of-a-secret", made.take)
    app.router.add_route("*", "/elsewhere", made.take_elsewhere)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    server = site._server
    assert isinstance(server, asyncio.Server)
    made.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook-of-a-secret"
    yield made
    made.recover()
    await runner.cleanup()


Check = Callable[[Notification], Awaitable[Notification | None]]


class Delivery:
    """A messenger at work, and what it gave up."""

    def __init__(
        self, receiver: Receiver, timeout: float = 5, check: Check | None = None, **target: Any
    ) -> None:
        self.counts = Counts()
        self.dropped: list[Event] = []
        given = {"url": receiver.url, "min_interval": 0, **target}
        self.messenger = Messenger(
            NotifyTarget(**given),
            self.counts,
            timeout=timeout,
            first_pause=0.001,
            dropped=self._drop,
            check=check,
        )
        self._stopping = asyncio.Event()
        self._task = asyncio.create_task(self.messenger.run(self._stopping))

    async def _drop(self, event: Event) -> None:
        self.dropped.append(event)

    async def settle(self, outcome: str, count: int) -> None:
        async with asyncio.timeout(20):
            while self.counts.notifications[outcome] < count:  # noqa: ASYNC110  # nobody is told of a count
                await asyncio.sleep(0.01)

    async def end(self) -> None:
        self._stopping.set()
        await self._task


async def test_a_message_says_what_happened_and_is_signed(receiver: Receiver) -> None:
    delivery = Delivery(receiver, secret=SECRET)
    delivery.messenger.offer(GONE)
    await delivery.settle("delivered", 1)
    await delivery.end()
    ((headers, body),) = receiver.messages
    said = json.loads(body)
    assert set(said) == {"event", "time", "hub", "task", "text", "detail", "id"}
    assert (said["event"], said["text"], said["id"]) == ("nodes-gone", "3 nodes are gone.", "event-1")
    assert said["time"] == "2023-11-14T22:13:20.000Z"
    signed = headers["X-GridCore-Timestamp"].encode() + body
    expected = hmac.new(SECRET.encode(), signed, hashlib.sha256).hexdigest()
    assert headers["X-GridCore-Signature"] == f"sha256={expected}"


async def test_a_receiver_that_fails_and_recovers_gets_it(receiver: Receiver) -> None:
    receiver.statuses = [500, 503]
    delivery = Delivery(receiver, secret=SECRET)
    delivery.messenger.offer(GONE)
    await delivery.settle("delivered", 1)
    await delivery.end()
    assert [body["id"] for body in receiver.bodies] == ["event-1"] * 3


async def test_a_receiver_that_hangs_is_tried_a_few_times_and_then_let_be(receiver: Receiver) -> None:
    receiver.hang()
    delivery = Delivery(receiver, timeout=0.05)
    delivery.messenger.offer(GONE)
    await delivery.settle("dropped", 1)
    receiver.recover()
    assert len(receiver.messages) == TRIES
    (event,) = delivery.dropped
    assert event.kind == "notify-failed"
    assert "no answer within" in event.detail["reason"]
    assert "hook-of-a-secret" not in str(event.detail)
    delivery.messenger.offer(GONE)
    await delivery.settle("delivered", 1)
    await delivery.end()


async def test_a_redirect_is_not_followed(receiver: Receiver) -> None:
    receiver.statuses = [307] * TRIES
    delivery = Delivery(receiver)
    delivery.messenger.offer(GONE)
    await delivery.settle("dropped", 1)
    await delivery.end()
    assert receiver.redirected == 0


async def test_a_target_hears_of_what_it_asked_for_only(receiver: Receiver) -> None:
    delivery = Delivery(receiver, events=["canary", "task-failing"], share=0.5)
    canary = Notification("1", "canary", 1.0, "t", "x")
    failing = [Notification(str(share), "task-failing", 1.0, "t", "x", share=share) for share in (0.2, 0.5)]
    for offered in (GONE, canary, *failing):
        delivery.messenger.offer(offered)
    await delivery.settle("delivered", 2)
    await delivery.end()
    assert [body["id"] for body in receiver.bodies] == ["1", "0.5"]


async def test_what_comes_too_soon_waits_and_becomes_one_message(receiver: Receiver) -> None:
    delivery = Delivery(receiver, min_interval=0.3)
    for number in range(1_000):
        delivery.messenger.offer(nodes_gone("event", 1.0, 3, [str(number)]))
    await delivery.settle("delivered", 2)
    await delivery.end()
    assert [body["detail"]["count"] for body in receiver.bodies] == [3, 3 * 999]


async def test_what_waits_for_a_receiver_that_hangs_does_not_grow(receiver: Receiver) -> None:
    receiver.hang()
    delivery = Delivery(receiver)
    delivery.messenger.offer(GONE)
    await receiver.arrived.wait()
    for _ in range(1_000):
        delivery.messenger.offer(GONE)
    assert len(delivery.messenger) == MOST_WAITING
    receiver.recover()
    await delivery.end()


async def test_each_try_says_what_is_so_then_and_what_is_over_is_not_told(receiver: Receiver) -> None:
    receiver.statuses = [500, 503]
    left = 3

    async def check(note: Notification) -> Notification | None:
        nonlocal left
        left -= 1
        return nodes_gone(note.id, note.time, left, []) if left > 0 else None

    delivery = Delivery(receiver, check=check)
    delivery.messenger.offer(GONE)
    delivery.messenger.offer(replace(GONE, id="event-2"))
    async with asyncio.timeout(20):
        while left > -1:  # noqa: ASYNC110  # nobody is told of a count
            await asyncio.sleep(0.01)
    await delivery.end()
    assert [body["detail"]["count"] for body in receiver.bodies] == [2, 1]
    assert delivery.dropped == []


async def test_why_it_failed_does_not_tell_the_url(unused_port: int) -> None:
    target = NotifyTarget(url=f"http://127.0.0.1:{unused_port}/hook-of-a-secret?token=abc")
    with pytest.raises(NotDelivered) as caught:
        await Messenger(target, Counts()).send(GONE)
    assert "secret" not in str(caught.value)
    assert "abc" not in str(caught.value)
    assert target.name == f"http://127.0.0.1:{unused_port}"


@pytest.fixture
async def unused_port() -> int:
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    port: int = server.sockets[0].getsockname()[1]
    server.close()
    await server.wait_closed()
    return port


# --- Who cries --------------------------------------------------------------------------------------------


class Hub:
    """The part of a hub that looks at what there is to tell, over a store that others may share."""

    def __init__(self, store: LocalStore) -> None:
        self.messenger = Messenger(NotifyTarget(url="http://127.0.0.1:1/"), Counts())
        self._crier = Crier(store, Outlook(store, Insight(store, Waiters())), [self.messenger])

    async def step(self) -> int:
        """How many messages this look gave to deliver."""
        before = len(self.messenger)
        await self._crier.step()
        return len(self.messenger) - before


def lost(place: int) -> Any:
    detail = {"count": place, "nodes": ["a"]}
    return note(Event(time.time(), "nodes-offline", "hub", detail=detail))


async def test_of_two_hubs_one_tells() -> None:
    store = open_memory()
    first, second = Hub(store), Hub(store)
    assert [await first.step(), await second.step()] == [0, 0]
    await store.run(lost(1))
    assert [await second.step(), await first.step(), await second.step()] == [0, 1, 0]


async def test_a_hub_that_never_told_tells_nothing_of_what_was() -> None:
    store = open_memory()
    await store.run(lost(1))
    assert await Hub(store).step() == 0


async def test_after_a_restart_nothing_is_told_twice_and_nothing_is_left_out() -> None:
    store = open_memory()
    before = Hub(store)
    await before.step()
    await store.run(lost(1))
    assert await before.step() == 1
    await store.run(lost(2))
    await store.run(Operation(lambda _view, _at: Outcome(None, Change(marks={"notify-lease": None}))))
    after = Hub(store)
    assert [await after.step(), await after.step()] == [1, 0]
    assert len(await store.events(EventQuery())) == 2


async def test_what_is_told_of_nodes_is_looked_up_in_the_state() -> None:
    store = open_memory()
    for node_id in ("lost", "back", "left"):
        facts = {"hostname": "h", "architecture": "x86_64", "cpu_count": 1}
        await store.run(register(RegisterRequest.model_validate({"node_id": node_id, **facts})))
    await store.run(deregister("left"))
    lost_one = fall_silent(await store.node("lost"))
    await store.run(Operation(lambda _view, _at: Outcome(None, Change(nodes={"lost": lost_one}))))
    outlook = Outlook(store, Insight(store, Waiters()))
    told = await outlook.check(nodes_gone("1", 1.0, 3, ["back", "left", "lost"]))
    assert told is not None
    assert (told.text, told.detail["nodes"]) == ("Node lost is gone.", ["lost"])
    assert await outlook.check(nodes_gone("1", 1.0, 1, ["back"])) is None


# --- The command and the configuration --------------------------------------------------------------------

TOKEN = "an-example-secret-of-some-length"


def configured(directory: Path, *tables: str) -> Path:
    path = directory / "computehub.toml"
    path.write_text(f'token = "{TOKEN}"\nstate = "memory:"\n' + "".join(f"[[notify]]\n{t}\n" for t in tables))
    return path


async def test_notify_test_says_how_each_went(receiver: Receiver, tmp_path: Path, unused_port: int) -> None:
    path = configured(
        tmp_path, f'url = "{receiver.url}"', f'url = "http://127.0.0.1:{unused_port}/hook-of-a-secret"'
    )
    arguments = ["notify-test", "--config", str(path)]
    done = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert done.exit_code == 1
    assert done.output.splitlines()[0].endswith(": took it")
    assert "Connect" in done.output or "refused" in done.output
    assert "hook-of-a-secret" not in done.output
    assert [body["event"] for body in receiver.bodies] == ["test"]


@pytest.mark.parametrize(
    ("table", "complaint"),
    [
        ('url = "ftp://user:hidden1@h/hidden2"', "notify.0.url: expected http://"),
        ('url = "http://h/hidden1"\nevents = ["lunch"]', "notify.0.events.0"),
        ('url = "http://h/hidden1"\nsecret = "hidden2"', "notify.0.secret: can be guessed"),
        ('url = "http://h/hidden1"\nsecret = "change-me-before-production"', "like a placeholder"),
        ('url = "http://h/hidden1"\nsecret = "hidden2-eshae7Ohgh4i"\nsecret_file = "/x"', "give one of them"),
        ('url = "http://h/hidden1"\nsecert = "hidden22"', "notify.0.secert: unknown key"),
    ],
)
def test_a_bad_table_is_told_without_its_secrets(tmp_path: Path, table: str, complaint: str) -> None:
    path = configured(tmp_path, table)
    done = CliRunner().invoke(main, ["--config", str(path), "--check"])
    assert done.exit_code == 78
    assert complaint in done.output
    assert "hidden" not in done.output


def test_a_file_with_a_secret_that_can_be_guessed_is_told_without_it(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("hidden22\n")
    path = configured(tmp_path, f'url = "http://h/"\nsecret_file = "{tmp_path / "secret"}"')
    done = CliRunner().invoke(main, ["notify-test", "--config", str(path)])
    assert done.exit_code == 78
    assert f"what {tmp_path / 'secret'} holds has 8 characters" in done.output
    assert "hidden22" not in done.output


@pytest.mark.parametrize("key", ["secret_file", "ca_file"])
def test_a_file_that_is_not_there_is_told(tmp_path: Path, key: str) -> None:
    path = configured(tmp_path, f'url = "http://h/"\n{key} = "{tmp_path / "none"}"')
    done = CliRunner().invoke(main, ["notify-test", "--config", str(path)])
    assert done.exit_code == 78
    assert f"{key}: {tmp_path / 'none'} cannot be read" in done.output
