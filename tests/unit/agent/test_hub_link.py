"""What the hub link does with a hub's answers. The hub is a coroutine function behind the transport seam;
the same conversations run over real HTTP in tests/integration."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent import contact, hub_link, membership
from agent.hub_link import HubLink
from agent.machine import Identity
from agent.reasons import Reason
from agent.report import Board, Report
from agent.settings import Settings
from agent.spec import NodeFacts, Wanted
from gridcore.client import HubClient, Request, Response
from gridcore.errors import HubUnreachable
from tests.unit.agent.until import until

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
        self.headers: dict[str, str] = {}
        self.accepts: dict[str, set[str]] | None = None
        """The tokens that are good for each path; None: any."""

    async def __call__(self, request: Request) -> Response:
        if self.away:
            raise HubUnreachable("gone")
        self.asked.append(request)
        if self.accepts is not None and request.token not in self.accepts.get(request.path, set()):
            return Response(401, {}, b"{}")
        if self.status != 200:
            return Response(self.status, self.headers, b"<html>")
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

    def shown(self, path: str) -> list[str]:
        """The tokens that calls of this path showed, in order."""
        return [request.token for request in self.asked if request.path == path]


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rules in a hundredth of the time."""
    names = {hub_link: ("POLL", "REGISTER_GAP"), contact: ("RETRY_FIRST", "RETRY_MOST", "TOKEN_RETRY")}
    for module in names:
        for name in names[module]:
            monkeypatch.setattr(module, name, getattr(module, name) / 100)
    monkeypatch.setattr(hub_link, "MOST_BEATS_PER_SECOND", 100.0)


class Rig:
    def __init__(
        self,
        tmp_path: Path,
        hub: Hub,
        node_id: str | None = "n1",
        token: str | None = "t",  # noqa: S107 # a test's
        join_token: str | None = None,
    ) -> None:
        config = tmp_path / "gridnode.toml"
        tokens = {"token": token, "join_token": join_token}
        lines = [f'{key} = "{value}"  # by hand\n' for key, value in tokens.items() if value]
        config.write_text('server_url = "http://hub:1"\n' + "".join(lines))
        self.config = config
        self.hub = hub
        self.board = Board()
        self.wanted: list[Wanted] = []
        self.stops = 0
        settings = Settings(
            server_url="http://hub:1",
            token=token,
            join_token=join_token,
            node_id=node_id,
            heartbeat_interval=1,
        )
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


async def test_why_there_is_nothing_to_do_is_the_hubs_word(tmp_path: Path) -> None:
    hub = Hub()
    hub.task = None
    generic = Reason("no-task", "the hub gives linux/amd64 nodes nothing to run now")
    rig = Rig(tmp_path, hub)
    async with rig.running():
        await until(lambda: rig.wanted and rig.wanted[-1].reason == generic)
        hub.answer = {"nothing": "the fleet is held"}
        await until(lambda: rig.wanted[-1].reason == Reason("no-task", "the fleet is held"))
        assert rig.wanted[-1].is_word
        hub.answer = {}
        await until(lambda: rig.wanted[-1].reason == generic)


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
        await until(lambda: rig.link.contact.kind == "unreachable")
        rig.hub.status = 400
        await until(lambda: rig.link.contact.kind == "refused")
        rig.hub.status = 401
        await until(lambda: rig.link.contact.kind == "token-rejected")
        assert rig.wanted == before
        rig.hub.status = 200
        await until(lambda: rig.link.contact.kind is None)
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
        await until(lambda: any(r.body["errors"] for r in rig.hub.asked if r.path == BEAT))
    reason = rig.wanted[-1].reason
    assert reason is not None
    assert reason.kind == "bad-task"
    assert "image" in reason.text
    told = [e for r in rig.hub.asked if r.path == BEAT for e in r.body["errors"]]
    assert {error["kind"] for error in told} == {reason.kind}


