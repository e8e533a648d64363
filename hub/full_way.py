"""The full way: requests that Hypercorn and the application answer, on connections that stay the lane's.

Hypercorn's own `TCPServer` keeps a connection until it ends. An agent registers over a connection and then
asks for its task on it for weeks: all of that would take the full way. So Hypercorn gets the bytes of a
connection only for a visit: from the first request that is not plain to the end of its answer. Its parts that
know HTTP do the work; socket, flow control and end are the lane's, in one place for both ways.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

import h11
import structlog
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.worker_context import WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.typing import ConnectionState

SOON = 0.3
"""Seconds without a word of the answer to a GET of a client that sends no more: it waits for something, and
is for nobody if the client is gone. What may change something is answered however long it takes."""

log = structlog.get_logger()


class Visited(Protocol):
    """What a visit needs of the connection that it is for."""

    def info(self, name: str) -> Any:
        """What its transport knows of it, as `asyncio.BaseTransport.get_extra_info` has it."""

    async def send(self, data: bytes) -> None:
        """Write, and return once the client has read enough of it to write more, or is gone."""

    def read_on(self) -> None:
        """There is room for more."""

    def take_back(self, rest: bytes) -> None:
        """The visit is over; what has arrived and belongs to no answered request comes back."""

    def close(self) -> None:
        """Read no more, and end once what was written is sent."""


class Visit(Protocol):
    """Requests that are answered by somebody else, for as long as `take_back` has not been called."""

    @property
    def is_asked(self) -> bool:
        """Whether a request has been read that is not answered to its end yet."""

    @property
    def waiting(self) -> int:
        """Bytes that were fed and that nobody has gone through yet."""

    def feed(self, data: bytes) -> None:
        """More bytes have arrived."""

    def finish(self) -> None:
        """No more will: answer what was asked, and close."""

    def end(self) -> None:
        """The connection is gone, or nothing more is to be read of it."""


class FullWay:
    """Hypercorn's parts that all visits share."""

    def __init__(self, app: Any, config: Config) -> None:
        self.app = ASGIWrapper(app)
        self.config = config
        self.context = WorkerContext(None)
        self.apps = _Apps(asyncio.get_running_loop())
        self.tasks = self.apps.tasks
        """All that is under way."""

    def visit(self, connection: Visited, data: bytes) -> Visit:
        """Begin one with the bytes that have arrived."""
        return _Visit(self, connection, data)


class _Apps(TaskGroup):
    """Hypercorn's way to start the application, but each call ends by itself, and not with a connection."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, func: Callable[..., Any], *args: Any) -> None:
        self.start(func(*args))

    def start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class _Visit:
    """One; with HTTP/2 and what else is no HTTP/1.1 it lasts as long as the connection does."""

    __slots__ = (
        "_connection",
        "_has_all",
        "_has_spoken",
        "_in_work",
        "_inbox",
        "_is_sending",
        "_news",
        "_protocol",
        "_reading",
        "is_asked",
    )

    def __init__(self, way: FullWay, connection: Visited, data: bytes) -> None:
        self._connection = connection
        self._inbox = bytearray(data)
        self._in_work = 0
        """Bytes that Hypercorn has, and has not gone through: a request that waits for the one before."""
        self._news = asyncio.Event()
        self._news.set()
        self._has_all = False
        self._is_sending = False
        self._has_spoken = False
        """Hypercorn has said something since the last look, or the client has yet to read what it said."""
        self.is_asked = False
        tls = connection.info("ssl_object")
        self._protocol = ProtocolWrapper(
            way.app,
            way.config,
            way.context,
            way.apps,
            ConnectionState({}),
            tls is not None,
            _address(connection.info("peername")),
            _address(connection.info("sockname")),
            self._send,
            tls.selected_alpn_protocol() if tls is not None else "http/1.1",
        )
        if isinstance(self._protocol.protocol, H11Protocol):
            most = way.config.h11_max_incomplete_size
            self._protocol.protocol.connection = _Requests(h11.SERVER, max_incomplete_event_size=most)
        self._reading = way.apps.start(self._read())

    @property
    def waiting(self) -> int:
        return self._in_work + len(self._inbox)

    def feed(self, data: bytes) -> None:
        self._inbox += data
        self._news.set()

    def finish(self) -> None:
        if isinstance(self._protocol.protocol, H11Protocol):
            self._has_all = True
            self._news.set()
        else:  # HTTP/2 answers on, but whoever speaks it and sends no more is gone
            self._connection.close()

    def end(self) -> None:
        self._reading.cancel()

    async def _read(self) -> None:
        """Give Hypercorn what arrives, until the visit ends; the application hears of that."""
        try:
            await self._protocol.initiate()
            while True:
                await self._news.wait()
                self._news.clear()
                data = bytes(self._inbox)
                self._inbox.clear()
                self._in_work = len(data)
                await self._protocol.handle(RawData(data))
                self._in_work = 0
                self._connection.read_on()
                if self._has_all and not self._inbox:
                    await self._protocol.handle(RawData(b""))  # the end, for h11
                    if not self.is_asked:
                        self._connection.close()
                    elif self._only_reads:
                        self._give_up_if_silent()
        except Exception:  # as for any connection: it costs itself alone
            log.exception("a connection failed")
            self._connection.close()
        finally:
            await self._protocol.handle(Closed())

    @property
    def _only_reads(self) -> bool:
        """Whether what is asked changes nothing."""
        scope = getattr(getattr(self._protocol.protocol, "stream", None), "scope", None) or {}
        return scope.get("method") in ("GET", "HEAD")

    def _give_up_if_silent(self) -> None:
        self._has_spoken = self._is_sending
        asyncio.get_running_loop().call_later(SOON, self._look_whether_silent)

    def _look_whether_silent(self) -> None:
        if self._reading.done():  # the connection is with somebody else, or gone
            return
        if self._has_spoken:
            self._give_up_if_silent()
        else:
            self._connection.close()

    async def _send(self, event: Event) -> None:
        """What Hypercorn has to say: bytes, whether a request is under way, that the connection is to end."""
        if isinstance(event, RawData):
            self._has_spoken = self._is_sending = True
            await self._connection.send(event.data)
            self._is_sending = False
        elif isinstance(event, Closed):
            self._connection.close()
        elif isinstance(event, Updated):
            self.is_asked = not event.idle
            protocol = self._protocol.protocol
            if event.idle and isinstance(protocol, H11Protocol):
                rest, _ = protocol.connection.trailing_data
                self._reading.cancel()
                self._connection.take_back(rest + bytes(self._inbox))


class _Requests(h11.Connection):
    """Reads nothing after a request that said that it is the last one.

    h11 calls it an error, for which Hypercorn refuses that last request with 400, though it is being done.
    """

    def receive_data(self, data: bytes) -> None:
        if self.their_state is not h11.MUST_CLOSE:
            super().receive_data(data)

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        return h11.NEED_DATA if self.their_state is h11.MUST_CLOSE else super().next_event()


def _address(name: Any) -> tuple[str, int] | None:
    """Host and port of what a socket is called; None for a socket that has none."""
    return (name[0], name[1]) if isinstance(name, tuple) else None
