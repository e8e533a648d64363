"""A lane without a socket: what it answers itself, when it gives up, and what it must not miss."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from gridcore.protocol import HeartbeatAnswer, HeartbeatRequest, RegisterRequest, TaskDefinition
from hub.app import build_app
from hub.connection import SLOW, STUCK
from hub.errors import StoreUnavailable
from hub.full_way import Visited
from hub.http_server import KEEP_ALIVE
from hub.lane import Lane
from hub.lanes import Lanes
from hub.operations import add_task, order_stop, register, start_next
from hub.settings import HubSettings
from hub.state import Operation
from hub.store_local import LocalStore, open_memory
from hub.waiters import Waiters

TOKEN = "an-example-secret-of-some-length"
HEAD = f"Host: hub\r\nAuthorization: Bearer {TOKEN}\r\n".encode()
BODY = b'{"node_id": "n", "status": "Idle", "active_containers": 0}'
BEAT = b"POST /gridnode/heartbeat HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (HEAD, len(BODY), BODY)
ELSEWHERE = b"GET /api/tasks HTTP/1.1\r\n" + HEAD + b"\r\n"


def question(known: str, wait: int = 25) -> bytes:
    return (
        b"GET /gridnode/task?platform=linux%2Famd64&node_id=n HTTP/1.1\r\n"
        + HEAD
        + f'If-None-Match: "{known}"\r\nPrefer: wait={wait}\r\n\r\n'.encode()
    )


class Transport(asyncio.Transport):
    """Takes notes."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []
        self.is_closed = self.is_aborted = False
        self.is_read = True
        self.unread = 0

    def write(self, data: Any) -> None:
        self.written.append(bytes(data))

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 5) if name == "peername" else default

    def is_closing(self) -> bool:
        return self.is_closed

    def close(self) -> None:
        self.is_closed = True

    def abort(self) -> None:
        self.is_aborted = True

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self.unread

    def pause_reading(self) -> None:
        self.is_read = False

    def resume_reading(self) -> None:
        self.is_read = True


class Visit:
    """Takes notes, too."""

    def __init__(self, visited: Visited, data: bytes) -> None:
        self.visited = visited
        self.data = data
        self.is_asked = self.is_finished = self.is_ended = False

    @property
    def waiting(self) -> int:
        return 0

    def feed(self, data: bytes) -> None:
        self.data += data

    def finish(self) -> None:
        self.is_finished = True

    def end(self) -> None:
        self.is_ended = True