async def test_a_heartbeat_carries_the_kind_of_its_reason(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    rig.board.show(Report(status="Error", reason=Reason("failed", "exit code 3")))
    async with rig.running():
        await until(lambda: rig.hub.count(BEAT))
        beat = next(r.body for r in rig.hub.asked if r.path == BEAT)
        assert (beat["reason"], beat["reason_kind"]) == ("exit code 3", "failed")
        rig.board.show(Report(status="Running"))
        await until(lambda: rig.hub.asked[-1].path == BEAT and rig.hub.asked[-1].body["status"] == "Running")
        assert rig.hub.asked[-1].body.get("reason_kind") is None


async def test_nothing_follows_the_farewell(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    heartbeats = asyncio.create_task(rig.link.heartbeats())
    await until(lambda: rig.hub.count("/gridnode/heartbeat"))
    await rig.link.finish(heartbeats)
    await rig.link.farewell()
    await asyncio.sleep(0.05)
    assert rig.hub.asked[-1].path == "/gridnode/deregister"
    assert heartbeats.done()


REGISTER, BEAT, WATCH = "/gridnode/register", "/gridnode/heartbeat", "/gridnode/task"


def joining_hub(own: str = "own-1") -> Hub:
    """Takes the join token for registrations only, and hands out `own`."""
    hub = Hub()
    hub.accepts = {REGISTER: {"join", own}, BEAT: {own}, WATCH: {own}}
    hub.registered = {"node_id": "n1", "token": own}
    return hub


async def test_a_join_token_is_exchanged_once_for_a_token_that_is_written_with_the_id(tmp_path: Path) -> None:
    rig = Rig(tmp_path, joining_hub(), node_id=None, token=None, join_token="join")
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count(BEAT))
    assert rig.hub.shown(REGISTER) == ["join"]
    assert set(rig.hub.shown(BEAT) + rig.hub.shown(WATCH)) == {"own-1"}
    written = rig.config.read_text()
    assert 'token = "own-1"\n' in written
    assert 'node_id = "n1"\n' in written
    assert 'join_token = "join"  # by hand\n' in written
    assert rig.config.stat().st_mode & 0o777 == 0o600


async def test_an_older_hub_gives_no_token_and_the_join_token_goes_on(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub(), token=None, join_token="shared")
    before = rig.config.stat().st_ino
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count(BEAT))
    assert {request.token for request in rig.hub.asked} == {"shared"}
    assert rig.config.stat().st_ino == before  # nothing new to write


async def test_a_node_token_that_is_refused_is_replaced_by_way_of_the_join_token(tmp_path: Path) -> None:
    rig = Rig(tmp_path, joining_hub("own-2"), token="own-1", join_token="join")
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count(BEAT))
    assert rig.hub.shown(REGISTER) == ["own-1", "join"]
    assert 'token = "own-2"  # by hand\n' in rig.config.read_text()


async def test_a_token_revoked_while_it_works_stops_nothing(tmp_path: Path) -> None:
    rig = Rig(tmp_path, joining_hub("own-2"), token="own-1", join_token="join")
    assert rig.hub.accepts is not None
    for path in (REGISTER, BEAT, WATCH):
        rig.hub.accepts[path] |= {"own-1"}
    rig.hub.registered = {}
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count(BEAT))
        before = list(rig.wanted)
        rig.hub.registered = {"token": "own-2"}
        for path in (REGISTER, BEAT, WATCH):
            rig.hub.accepts[path] -= {"own-1"}
        await until(lambda: "own-2" in rig.hub.shown(WATCH))
        await until(lambda: rig.link.contact.away is None)
    assert all(wanted == before[0] for wanted in rig.wanted)
    assert rig.hub.shown(REGISTER) == ["own-1", "join"]
    assert "join" not in rig.hub.shown(BEAT) + rig.hub.shown(WATCH)


async def test_when_both_tokens_are_refused_they_take_turns_slowly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = Rig(tmp_path, joining_hub(), token="own-0", join_token="old-join")
    async with rig.running():
        await until(lambda: rig.hub.count(REGISTER) == 2)
        monkeypatch.setattr(contact, "TOKEN_RETRY", 3600.0)
        await until(lambda: rig.hub.count(REGISTER) >= 3)
        asked = len(rig.hub.asked)
        await asyncio.sleep(0.3)
        assert len(rig.hub.asked) == asked
        assert "accepts neither `token` nor `join_token`" in str(rig.link.contact.away)
        assert rig.link.contact.kind == "token-rejected"
    assert rig.hub.shown(REGISTER) == ["own-0", "old-join", "own-0"]
    assert rig.wanted == []


async def test_a_heartbeat_may_bring_a_new_token(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub(), token="own-1")
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count(BEAT))
        rig.hub.answer = {"token": "own-2"}
        rig.board.error("kind", "news")
        await until(lambda: "own-2" in rig.hub.shown(BEAT) and "own-2" in rig.hub.shown(WATCH))
    assert rig.hub.count(REGISTER) == 1
    assert 'token = "own-2"  # by hand\n' in rig.config.read_text()


