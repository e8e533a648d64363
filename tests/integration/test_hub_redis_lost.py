"""What hubs and nodes do when their Redis is empty of a sudden, or holds what cannot be their state."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from gridcore import config
from gridcore.protocol import TaskDefinition
from hub import redis_repair, token_operations
from hub.backup import BackupError
from hub.contents import Contents, read_store
from hub.errors import OutcomeUnknown, StoreFull, StoreUnavailable
from hub.events import EventQuery
from hub.journal_sqlite import SqliteJournal, open_sqlite
from hub.operations import add_task, start_next
from hub.redis_url import parse_redis
from hub.settings import HubSettings
from hub.store import Store
from hub.store_redis import RedisStore, open_redis
from hub.tasklist import TaskList, TaskStatus
from tests.integration.hub_process import HubProcess
from tests.integration.many_hubs import Caller, Hubs, Node, eventually, task_names
from tests.servers.redis_sentinels import SERVICE, RedisSentinels
from tests.servers.redis_server import RedisServer

FACTS = {"hostname": "h", "architecture": "x86_64", "cpu_count": 1}
BEAT = {"node_id": "n", "status": "Idle", "active_containers": 0}
STATE = "{gridcore}:state"


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def server(tmp_path: Path, resources: ExitStack) -> RedisServer:
    return resources.enter_context(RedisServer(tmp_path / "redis"))


def fleet(tmp_path: Path, resources: ExitStack, server: RedisServer) -> tuple[HubProcess, HubProcess, Node]:
    """Two hubs at work on a task, and a node that has it."""
    here, there = resources.enter_context(Hubs(tmp_path, server.url, 2))
    for name in ("a", "b"):
        assert here.post("/api/tasks", {"name": name, "image": "x:1"}).status == 201
    assert here.post("/api/tasks/next").status == 200
    node = Node(there.port, "n", wait=2).start()
    resources.callback(node.stop)
    return here, there, node


def is_lost(hub: HubProcess) -> bool:
    answer = hub.get("/api/tasks")
    return answer.status == 503 and answer.json["type"].endswith("state-lost")


def command(hub: HubProcess, *words: str, status: int = 0) -> str:
    done = hub.command(*words)
    assert done.returncode == status, done.stderr
    return done.stdout + done.stderr


def empty(server: RedisServer) -> None:
    with server.client() as client:
        client.flushall()


def restart_empty(server: RedisServer) -> None:
    server.kill()
    for kept in (server.directory / "appendonlydir").iterdir():
        kept.unlink()
    server.start()


@pytest.mark.parametrize("lose", [empty, restart_empty])
def test_an_empty_redis_is_not_believed(
    tmp_path: Path, resources: ExitStack, server: RedisServer, lose: Callable[[RedisServer], None]
) -> None:
    here, there, node = fleet(tmp_path, resources, server)
    generation, told = node.generation, len(node.generations)
    lose(server)
    eventually(lambda: is_lost(here) and is_lost(there), "both hubs say that the state is lost")
    caller = Caller(here.port)
    for method, path, body in (
        ("GET", "/api/tasks", None),
        ("GET", "/api/nodes", None),
        ("GET", "/api/events", None),
        ("POST", "/api/tasks", {"name": "c", "image": "x:1"}),
        ("POST", "/api/tasks/finish", None),
        ("POST", "/gridnode/register", {"node_id": "n", **FACTS}),
        ("POST", "/gridnode/heartbeat", BEAT),
        ("GET", "/gridnode/task", None),
    ):
        answer = caller.ask(method, path, body)
        assert (answer.status, answer.json["type"].rpartition(":")[2]) == (503, "state-lost"), path
        assert "computehub restore" in answer.json["detail"]
        assert "computehub accept-loss" in answer.json["detail"]
        assert answer.headers["Retry-After"] == "10"
    assert caller.ask("GET", "/health").status == 200
    assert b"gridcore_state_lost 1.0" in caller.ask("GET", "/metrics").body
    caller.close()
    # A hub that is started now finds a new state nowhere: the others have said what was lost.
    assert there.stop() == 0
    there.start()
    assert is_lost(there)
    time.sleep(2.5)  # longer than one request is held
    assert node.generations[told:] == [], "no node is given anything"
    assert is_lost(here)
    assert here.log.count("the state is lost") == 1
    # On purpose it begins anew, under hubs that run.
    assert "no task list" in command(here, "accept-loss", "--yes")
    eventually(lambda: not is_lost(here) and not is_lost(there), "both hubs have begun anew")
    assert task_names(there.get("/api/tasks")) == []
    eventually(lambda: node.generation != generation, "the node is told", 5)
    assert here.log.count("the hub has its state again") == 1
    kinds = [event["kind"] for event in here.get("/api/events").json["events"]]
    assert "loss-accepted" in kinds


def test_a_backup_is_restored_under_hubs_that_lost_their_state(
    tmp_path: Path, resources: ExitStack, server: RedisServer
) -> None:
    here, there, node = fleet(tmp_path, resources, server)
    generation = node.generation
    command(here, "backup", str(tmp_path / "saved"))
    command(here, "restore", str(tmp_path / "saved"), status=1)  # they work
    empty(server)
    eventually(lambda: is_lost(here) and is_lost(there), "both hubs say that the state is lost")
    command(here, "backup", str(tmp_path / "nothing"), status=1)
    command(there, "restore", str(tmp_path / "saved"))
    eventually(lambda: not is_lost(here) and not is_lost(there), "both hubs have it")
    assert here.get("/api/tasks").json["current"] == there.get("/api/tasks").json["current"] == "a"
    eventually(lambda: node.generation != generation, "the node follows", 5)
    assert here.get("/api/nodes/n").status == 200
    assert there.post("/gridnode/heartbeat", BEAT).json["known"]


async def test_what_is_acknowledged_while_a_restore_begins_is_not_dropped(
    tmp_path: Path, server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = parse_redis(server.url)
    assert target is not None
    hub = await open_redis(target)

    async def read_and_be_late(store: Store) -> Contents:
        contents = await read_store(store)
        await hub.run(add_task(TaskDefinition(name="acknowledged", image="x:1")))
        return contents

    empty_backup = await read_store(hub)
    monkeypatch.setattr(redis_repair, "read_store", read_and_be_late)
    with pytest.raises(BackupError, match="changed meanwhile"):
        await redis_repair.restore_redis(target, empty_backup)
    assert [task.name for task in (await hub.tasks()).tasks] == ["acknowledged"]
    await hub.close()


@pytest.mark.parametrize("change", ["flushed", "added", "key"])
async def test_only_what_was_seen_is_accepted(tmp_path: Path, server: RedisServer, change: str) -> None:
    target = parse_redis(server.url)
    assert target is not None
    hub = await open_redis(target)
    await hub.run(add_task(TaskDefinition(name="a", image="x:1")))
    path = tmp_path / "computehub.toml"
    path.write_text(f'token = "an-example-secret-of-some-length"\nstate = "{server.url}"\n')
    settings = config.load(HubSettings, path, {})
    seen = await redis_repair.see_rest(settings)
    async with redis_repair.open_for_repair(target) as store:
        rest = await redis_repair.look_at_rest(store)
        if change == "flushed":
            await hub.close()
            empty(server)
        elif change == "added":
            await hub.run(add_task(TaskDefinition(name="acknowledged", image="x:1")))
        else:
            await hub.run(token_operations.rotate_key())
        # Seen long ago, and a moment ago.
        with pytest.raises(BackupError, match="changed meanwhile"):
            await redis_repair.accept_rest(settings, seen)
        with pytest.raises(BackupError, match="changed meanwhile"):
            await redis_repair.accept(store, rest)
    if change != "flushed":
        assert (await hub.tasks()).named(TaskStatus.PENDING)[0] == "a"
        assert len((await hub.tasks()).tasks) == (2 if change == "added" else 1)
        await hub.close()


@pytest.mark.parametrize("version", ["1.smaller", "4.other-part"])
def test_an_older_list_is_not_taken_until_somebody_says_so(
    tmp_path: Path, resources: ExitStack, server: RedisServer, version: str
) -> None:
    here, there, node = fleet(tmp_path, resources, server)
    with server.client() as client:
        assert str(client.hget(STATE, "list")).startswith("4.")
        client.hset(STATE, "list", version)
    eventually(lambda: is_lost(here) and is_lost(there), "both hubs refuse it")
    time.sleep(2.5)
    assert len(node.generations) == 1
    assert "2 tasks and 1 nodes; a is current" in command(here, "accept-loss", "--yes")
    eventually(lambda: not is_lost(here) and not is_lost(there), "both hubs take it")
    assert here.post("/gridnode/heartbeat", BEAT).json["known"]
    assert there.post("/api/tasks/next").status == 200
    eventually(lambda: len(node.generations) == 2, "the node follows", 5)


@pytest.mark.parametrize("part", ["nodes", "tasks", "state", "keys"])
def test_a_redis_that_dropped_a_part_is_not_believed_and_can_be_mended(
    tmp_path: Path, resources: ExitStack, server: RedisServer, part: str
) -> None:
    here, there, _node = fleet(tmp_path, resources, server)
    token = there.post("/api/tokens", {"role": "viewer", "ttl": 3600, "name": "v"})
    assert token.status == 201
    with server.client() as client:
        client.delete(f"{{gridcore}}:{part}")
    eventually(lambda: is_lost(here) and is_lost(there), "both hubs see that a part is gone")
    there.stop()
    there.start()
    assert is_lost(there)
    assert "gone" in command(here, "accept-loss", "--yes") or part == "state"
    eventually(lambda: not is_lost(here) and not is_lost(there), "both hubs go on")
    names = task_names(here.get("/api/tasks"))
    assert names == ([] if part in ("tasks", "state") else ["a", "b"])
    assert here.post("/api/tasks", {"name": "c", "image": "x:1"}).status == 201
    assert there.post("/gridnode/register", {"node_id": "n", **FACTS}).status == 200
    assert there.post("/api/tasks/next").status == 200


@pytest.mark.parametrize("nonsense", ["{nonsense", b"\xff\xfe"])
@pytest.mark.parametrize(
    ("place", "field", "names"),
    [
        ("state", "head", []),
        ("state", "list", ["a", "b"]),
        ("state", "access", ["a", "b"]),
        ("state", "epoch", ["a", "b"]),
        ("tasks", "b", ["a"]),
    ],
)
def test_a_state_that_cannot_be_read_ends_no_hub_and_can_be_mended(
    tmp_path: Path,
    resources: ExitStack,
    server: RedisServer,
    place: str,
    field: str,
    names: list[str],
    nonsense: str | bytes,
) -> None:
    here, there, node = fleet(tmp_path, resources, server)
    assert there.post("/api/tokens", {"role": "viewer", "ttl": 3600, "name": "v"}).status == 201
    with server.client() as client:
        client.hset(STATE, "list", "999.x")
        client.hset(f"{{gridcore}}:{place}", field, nonsense)
    eventually(lambda: is_lost(here) and is_lost(there), "both hubs say that it cannot be read")
    there.stop()
    there.start()
    assert is_lost(there)
    assert len(node.generations) == 1
    saved = here.command("backup", str(tmp_path / "backup"))
    assert (saved.returncode, "what redis kept" in saved.stderr.lower()) == (1, True), saved.stderr
    command(there, "accept-loss", "--yes")
    eventually(lambda: not is_lost(here) and not is_lost(there), "both hubs go on")
    assert task_names(here.get("/api/tasks")) == names
    assert here.post("/api/tasks", {"name": "c", "image": "x:1"}).status == 201
    assert "Traceback" not in here.log + there.log


@pytest.mark.parametrize("kept", ["nodes", "live"])
def test_a_node_that_cannot_be_read_costs_itself_alone_and_registers_anew(
    tmp_path: Path, resources: ExitStack, server: RedisServer, kept: str
) -> None:
    here, there, _node = fleet(tmp_path, resources, server)
    assert here.post("/gridnode/register", {"node_id": "other", **FACTS}).status == 200
    with server.client() as client:
        client.hset(f"{{gridcore}}:{kept}", "n", "{nonsense")
    assert [node["id"] for node in there.get("/api/nodes").json] == ["other"]
    assert there.get("/metrics").status == 200
    assert here.post("/gridnode/heartbeat", BEAT).json["known"] is False
    assert here.post("/gridnode/register", {"node_id": "n", **FACTS}).status == 200
    assert there.post("/gridnode/heartbeat", BEAT).json["known"] is True
    assert {node["id"] for node in there.get("/api/nodes").json} == {"n", "other"}


def test_a_half_of_a_beginning_is_completed(
    tmp_path: Path, resources: ExitStack, server: RedisServer
) -> None:
    with server.client() as client:
        client.hset(STATE, "schema", 1)
    (hub,) = resources.enter_context(Hubs(tmp_path, server.url, 1))
    assert hub.post("/api/tasks", {"name": "a", "image": "x:1"}).status == 201


def test_hubs_that_know_nothing_of_worth_begin_with_an_empty_redis(
    tmp_path: Path, resources: ExitStack, server: RedisServer
) -> None:
    (hub,) = resources.enter_context(Hubs(tmp_path, server.url, 1))
    empty(server)
    eventually(lambda: hub.post("/api/tasks", {"name": "a", "image": "x:1"}).status == 201, "it begins")


@pytest.mark.parametrize("kind", ["redis", "sqlite"])
def test_a_hub_that_starts_with_nothing_tells_no_node_to_stop_until_somebody_decides(
    tmp_path: Path, resources: ExitStack, server: RedisServer, kind: str
) -> None:
    hub = HubProcess(tmp_path, state=server.url if kind == "redis" else None)
    resources.callback(hub.end)
    hub.start()
    assert hub.post("/api/tasks", {"name": "a", "image": "x:1"}).status == 201
    assert hub.post("/api/tasks/next").status == 200
    known = {"If-None-Match": hub.get("/gridnode/task").headers["ETag"], "Prefer": "wait=1"}
    hub.stop()
    if kind == "redis":
        empty(server)
    for file in tmp_path.glob("hub.db*"):
        file.unlink()
    hub.start()
    path = "/gridnode/task?node_id=n"
    answer = hub.get(path, headers=known)
    assert (answer.status, answer.json["type"].rpartition(":")[2]) == (503, "state-lost")
    assert hub.get(path, headers=known).status == 503
    assert hub.get(path).json is None, "a node that has nothing is given nothing"
    assert hub.log.count("nodes have tasks of another one") == 1
    assert hub.post("/api/tasks/hold").status == 200
    assert (hub.get(path, headers=known).status, hub.get(path, headers=known).json) == (200, None)
    assert hub.log.count("nodes follow the list of tasks again") == 1


def test_a_file_that_is_gone_is_kept_in_no_more(tmp_path: Path, resources: ExitStack) -> None:
    hub = HubProcess(tmp_path)
    resources.callback(hub.end)
    hub.start()
    assert hub.post("/api/tasks", {"name": "a", "image": "x:1"}).status == 201
    hub.database.rename(tmp_path / "moved")
    for _ in range(3):
        answer = hub.post("/api/tasks", {"name": "b", "image": "x:1"})
        assert (answer.status, answer.json["type"].rpartition(":")[2]) == (503, "state-lost")
    assert task_names(hub.get("/api/tasks")) == ["a"]
    assert hub.log.count("the state cannot be written") == 1
    (tmp_path / "moved").rename(hub.database)
    assert hub.post("/api/tasks", {"name": "b", "image": "x:1"}).status == 201
    assert hub.log.count("the state can be written again") == 1


async def test_a_full_disk_is_told_once_and_so_is_that_there_is_room(tmp_path: Path) -> None:
    store = await open_sqlite(tmp_path / "hub.db")
    journal = store._journal
    assert isinstance(journal, SqliteJournal)

    async def allow(pages: int) -> None:
        def limit(database: sqlite3.Connection) -> None:
            database.execute(f"PRAGMA max_page_count = {pages}")

        await journal._in_thread(lambda: limit(journal._connection))  # type: ignore[arg-type]  # it is open

    with capture_logs() as lines:
        await allow(1)  # that is, what there is
        for name in ("a", "b", "c"):
            with pytest.raises(StoreFull):
                await store.run(add_task(TaskDefinition(name=name, image="x:1", env={"A": "x" * 9_000})))
        await allow(1_000_000)
        for name in ("a", "b"):
            await store.run(add_task(TaskDefinition(name=name, image="x:1")))
    assert [line["event"] for line in lines] == [
        "the state cannot be written",
        "the state can be written again",
    ]
    assert lines[1]["times"] == 3
    await store.close()


# --- A failover that lost the last moment ------------------------------------------------------------------


async def test_what_a_failover_lost_of_the_list_is_written_again_by_a_hub_that_saw_it(
    tmp_path: Path, resources: ExitStack
) -> None:
    sentinels = resources.enter_context(RedisSentinels(tmp_path / "redis", password="secret-of-redis"))
    secret = tmp_path / "password"
    secret.write_text("secret-of-redis")
    target = parse_redis(f"redis+sentinel://{sentinels.addresses}/{SERVICE}?password_file={secret}")
    assert target is not None
    store = await open_redis(target)
    try:
        await store.run(add_task(TaskDefinition(name="a", image="x:1")))
        master, replica = sentinels.servers
        with replica.client() as client, master.client() as other:
            client.config_set("masterauth", "wrong")  # it follows no more
            other.client_kill_filter(_type="replica")
        for operation in (add_task(TaskDefinition(name="b", image="x:1")), start_next()):
            with pytest.raises(OutcomeUnknown):
                await store.run(operation)
        seen = store.latest_tasks
        await asyncio.to_thread(sentinels.fail_over)
        async with asyncio.timeout(20):
            while await tasks_of(store) != seen:  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0.05)
        assert [task.name for task in seen.tasks] == ["a", "b"]
        (event,) = await store.events(EventQuery(kinds=frozenset({"list-written-again"})))
        assert event.event.detail == {"generation": seen.revision}
        with replica.client() as client:
            assert client.hlen("{gridcore}:tasks") == 2
    finally:
        await store.close()


async def tasks_of(store: RedisStore) -> TaskList | None:
    try:
        return await store.tasks()
    except StoreUnavailable:
        return None
