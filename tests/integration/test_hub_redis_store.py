"""What only a store of several hubs does: two of them over one real Redis, in one process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gridcore.protocol import (
    HeartbeatRequest,
    LogOrder,
    LogsMessage,
    RegisterRequest,
    TaskDefinition,
    TaskGuard,
)
from hub import redis_link
from hub.access import SigningKey
from hub.errors import (
    GenerationChanged,
    NodeSilent,
    NotCurrent,
    OutcomeUnknown,
    StateLost,
    Stopping,
    StoreUnavailable,
    TooManyOrders,
)
from hub.events import EventQuery
from hub.logdesk import MOST
from hub.logdesk_redis import SharedLogDesk
from hub.operations import (
    add_task,
    deregister,
    heartbeat,
    order_drain,
    order_resume,
    order_stop,
    register,
    start_next,
)
from hub.redis_rows import number_of
from hub.redis_url import parse_redis
from hub.redis_write import WRITE
from hub.state import EVERYONE, Change, Operation, Outcome
from hub.store_redis import RedisStore, open_redis
from hub.task_operations import remove_task
from hub.waiters import Waiters
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_server import RedisServer

RETENTION = 30 * 86_400.0
numbers = count(1)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as started:
        yield started


Open = Callable[..., Awaitable[RedisStore]]


@pytest.fixture
async def open_store(server: RedisServer) -> AsyncIterator[Open]:
    opened: list[RedisStore] = []
    prefix = f"t{next(numbers)}"

    async def open_one(url: str = f"{server.url}?prefix={prefix}") -> RedisStore:
        target = parse_redis(url)
        assert target is not None
        opened.append(await open_redis(target))
        return opened[-1]

    yield open_one
    for store in opened:
        await store.close()


@pytest.fixture
async def pair(open_store: Open) -> tuple[RedisStore, RedisStore]:
    return await open_store(), await open_store()


def state_of(store: RedisStore) -> str:
    return store.sight.key("state")


def task(name: str) -> TaskDefinition:
    return TaskDefinition(name=name, image=f"{name}:1")


def node(node_id: str) -> RegisterRequest:
    return RegisterRequest(
        node_id=node_id, hostname="pi", architecture="aarch64", cpu_count=4, agent_version="1"
    )


def beat(node_id: str) -> HeartbeatRequest:
    return HeartbeatRequest(node_id=node_id, status="Idle", active_containers=0)


async def eventually(holds: Callable[[], bool], patience: float = 5) -> None:
    async with asyncio.timeout(patience):
        while not holds():  # noqa: ASYNC110  # what is waited for has no event
            await asyncio.sleep(0.01)


# --- Two hubs at once --------------------------------------------------------------------------------------


async def test_what_two_hubs_do_at_once_is_all_done_and_once(pair: tuple[RedisStore, RedisStore]) -> None:
    names = [f"task-{number}" for number in range(40)]
    added = await asyncio.gather(*(hub.run(add_task(task(name))) for name in names for hub in pair))
    assert sum(is_new for _, is_new in added) == len(names)
    assert sorted(kept.name for kept in (await pair[0].tasks()).tasks) == sorted(names)
    assert await pair[0].tasks() == await pair[1].tasks()
    await pair[0].run(start_next())
    current = (await pair[1].tasks()).current
    assert current is not None
    guard = TaskGuard(task=current.name)
    presses = [hub.run(start_next(guard)) for _ in range(5) for hub in pair]
    outcomes = await asyncio.gather(*presses, return_exceptions=True)
    assert sum(not isinstance(outcome, NotCurrent) for outcome in outcomes) == 1
    assert len(await pair[0].events(EventQuery(kinds=frozenset({"switched"})))) == 2


async def test_operations_of_one_node_at_two_hubs_rest_upon_each_other(
    pair: tuple[RedisStore, RedisStore],
) -> None:
    here, there = pair
    for number in range(10):
        node_id = f"n{number}"
        await here.run(register(node(node_id)))
        await asyncio.gather(
            here.run(order_stop(node_id)),
            there.run(order_drain(node_id)),
            there.run(heartbeat(beat(node_id))),
        )
        seen = await here.node(node_id)
        assert seen.stop_requested
        assert seen.draining
        told = await there.run(heartbeat(beat(node_id)))
        assert (told.stop_requested, told.drain) == (True, True)


async def test_keys_made_at_two_hubs_at_once_are_all_there_and_known_to_both(
    pair: tuple[RedisStore, RedisStore],
) -> None:
    def one_more(name: str) -> Operation[int]:
        key = SigningKey(name, "secret", created=1.0)
        return Operation(lambda view, _: Outcome(len(view.keys), Change(keys={name: key})))

    counts = await asyncio.gather(*(hub.run(one_more(f"k{n}-{n % 2}")) for n, hub in enumerate(pair * 6)))
    assert sorted(counts) == list(range(12))
    await eventually(lambda: all(len(hub.access.keys) == 12 for hub in pair))


async def test_a_fresh_look_shows_what_another_hub_has_answered(pair: tuple[RedisStore, RedisStore]) -> None:
    here, there = pair
    for number in range(20):
        await here.run(add_task(task(f"t{number}")))
        await here.run(start_next())
        assert (await there.tasks()).revision == here.latest_tasks.revision
        here, there = there, here


async def test_of_two_hubs_one_gets_the_nudge(pair: tuple[RedisStore, RedisStore]) -> None:
    await pair[0].run(register(node("n")))
    for _ in range(10):
        await pair[0].run(order_drain("n"))
        nudges = await asyncio.gather(*(hub.take_nudge("n") for hub in pair * 3))
        assert sum(nudges) == 1
        await pair[1].run(heartbeat(beat("n")))
        await pair[1].run(order_resume("n"))
        await pair[0].run(heartbeat(beat("n")))


# --- Waking ------------------------------------------------------------------------------------------------


async def test_a_notice_wakes_whom_it_concerns_once_the_copy_shows_it(
    pair: tuple[RedisStore, RedisStore],
) -> None:
    here, there = pair
    await here.run(register(node("n")))
    await here.run(add_task(task("a")))
    heard: list[tuple[str, str]] = []
    await there.tasks()
    await asyncio.sleep(0.1)
    there.listen(lambda whom: heard.append((whom, there.latest_tasks.revision)))
    await here.run(start_next())
    await eventually(lambda: (EVERYONE, here.latest_tasks.revision) in heard)
    await here.run(order_drain("n"))
    await eventually(lambda: "n" in [whom for whom, _ in heard])
    assert EVERYONE not in [
        whom for whom, _ in heard[heard.index((EVERYONE, here.latest_tasks.revision)) + 1 :]
    ]


async def test_a_hub_that_missed_a_notice_wakes_everybody(server: RedisServer, open_store: Open) -> None:
    store = await open_store()
    heard: list[str] = []
    store.listen(heard.append)
    with server.client() as client:
        client.hincrby(state_of(store), "notices", 1)
    await eventually(lambda: EVERYONE in heard, 3)


# --- The clock ---------------------------------------------------------------------------------------------


async def test_each_node_falls_silent_once_however_many_hubs_look(
    server: RedisServer, pair: tuple[RedisStore, RedisStore]
) -> None:
    for number in range(30):
        await pair[0].run(register(node(f"n{number}")))
    assert await silent(pair) == []
    with server.client() as client:
        client.hincrbyfloat(state_of(pair[0]), "clock", 60)
    assert sorted(await silent(pair)) == sorted(f"n{number}" for number in range(30))
    with server.client() as client:
        client.hincrbyfloat(state_of(pair[0]), "silent_last", -10)
    assert await silent(pair) == []
    (event,) = await pair[1].events(EventQuery(kinds=frozenset({"nodes-offline"})))
    assert event.event.detail["count"] == 30


async def silent(hubs: tuple[RedisStore, ...]) -> list[str]:
    swept = await asyncio.gather(*(hub.sweep(RETENTION) for hub in hubs * 3))
    return [found.record.id for one in swept for found in one.silent]


@pytest.mark.parametrize("away", [3600, -3600])
async def test_time_in_which_nobody_could_be_heard_is_no_silence(
    server: RedisServer, open_store: Open, away: float
) -> None:
    store = await open_store()
    await store.run(register(node("n")))
    with server.client() as client:
        key = state_of(store)
        client.hincrbyfloat(key, "clock", 55)
        client.hset(key, "ticked", time.time() - away)
        assert await silent((store,)) == []
        assert await store.hear("n") is False
        client.hincrbyfloat(key, "clock", 61)
        assert await silent((store,)) == ["n"]
        assert await store.hear("n") is True


async def test_after_a_gap_a_silent_node_has_a_whole_minute(server: RedisServer, open_store: Open) -> None:
    store = await open_store()
    await store.run(register(node("n")))
    with server.client() as client:
        key = state_of(store)
        client.hincrbyfloat(key, "clock", 59)
        client.hset(key, "ticked", time.time() - 600)
        assert await silent((store,)) == []
        client.hincrbyfloat(key, "clock", 58)
        assert await silent((store,)) == []
        client.hincrbyfloat(key, "clock", 3)
        assert await silent((store,)) == ["n"]


async def test_what_a_hub_without_an_account_of_absence_did_is_counted_from_when_it_is_seen(
    server: RedisServer, open_store: Open
) -> None:
    store = await open_store()
    for node_id in ("there", "silent", "left", "back"):
        await store.run(register(node(node_id)))
    await store.run(deregister("back"))
    key, state = store.sight.key, state_of(store)
    with server.client() as client:
        # As such a hub does it: presence, and nothing else.
        client.zrem(key("online"), "silent", "left")
        client.sadd(key("gone"), "left")
        client.srem(key("gone"), "back")
        client.zadd(key("online"), {"back": 0})
        client.zadd(key("seen"), {"silent": time.time() - 86_400 * 365})
        for _ in range(2):
            assert (await store.sweep(RETENTION)).forgotten == ()
        client.hincrbyfloat(state, "clock", RETENTION)
        for node_id in ("there", "back"):
            await store.hear(node_id)
        client.hincrbyfloat(state, "clock", 50)
        forgotten = (await store.sweep(RETENTION)).forgotten
        assert {found.record.id for found in forgotten} == {"silent", "left"}
        assert {found.record.id for found in await store.nodes()} == {"there", "back"}


async def test_a_node_that_came_and_went_under_such_a_hub_is_absent_from_when_it_went(
    server: RedisServer, open_store: Open
) -> None:
    store = await open_store()
    await store.run(register(node("n")))
    await store.run(deregister("n"))
    key, state = store.sight.key, state_of(store)
    with server.client() as client:
        client.srem(key("gone"), "n")
        client.zadd(key("online"), {"n": RETENTION / 2})
        for _ in range(2):
            client.hincrbyfloat(state, "clock", RETENTION / 2 + 50)
            assert (await store.sweep(RETENTION)).forgotten == ()
            client.zrem(key("online"), "n")
        client.hincrbyfloat(state, "clock", RETENTION + 1)
        assert len((await store.sweep(RETENTION)).forgotten) == 1


# --- What Redis does to us ---------------------------------------------------------------------------------


async def test_an_operation_that_may_have_been_done_is_said_to_be_unknown(
    server: RedisServer, open_store: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = await open_store()
    monkeypatch.setattr(redis_link, "DEADLINE", 0.3)
    call = store.sight.link.call

    async def call_one_that_hangs(*commands: tuple[Any, ...], changes: bool = False) -> list[Any]:
        if any(WRITE.digest in command for command in commands):
            server.pause()  # it takes what is sent, and does it when it goes on
        return await call(*commands, changes=changes)

    monkeypatch.setattr(store.sight.link, "call", call_one_that_hangs)
    try:
        with pytest.raises(OutcomeUnknown):
            await store.run(add_task(task("a")))
        with pytest.raises(StoreUnavailable) as refusal:
            await store.run(add_task(task("b")))
    finally:
        server.resume()
    assert not isinstance(refusal.value, OutcomeUnknown)
    await eventually(lambda: [kept.name for kept in store.latest_tasks.tasks] == ["a"])


async def test_scripts_that_redis_forgot_are_brought_again(server: RedisServer, open_store: Open) -> None:
    store = await open_store()
    with server.client() as client:
        client.script_flush()
    with pytest.raises(StoreUnavailable, match="lacks the hub's scripts"):  # it was not started anew
        await store.run(add_task(task("a")))
    await eventually(lambda: _is_up(store))
    assert (await store.run(add_task(task("a"))))[1] is True


async def test_a_redis_that_lost_everything_is_not_believed(server: RedisServer, open_store: Open) -> None:
    store = await open_store()
    await store.run(add_task(task("a")))
    await store.run(register(node("n")))
    seen = store.latest_tasks
    with server.client() as client:
        client.delete(*client.keys(f"{store.sight.key('')}*"))
    for _ in range(2):
        with pytest.raises(StateLost):
            await store.tasks()
        with pytest.raises(StateLost):
            await store.run(heartbeat(beat("n")))
        await asyncio.sleep(1.5)
    assert store.latest_tasks is seen
    with pytest.raises(StateLost):  # a hub that is started beside it
        await (await open_store()).tasks()


async def test_a_hub_follows_its_slot_through_a_cluster(tmp_path: Path, open_store: Open) -> None:
    with RedisCluster(tmp_path) as cluster:
        store = await open_store(f"redis+cluster://{cluster.addresses}")
        await store.run(add_task(task("a")))
        await asyncio.to_thread(cluster.move_slot_of, state_of(store))
        with pytest.raises(StoreUnavailable) as refusal:
            await store.run(add_task(task("b")))
        assert not isinstance(refusal.value, OutcomeUnknown)
        await eventually(lambda: _is_up(store))
        await store.run(add_task(task("c")))
        assert [kept.name for kept in (await store.tasks()).tasks] == ["a", "c"]
        await store.close()


def _is_up(store: RedisStore) -> bool:
    try:
        store.sight.link.check()
    except StoreUnavailable:
        return False
    return True


# --- Logs --------------------------------------------------------------------------------------------------


def bring(order: LogOrder, text: str, node_id: str = "n") -> LogsMessage:
    return LogsMessage(node_id=node_id, id=order.id, text=text)


async def orders_of(desk: SharedLogDesk, count: int = 1) -> list[LogOrder]:
    taken: list[LogOrder] = []
    async with asyncio.timeout(5):
        while len(taken) < count:
            taken += await desk.take("n")
            await asyncio.sleep(0.01)
    return taken


async def test_a_question_goes_out_and_its_answer_comes_back_by_another_hub(
    pair: tuple[RedisStore, RedisStore],
) -> None:
    here, there = SharedLogDesk(pair[0], Waiters()), SharedLogDesk(pair[1], Waiters())
    asking = asyncio.create_task(here.ask("n", 3, lines=50, previous=2))
    (order,) = await orders_of(there)
    assert (order.instance, order.lines, order.previous) == (3, 50, 2)
    assert await there.take("n") == await here.take("n") == []
    assert await pair[0].take_nudge("n") is False, "what was asked is no reason for a heartbeat any more"
    assert not await there.answer(bring(order, "forged", "other"))
    text = "\u00e9\u2028 0\n" * 20_000
    assert await there.answer(bring(order, text))
    assert (await asking).text == text
    assert not await there.answer(bring(order, "again"))


async def test_a_question_ends_one_held_request_of_its_node_at_any_hub(
    pair: tuple[RedisStore, RedisStore],
) -> None:
    here, there = SharedLogDesk(pair[0], Waiters()), SharedLogDesk(pair[1], Waiters())
    heard: list[str] = []
    pair[1].listen(heard.append)
    asking = asyncio.create_task(here.ask("n", 0, lines=1, previous=0))
    await eventually(lambda: "n" in heard)
    assert [await pair[1].take_nudge("n"), await pair[0].take_nudge("n")] == [True, False]
    (order,) = await orders_of(there)
    await there.answer(bring(order, "text"))
    assert (await asking).text == "text"
    assert await pair[0].take_nudge("n") is False


async def test_so_many_operators_wait_at_all_hubs_together_and_no_more(
    pair: tuple[RedisStore, RedisStore],
) -> None:
    desks = [SharedLogDesk(store, Waiters()) for store in pair]
    asking = [asyncio.create_task(desks[n % 2].ask("n", n, lines=1, previous=0)) for n in range(MOST)]
    orders = await orders_of(desks[0], MOST)
    with pytest.raises(TooManyOrders):
        await desks[1].ask("n", 99, lines=1, previous=0)
    for order in orders:
        await desks[0].answer(bring(order, f"log of {order.instance}"))
    assert [message.text for message in await asyncio.gather(*asking)] == [f"log of {n}" for n in range(MOST)]


async def test_a_silent_node_and_a_hub_that_ends_let_the_operator_go_and_leave_no_question(
    open_store: Open,
) -> None:
    store, waiters = await open_store(), Waiters()
    desk = SharedLogDesk(store, waiters, patience=0.1)
    with pytest.raises(NodeSilent):
        await desk.ask("n", 0, lines=1, previous=0)
    assert await desk.take("n") == []
    waiters.close()
    with pytest.raises(Stopping):
        await desk.ask("n", 0, lines=1, previous=0)
    assert await desk.take("n") == []


async def test_a_change_by_a_hub_that_knows_no_revisions_is_seen_by_the_others(
    server: RedisServer, open_store: Open
) -> None:
    store = await open_store()
    for name in "ab":
        await store.run(add_task(task(name)))
    seen = (await store.tasks()).get("a").revision
    with server.client() as client:
        # What such a hub writes for a PATCH: the whole head as it knows it, and the task.
        kept = client.hgetall(state_of(store))
        head = {name: part for name, part in json.loads(kept["head"]).items() if name != "revisions"}
        version = f"{number_of(kept['list']) + 1}.old"
        text = json.loads(client.hget(store.sight.key("tasks"), "a"))
        del text["revision"]
        text["definition"]["memory"] = 64
        client.hset(state_of(store), mapping={"head": json.dumps(head), "list": version})
        client.hset(store.sight.key("tasks"), "a", json.dumps(text))
    with pytest.raises(GenerationChanged):
        await store.run(remove_task("a", lambda revision: revision == seen))
    after = await store.tasks()
    assert after.get("a").definition.memory == 64
    other = await open_store()
    assert await other.tasks() == after
    # What that hub may have left alone has a name that stays.
    await store.run(remove_task("b"))
    given = after.get("a").revision
    assert (await other.tasks()).get("a").revision == given
    await other.run(remove_task("a", lambda revision: revision == given))