async def test_a_clone_gets_another_id_and_another_token(tmp_path: Path) -> None:
    rig = Rig(tmp_path, joining_hub("own-2"), node_id="cloned", token="own-1")
    assert rig.hub.accepts is not None
    rig.hub.accepts[REGISTER] |= {"own-1"}
    rig.hub.registered = {"node_id": "fresh", "token": "own-2"}
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count(BEAT))
    assert rig.hub.shown(REGISTER) == ["own-1"]
    written = rig.config.read_text()
    assert 'node_id = "fresh"' in written
    assert 'token = "own-2"' in written


async def test_a_file_that_cannot_be_written_is_told_once_and_the_token_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(membership, "write_back", refuse)  # root writes anywhere
    rig = Rig(tmp_path, joining_hub(), node_id=None, token=None, join_token="join")
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count(BEAT))
        rig.hub.answer = {"token": "own-1"}
        beats = rig.hub.count(BEAT)
        rig.board.error("kind", "news")
        await until(lambda: rig.hub.count(BEAT) > beats + 1)
    (told,) = [error.message for error in rig.board.recent if error.kind == "config"]
    assert "Read-only file system" in told
    assert "own-1" not in told


async def test_a_hub_that_asks_for_patience_gets_it_from_both_loops(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count(BEAT))
        before = list(rig.wanted)
        rig.hub.status, rig.hub.headers = 503, {"retry-after": "3600"}
        rig.hub.etag = '"2-b"'  # ends the held question
        asked = rig.hub.count(BEAT)
        rig.board.error("kind", "news")
        await until(lambda: rig.hub.count(BEAT) > asked)
        await asyncio.sleep(0.1)  # what is on its way
        asked = len(rig.hub.asked)
        rig.board.error("kind", "more news")
        await asyncio.sleep(0.3)
        assert len(rig.hub.asked) == asked
        assert rig.wanted == before


async def test_the_hubs_heartbeat_interval_counts_from_its_answer_on_up_and_down(tmp_path: Path) -> None:
    rig = Rig(tmp_path, Hub())
    rig.hub.etag = None  # nothing but the interval calls for a heartbeat
    rig.hub.answer = {"heartbeat_interval": 45}
    async with rig.running():
        await until(lambda: rig.wanted and rig.hub.count(BEAT))
        await asyncio.sleep(0.1)
        beats = rig.hub.count(BEAT)
        await asyncio.sleep(1.3)  # longer than the node's own second
        assert rig.hub.count(BEAT) == beats
        rig.hub.answer = {"heartbeat_interval": 1}
        rig.board.error("kind", "news")
        await until(lambda: rig.hub.count(BEAT) >= beats + 3)


async def test_a_hub_that_refuses_the_question_for_the_task_alone_is_away(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, Hub())
    rig.hub.known = None  # type: ignore[assignment] # as a hub that never says
    paths = ("/gridnode/register", "/gridnode/heartbeat", "/gridnode/task")
    rig.hub.accepts = {path: {"t"} for path in paths[:2]}
    with capture_logs() as logs:
        async with rig.running():
            await until(lambda: rig.link.contact.kind == "token-rejected")
            rig.link._beat_now.set()
            beats = rig.hub.count("/gridnode/heartbeat")
            await until(lambda: rig.hub.count("/gridnode/heartbeat") > beats + 1)
            assert rig.link.contact.kind == "token-rejected", "though heartbeats are answered"
            rig.hub.accepts = {path: {"t"} for path in paths}
            await until(lambda: rig.link.contact.away is None)
    assert [entry["event"] for entry in logs if "hub" in entry["event"]] == ["hub", "hub answers again"]
    assert rig.hub.count("/gridnode/register") <= 2, "the loss is the reason for one at most"


async def test_after_a_failure_the_hub_is_told_what_is_known_and_asked_to_hold_nothing(
    tmp_path: Path,
) -> None:
    rig = Rig(tmp_path, Hub())

    def questions() -> list[Request]:
        return [request for request in rig.hub.asked if request.path == "/gridnode/task"]

    async with rig.running():
        await until(lambda: len(questions()) > 1)
        rig.hub.away = True
        await until(lambda: rig.link.contact.away)
        before = len(questions())
        rig.hub.away = False
        await until(lambda: len(questions()) > before + 1)
    # Without If-None-Match a hub that begins anew would answer that there is nothing to do.
    known = [request.headers.get("If-None-Match") for request in questions()]
    assert known == [None] + ['"1-a"'] * (len(known) - 1)
    waits = [request.headers.get("Prefer") for request in questions()]
    assert waits[before] is None, "it must show at once whether the hub answers"
    assert waits[before + 1] is not None
