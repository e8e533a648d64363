"""The images that this node needs: fetched once a node, later again after failures, and at last cleaned up.

A failure that asking again will not mend (no such image, no permission, wrong platform) waits longer than
one that passes; another task interrupts either wait at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from dataclasses import replace
from random import Random

import structlog

from agent.disk import free_bytes
from agent.engine import Engine
from agent.errors import EngineError
from agent.image_cleanup import PulledImages, clean, used_percent
from agent.planner import Image
from agent.reasons import Reason
from agent.report import Board
from agent.slots import doubled, jittered

log = structlog.get_logger()

PASSING_FIRST, PASSING_MOST = 5.0, 300.0
PERMANENT_FIRST, PERMANENT_MOST = 15.0, 600.0
CLEAN_EVERY = 600.0
LOOK_FOR_SPACE, ROOM = 2.0, 32 * 2**20
"""Seconds between looks at a full disk, and the bytes by which it must have emptied."""


class Images:
    """`current` is what the planner sees of the wanted image; `on_change` is called when that changes."""

    def __init__(
        self,
        engine: Engine,
        board: Board,
        book: PulledImages,
        random: Random,
        *,
        watermark: float | None,
        on_change: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._board = board
        self._book = book
        self._random = random
        self._watermark = watermark
        self._on_change = on_change
        self._pulls: set[asyncio.Task[None]] = set()
        self._ahead: Image | None = None
        self._needed: frozenset[str] | None = None
        self._clean_due = asyncio.Event()
        self.current: Image | None = None

    def forget(self) -> None:
        """Another task: what was known of the last one's image says nothing about this one's."""
        self.current = None

    def need(self, names: Iterable[str]) -> None:
        """The images of the hub's current task: until they are known, none is removed."""
        needed = frozenset(names)
        if needed != self._needed:
            self._clean_due.set()
        self._needed = needed

    def fetch(self, name: str, *, always: bool) -> None:
        """See that an image is here; `always`: ask its registry even if it is."""
        before = self.current if self.current and self.current.name == name else Image(name)
        # What went wrong last stands until the image is here: the next try alone mends nothing.
        self.current = Image(name, "fetching", before.failures, error=before.error)
        self._spawn(self._fetch_current(self.current, always=always))

    def fetch_ahead(self, name: str | None) -> None:
        """An image that will be needed soon, while there is nothing better to do."""
        now = time.monotonic()
        if name is None or (self.current is not None and self.current.state == "fetching") or self._pulls:
            return
        known = self._ahead if self._ahead is not None and self._ahead.name == name else Image(name)
        if known.state == "ready" or known.not_before > now:
            return
        self._ahead = Image(name, "fetching", known.failures)
        self._spawn(self._fetch_ahead(self._ahead))

    async def cleaning(self) -> None:
        """Keep the disk under the watermark, if there is one: now and then, and when images change."""
        while self._watermark is not None:
            self._clean_due.clear()
            await self._clean(self._watermark)
            with suppress(TimeoutError):
                async with asyncio.timeout(CLEAN_EVERY):
                    await self._clean_due.wait()

    def abandon(self) -> None:
        """Wait for no pull: it may take an hour, and the engine keeps the layers that are done."""
        for pull in self._pulls:
            pull.cancel()

    async def _clean(self, watermark: float) -> None:
        if self._needed is None:
            return
        needed = {image.name for image in (self.current, self._ahead) if image is not None} | self._needed
        with suppress(EngineError):  # the reconciler tells of the trouble
            root = await self._engine.api.root()
            remove = self._engine.remove_image
            removed = await clean(self._book, needed, lambda: used_percent(root), watermark, remove)
            if removed:
                log.info("images removed to free disk space", images=removed)

    def _spawn(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.ensure_future(work)
        self._pulls.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._pulls.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a pull failed unexpectedly", error=repr(error))
            self._board.error("internal", repr(error))
        self._on_change()

    async def _fetch_current(self, image: Image, *, always: bool) -> None:
        done = await self._fetched(image, always=always)
        if self.current is image:  # or another task has come meanwhile, with an image of its own
            self.current = done

    async def _fetch_ahead(self, image: Image) -> None:
        self._ahead = await self._fetched(image, always=False)

    async def _fetched(self, image: Image, *, always: bool) -> Image:
        """The image once it is here, or failed with its next time."""
        try:
            if always or not await self._engine.has_image(image.name):
                await self._pull(image.name)
        except EngineError as error:
            failures = image.failures + 1
            first, most = (
                (PERMANENT_FIRST, PERMANENT_MOST) if error.permanent else (PASSING_FIRST, PASSING_MOST)
            )
            wait = jittered(doubled(first, most, failures), self._random)
            if image in (self.current, self._ahead):
                self._board.error(error.kind, str(error))
                log.warning("image", image=image.name, error=str(error), next_try=f"in {wait:.0f} s")
            told = Reason(error.kind, str(error))
            failed = Image(image.name, "failed", failures, time.monotonic() + wait, told)
            if error.kind == "disk-full":
                if self._watermark is not None:
                    await self._clean(self._watermark)
                self._spawn(self._await_space(failed))
            return failed
        self._book.used(image.name, time.time())
        return Image(image.name, "ready")

    async def _await_space(self, failed: Image) -> None:
        """Fetch again as soon as there is room, not before: each attempt would load all of it once more."""
        with suppress(EngineError):
            root = await self._engine.api.root()
            before = free_bytes(root)
            while before is not None and (failed.not_before > time.monotonic()):
                await asyncio.sleep(LOOK_FOR_SPACE)
                if self.current != failed:
                    return
                if (free_bytes(root) or 0) > before + ROOM:
                    self.current = replace(failed, not_before=0.0)
                    return

    async def _pull(self, name: str) -> None:
        ours = not await self._engine.has_image(name)
        log.info("pulling", image=name)
        started = time.monotonic()
        await self._engine.pull(name)
        log.info("pulled", image=name, seconds=round(time.monotonic() - started, 1))
        if ours:
            self._book.pulled(name, time.time())
        self._clean_due.set()
