"""What the hub link does with a hub's answers. The hub is a coroutine function behind the transport seam;
the same conversations run over real HTTP in tests/integration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from agent import hub_link
from agent.hub_link import HubLink
from agent.machine import Identity
from agent.report import Board
from agent.settings import Settings
from agent.spec import NodeFacts, Wanted
from gridcore.client import HubClient, Request, Response
from gridcore.errors import HubUnreachable

TASK = {"task_name": "squares", "image": "squares:1", "generation": "1-a"}


class Hub:
    """Answers as told, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[Request] = []
        self.known = True
        self.answer: dict[str, Any] = {}
        self.registered: dict[str, Any] = {}
        self.task: Any = TASK
        self.etag: str | None = '"1-a"'
        self.away = False
        self.status = 200

    async def __call__(self, request: Request) -> Response:
        if self.away:
            raise HubUnreachable("gone")
        self.asked.append(request)
        if self.status != 200:
            return Response(self.status, {}, b"<html>")
        if request.path == "/gridnode/register":
            body = {"node_id": request.body["node_id"] or "made", "current_task": None, **self.registered}
        elif request.path == "/gridnode/heartbeat":
            body = {"stop_requested": False, "known": self.known, **self.answer}
        elif request.path == "/gridnode/task":
            asked = request.headers.get("If-None-Match")
            if asked is not None and asked == self.etag:
                await asyncio.sleep(0.05)
                return Response(304, {"etag": asked, "gridcore-heartbeat": "now"}, b"")
            headers = {"etag": self.etag} if self.etag else {}
            return Response(200, headers, json.dumps(self.task).encode())
        else:
            return Response(204, {}, b"")
        return Response(200, {}, json.dumps(body).encode())

    def count(self, path: str) -> int:
        return sum(request.path == path for request in self.asked)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules in a hundredth of the time."""
    for name in ("POLL", "RETRY_FIRST", "RETRY_MOST", "TOKEN_RETRY", "REGISTER_GAP"):
        monkeypatch.setattr(hub_link, name, getattr(hub_link, name) / 100)
    monkeypatch.setattr(hub_link, "MOST_BEATS_PER_SECOND", 100.0)


class Rig:
    def __init__(self, tmp_path: Path, hub: Hub, node_id: str | None = "n1") -> None:
        config = tmp_path / "gridnode.toml"
        config.write_text('server_url = "http://hub:1"\ntoken = "t"\n')
        self.config = config
        self.hub = hub
        self.board = Board()
        self.wanted: list[Wanted] = []
        self.stops = 0
        settings = Settings(server_url="http://hub:1", token="t", node_id=node_id, heartbeat_interval=1)
        identity = Identity("host", "x86_64", "linux/amd64", 2, "machine")
        facts = NodeFacts((0, 1), 4096, "owner")
        self.link = HubLink(
            HubClient(hub),
            settings,
            config,
            facts,
            identity,
            self.board,
            on_wanted=self.wanted.append,
            on_stop=self._on_stop,
        )

    def _on_stop(self) -> None:
        self.stops += 1

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(self.link.heartbeats()), asyncio.create_task(self.link.watch())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes), outcomes


async def until(check: Callable[[], object]) -> None:
    async with asyncio.timeout(5):
        while not check():  # noqa: ASYNC110 # what is waited for has no event
            await asyncio.sleep(0.005)


async def test_it_registers_beats_and_wants_the_task(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count("/gridnode/heartbeat"))
    assert rig.hub.asked[0].path == "/gridnode/register"
    assert len(rig.wanted[-1].slots) == 2


async def test_an_unknown_node_registers_again_at_once_and_loses_no_error(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    rig.hub.known = False
    rig.board.error("kind", "lost?")
    async with rig.running():
        await until(lambda: rig.hub.count("/gridnode/register") >= 2)
        rig.hub.known = True
        await until(lambda: rig.hub.asked[-1].path == "/gridnode/heartbeat")
        beats = [r for r in rig.hub.asked if r.path == "/gridnode/heartbeat"]
        await until(lambda: any(b.body["errors"] for b in beats[1:]))


async def test_a_node_told_to_stop_keeps_its_heartbeats_and_never_registers_again(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    async with rig.running():
        await until(lambda: rig.hub.count("/gridnode/heartbeat"))
        rig.hub.answer = {"stop_requested": True}
        rig.hub.known = False
        beats, registrations = rig.hub.count("/gridnode/heartbeat"), rig.hub.count("/gridnode/register")
        rig.board.error("kind", "news")
        await until(lambda: rig.hub.count("/gridnode/heartbeat") > beats + 2)
    assert rig.stops == 1
    assert rig.hub.count("/gridnode/register") == registrations


async def test_another_id_from_the_hub_is_taken_and_written(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub(), node_id="cloned")
    rig.hub.registered = {"node_id": "fresh"}
    async with rig.running():
        await until(lambda: rig.wanted)
    assert rig.link.node_id == "fresh"
    assert 'node_id = "fresh"' in rig.config.read_text()
    assert rig.wanted[-1].slots[0].name == "idm-squares-fresh-0"


async def test_a_drained_node_wants_nothing_until_resumed(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    rig.hub.registered = {"drain": True}
    rig.hub.answer = {"drain": True}
    async with rig.running():
        await until(lambda: rig.hub.count("/gridnode/task"))
        assert [w.slots for w in rig.wanted] == [()] * len(rig.wanted)
        rig.hub.answer = {"drain": False}
        rig.board.error("kind", "news")
        await until(lambda: rig.wanted[-1].slots)


async def test_a_hub_that_goes_changes_nothing_wanted_and_errors_are_kept(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    async with rig.running():
        await until(lambda: rig.wanted)
        before = list(rig.wanted)
        rig.hub.away = True
        rig.board.error("kind", "meanwhile")
        await asyncio.sleep(0.1)
        assert rig.wanted == before
        rig.hub.away, rig.hub.status = False, 500
        await asyncio.sleep(0.1)
        rig.hub.status = 401
        await asyncio.sleep(0.1)
        assert rig.wanted == before
        rig.hub.status = 200
        await until(
            lambda: any(
                e["message"] == "meanwhile" for r in rig.hub.asked if r.body for e in r.body.get("errors", [])
            )
        )
    assert rig.stops == 0


async def test_a_task_that_cannot_be_used_is_an_error_and_not_the_old_task(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    async with rig.running():
        await until(lambda: rig.wanted)
        rig.hub.task, rig.hub.etag = {"task_name": "x", "image": "-v/:/host"}, '"2-b"'
        await until(lambda: not rig.wanted[-1].slots)
    assert "image" in str(rig.wanted[-1].reason)


async def test_nothing_follows_the_farewell(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    heartbeats = asyncio.create_task(rig.link.heartbeats())
    await until(lambda: rig.hub.count("/gridnode/heartbeat"))
    await rig.link.finish(heartbeats)
    await rig.link.farewell()
    await asyncio.sleep(0.05)
    assert rig.hub.asked[-1].path == "/gridnode/deregister"
    assert heartbeats.done()
