"""Looking at a task's queues in the Redis that the task names: how long they are, or why nobody knows.

A look changes nothing there. It has short deadlines, since a user's Redis may hang or be gone; of each URL
one connection is kept, and closed once nobody asks any more. A Redis that fails is left alone for a while,
longer each time. No reason holds a URL: only what is wrong, in plain words.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import redis.exceptions
from redis.asyncio import Connection, Redis, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from gridcore.masking import mask_values, url_password
from gridcore.protocol import TaskDefinition
from hub.reasons import reason_of
from hub.redis_name import name_connection

CONNECT_TIME = 2.0
"""Seconds in which a Redis must accept a connection."""

LOOK_TIME = 5.0
"""Seconds in which a look must be over, connection and all."""

UNUSED_AFTER = 60.0
"""Seconds after which a connection that nobody asked for is closed."""

LONGEST_REST = 30.0
"""Seconds that a Redis which failed again and again is left alone, at most."""

MOST_SOURCES = 32
"""Connections that are kept; more are made and closed again."""

LENGTHS = {"list": "LLEN", "zset": "ZCARD", "stream": "XLEN", "set": "SCARD"}
"""What tells the length of a key, by its type."""

OPTIONS = frozenset(
    {"host", "port", "db", "username", "password", "ssl_cert_reqs", "ssl_check_hostname", "ssl_ca_certs"}
)
"""What a URL may say of the connection. Everything else in it is for the containers' own client."""


@dataclass(frozen=True, slots=True)
class Length:
    """How many items a queue has, or None and the reason why that is not known."""

    items: int | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Queues:
    """Both queues of a task, as one look saw them."""

    input: Length
    output: Length


class QueueEyes:
    """Looks at queues, over as few connections as there are URLs."""

    def __init__(self, *, look_time: float = LOOK_TIME, connect_time: float = CONNECT_TIME) -> None:
        self._look_time = look_time
        self._connect_time = connect_time
        self._sources: dict[str, _Source] = {}

    def __len__(self) -> int:
        return len(self._sources)

    async def look(self, definition: TaskDefinition) -> Queues:
        """How long a task's queues are now; takes LOOK_TIME at most, and never raises for a Redis."""
        # Together: a Redis of the output that hangs must not make the input late.
        input_, output = await asyncio.gather(
            self._length("input", definition.input_redis, definition.input_queue),
            self._length("output", definition.output_redis, definition.output_queue),
        )
        return Queues(input_, output)

    async def close_unused(self, unused_after: float = UNUSED_AFTER) -> None:
        """Let go of what nobody asked for of late, and of the oldest where there are too many."""
        now = time.monotonic()
        by_age = sorted(self._sources.items(), key=lambda item: item[1].used_at)
        too_many = len(by_age) - MOST_SOURCES
        for place, (url, source) in enumerate(by_age):
            if not source.is_busy and (place < too_many or now - source.used_at >= unused_after):
                del self._sources[url]
                await source.close()

    async def close(self) -> None:
        """Let go of all connections."""
        sources, self._sources = list(self._sources.values()), {}
        for source in sources:
            await source.close()

    async def _length(self, side: str, url: str | None, queue: str | None) -> Length:
        missing = [
            name for name, value in ((f"{side}_redis", url), (f"{side}_queue", queue)) if value is None
        ]
        if url is None or queue is None:
            return Length(None, f"the task does not name {' and '.join(missing)}: the image decides")
        if _scheme(url) not in ("redis", "rediss"):
            return Length(None, f"{side}_redis is no redis:// or rediss:// URL")
        source = self._sources.get(url)
        if source is None:
            source = self._sources[url] = _Source(url, self._connect_time, self._look_time)
            await self.close_unused()
        return await source.length(queue)


def _scheme(url: str) -> str:
    """The scheme of a URL, empty where it is none."""
    try:
        return urlsplit(url).scheme
    except ValueError:
        return ""


