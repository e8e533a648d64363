"""A Redis whose memory is full: what needs no more of it is done, and what does is told so."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.hub_process import HubProcess
from tests.integration.many_hubs import Hubs, Node, eventually, task_names
from tests.servers.redis_server import DURABLE, RedisServer

FACTS = {"hostname": "h", "architecture": "x86_64", "cpu_count": 1, "agent_version": "1"}
BEAT = {"node_id": "n", "status": "Running", "active_containers": 1}


def limit(server: RedisServer, maxmemory: str) -> None:
    with server.client() as client:
        client.config_set("maxmemory", maxmemory)


def slug(hub: HubProcess, path: str, body: object) -> tuple[int, str]:
    answer = hub.post(path, body)
    return answer.status, answer.json["type"].rpartition(":")[2]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_full_redis_is_read_nodes_live_and_room_can_be_made(tmp_path: Path, restarted: bool) -> None:
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(tmp_path / "redis"))
        (hub,) = stack.enter_context(Hubs(tmp_path, server.url, 1))
        for name in ("a", "b", "c"):
            assert hub.post("/api/tasks", {"name": name, "image": "x:1"}).status == 201
        assert hub.post("/api/tasks/next").status == 200
        node = Node(hub.port, "n", wait=2).start()
        stack.callback(node.stop)
        limit(server, "1")
        if restarted:
            assert hub.stop() == 0
            hub.start()
        for path in ("/api/tasks", "/api/nodes", "/api/nodes/n", "/api/events", "/gridnode/task?node_id=n"):
            assert hub.get(path).status == 200, path
        assert hub.post("/gridnode/heartbeat", BEAT).json["known"]
        assert hub.post("/gridnode/register", {"node_id": "n", **FACTS}).status == 200
        for body in ({"name": "d", "image": "x:1"}, {"name": "e", "image": "x:1"}):
            assert slug(hub, "/api/tasks", body) == (503, "store-full")
        assert slug(hub, "/gridnode/register", {"node_id": "new", **FACTS}) == (503, "store-full")
        assert slug(hub, "/api/tokens", {"role": "viewer", "ttl": 3600, "name": "v"}) == (503, "store-full")
        problem = hub.post("/api/tasks", {"name": "d", "image": "x:1"})
        assert problem.headers["Retry-After"] == "30"
        assert "DELETE" in problem.json["detail"]
        assert hub.request("DELETE", "/api/tasks/c").status == 204
        for path in ("/api/nodes/n/drain", "/api/nodes/n/resume", "/api/tasks/next", "/api/tasks/finish"):
            assert hub.post(path).status == 200, path
        now = hub.get("/api/tasks").json["generation"]
        eventually(lambda: node.generation == now, "the node follows")
        assert task_names(hub.get("/api/tasks")) == ["a", "b"]
        assert hub.post("/gridnode/deregister", {"node_id": "n"}).status == 204
        assert hub.request("DELETE", "/api/nodes/n").status == 204
        assert hub.log.count("no memory left") == 1
        limit(server, "0")
        assert hub.post("/api/tasks", {"name": "d", "image": "x:1"}).status == 201
        assert hub.log.count("has memory again") == 1
        assert "Traceback" not in hub.log


@pytest.mark.parametrize("restarted", [False, True])
def test_a_redis_that_cannot_save_to_its_disk_is_read_and_the_log_says_why(
    tmp_path: Path, restarted: bool
) -> None:
    """It takes no changes then (`stop-writes-on-bgsave-error`), as it comes from its makers."""
    with ExitStack() as stack:
        server = stack.enter_context(RedisServer(tmp_path / "redis", {**DURABLE, "save": "3600 1"}))
        (hub,) = stack.enter_context(Hubs(tmp_path, server.url, 1))
        assert hub.post("/api/tasks", {"name": "a", "image": "x:1"}).status == 201
        assert hub.post("/api/tasks/next").status == 200
        assert hub.post("/gridnode/register", {"node_id": "n", **FACTS}).status == 200
        in_the_way = tmp_path / "redis" / "dump.rdb"
        in_the_way.mkdir()
        assert save(server) == "err"
        if restarted:
            assert hub.stop() == 0
            hub.start()
        for path in ("/api/tasks", "/api/nodes", "/api/nodes/n", "/api/events", "/gridnode/task?node_id=n"):
            assert hub.get(path).status == 200, path
        assert slug(hub, "/api/tasks", {"name": "b", "image": "x:1"}) == (503, "store-unavailable")
        eventually(lambda: "it cannot save to its disk" in hub.log, "the log says why")
        in_the_way.rmdir()
        assert save(server) == "ok"
        assert hub.post("/api/tasks", {"name": "b", "image": "x:1"}).status == 201
        assert hub.post("/gridnode/heartbeat", BEAT).json["known"]


def save(server: RedisServer) -> str:
    """Have it save its snapshot, and how that went."""
    with server.client() as client:
        client.bgsave()
        eventually(lambda: not client.info("persistence")["rdb_bgsave_in_progress"], "it has saved, or not")
        return str(client.info("persistence")["rdb_last_bgsave_status"])
