"""Kept connections of thousands of nodes on one epoll: cheaper than asyncio, which it shares two cores with.

Everything happens in `Loop.run`: an answer arrives, its handler sends the next request on the same link.
"""

from __future__ import annotations

import errno
import heapq
import itertools
import select
import socket
import time
from collections.abc import Callable

from tests.load.wire import Answer, NotOurs, split_answer

SOURCES = 64
"""Addresses that links come from: one alone has too few ports for connections that come and go."""

_CONNECTING = {0, errno.EINPROGRESS, errno.EAGAIN}


class Link:
    """One connection to a hub; at most one request is under way on it."""

    __slots__ = ("_loop", "_rest", "_sock", "_unsent", "on_answer", "on_lost", "serial")

    def __init__(self, loop: Loop, sock: socket.socket) -> None:
        self._loop = loop
        self._sock: socket.socket | None = sock
        self._rest = b""
        self._unsent: bytes | None = b""
        self.on_answer: Callable[[Answer], None] = _ignore
        self.on_lost: Callable[[], None] = _nothing
        self.serial = 0

    @property
    def is_open(self) -> bool:
        return self._sock is not None

    def send(self, request: bytes) -> None:
        """Begin an exchange; `on_answer` or `on_lost` follows."""
        self.serial += 1
        if self._unsent is not None:  # not connected yet
            self._unsent = request
            return
        assert self._sock is not None
        try:
            self._sock.send(request)
        except OSError:
            self._lose()

    def rest(self) -> None:
        """Nobody waits for anything on it."""
        self.on_answer, self.on_lost = _ignore, _nothing

    def close(self) -> None:
        """Without a word to the handlers."""
        self.rest()  # they may know the link: nobody looks for such circles
        if self._sock is not None:
            self._loop.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None

    def ready(self) -> None:
        """The socket can be written to (once, when it is connected) or read from."""
        if self._sock is None:
            return
        if self._unsent is not None:
            self._connected()
            return
        try:
            data = self._sock.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._lose()
            return
        try:
            found = split_answer(self._rest + data if self._rest else data)
        except NotOurs:
            self._lose()
            raise
        if found is None:
            self._rest += data
        else:
            answer, self._rest = found
            self.on_answer(answer)

    def _connected(self) -> None:
        assert self._sock is not None
        if self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self._lose()
            return
        request, self._unsent = self._unsent, None
        self._loop.reads(self._sock.fileno())
        if request:
            self.send(request)

    def _lose(self) -> None:
        on_lost = self.on_lost
        self.close()
        self._loop.lost += 1
        on_lost()


class Loop:
    """All links of one process, and timers."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._links: dict[int, Link] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._readers: dict[int, Callable[[], None]] = {}
        self.lost = 0
        """Links that ended without being asked to."""

    def connect(self, port: int) -> Link:
        """A new link to a hub on this machine."""
        number = next(self._numbers)
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT: a port for each destination
        sock.bind((f"127.0.1.{1 + number % SOURCES}", 0))
        link = Link(self, sock)
        code = sock.connect_ex(("127.0.0.1", port))
        if code not in _CONNECTING:
            sock.close()
            raise OSError(code, f"no connection to port {port}")
        self._links[sock.fileno()] = link
        self._epoll.register(sock.fileno(), select.EPOLLOUT)
        return link

    def reads(self, fd: int) -> None:
        """From now on this link is waited for to have something to read."""
        self._epoll.modify(fd, select.EPOLLIN)

    def forget(self, fd: int) -> None:
        """A link that is closed."""
        self._epoll.unregister(fd)
        del self._links[fd]

    def later(self, seconds: float, step: Callable[[], None]) -> None:
        """Do a step once, after so many seconds."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), step))

    def listen(self, fd: int, step: Callable[[], None]) -> None:
        """Do a step whenever there is something to read on a descriptor that is no link."""
        self._readers[fd] = step
        self._epoll.register(fd, select.EPOLLIN)

    def run(self, until: Callable[[], bool]) -> None:
        """Work until the condition holds; it is looked at after each round."""
        while not until():
            now = time.monotonic()
            while self._timers and self._timers[0][0] <= now:
                heapq.heappop(self._timers)[2]()
            wait = min(0.5, self._timers[0][0] - now) if self._timers else 0.5
            for fd, _events in self._epoll.poll(max(0.0, wait), 512):
                link = self._links.get(fd)
                if link is not None:
                    link.ready()
                elif fd in self._readers:
                    self._readers[fd]()


def _ignore(_answer: Answer) -> None:
    pass


def _nothing() -> None:
    pass
