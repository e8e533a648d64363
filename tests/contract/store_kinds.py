"""The stores that the contract suite runs against, and the clock that it turns."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from hub.journal_sqlite import open_sqlite
from hub.registry import Instant
from hub.store import Store
from hub.store_local import LocalStore, open_memory


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self._now = Instant(monotonic=1_000.0, wall=1_700_000_000.0)

    def read(self) -> Instant:
        return self._now

    def advance(self, seconds: float) -> None:
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
        return self._store

    async def reopen(self) -> Store:
        await self.end()
        return await self.open()

    async def end(self) -> None:
        if self._store is not None:
            await self._store.close()
            self._store = None


KINDS: tuple[type[StoreKind], ...] = (Memory, Sqlite)
