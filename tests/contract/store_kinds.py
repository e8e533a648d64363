"""The stores that the contract suite runs against, and the clock that it turns."""

from __future__ import annotations

import atexit
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Protocol

import redis

from hub.journal_sqlite import open_sqlite
from hub.observed import MOST_PASSED, Instant
from hub.redis_script import SWEEP
from hub.redis_url import RedisTarget, parse_redis
from hub.store import Store
from hub.store_local import LocalStore, open_memory
from hub.store_redis import RedisStore, open_redis
from tests.servers.redis_cluster import RedisCluster
from tests.servers.redis_server import RedisServer


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self._now = Instant(monotonic=1_000.0, wall=1_700_000_000.0)
        self.watch: Callable[[], object] = self.read
        """What a hub that is there does every few seconds."""

    def read(self) -> Instant:
        return self._now

    def advance(self, seconds: float) -> None:
        """Let time pass in which a hub is there."""
        while seconds > 0:
            step = min(seconds, MOST_PASSED)
            self.pass_unseen(step)
            self.watch()
            seconds -= step

    def pass_unseen(self, seconds: float) -> None:
        """Let time pass in which no hub is there to hear: off, stopped or suspended."""
        self._now = Instant(self._now.monotonic + seconds, self._now.wall + seconds)

    def step_wall(self, seconds: float) -> None:
        self._now = Instant(self._now.monotonic, self._now.wall + seconds)

    def restart(self) -> None:
        """A machine that boots: the monotonic clock begins anew."""
        self._now = Instant(5.0, self._now.wall)


class StoreKind(Protocol):
    clock: Clock
    survives: bool

    def __init__(self, directory: Path) -> None: ...
    async def open(self) -> Store: ...
    async def reopen(self) -> Store:
        """As after a restart of the hub; the same store where it cannot survive one."""

    async def end(self) -> None: ...


class Memory:
    survives = False

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self._store: LocalStore | None = None

    async def open(self) -> Store:
        self._store = open_memory(clock=self.clock.read)
        self.clock.watch = self._store.observe
        return self._store

    async def reopen(self) -> Store:
        assert self._store is not None
        return self._store

    async def end(self) -> None:
        if self._store is not None:
            await self._store.close()


class Sqlite:
    survives = True

    def __init__(self, directory: Path) -> None:
        self.clock = Clock()
        self._path = directory / "hub.db"
        self._store: LocalStore | None = None

    async def open(self) -> Store:
        self._store = await open_sqlite(self._path, clock=self.clock.read)
        self.clock.watch = self._store.observe
        return self._store

    async def reopen(self) -> Store:
        await self.end()
        return await self.open()

    async def end(self) -> None:
        if self._store is not None:
            await self._store.close()
            self._store = None


class SharedClock(Clock):
    """The clock of a Redis, which goes on when a hub starts anew.

    While time passes, another hub sweeps every few seconds, as hubs do, or time would not count; its sweeps
    call nobody Offline, however silent they are.
    """

    def __init__(self, client: redis.Redis, prefix: str) -> None:
        super().__init__()
        self._client = client
        self._state = f"{prefix}state"
        self.watch = self._sweep

    def restart(self) -> None:
        """Redis was away for a while."""
        self.pass_unseen(2 * MOST_PASSED)
        self._sweep()

    def _sweep(self) -> None:
        never = 1e12
        arguments = (self.read().wall, "another", never, never, "{}", 20, never, never)
        self._client.eval(SWEEP.text, 1, self._state, *arguments)


_servers = ExitStack()
atexit.register(_servers.close)
_prefixes = (f"test{number}" for number in count(1))


class OnRedis:
    """A store in a Redis that all tests share; each has a prefix of its own."""

    survives = True

    def __init__(self, target: RedisTarget, server: RedisServer) -> None:
        """`server` is the one that has this target's keys."""
        self._target = target
        self._client = server.client()
        self.clock: Clock = SharedClock(self._client, target.prefix)
        self._store: RedisStore | None = None

    async def open(self) -> Store:
        self._store = await open_redis(self._target, clock=lambda: self.clock.read().wall)
        return self._store

    async def reopen(self) -> Store:
        assert self._store is not None
        await self._store.close()
        return await self.open()

    async def end(self) -> None:
        if self._store is not None:
            await self._store.close()
        self._client.close()


class OneRedis(OnRedis):
    def __init__(self, directory: Path) -> None:
        server = _one_redis()
        super().__init__(_target(f"{server.url}?prefix={next(_prefixes)}"), server)


class ClusteredRedis(OnRedis):
    def __init__(self, directory: Path) -> None:
        cluster = _redis_cluster()
        target = _target(f"redis+cluster://{cluster.addresses}?prefix={next(_prefixes)}")
        super().__init__(target, cluster.owner_of(f"{target.prefix}state"))


@cache
def _one_redis() -> RedisServer:
    return _servers.enter_context(RedisServer(Path(mkdtemp(prefix="gridcore-redis-"))))


@cache
def _redis_cluster() -> RedisCluster:
    return _servers.enter_context(RedisCluster(Path(mkdtemp(prefix="gridcore-cluster-"))))


def _target(url: str) -> RedisTarget:
    target = parse_redis(url)
    assert target is not None
    return target


KINDS: tuple[type[StoreKind], ...] = (Memory, Sqlite, OneRedis, ClusteredRedis)
