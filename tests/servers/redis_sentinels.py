"""A master, its replica, and three sentinels that put the replica in the master's place."""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import redis

from tests.servers.children import Child, accepts, find, free_ports, wait_until
from tests.servers.redis_server import DURABLE, RedisServer, wait_for_replica

SERVICE = "gridcore"
"""The name by which clients ask for the master."""

DOWN_AFTER = 500
"""Milliseconds without an answer after which a sentinel takes a server for dead."""

QUORUM = 2


class RedisSentinels:
    """Starts with `with`; `servers` are the first master and the first replica."""

    def __init__(self, directory: Path, *, password: str | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._password = password
        self._resources = ExitStack()
        self.servers: list[RedisServer] = []
        self.ports: list[int] = []

    def __enter__(self) -> RedisSentinels:
        with ExitStack() as started:
            master = started.enter_context(
                RedisServer(self._directory / "master", DURABLE, password=self._password)
            )
            follow = {**DURABLE, "replicaof": f"127.0.0.1 {master.port}"}
            replica = started.enter_context(
                RedisServer(self._directory / "replica", follow, password=self._password)
            )
            self.servers = [master, replica]
            wait_for_replica(master)
            self._start_sentinels(started)
            self._resources = started.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()

    @property
    def addresses(self) -> str:
        """The sentinels, as `host:port,host:port,…`."""
        return ",".join(f"127.0.0.1:{port}" for port in self.ports)

    @property
    def master(self) -> RedisServer:
        """The server that the first sentinel calls master now."""
        with self._ask(self.ports[0]) as sentinel:
            _host, port = sentinel.sentinel_get_master_addr_by_name(SERVICE)
        return next(server for server in self.servers if server.port == int(port))

    def fail_over(self) -> RedisServer:
        """Kill the master with -9 and wait until the other one is it; returns the new master."""
        dead = self.master
        dead.kill()
        wait_until(lambda: self.master is not dead, "the sentinels name another master")
        new = self.master
        with new.client() as client:
            wait_until(lambda: client.info("replication")["role"] == "master", "the replica is a master")
        return new

    def _start_sentinels(self, started: ExitStack) -> None:
        # They are told of each other, or it would take seconds until they have found out.
        free = free_ports()
        self.ports = [next(free) for _ in range(3)]
        ids = {port: secrets.token_hex(20) for port in self.ports}
        for port in self.ports:
            others = [(other, ids[other]) for other in self.ports if other != port]
            directory = self._directory / f"sentinel-{port}"
            directory.mkdir()
            path = directory / "sentinel.conf"
            path.write_text(self._configuration(port, ids[port], others, directory))
            child = Child(
                f"sentinel {port}", [find("redis-server"), str(path), "--sentinel"], directory / "log"
            )
            started.callback(child.kill)
            child.start(lambda port=port: accepts(port))  # type: ignore[misc]  # a default argument binds it
        for port in self.ports:
            with self._ask(port) as sentinel:
                wait_until(lambda: _is_ready(sentinel), "the sentinels agree on the master")

    def _configuration(self, port: int, own_id: str, others: list[tuple[int, str]], directory: Path) -> str:
        master, replica = self.servers
        lines = [
            "bind 127.0.0.1",
            f"port {port}",
            f"dir {directory}",
            f"sentinel myid {own_id}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {master.port} {QUORUM}",
            *([f"sentinel auth-pass {SERVICE} {self._password}"] if self._password else []),
            f"sentinel down-after-milliseconds {SERVICE} {DOWN_AFTER}",
            f"sentinel failover-timeout {SERVICE} 3000",
            f"sentinel known-replica {SERVICE} 127.0.0.1 {replica.port}",
            *(f"sentinel known-sentinel {SERVICE} 127.0.0.1 {other} {its_id}" for other, its_id in others),
        ]
        return "\n".join(lines) + "\n"

    def _ask(self, port: int) -> redis.Redis:
        client: redis.Redis = redis.Redis(port=port, decode_responses=True, socket_timeout=5)
        return client


def _is_ready(sentinel: redis.Redis) -> bool:
    """Whether a failover could be decided, and the replica be chosen."""
    try:
        sentinel.sentinel_ckquorum(SERVICE)
        (replica,) = sentinel.sentinel_slaves(SERVICE)
    except (redis.RedisError, ValueError):
        return False
    return (
        not replica["is_sdown"] and not replica["is_disconnected"] and replica["master-link-status"] == "ok"
    )
