"""Work that is cheaper together: what arrives while one round is under way joins the next."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

I_contra = TypeVar("I_contra")
R = TypeVar("R")


class Batcher(Generic[I_contra, R]):
    """Hands what it is given to `work`, many at a time, never two rounds at once.

    So a round has always begun after what it holds was asked for. `work` answers with one result, or one
    exception, for each item, or raises one for all. An item whose asker has gone is done all the same.

    Right after a round the next one waits `pause` seconds for company: little for whoever asks, and much less
    work where many do. What comes alone is done at once.
    """

    def __init__(
        self,
        work: Callable[[Sequence[I_contra]], Awaitable[Sequence[R | Exception]]],
        most: int = 200,
        pause: float = 0.0,
    ) -> None:
        self._work = work
        self._most = most
        self._pause = pause
        self._ended = 0.0
        self._queue: list[tuple[I_contra, asyncio.Future[R]]] = []
        self._worker: asyncio.Task[None] | None = None

    async def do(self, item: I_contra) -> R:
        """The result of this item."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.append((item, answer))
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work_off())
        return await answer

    async def finish(self) -> None:
        """Return once nothing is left to do."""
        if self._worker is not None:
            await self._worker

    async def _work_off(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue:
            if self._pause and loop.time() < self._ended + self._pause and len(self._queue) < self._most:
                await asyncio.sleep(self._pause)
            batch, self._queue = self._queue[: self._most], self._queue[self._most :]
            try:
                results = await self._work([item for item, _ in batch])
            except Exception as error:  # whatever it is: nobody may wait for ever
                results = [error] * len(batch)
            self._ended = loop.time()
            for (_, answer), result in zip(batch, results, strict=True):
                if answer.done():  # who asked has gone
                    continue
                if isinstance(result, Exception):
                    answer.set_exception(result)
                else:
                    answer.set_result(result)
