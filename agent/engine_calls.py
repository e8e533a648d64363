"""How calls to the engine take turns, and the threads that they run on.

One docker client at a time: two and the agent do not fit in 100 MiB, and 64 starts take hardly longer than
four abreast. But one that takes long (a slow disk, a daemon that hangs on one container) loses its turn, and
others go on beside it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

T = TypeVar("T")

LONG = 3.0
"""Seconds after which a call no longer holds up the others."""
AT_ONCE = 4
"""However long they take."""


class Turns:
    """Who may call next: of those in the queue the first, but anybody `next` only after who calls now."""

    def __init__(self, long: float = LONG, at_once: int = AT_ONCE) -> None:
        self._long = long
        self._queue = asyncio.Lock()
        self._turn = asyncio.Lock()
        self._all = asyncio.Semaphore(at_once)

    @asynccontextmanager
    async def queued(self) -> AsyncIterator[None]:
        """A turn after all that came before."""
        async with self._queue:
            await self._turn.acquire()
        async with self._held():
            yield

    @asynccontextmanager
    async def next(self) -> AsyncIterator[None]:
        """A turn before the queue: for the listing and for whatever ends something."""
        await self._turn.acquire()
        async with self._held():
            yield

    @asynccontextmanager
    async def _held(self) -> AsyncIterator[None]:
        is_over = False

        def end_turn() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                self._turn.release()

        timer = asyncio.get_running_loop().call_later(self._long, end_turn)
        try:
            async with self._all:
                yield
        finally:
            timer.cancel()
            end_turn()


async def within(seconds: int, work: Coroutine[Any, Any, T]) -> T:
    """What it gives, unless that takes so many seconds in which this process ran: who was suspended, or
    stopped with SIGSTOP, finds an answer that came meanwhile. Raises TimeoutError."""
    task = asyncio.ensure_future(work)
    try:
        for _ in range(seconds):
            done, _pending = await asyncio.wait({task}, timeout=1.0)
            if done:
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()


async def on_a_thread(function: Callable[[], T]) -> T:
    """Run on a daemon thread; unlike a pool's, it cannot hold up the interpreter's exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(setter: Callable[[Any], None], value: Any) -> None:
        if not done.done():
            setter(value)

    def work() -> None:
        try:
            result = function()
        except BaseException as error:  # it is raised again where it is awaited
            outcome: tuple[Callable[[Any], None], Any] = (done.set_exception, error)
        else:
            outcome = (done.set_result, result)
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, *outcome)

    threading.Thread(target=work, daemon=True, name="docker call").start()
    return await done
