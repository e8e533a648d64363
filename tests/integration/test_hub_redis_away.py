"""What hubs do when their Redis restarts, hangs, dies, fails over, or is not fit to keep a state."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from gridcore.errors import ConfigError
from hub.redis_url import parse_redis
from hub.store_redis import open_redis
from tests.integration.hub_process import HubProcess
from tests.integration.many_hubs import Caller, Hubs, Node, Operator, eventually, task_names, wait_for_more
from tests.servers.authority import Authority
from tests.servers.children import free_port
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_sentinels import SERVICE, RedisSentinels
from tests.servers.redis_server import FORGETFUL, RedisServer


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def hub_on(resources: ExitStack, directory: Path, state: str) -> HubProcess:
    (hub,) = resources.enter_context(Hubs(directory, state, 1))
    return hub


def is_up(hub: HubProcess) -> bool:
    return hub.get("/api/tasks").status == 200


def test_connections_that_redis_closed_while_they_lay_idle_cost_no_request(
    tmp_path: Path, resources: ExitStack
) -> None:
    """A Redis with a `timeout` does so, and what may stand in between."""
    server = resources.enter_context(RedisServer(tmp_path / "redis"))
    hub = hub_on(resources, tmp_path, server.url)
    assert hub.post("/api/tasks", {"name": "first", "image": "x:1"}).status == 201
    with server.client() as client:
        for name in ("a", "b", "c"):
            for entry in client.client_list():
                if entry["name"] and entry["id"] != str(client.client_id()):
                    client.client_kill_filter(_id=entry["id"])
            asked = [hub.post("/api/tasks", {"name": name, "image": "x:1"}), hub.get("/api/nodes")]
            assert [answer.status for answer in asked] == [201, 200]
    assert "away" not in hub.log


async def test_a_call_that_outlives_its_session_leaves_no_connection_to_the_next(
    tmp_path: Path, resources: ExitStack
) -> None:
    """Which may be with another server, after a failover."""
    server = resources.enter_context(RedisServer(tmp_path / "redis"))
    target = parse_redis(server.url)
    assert target is not None
    hub = await open_redis(target)
    with server.client() as client:
        slow = asyncio.create_task(hub.sight.link.ask(("BLPOP", "never", "0.5")))
        await asyncio.to_thread(
            eventually, lambda: any(entry["cmd"] == "blpop" for entry in client.client_list()), "it is asked"
        )
        await hub.close()
        assert await slow == [None]
        await asyncio.to_thread(
            eventually, lambda: len(client.client_list()) == 1, "the hub has no connection left", 3
        )


# --- A Redis that goes away --------------------------------------------------------------------------------


def test_a_redis_that_restarts_takes_no_acknowledged_operation_and_no_node_with_it(
    tmp_path: Path, resources: ExitStack
) -> None:
    server = resources.enter_context(RedisServer(tmp_path / "redis"))
    here, there = resources.enter_context(Hubs(tmp_path, server.url, 2))
    node = Node(here.port, "n").start()
    resources.callback(node.stop)
    operators = [Operator(hub.port, f"by-{hub.port}") for hub in (here, there)]
    for operator in operators:
        operator.start()
    for end in (server.stop, server.kill, server.kill):
        wait_for_more(operators)
        end()
        time.sleep(0.2)
        server.start()
        eventually(lambda: is_up(here) and is_up(there), "both hubs answer again")
    for operator in operators:
        operator.stop()
    there_now = task_names(here.get("/api/tasks"))
    added = [name for operator in operators for name in operator.added]
    assert set(added) <= set(there_now)
    assert len(there_now) == len(set(there_now))
    assert not set(there_now) & {name for operator in operators for name in operator.refused}
    assert here.post("/api/tasks/next").status == 200
    generation = there.get("/api/tasks").json["generation"]
    eventually(lambda: node.generation == generation, "the node is told of a switch", 3)
    assert here.get("/api/nodes/n").json["status"] == "Online"


def test_while_redis_is_away_hubs_say_so_at_once_and_go_on_holding_requests(
    tmp_path: Path, resources: ExitStack
) -> None:
    server = resources.enter_context(RedisServer(tmp_path / "redis"))
    hub = hub_on(resources, tmp_path, server.url)
    node = Node(hub.port, "n", wait=2).start()
    resources.callback(node.stop)
    server.kill()
    eventually(lambda: not is_up(hub), "the hub sees that Redis is away", 3)
    caller = Caller(hub.port)
    beat = {"node_id": "n", "status": "Idle", "active_containers": 0}
    for method, path, body in (
        ("GET", "/api/tasks", None),
        ("GET", "/api/nodes", None),
        ("POST", "/api/tasks/finish", None),
        ("POST", "/gridnode/heartbeat", beat),
        ("GET", "/gridnode/task", None),
    ):
        answer = caller.ask(method, path, body)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert answer.headers["Content-Type"] == "application/problem+json"
        assert answer.json["type"].endswith("store-unavailable")
    assert (caller.ask("GET", "/health").status, hub.log.count("Traceback")) == (200, 0)
    time.sleep(2.5)  # longer than one request is held
    assert node.refused == []
    server.start()
    eventually(lambda: is_up(hub), "the hub is back")
    assert caller.ask("GET", "/api/nodes/n").json["status"] == "Online"
    caller.close()


def test_a_redis_that_hangs_hangs_no_request(tmp_path: Path, resources: ExitStack) -> None:
    server = resources.enter_context(RedisServer(tmp_path / "redis"))
    hub = hub_on(resources, tmp_path, server.url)
    server.pause()
    try:
        began = time.monotonic()
        answer = hub.post("/api/tasks", {"name": "a", "image": "x:1"})
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert time.monotonic() - began < 9
        began = time.monotonic()
        assert hub.get("/api/tasks").status == 503
        assert time.monotonic() - began < 1, "once it is known to hang, nobody waits for it"
    finally:
        server.resume()
    eventually(lambda: is_up(hub), "the hub is back")
    assert hub.stop() == 0


def test_a_hub_that_starts_before_its_redis_waits_for_it(tmp_path: Path, resources: ExitStack) -> None:
    server = RedisServer(tmp_path / "redis")
    with server:
        server.stop()
        hub = hub_on(resources, tmp_path, server.url)
        assert hub.get("/api/tasks").status == 503
        assert hub.get("/api/tasks", token="a.signed.token").status == 503, "it may be a good one"
        assert hub.request("GET", "/health", token="a.signed.token").status == 200
        server.start()
        eventually(lambda: is_up(hub), "the hub has found it")
        assert hub.get("/api/tasks", token="a.signed.token").status == 401
        assert hub.post("/api/tasks", {"name": "a", "image": "x:1"}).status == 201


# --- A failover --------------------------------------------------------------------------------------------


def test_a_failover_loses_nothing_that_an_operator_was_told(
    tmp_path: Path, resources: ExitStack, record_property: Callable[[str, object], None]
) -> None:
    sentinels = resources.enter_context(RedisSentinels(tmp_path / "redis", password="secret-of-redis"))
    secret = tmp_path / "password"
    secret.write_text("secret-of-redis\n")
    state = f"redis+sentinel://{sentinels.addresses}/{SERVICE}?password_file={secret}"
    here, there = resources.enter_context(Hubs(tmp_path, state, 2))
    node = Node(there.port, "n").start()
    resources.callback(node.stop)
    operators = [Operator(hub.port, f"by-{hub.port}") for hub in (here, there)]
    for operator in operators:
        operator.start()
    wait_for_more(operators)
    sentinels.fail_over()
    eventually(lambda: is_up(here) and is_up(there), "both hubs have found the new master")
    for operator in operators:
        operator.stop()
    there_now = set(task_names(here.get("/api/tasks")))
    added = {name for operator in operators for name in operator.added}
    unsure = {name for operator in operators for name in operator.unsure}
    assert added <= there_now
    record_property("acknowledged", len(added))
    record_property("unknown", len(unsure))
    record_property("unknown and lost", len(unsure - there_now))
    assert here.get("/api/nodes/n").json["status"] == "Online"
    # One server is left: what operators do is done, and nobody can promise that it stays.
    answer = here.post("/api/tasks", {"name": "last", "image": "x:1"})
    assert (answer.status, answer.json["type"].rpartition(":")[2]) == (503, "outcome-unknown")
    assert "last" in task_names(there.get("/api/tasks"))
    beat = {"node_id": "n", "status": "Idle", "active_containers": 0}
    assert here.post("/gridnode/heartbeat", beat).json["known"]


# --- A Redis that is not fit -------------------------------------------------------------------------------


def refusal(directory: Path, state: str) -> str:
    """The one line with which the hub refuses to start."""
    hub = HubProcess(directory, state=state)
    result = hub.command()
    assert result.returncode == 78, result.stderr
    (line,) = result.stderr.splitlines()
    return line


async def why_not(url: str) -> str:
    """The line with which a hub refuses this Redis."""
    target = parse_redis(url)
    assert target is not None
    with pytest.raises(ConfigError) as refusal:
        await open_redis(target)
    return str(refusal.value)


async def test_what_can_never_work_is_said_at_once(tmp_path: Path, resources: ExitStack) -> None:
    authority = Authority(tmp_path)
    secured = resources.enter_context(RedisServer(tmp_path / "tls", password="hunter2", authority=authority))
    address = f"127.0.0.1:{secured.port}"
    ca = f"ca={authority.certificate}"
    assert "Name its authority with ?ca=FILE" in await why_not(f"rediss://:hunter2@{address}")
    assert "no file" in await why_not(f"rediss://:hunter2@{address}?ca={tmp_path}/none.pem")
    assert "cannot be read" in await why_not(f"rediss://{address}?{ca}&password_file={tmp_path}/none")
    assert "no database 99" in await why_not(f"rediss://:hunter2@{address}/99?{ca}")
    assert "refuses the login" in await why_not(f"rediss://{address}?{ca}")
    with secured.client() as client:
        client.hset("{newer}:state", "schema", 99)
    assert "newer GridCore" in await why_not(f"rediss://:hunter2@{address}?{ca}&prefix=newer")


def test_a_refused_login_is_one_clear_line_without_the_password(tmp_path: Path, resources: ExitStack) -> None:
    secured = resources.enter_context(RedisServer(tmp_path / "redis", password="hunter2"))
    line = refusal(tmp_path, f"redis://:wrong-secret@127.0.0.1:{secured.port}")
    assert "refuses the login" in line
    assert "wrong-secret" not in line


def test_the_password_can_stay_out_of_the_file(tmp_path: Path, resources: ExitStack) -> None:
    authority = Authority(tmp_path)
    secured = resources.enter_context(RedisServer(tmp_path / "tls", password="hu nt@r2", authority=authority))
    secret = tmp_path / "secret"
    secret.write_text("hu nt@r2\n")
    by_file = f"rediss://127.0.0.1:{secured.port}?ca={authority.certificate}&password_file={secret}"
    hub = hub_on(resources, tmp_path, by_file)
    assert hub.post("/api/tasks", {"name": "a", "image": "x:1"}).status == 201
    assert hub.stop() == 0
    assert "hu nt@r2" not in hub.log


def test_the_hub_names_what_a_redis_lacks_that_may_lose_its_state(
    tmp_path: Path, resources: ExitStack
) -> None:
    forgetful = resources.enter_context(RedisServer(tmp_path / "redis", FORGETFUL))
    hub = hub_on(resources, tmp_path, forgetful.url)
    for what in ("appendonly is no", "appendfsync is everysec", "maxmemory-policy is allkeys-lru"):
        assert what in hub.log
    (tmp_path / "durable").mkdir()
    durable = resources.enter_context(RedisServer(tmp_path / "redis2"))
    assert "lose" not in hub_on(resources, tmp_path / "durable", durable.url).log


def test_an_address_where_nothing_listens_is_no_reason_to_end(tmp_path: Path, resources: ExitStack) -> None:
    hub = hub_on(resources, tmp_path, f"redis://127.0.0.1:{free_port()}")
    assert "away" in hub.log
    assert hub.stop() == 0


# --- What the log is told ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["one", "cluster"])
def test_that_redis_is_away_is_told_once_and_that_it_is_back_once_in_short_lines(
    tmp_path: Path, resources: ExitStack, kind: str
) -> None:
    servers: list[RedisServer]
    if kind == "one":
        servers = [resources.enter_context(RedisServer(tmp_path / "redis"))]
        state = servers[0].url
    else:
        cluster = resources.enter_context(RedisCluster(tmp_path / "redis"))
        servers, state = cluster.nodes, f"redis+cluster://{cluster.addresses}"
    hub = hub_on(resources, tmp_path, state)
    node = Node(hub.port, "n", wait=2).start()
    resources.callback(node.stop)
    caller = Caller(hub.port)
    before = len(hub.log.splitlines())
    for server in servers:
        server.kill()
    beat = {"node_id": "n", "status": "Idle", "active_containers": 0}
    end = time.monotonic() + 8
    while time.monotonic() < end:
        for method, path, body in (
            ("GET", "/api/tasks", None),
            ("POST", "/api/tasks/finish", None),
            ("POST", "/gridnode/heartbeat", beat),
        ):
            assert caller.ask(method, path, body).status == 503
        time.sleep(0.1)
    for server in servers:
        server.start()
    eventually(lambda: is_up(hub), "the hub is back", 30)
    caller.close()
    told = hub.log.splitlines()[before:]
    assert len(told) == 2, told
    began, ended = told
    assert "the state's Redis is away" in began
    assert "see to that Redis" in began
    assert "the state's Redis answers again" in ended
    assert "times=" in ended
    assert max(len(began), len(ended)) < 320


def test_a_cluster_that_is_away_is_no_reason_to_end(tmp_path: Path, resources: ExitStack) -> None:
    hub = hub_on(resources, tmp_path, f"redis+cluster://127.0.0.1:{free_port()},127.0.0.1:{free_port()}")
    assert hub.get("/api/tasks").status == 503
    assert hub.stop() == 0
    assert "Traceback" not in hub.log
