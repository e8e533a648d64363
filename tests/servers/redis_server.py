"""One real redis-server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import quote

import redis

from tests.servers.authority import Authority
from tests.servers.children import Child, ServerError, find, free_ports, wait_until

DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""What a hub asks of the Redis that keeps its state."""

FORGETFUL = {"appendonly": "no", "maxmemory-policy": "allkeys-lru"}
"""What loses state, at a restart or when memory is short."""

ATTEMPTS = 3
"""Ports that are tried: another test run may have taken the first one a moment ago."""


class RedisServer:
    """Starts with `with`; its data stay in its directory, so that it can be started again."""

    def __init__(
        self,
        directory: Path,
        options: Mapping[str, str] = DURABLE,
        *,
        password: str | None = None,
        authority: Authority | None = None,
    ) -> None:
        """With an `authority` it speaks TLS only, and shows a certificate signed by it."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.port = 0
        self._options = dict(options)
        self._password = password
        self._authority = authority
        self._pair = authority.issue("redis") if authority else None
        self._child: Child | None = None

    def __enter__(self) -> RedisServer:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    @property
    def child(self) -> Child:
        """The process, from the first start on."""
        assert self._child is not None, "it was never started"
        return self._child

    def start(self) -> RedisServer:
        """Start, or start again on the same data and port. Raises ServerError."""
        if self._child is not None:
            self._child.start(self._answers)
            return self
        ports, problem = free_ports(), ServerError()
        for _ in range(ATTEMPTS):
            self.port = next(ports)
            child = Child(f"redis-server {self.port}", self._command(next(ports)), self.directory / "log")
            try:
                child.start(self._answers)
            except ServerError as error:
                problem = error
            else:
                self._child = child
                return self
        raise problem

    def stop(self) -> None:
        """End it as the service manager does."""
        self.child.stop()

    def kill(self) -> None:
        """kill -9, if it runs."""
        if self._child is not None:
            self._child.kill()

    def pause(self) -> None:
        """Let it hang: connections stay open, nothing answers."""
        self.child.pause()

    def resume(self) -> None:
        """Let it go on."""
        self.child.resume()

    @property
    def url(self) -> str:
        """Where a client finds it, password included."""
        scheme = "rediss" if self._pair else "redis"
        login = f":{quote(self._password, safe='')}@" if self._password else ""
        return f"{scheme}://{login}127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        """A client that reads text; close it."""
        if self._authority is not None:
            options["ssl_ca_certs"] = str(self._authority.certificate)
        options = {"decode_responses": True, "socket_timeout": 5, **options}
        client: redis.Redis = redis.Redis.from_url(self.url, **options)
        return client

    def _command(self, bus_port: int) -> list[str]:
        lines = {
            "bind": "127.0.0.1",
            "port": "0" if self._pair else str(self.port),
            "dir": str(self.directory),
            "save": '""',
            "repl-diskless-sync-delay": "0",
            **self._options,
        }
        if "cluster-enabled" in lines:
            lines["cluster-port"] = str(bus_port)
        if self._pair is not None and self._authority is not None:
            lines |= {
                "tls-port": str(self.port),
                "tls-cert-file": str(self._pair.certificate),
                "tls-key-file": str(self._pair.key),
                "tls-ca-cert-file": str(self._authority.certificate),
                "tls-auth-clients": "no",
            }
        if self._password is not None:
            quoted = f'"{self._password}"'
            lines |= {"requirepass": quoted, "masterauth": quoted}
        path = self.directory / "redis.conf"
        path.touch(0o600)
        path.write_text("".join(f"{key} {value}\n" for key, value in lines.items()))
        return [find("redis-server"), str(path)]

    def _answers(self) -> bool:
        # From a socket of its own: somebody else's server on this port must not be taken for ours.
        try:
            with self.client(socket_timeout=1) as client:
                return bool(client.config_get("dir")["dir"] == str(self.directory.resolve()))
        except redis.RedisError:
            return False


def wait_for_replica(master: RedisServer) -> None:
    """Wait until a replica follows. Raises ServerError."""
    with master.client() as client:

        def follows() -> bool:
            replica = client.info("replication").get("slave0")
            return isinstance(replica, dict) and replica["state"] == "online"

        wait_until(follows, "a replica follows")
