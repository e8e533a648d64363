"""The lines of `ACL SETUSER` in docs/security.md, used as they stand on a real Redis."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from gridcore.errors import ConfigError
from gridcore.protocol import HeartbeatRequest, LogsMessage, RegisterRequest, TaskDefinition
from hub.contents import read_store
from hub.events import EventQuery
from hub.logdesk_redis import SharedLogDesk
from hub.operations import add_task, heartbeat, register, start_next
from hub.queues import Length, QueueEyes
from hub.redis_repair import accept, look_at_rest, open_for_repair
from hub.redis_url import RedisTarget, parse_redis
from hub.store_redis import open_redis
from hub.waiters import Waiters
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_server import RedisServer

DOCS = Path(__file__).parents[2] / "docs" / "security.md"
PASSWORD = "of-this-login"


def line_for(user: str) -> list[str]:
    """The words of the line that makes this user."""
    (line,) = re.findall(rf"^ACL SETUSER {user} .*$", DOCS.read_text(), re.MULTILINE)
    return str(line).replace(">PASSWORD", f">{PASSWORD}").split()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with RedisServer(tmp_path / "redis") as started:
        yield started


def make(server: RedisServer, user: str, *more: str) -> str:
    """Make the user, with further rules, and say by which URL it logs in."""
    with server.client() as client:
        client.execute_command(*line_for(user), *more)
    return f"redis://{user}:{PASSWORD}@127.0.0.1:{server.port}/0"


def target_of(url: str) -> RedisTarget:
    target = parse_redis(url)
    assert target is not None
    return target


async def test_with_the_login_for_the_state_a_hub_does_all_that_it_does(server: RedisServer) -> None:
    await do_everything(target_of(make(server, "computehub")))
    with server.client() as client:
        assert client.acl_log() == [], "nothing was refused, ornaments included"


async def test_with_the_login_for_the_state_a_hub_works_on_a_cluster(tmp_path: Path) -> None:
    with RedisCluster(tmp_path) as cluster:
        for node in cluster.nodes:
            make(node, "computehub")
        await do_everything(target_of(f"redis+cluster://computehub:{PASSWORD}@{cluster.addresses}"))


async def do_everything(target: RedisTarget) -> None:
    store, other = await open_redis(target), await open_redis(target)
    try:
        await store.run(add_task(TaskDefinition(name="a", image="x:1")))
        await store.run(start_next())
        await store.run(
            register(RegisterRequest(node_id="n", hostname="h", architecture="x86_64", cpu_count=1))
        )
        await other.run(heartbeat(HeartbeatRequest(node_id="n", status="Idle", active_containers=0)))
        assert not await store.hear("n")
        await store.sweep(3600.0)
        desk = SharedLogDesk(store, Waiters())
        asking = asyncio.create_task(desk.ask("n", 0, lines=1, previous=0))
        there = SharedLogDesk(other, Waiters())
        async with asyncio.timeout(5):
            while not (orders := await there.take("n")):  # noqa: ASYNC110  # it has no event
                await asyncio.sleep(0.01)
        await there.answer(LogsMessage(node_id="n", id=orders[0].id, text="text"))
        assert (await asking).text == "text"
        assert await store.events(EventQuery())
        await store.forget_events(0.0)
        await read_store(store)
        async with open_for_repair(target) as repair:
            await accept(repair, await look_at_rest(repair))
    finally:
        await store.close()
        await other.close()


@pytest.mark.parametrize(
    ("without", "told"),
    [
        (["-time"], "TIME"),
        (["-publish"], "PUBLISH"),
        (["resetchannels"], ""),
        (["-xadd"], "XADD"),
        (["-evalsha"], ""),
        (["-info"], ""),
        (["resetkeys"], ""),
    ],
)
async def test_a_login_that_lacks_something_is_told_so_and_leaves_nothing_behind(
    server: RedisServer, without: list[str], told: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        await open_redis(target_of(make(server, "computehub", *without)))
    assert told in str(refused.value)
    assert "ACL SETUSER" in str(refused.value)
    with server.client() as client:
        assert client.keys("*") == []
    store = await open_redis(target_of(server.url))  # with another login it goes
    await store.run(add_task(TaskDefinition(name="a", image="x:1")))
    await store.close()


async def test_the_name_of_a_connection_is_no_condition(server: RedisServer) -> None:
    store = await open_redis(target_of(make(server, "computehub", "-client")))
    await store.run(add_task(TaskDefinition(name="a", image="x:1")))
    await store.close()


@pytest.mark.parametrize("without", [[], ["-client"], ["-client", "-type"]])
async def test_a_login_that_may_look_at_queues_sees_their_length_and_nothing_else(
    server: RedisServer, without: list[str]
) -> None:
    url = make(server, "lookout", *without)
    with server.client() as client:
        client.rpush("squares:input", "1", "2")
        client.rpush("secret:input", "1")
    eyes = QueueEyes()
    try:
        for queue, seen in (
            ("squares:input", Length(2)),
            ("secret:input", Length(None, "the Redis does not let this login look at the queue")),
        ):
            task = TaskDefinition(name="t", image="x:1", input_redis=url, input_queue=queue)
            assert (await eyes.look(task)).input == seen
    finally:
        await eyes.close()
    with redis.Redis.from_url(url) as client, pytest.raises(redis.exceptions.NoPermissionError):
        client.lpop("squares:input")


def test_with_the_login_for_workers_items_are_taken_and_pushed_and_nothing_else(server: RedisServer) -> None:
    with redis.Redis.from_url(make(server, "squares"), decode_responses=True) as client:
        client.rpush("squares:input", "1", "2", "3")
        assert client.blpop(["squares:input"], timeout=1) == ("squares:input", "1")
        with client.pipeline() as pipe:
            pipe.lpop("squares:input", 2)
            pipe.lpush("squares:output", "1:1")
            pipe.execute()
        assert client.llen("squares:output") == 1
        for act in (lambda: client.lpop("other:input"), client.flushall, lambda: client.keys("*")):
            with pytest.raises(redis.exceptions.NoPermissionError):
                act()
