"""The way to the Redis that keeps the state: finding it, asking it, losing it, finding it again.

One server at a time: the one that is given, the one that sentinels call master, or the node of a cluster that
has the slot of our keys. A *session* is the time with one of them. It ends with the first sign that it is no
longer the right one, and until the next has begun every call fails at once: nobody waits for a Redis that
is away, and a call has a deadline for one that hangs.

A call that fails has done nothing, unless it may have arrived: then its outcome is unknown, and said to be.
Nothing is sent twice.
"""

from __future__ import annotations

import asyncio
import random
from contextlib import suppress
from copy import copy
from typing import Any, Protocol

from redis import exceptions
from redis.asyncio import Connection, SSLConnection

from gridcore.errors import ConfigError
from hub.errors import OutcomeUnknown, StateLost, StoreAway, StoreFull, StoreUnavailable
from hub.reasons import cause_of, reason_of
from hub.redis_beginning import BEGIN, FOUND, OPEN, REFUSE
from hub.redis_conditions import RedisConditions
from hub.redis_place import FAILURES, RIGHTS, Place, find_place
from hub.redis_script import ANSWER, ASK, READ, SWEEP, TOUCH
from hub.redis_url import RedisTarget
from hub.redis_write import WRITE, WRITE_ANYWAY

DEADLINE = 5.0
"""Seconds that a call may take."""

MOST_CALLS = 32
"""Calls at a time, each on a connection of its own."""

LOOK_INTERVAL = 1.0
"""Seconds between two looks at whether Redis still answers, and whether something was missed."""

BACKOFF = (0.05, 3.0)
"""Seconds between two attempts to find it: the first and the longest; each less up to a half, by chance."""

OVER = (
    exceptions.ReadOnlyError,
    exceptions.MovedError,
    exceptions.AskError,
    exceptions.TryAgainError,
    exceptions.ClusterDownError,
    exceptions.MasterDownError,
    exceptions.NoScriptError,
    exceptions.AuthenticationError,
)
"""Answers of a server that is not, or no longer, the right one."""

REFUSED = (*OVER, exceptions.NoPermissionError)
REFUSALS = ("MISCONF ", "NOREPLICAS ", "BUSY ")
"""Answers that say that nothing was done: Redis' codes, their first word, where there is no class."""

SCRIPTS = (OPEN, FOUND, REFUSE, BEGIN, READ, WRITE, WRITE_ANYWAY, TOUCH, SWEEP, ASK, ANSWER)

MAKE_ROOM = (
    "What needs no more room is done all the same: remove tasks or nodes that nobody needs (DELETE), "
    "or make room, then send the request again"
)
"""For a Redis that is full: DELETE is done there (`redis_script.py`)."""

Command = tuple[Any, ...]
Redis = Connection | SSLConnection


class Session(Protocol):
    """What is done with a session."""

    async def begin(self) -> None:
        """It begins, and what is told is heard already. Raises StoreUnavailable, ConfigError."""

    async def look_for_missed(self) -> bool:
        """See whether something was told that was not heard, and do as if it was. Raises StoreUnavailable."""

    async def hear(self, channel: str, message: str) -> None:
        """Something was told."""


