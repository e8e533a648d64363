"""Where the Redis is that may be written to now, and whether it is fit to keep a hub's state."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from redis import exceptions
from redis.asyncio import Connection, SSLConnection
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
from redis.backoff import NoBackoff

from gridcore.errors import ConfigError
from hub.errors import StoreUnavailable
from hub.redis_url import RedisTarget

OLDEST = (7, 0)
"""The first version that can do what the hub asks: stream ids with a time of ours, scripts that say what they
are, several settings asked for at once."""

CONNECT_TIMEOUT = 2.0
"""Seconds."""

DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""Without these, Redis may lose what the hub acknowledged."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """One server, and what it takes to speak to it."""

    host: str
    port: int
    options: dict[str, Any]
    tls: dict[str, Any] | None

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"

    async def connect(self) -> Connection | SSLConnection:
        """A connection that is logged in. Raises OSError, RedisError."""
        where = {"host": self.host, "port": self.port, **self.options}
        connection = SSLConnection(**where, **self.tls) if self.tls is not None else Connection(**where)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py lacks it
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection


async def find_place(target: RedisTarget, client_name: str) -> Place:
    """The server to write to, which has been asked whether it is fit.

    Raises:
        ConfigError: it never will be, as things are.
        StoreUnavailable: it is not now.
    """
    login = {"username": target.username, "password": _secret(target.password_file) or target.password}
    tls = {"ssl_ca_certs": str(target.ca) if target.ca else None} if target.tls else None
    if target.ca is not None and not await asyncio.to_thread(target.ca.is_file):
        raise ConfigError(f"state: ca: there is no file {target.ca}")
    try:
        host, port = await _find(target, login, tls)
        common = {
            "db": target.database,
            "client_name": client_name,
            "decode_responses": True,
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": CONNECT_TIMEOUT,
        }
        place = Place(host, port, {**login, **common}, tls)
        await _check(place, target)
    except exceptions.AuthenticationError as error:
        raise ConfigError(f"state: Redis at {target.name} refuses the login: {error}") from None
    except (OSError, exceptions.RedisError) as error:
        if "DB index" in str(error):
            raise ConfigError(f"state: Redis at {target.name} has no database {target.database}") from None
        if isinstance(_cause(error), ssl.SSLCertVerificationError):
            raise ConfigError(
                f"state: the certificate of Redis at {target.name} is not trusted: {_cause(error)}. "
                "Name its authority with ?ca=FILE"
            ) from None
        raise StoreUnavailable(f"Redis at {target.name} cannot be reached: {error}") from error
    return place


async def _find(target: RedisTarget, login: dict[str, Any], tls: dict[str, Any] | None) -> tuple[str, int]:
    if target.form == "sentinel":
        return await _ask_sentinels(target, tls)
    if target.form == "cluster":
        return await _ask_cluster(target, login, tls)
    return target.hosts[0]


async def _ask_sentinels(target: RedisTarget, tls: dict[str, Any] | None) -> tuple[str, int]:
    options = {
        "password": _secret(target.sentinel_password_file),
        "socket_timeout": CONNECT_TIMEOUT,
        "socket_connect_timeout": CONNECT_TIMEOUT,
        "retry": Retry(NoBackoff(), 0),
        **({"ssl": True, **tls} if tls is not None else {}),
    }
    sentinels = Sentinel(list(target.hosts), sentinel_kwargs=options)  # type: ignore[no-untyped-call]  # redis-py lacks it
    try:
        host, port = await sentinels.discover_master(target.service)
    except MasterNotFoundError as error:
        raise StoreUnavailable(f"no sentinel names a master of {target.service}: {error}") from error
    finally:
        for sentinel in sentinels.sentinels:
            await sentinel.aclose()
    return str(host), int(port)


async def _ask_cluster(
    target: RedisTarget, login: dict[str, Any], tls: dict[str, Any] | None
) -> tuple[str, int]:
    cluster = RedisCluster(
        startup_nodes=[ClusterNode(host, port) for host, port in target.hosts],
        socket_timeout=CONNECT_TIMEOUT,
        socket_connect_timeout=CONNECT_TIMEOUT,
        retry=Retry(NoBackoff(), 0),
        **login,
        **({"ssl": True, **tls} if tls is not None else {}),
    )
    try:
        await cluster.initialize()
        node = cluster.get_node_from_key(f"{target.prefix}state")
    finally:
        await cluster.aclose()
    if node is None:
        raise StoreUnavailable("no node of the cluster has the slot of the hub's keys")
    return node.host, int(node.port)


async def _check(place: Place, target: RedisTarget) -> None:
    connection = await place.connect()
    try:
        await connection.send_command("INFO")
        info = dict(
            line.split(":", 1) for line in (await connection.read_response()).split("\r\n") if ":" in line
        )
        version = info["redis_version"]
        if tuple(int(number) for number in version.split(".")[:2]) < OLDEST:
            oldest = ".".join(map(str, OLDEST))
            raise ConfigError(f"state: Redis at {place.name} is {version}; the hub needs {oldest} or newer")
        if info.get("cluster_enabled") == "1" and target.form != "cluster":
            raise ConfigError(f"state: Redis at {place.name} is part of a cluster: write redis+cluster://")
        if info["role"] != "master":
            raise StoreUnavailable(f"{place.name} is a replica, and cannot be written to")
        if info["loading"] != "0":
            raise StoreUnavailable(f"{place.name} still loads its data")
        _warn_of(place, await _missing(connection))
    finally:
        await connection.disconnect(nowait=True)


async def _missing(connection: Connection | SSLConnection) -> str:
    """What of DURABLE is otherwise."""
    try:
        await connection.send_command("CONFIG", "GET", *DURABLE)
        answer = await connection.read_response()
    except exceptions.ResponseError:
        return "the hub may not ask for its settings (CONFIG GET)"
    found = dict(zip(answer[::2], answer[1::2], strict=True))
    return ", ".join(
        f"{key} is {found.get(key)}, not {value}" for key, value in DURABLE.items() if found.get(key) != value
    )


_warned: set[tuple[str, str]] = set()


def _warn_of(place: Place, missing: str) -> None:
    if missing and (place.name, missing) not in _warned:
        _warned.add((place.name, missing))
        log.warning("Redis may lose what the hub acknowledged", redis=place.name, missing=missing)


def _secret(path: Path | None) -> str | None:
    """What is in a file, without blanks around it. Raises ConfigError."""
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"state: {path} cannot be read: {error}") from None


def _cause(error: BaseException) -> BaseException:
    """What is at the bottom of an error."""
    below = error.__cause__ or error.__context__
    return error if below is None else _cause(below)