class Hub:
    def __init__(self) -> None:
        self.store: LocalStore = open_memory()
        self.waiters = Waiters()
        app = build_app(HubSettings(token=TOKEN, state="memory:"), self.store, self.waiters)
        self.lanes = Lanes(app.calls, app.bearers, app.rights, app.requests)
        self.calls = app.calls
        self.visits: list[Visit] = []

    @property
    def taken_over(self) -> list[bytes]:
        return [visit.data for visit in self.visits]

    def visit(self, visited: Visited, data: bytes) -> Visit:
        self.visits.append(Visit(visited, data))
        return self.visits[-1]

    def connect(self) -> tuple[Lane, Transport]:
        lane, transport = Lane(self.lanes, self.visit), Transport()
        lane.connection_made(transport)
        return lane, transport

    async def settle(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


@pytest.fixture
async def hub() -> Hub:
    hub = Hub()
    facts = RegisterRequest(node_id="n", hostname="h", architecture="x86_64", cpu_count=1, agent_version="1")
    await hub.store.run(register(facts))
    for name in "abc":
        await hub.store.run(add_task(TaskDefinition(name=name, image="x:1")))
    await hub.store.run(start_next())
    return hub


async def test_a_plain_heartbeat_is_answered_on_the_lane(hub: Hub) -> None:
    lane, transport = hub.connect()
    for _ in range(3):
        lane.data_received(BEAT)
        await hub.settle()
    assert len(transport.written) == 3
    assert hub.visits == []
    answer = json.loads(transport.written[0].partition(b"\r\n\r\n")[2])
    assert answer == {"stop_requested": False, "known": True, "drain": False}
    assert (await hub.store.node("n")).live.runtime_status == "Idle"


async def test_what_is_not_plain_is_handed_over_with_all_that_was_not_answered(hub: Hub) -> None:
    lane, transport = hub.connect()
    lane.data_received(BEAT + ELSEWHERE)
    await hub.settle()
    assert len(transport.written) == 1
    assert hub.taken_over == [ELSEWHERE]
    lane.data_received(b"more")
    assert hub.taken_over == [ELSEWHERE + b"more"]


async def test_a_connection_is_fast_again_once_the_real_server_has_answered(hub: Hub) -> None:
    lane, transport = hub.connect()
    for number in range(3):
        lane.data_received(ELSEWHERE + (BEAT[:30] if number else b""))
        assert len(hub.visits) == number + 1
        lane.take_back(BEAT[:30] if number else b"")  # what belongs to no answered request
        lane.data_received(BEAT[30:] if number else BEAT)
        await hub.settle()
        assert len(transport.written) == number + 1
    assert transport.is_closed is False


async def test_who_does_not_read_is_not_read_until_it_does_and_ended_after_a_while(hub: Hub) -> None:
    lane, transport = hub.connect()
    lane.pause_writing()
    lane.data_received(BEAT * 3)
    await hub.settle()
    assert (transport.written, transport.is_read) == ([], False)
    lane.resume_writing()
    await hub.settle()
    assert (len(transport.written), transport.is_read) == (3, True)
    now, transport.unread = hub.lanes.loop.time(), 5
    for seconds in (0, STUCK - 1, STUCK):
        assert transport.is_aborted is False
        lane.tidy(now + seconds, KEEP_ALIVE)
    assert transport.is_aborted


async def test_who_reads_slowly_is_given_its_time(hub: Hub) -> None:
    lane, transport = hub.connect()
    lane.data_received(question(hub.store.latest_tasks.revision))
    await hub.settle()
    for size in range(100, 0, -1):
        transport.unread = size
        lane.tidy(hub.lanes.loop.time() + STUCK * (101 - size), KEEP_ALIVE)
    assert transport.is_aborted is False


async def test_once_the_hub_stops_nothing_is_read_and_what_was_read_is_answered(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, beat = asyncio.Event(), hub.calls.heartbeat

    async def slow(*asked: Any) -> Any:
        await gate.wait()
        return await beat(*asked)

    monkeypatch.setattr(hub.calls, "heartbeat", slow)
    (idle, idles), (half, halves), (busy, busys) = hub.connect(), hub.connect(), hub.connect()
    (unasked, unaskeds), (asked, askeds) = hub.connect(), hub.connect()
    half.data_received(BEAT[:40])
    busy.data_received(BEAT)
    unasked.data_received(b"DELET")
    asked.data_received(ELSEWHERE)
    hub.visits[-1].is_asked = True
    await hub.settle()
    hub.lanes.close()
    assert [t.is_closed for t in (idles, halves, busys, unaskeds, askeds)] == [True, True, False, True, False]
    assert [visit.is_ended for visit in hub.visits] == [True, False]
    for lane in (idle, half, busy, unasked):
        lane.data_received(BEAT)
    gate.set()
    asked.take_back(BEAT)
    await hub.settle()
    assert [len(t.written) for t in (idles, halves, busys, unaskeds, askeds)] == [0, 0, 1, 0, 0]
    assert b"connection: close\r\n" in busys.written[0]
    assert (busys.is_closed, askeds.is_closed, len(hub.visits)) == (True, True, 2)
    _late, lates = hub.connect()
    assert lates.is_closed


async def test_a_request_that_fails_is_handed_over_to_be_done_again(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object, **__: object) -> Any:
        raise StoreUnavailable("away")

    for data, name in ((BEAT, "heartbeat"), (question("x"), "arrive")):
        monkeypatch.setattr(hub.calls, name, fail)
        lane, transport = hub.connect()
        lane.data_received(data)
        await hub.settle()
        assert transport.written == []
        assert hub.visits.pop().data == data
    assert len(hub.waiters) == 0


@pytest.mark.parametrize(
    ("happens", "told"),
    [
        (start_next(), [b"HTTP/1.1 200 OK", b'"task_name": "b"']),
        (order_stop("n"), [b"HTTP/1.1 304", b"gridcore-heartbeat: now\r\n"]),
    ],
    ids=["a switch", "an order"],
)
async def test_what_happens_while_an_answer_is_worked_out_is_not_missed(
    hub: Hub, monkeypatch: pytest.MonkeyPatch, happens: Operation[Any], told: list[bytes]
) -> None:
    lane, transport = hub.connect()
    gate, looked = asyncio.Event(), hub.calls.arrive

    async def slow(*asked: Any, **how: Any) -> Any:
        found = await looked(*asked, **how)
        await gate.wait()
        return found

    monkeypatch.setattr(hub.calls, "arrive", slow)
    lane.data_received(question(hub.store.latest_tasks.revision))
    await hub.settle()
    await hub.store.run(happens)
    await hub.settle()
    assert transport.written == []
    gate.set()
    await hub.settle()
    assert all(part in transport.written[0] for part in told)


async def test_time_that_is_up_while_a_look_goes_on_ends_the_question_after_it(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    lane, transport = hub.connect()
    lane.data_received(question(hub.store.latest_tasks.revision))
    await hub.settle()
    gate = asyncio.Event()

    async def slow(*_: Any) -> None:
        await gate.wait()

    monkeypatch.setattr(hub.calls, "look", slow)
    hub.waiters.wake("n")
    await hub.settle()
    held = lane._held
    assert held is not None
    lane.over(held)
    assert transport.written == []
    gate.set()
    await hub.settle()
    assert transport.written[0].startswith(b"HTTP/1.1 304")


async def test_who_leaves_is_held_no_more_and_told_nothing(hub: Hub) -> None:
    lane, transport = hub.connect()
    lane.data_received(question(hub.store.latest_tasks.revision))
    await hub.settle()
    assert len(hub.waiters) == 1
    lane.connection_lost(None)
    await hub.store.run(start_next())
    await hub.settle()
    assert (len(hub.waiters), transport.written, hub.lanes.all) == (0, [], set())


async def test_idle_connections_are_closed_and_slow_requests_handed_over_and_held_ones_left_alone(
    hub: Hub,
) -> None:
    (idle, idles), (slow, _slows), (held, helds) = hub.connect(), hub.connect(), hub.connect()
    slow.data_received(BEAT[:20])
    held.data_received(question(hub.store.latest_tasks.revision))
    await hub.settle()
    now = hub.lanes.loop.time()
    for lane in (idle, slow, held):
        lane.tidy(now + SLOW / 2, KEEP_ALIVE)
    assert (idles.is_closed, hub.visits) == (False, [])
    for lane in (idle, slow, held):
        lane.tidy(now + KEEP_ALIVE, KEEP_ALIVE)
    assert (idles.is_closed, helds.is_closed, helds.written) == (True, False, [])
    await hub.settle()
    assert hub.taken_over == [BEAT[:20]]


async def test_what_a_heartbeat_is_answered_is_what_the_contract_has(hub: Hub) -> None:
    wire = await hub.calls.heartbeat(
        HeartbeatRequest(node_id="n", status="Idle", active_containers=0),
        hub.lanes.bearers.identify([(b"authorization", b"Bearer " + TOKEN.encode())], None)
        or pytest.fail("the token is right"),
    )
    assert wire.keys() <= HeartbeatAnswer.model_fields.keys()
    HeartbeatAnswer.model_validate({**wire, "extra": 1})


@pytest.mark.parametrize(
    "body",
    [
        b'{"node_id": "n", "status": "Idle", "active_containers": 0, "reason": "\\ud800"}',
        b'{"node_id": "n", "status": "Idle", "active_containers": 0, "later": "\\ud800"}',
        b'{"node_id": "n", "status": "Idle", "active_containers": 0, "later": NaN}',
        b'{"node_id": "n", "status": "Idle", "active_containers": 0, "containers": '
        b'[{"instance": 0, "state": "running", "age": Infinity}]}',
        b'\xef\xbb\xbf{"node_id": "n", "status": "Idle", "active_containers": 0}',
    ],
)
async def test_what_the_other_way_in_would_not_take_as_it_is_is_left_to_it(hub: Hub, body: bytes) -> None:
    beat = b"POST /gridnode/heartbeat HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (HEAD, len(body), body)
    lane, transport = hub.connect()
    lane.data_received(beat)
    await hub.settle()
    assert (transport.written, hub.taken_over) == ([], [beat])


async def test_of_a_name_given_twice_the_lane_takes_the_last_one_too(hub: Hub) -> None:
    body = b'{"node_id": "m", "node_id": "n", "status": "Idle", "active_containers": 0}'
    lane, transport = hub.connect()
    lane.data_received(
        b"POST /gridnode/heartbeat HTTP/1.1\r\n%sContent-Length: %d\r\n\r\n%s" % (HEAD, len(body), body)
    )
    await hub.settle()
    assert b'"known": true' in transport.written[0]
