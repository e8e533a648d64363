"""Where the Redis is that may be written to now, and whether it is fit to keep a hub's state."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import structlog
from redis import exceptions
from redis.asyncio import Connection, SSLConnection
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff

from gridcore.errors import ConfigError
from gridcore.trust import Doubt, doubt_of
from hub.errors import StoreAway
from hub.reasons import cause_of, reason_of
from hub.redis_name import name_connection
from hub.redis_url import RedisTarget

NO_DATABASE = "DB index is out of range"
"""Redis' words where it has fewer databases; it has no code for it."""

OLDEST = (7, 0)
"""The first version that can do what the hub asks: stream ids with a time of ours, scripts that say what they
are, several settings asked for at once."""

CONNECT_TIMEOUT = 2.0
"""Seconds."""

DURABLE = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction"}
"""Without these, Redis may lose what the hub acknowledged."""

RIGHTS = 'docs/security.md has the line of "ACL SETUSER" that a hub needs'

FAILURES = (OSError, exceptions.RedisError, exceptions.RedisClusterException)
"""What the library raises where Redis cannot be spoken to; the last one is no RedisError there."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Place:
    """One server, and what it takes to speak to it."""

    host: str
    port: int
    options: dict[str, Any]
    tls: dict[str, Any] | None
    client_name: str = ""
    history: tuple[str, str] = ("", "")
    """Redis' ids of its replication history, and of the one that it went on from when it was promoted."""

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"

    async def connect(self) -> Connection | SSLConnection:
        """A connection that is logged in. Raises OSError, RedisError."""
        where = {"host": self.host, "port": self.port, **self.options}
        connection = SSLConnection(**where, **self.tls) if self.tls is not None else Connection(**where)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]  # redis-py lacks it
            await name_connection(connection, self.client_name)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection

    def is_promoted_from(self, history: str) -> bool:
        """Whether it was a replica of the server with this history, and is in its place now."""
        return bool(history) and history == self.history[1] != self.history[0]


async def find_place(target: RedisTarget, client_name: str) -> Place:
    """The server to write to, which has been asked whether it is fit.

    Raises:
        ConfigError: it never will be, as things are.
        StoreUnavailable: it is not now.
    """
    login = {"username": target.username, "password": _secret(target.password_file) or target.password}
    tls = {"ssl_ca_certs": str(target.ca) if target.ca else None} if target.tls else None
    if target.ca is not None:
        await asyncio.to_thread(_insist_on_file, target.ca)
    at = ""
    try:
        host, port = await _find(target, login, tls)
        at = f"{host}:{port}"
        common = {
            "db": target.database,
            "decode_responses": True,
            "encoding_errors": "surrogateescape",  # what is no text is no JSON either: damaged
            "protocol": 2,
            "socket_timeout": None,
            "socket_connect_timeout": CONNECT_TIMEOUT,
        }
        place = Place(host, port, {**login, **common}, tls, client_name)
        return replace(place, history=await _check(place, target))
    except exceptions.AuthenticationError:
        raise ConfigError(f"state: Redis at {target.name} refuses the login") from None
    except FAILURES as error:
        below = cause_of(error)
        if isinstance(error, exceptions.ResponseError) and str(error) == NO_DATABASE:
            raise ConfigError(f"state: Redis at {target.name} has no database {target.database}") from None
        if isinstance(below, ssl.SSLCertVerificationError):
            raise ConfigError(_distrusted(target, at, below)) from None
        if isinstance(error, exceptions.NoPermissionError):
            raise ConfigError(f"state: {target.name}: {reason_of(error)}. {RIGHTS}") from None
        raise StoreAway(f"Redis at {at or target.name} cannot be used: {reason_of(error)}") from error


def _distrusted(target: RedisTarget, at: str, error: ssl.SSLCertVerificationError) -> str:
    """What is wrong with a certificate, and what to do about just that."""
    doubt = doubt_of(error)
    do = f"Is {target.ca} the authority that signed it?" if target.ca else "Name its authority with ?ca=FILE"
    if doubt is Doubt.OTHER_NAME:
        do = f"Use a name or address that stands in it, or put {at.rpartition(':')[0] or 'this one'} into it"
        if target.form != "direct":
            do += ". Sentinels and clusters name servers as those announce themselves "
            do += "(replica-announce-ip, cluster-announce-hostname)"
    elif doubt in (Doubt.EXPIRED, Doubt.NOT_YET):
        do = "Give Redis another one, or set the clock"
    elif doubt is Doubt.OTHER:
        do = "Give Redis another one"
    return f"state: Redis at {at or target.name} is not believed: {reason_of(error)}. {do}"


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
    problems = []
    try:
        for (host, port), sentinel in zip(target.hosts, sentinels.sentinels, strict=True):
            try:
                master = _named(await sentinel.sentinel_masters(), target.service)
            except (OSError, exceptions.RedisError) as error:
                if isinstance(cause_of(error), ssl.SSLCertVerificationError):
                    raise
                problems.append(f"{host}:{port}: {reason_of(error)}")
                continue
            if master and sentinels.check_master_state(master, target.service):
                return str(master["ip"]), int(master["port"])
            problems.append(f"{host}:{port}: {'the master is down' if master else 'it knows no such master'}")
    finally:
        for sentinel in sentinels.sentinels:
            await sentinel.aclose()
    raise StoreAway(f"no sentinel names a master of {target.service}: {'; '.join(problems)}")


def _named(masters: Any, service: str) -> dict[str, Any] | None:
    """One of the masters that a sentinel told of."""
    found: dict[str, Any] | None = masters.get(service)
    return found


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
        raise StoreAway("no node of the cluster has the slot of the hub's keys")
    return node.host, int(node.port)


async def _check(place: Place, target: RedisTarget) -> tuple[str, str]:
    """Its histories. Raises what `find_place` does, OSError, RedisError."""
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
            raise StoreAway(f"{place.name} is a replica, and cannot be written to")
        if info["loading"] != "0":
            raise StoreAway(f"{place.name} still loads its data")
        _warn_of(place, await _missing(connection))
        return info["master_replid"], info["master_replid2"]
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


def _insist_on_file(path: Path) -> None:
    """Raises ConfigError where TLS would find none there."""
    try:
        if path.is_file():
            return
    except OSError as error:  # waiting for Redis would not help
        raise ConfigError(f"state: ca: {path} cannot be read: {error.strerror}") from None
    raise ConfigError(f"state: ca: there is no file {path}")


def _secret(path: Path | None) -> str | None:
    """What is in a file, without blanks around it. Raises ConfigError."""
    if path is None:
        return None
    try:
        return path.read_text().strip()
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"state: {path} cannot be read: {error}") from None