class RedisLink:
    """Keeps a session with Redis from `open` to `close`."""

    def __init__(self, target: RedisTarget, client_name: str, channels: tuple[str, ...]) -> None:
        self.target = target
        self.number = 0
        """Of the session: what was read in an earlier one says nothing about this."""
        self._client_name = client_name
        self._channels = channels
        self._place: Place | None = None
        self._is_up = False
        self._trouble: StoreUnavailable = StoreAway("Redis is away: it was not reached yet")
        self.conditions = RedisConditions(target.name)
        self._over = asyncio.Event()
        self._idle: list[Redis] = []
        self._calls = asyncio.Semaphore(MOST_CALLS)
        self._keeper: asyncio.Task[None] | None = None
        self._listener: asyncio.Task[None] | None = None

    async def open(self, session: Session) -> None:
        """Begin the first session, now or as soon as Redis is there. Raises ConfigError."""
        try:
            await self._begin(session)
        except StoreUnavailable as error:
            self._tell(error)
        except BaseException:
            await self.close()
            raise
        self._keeper = asyncio.create_task(self._keep(session))

    async def close(self) -> None:
        """End it; no call may follow."""
        for task in (self._keeper, self._listener):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        await self._end()

    def check(self) -> None:
        """Raises StoreUnavailable while there is no session."""
        if not self._is_up:
            raise copy(self._trouble)

    async def call(self, *commands: Command, changes: bool = False) -> list[Any]:
        """The answers to these commands, sent together on one connection.

        Raises:
            OutcomeUnknown: `changes`, and they may have been done.
            StoreUnavailable: nothing was done.
        """
        self.check()
        answers = await self.ask(*commands, changes=changes)
        if changes:
            self.conditions.wrote()
        return answers

    async def ask(self, *commands: Command, changes: bool = False) -> list[Any]:
        """The same while the session begins."""
        connection, is_sent, idle = None, False, self._idle
        try:
            async with asyncio.timeout(DEADLINE), self._calls:
                connection = await self._take()
                is_sent = True
                await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
                answers = [await _read(connection) for _ in commands]
        except (OSError, exceptions.ConnectionError, exceptions.TimeoutError) as error:
            await _drop(connection)
            away = StoreAway(f"Redis is away: {reason_of(error)}")
            self.lose(away)
            if changes and is_sent and not isinstance(error, exceptions.BusyLoadingError):
                raise OutcomeUnknown(f"Redis was lost before it answered: {reason_of(error)}") from error
            raise away from error
        except BaseException:  # who asked has gone; an answer that is still to come must find nobody
            await _drop(connection)
            raise
        if idle is self._idle:
            idle.append(connection)
        else:  # the session is over: the next one may be with another server
            await _drop(connection)
        for answer in answers:
            if isinstance(answer, exceptions.ResponseError):
                self._refuse(answer, changes)
        return answers

    def _refuse(self, error: exceptions.ResponseError, changes: bool) -> None:
        why = reason_of(error)
        if isinstance(error, exceptions.OutOfMemoryError):
            self.conditions.is_full()
            raise StoreFull("the state's Redis has no memory left", MAKE_ROOM)
        if isinstance(error, OVER):
            self.lose(StoreAway(f"Redis is away: {why}"))
        elif self._is_up:
            self.conditions.refuses(why, type(error).__name__)
        if isinstance(error, REFUSED) or str(error).startswith(REFUSALS):
            raise StoreAway(f"Redis refuses: {why}") from error
        raise (OutcomeUnknown if changes else StoreAway)(f"Redis failed: {why}")

    async def _keep(self, session: Session) -> None:
        pause = BACKOFF[0]
        while True:
            if self._is_up:
                await self._watch(session)
                await self._end()
                if not isinstance(self._trouble, StateLost):  # which the next attempt tells for sure
                    self._tell(self._trouble)
            await asyncio.sleep(self._chance(pause))
            pause = min(pause * 2, BACKOFF[1])
            try:
                await self._begin(session)
            except (StoreUnavailable, ConfigError) as error:
                self._tell(error)
            except Exception as error:  # a bug must not leave the hub without state for ever
                self.conditions.breaks(error)
            else:
                pause = BACKOFF[0]

    async def _begin(self, session: Session) -> None:
        """Find the server, listen, and let the session begin."""
        try:
            async with asyncio.timeout(2 * DEADLINE):
                self._over = asyncio.Event()
                self.number += 1
                self._place = await find_place(self.target, self._client_name)
                await self.ask(*(("SCRIPT", "LOAD", script.text) for script in SCRIPTS))
                self._listen_anew(session, await self._subscribe())
                await session.begin()
        except BaseException as error:
            await self._end()
            if isinstance(refused := cause_of(error), exceptions.NoPermissionError):
                raise ConfigError(f"state: {self.target.name}: {reason_of(refused)}. {RIGHTS}") from None
            if isinstance(error, FAILURES):
                raise StoreAway(f"Redis is away: {reason_of(error)}") from error
            raise
        if self._over.is_set():
            await self._end()
            raise copy(self._trouble)
        self._is_up = True
        self.conditions.answers(self._place.name)

    async def _watch(self, session: Session) -> None:
        """Return once the session is over."""
        while not self._over.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(LOOK_INTERVAL):
                    await self._over.wait()
            if not self._over.is_set():
                with suppress(StoreUnavailable):
                    if await session.look_for_missed():
                        self._listen_anew(session)

    def lose(self, trouble: StoreUnavailable) -> None:
        """This is not, or no longer, the server to speak to: look for it again."""
        if not self._over.is_set():
            self._trouble, self._is_up = trouble, False
            self._over.set()

    async def _end(self) -> None:
        self._is_up = False
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None
        idle, self._idle = self._idle, []
        for connection in idle:
            await _drop(connection)

    def _tell(self, error: StoreUnavailable | ConfigError) -> None:
        """Say what is wrong; from now on calls fail with it."""
        self._trouble = error if isinstance(error, StoreUnavailable) else StoreAway(str(error))
        self.conditions.fails(error)

    async def _take(self) -> Redis:
        """A connection that nobody closed while it lay idle, as a Redis with a `timeout` and what is in
        between do: with such a one a call would be lost, and the session."""
        while self._idle:
            connection, is_open = self._idle.pop(), False
            try:
                is_open = await _is_open(connection)
            finally:  # who asked may have gone meanwhile
                if not is_open:
                    await _drop(connection)
            if is_open:
                return connection
        return await self._connect()

    async def _connect(self) -> Redis:
        if self._place is None:
            raise copy(self._trouble)
        return await self._place.connect()

    # --- What is told --------------------------------------------------------------------------------------

    async def _subscribe(self) -> Redis:
        connection = await self._connect()
        try:
            await connection.send_command("SUBSCRIBE", *self._channels, check_health=False)
            for _ in self._channels:
                await connection.read_response()
        except BaseException:
            await _drop(connection)
            raise
        return connection

    async def _listen(self, connection: Redis | None, session: Session) -> None:
        """Hear what is told, over a new connection when the old one is lost, until the session is over."""
        try:
            while True:
                if connection is None:
                    async with asyncio.timeout(DEADLINE):
                        connection = await self._subscribe()
                    await session.look_for_missed()
                with suppress(OSError, exceptions.ConnectionError):
                    await self._hear_all(connection, session)
                await _drop(connection)
                connection = None
                await asyncio.sleep(self._chance(BACKOFF[0]))
        except StoreUnavailable as error:
            self.lose(error)
        except FAILURES as error:
            self.lose(StoreAway(f"Redis is away: {reason_of(error)}"))
        finally:
            await _drop(connection)

    async def _hear_all(self, connection: Redis, session: Session) -> None:
        while True:
            kind, channel, message = await connection.read_response()
            if kind == "message":
                await session.hear(channel, message)

    def _listen_anew(self, session: Session, connection: Redis | None = None) -> None:
        if self._listener is not None:
            self._listener.cancel()
        self._listener = asyncio.create_task(self._listen(connection, session))

    @property
    def place(self) -> Place:
        """The server of this session. Raises StoreUnavailable while there is none."""
        if self._place is None:
            raise copy(self._trouble)
        return self._place

    @staticmethod
    def _chance(seconds: float) -> float:
        return seconds * random.uniform(0.5, 1)  # noqa: S311  # spreads hubs, hides nothing


async def _read(connection: Redis) -> Any:
    try:
        return await connection.read_response()
    except exceptions.ResponseError as error:
        return error


async def _is_open(connection: Redis) -> bool:
    """Whether an idle connection has not been closed, nor has anything to read."""
    look = getattr(connection, "can_read", None) or connection.can_read_destructive  # before redis-py 8
    try:
        return not await look()
    except exceptions.ConnectionError:
        return False


async def _drop(connection: Redis | None) -> None:
    if connection is not None:
        with suppress(Exception):
            await connection.disconnect(nowait=True)