class _Source:
    """One URL: its connection, and how it went of late."""

    def __init__(self, url: str, connect_time: float, look_time: float) -> None:
        self._url = url
        self._times = (connect_time, look_time)
        self._client: Redis | None = None
        self._turn = asyncio.Lock()  # one connection: looks take turns
        self._waiting = 0
        self._failures = 0
        self._rest_until = 0.0
        self._problem = ""
        self.used_at = time.monotonic()

    @property
    def is_busy(self) -> bool:
        return self._waiting > 0

    async def length(self, queue: str) -> Length:
        self.used_at = time.monotonic()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._times[1]), self._turn:
                if time.monotonic() < self._rest_until:
                    return Length(None, self._problem)
                found = await self._ask(queue)
                self._failures = 0
                return found
        except TimeoutError:
            return await self._failed(f"the Redis did not answer within {self._times[1]:g} s")
        except Exception as error:  # whatever a URL of a user's leads to: it is not known, and that is all
            return await self._failed(self._explain(error))
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(redis.exceptions.RedisError, OSError, TimeoutError):
                async with asyncio.timeout(1):  # one that hangs must not hold up the end
                    await client.aclose()

    async def _ask(self, queue: str) -> Length:
        client = self._client = self._client or _connect(self._url, *self._times)
        try:
            return await _length(client, queue)
        except asyncio.CancelledError:  # an answer may still be under way on this connection
            await self.close()
            raise

    async def _failed(self, problem: str) -> Length:
        await self.close()
        self._failures += 1
        self._problem = problem
        rest = min(2.0 ** (self._failures - 1), LONGEST_REST)
        self._rest_until = time.monotonic() + rest
        return Length(None, problem)

    def _explain(self, error: Exception) -> str:
        if isinstance(error, redis.exceptions.AuthenticationError):
            return "the Redis refuses the login in the URL, or wants one"
        if isinstance(error, redis.exceptions.NoPermissionError):
            return "the Redis does not let this login look at the queue"
        if isinstance(error, redis.exceptions.TimeoutError):
            return "the Redis did not answer in time"
        if isinstance(error, redis.exceptions.MovedError | redis.exceptions.AskError):
            return "the Redis is one node of a Cluster and does not hold the queue"
        if isinstance(error, ValueError | TypeError):
            return "the URL cannot be understood"
        password = url_password(self._url)
        said = mask_values(reason_of(error), [password] if password else [])
        is_away = isinstance(error, redis.exceptions.ConnectionError | OSError)
        return f"the Redis cannot be {'reached' if is_away else 'used'}: {said}"


async def _length(client: Redis, queue: str) -> Length:
    try:
        kind = (await _ask(client, "TYPE", queue)).decode()
    except redis.exceptions.NoPermissionError:  # a list is what a login can most likely look at
        kind = "list"
    if kind == "none":
        return Length(0)
    if kind not in LENGTHS:
        return Length(None, f"the key is a {kind}, which is no queue")
    return Length(int(await _ask(client, LENGTHS[kind], queue)))


async def _ask(client: Redis, *command: str) -> Any:
    return await client.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py lacks it


def _connect(url: str, connect_time: float, look_time: float) -> Redis:
    """A client of one connection, made at the first command. Raises ValueError, TypeError."""
    given: dict[str, Any] = {name: value for name, value in parse_url(url).items() if name in OPTIONS}
    if urlsplit(url).scheme == "rediss":
        given["ssl"] = True
    return Redis(
        **given,
        socket_connect_timeout=connect_time,
        socket_timeout=look_time,
        # Once more over a new connection: this one may have been closed while nobody looked.
        retry=Retry(NoBackoff(), 1, supported_errors=(redis.exceptions.ConnectionError,)),
        single_connection_client=True,
        protocol=2,  # old servers know no other
        redis_connect_func=_meet,
    )


async def _meet(connection: Connection | SSLConnection) -> None:
    """Log in, and say who it is."""
    await connection.on_connect()
    await name_connection(connection, "computehub")
