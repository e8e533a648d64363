"""Telling people: each target has a queue and a loop of its own, so that one that hangs holds up nobody.

A message is tried a few times and then dropped, with a line in the log and an event. Each time it says how
things are then, and what is over is not told. What comes sooner after
another of its kind than the target wants waits, and becomes one message with those that come meanwhile. So
nothing grows, however much happens and whoever hangs.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import random
import socket
import time
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import aiohttp
import structlog

from gridcore import __version__
from hub import operations
from hub.errors import StoreUnavailable
from hub.events import HUB, Event
from hub.metrics import Counts
from hub.notify_rules import Notification, merge
from hub.notify_target import NotifyTarget
from hub.outlook import Outlook
from hub.reasons import reason_of
from hub.store import Store
from hub.views import rfc3339

TIMEOUT = 10.0
"""Seconds that a receiver has to answer."""

TRIES = 5
"""Times that a message is sent at most."""

FIRST_PAUSE = 1.0
"""Seconds before the second try; each further pause is three times as long, more or less."""

MOST_WAITING = 32
"""Messages that wait for one target; the oldest are dropped beyond it."""

MOST_READ = 4096
"""Bytes of an answer that are read."""

log = structlog.get_logger()


class NotDelivered(Exception):
    """Why a try failed, in words that hold no secret."""


class Messenger:
    """One target: what waits for it, and the loop that delivers."""

    def __init__(
        self,
        target: NotifyTarget,
        counts: Counts,
        *,
        hub: str | None = None,
        timeout: float = TIMEOUT,
        first_pause: float = FIRST_PAUSE,
        dropped: Callable[[Event], Awaitable[None]] | None = None,
        check: Callable[[Notification], Awaitable[Notification | None]] | None = None,
    ) -> None:
        """`check` says what of a notification is so now, before each try; None that it is over.

        Raises ConfigError where a file of the target cannot be read.
        """
        self.target = target
        self._key = target.key()
        self._context = target.context()
        self._counts = counts
        self._hub = hub or socket.gethostname()
        self._timeout = timeout
        self._first_pause = first_pause
        self._dropped = dropped
        self._check = check
        self._ready: deque[Notification] = deque()
        self._early: dict[str, Notification] = {}
        self._told_at: dict[str, float] = {}
        self._news = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready) + len(self._early)

    def offer(self, notification: Notification) -> None:
        """Take what is for this target; returns at once."""
        if not self.target.wants(notification.event, notification.share):
            return
        event = notification.event
        if event in self._early:
            self._early[event] = merge(self._early[event], notification)
        elif time.monotonic() < self._open_at(event):
            self._early[event] = notification
        else:
            self._take(notification)
        self._news.set()

    async def run(self, stopping: asyncio.Event) -> None:
        """Deliver until `stopping`; what is not delivered by then is dropped."""
        ended = asyncio.create_task(stopping.wait())
        working = asyncio.create_task(self._work())
        try:
            await asyncio.wait({ended, working}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            if not working.done():
                working.cancel()
            with suppress(asyncio.CancelledError):
                await working
        if len(self):
            log.warning("not told any more, as the hub stops", to=self.target.name, messages=len(self))

    async def send(self, notification: Notification) -> None:
        """Try once. Raises NotDelivered."""
        connector = aiohttp.TCPConnector(ssl=self._context or True, limit=1, force_close=True)
        limit = aiohttp.ClientTimeout(total=self._timeout)
        body = json.dumps(message_of(notification, self._hub)).encode()
        try:
            async with (
                aiohttp.ClientSession(connector=connector, timeout=limit) as session,
                session.post(
                    self.target.url,
                    data=body,
                    headers=headers_of(body, self._key, time.time()),
                    allow_redirects=False,
                ) as answer,
            ):
                await answer.content.read(MOST_READ)
                if not 200 <= answer.status < 300:
                    raise NotDelivered(f"status {answer.status}")
        except TimeoutError:
            raise NotDelivered(f"no answer within {self._timeout:g} s") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            # Its text may hold the URL, and that may be a secret.
            raise NotDelivered(reason_of(error)) from None

    async def _work(self) -> None:
        while True:
            self._open_early()
            if self._ready:
                await self._deliver(self._ready.popleft())
                continue
            self._news.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._until_next()):
                    await self._news.wait()

    async def _deliver(self, notification: Notification) -> None:
        pause, reason = self._first_pause, ""
        for attempt in range(TRIES):
            if attempt:
                await asyncio.sleep(pause * random.uniform(0.5, 1.5))  # noqa: S311  # not for secrets
                pause *= 3
            now = await self._check(notification) if self._check is not None else notification
            if now is None:
                log.info("not told, as it is over by now", about=notification.event, to=self.target.name)
                return
            try:
                await self.send(now)
            except NotDelivered as problem:
                reason = str(problem)
                continue
            self._counts.notifications["delivered"] += 1
            return
        await self._drop(notification, f"{reason}, {TRIES} times")

    async def _drop(self, notification: Notification, reason: str) -> None:
        self._counts.notifications["dropped"] += 1
        about = {"about": notification.event, "to": self.target.name, "reason": reason}
        log.warning("a notification was dropped", **about)
        if self._dropped is not None:
            event = Event(
                time.time(), "notify-failed", HUB.who, task=notification.task, result="failed", detail=about
            )
            await self._dropped(event)

    def _take(self, notification: Notification) -> None:
        self._told_at[notification.event] = time.monotonic()
        if len(self._ready) >= MOST_WAITING:
            oldest = self._ready.popleft()
            self._counts.notifications["dropped"] += 1
            log.warning("too many notifications wait, the oldest is dropped", about=oldest.event)
        self._ready.append(notification)

    def _open_early(self) -> None:
        for event in [event for event in self._early if time.monotonic() >= self._open_at(event)]:
            self._take(self._early.pop(event))

    def _open_at(self, event: str) -> float:
        told_at = self._told_at.get(event)
        return float("-inf") if told_at is None else told_at + self.target.min_interval

    def _until_next(self) -> float | None:
        """Seconds until something that waits may be told; None if nothing waits."""
        openings = [self._open_at(event) for event in self._early]
        return max(0.0, min(openings) - time.monotonic()) if openings else None


def message_of(notification: Notification, hub: str) -> dict[str, Any]:
    """The one JSON body; chats that take Slack's messages show its `text`."""
    return {
        "event": notification.event,
        "time": rfc3339(notification.time),
        "hub": hub,
        "task": notification.task,
        "text": notification.text,
        "detail": dict(notification.detail),
        "id": notification.id,
    }


def headers_of(body: bytes, key: bytes | None, now: float) -> Mapping[str, str]:
    """The headers of a message that is sent now, signed where there is a key."""
    timestamp = str(int(now))
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"computehub/{__version__}",
        "X-GridCore-Timestamp": timestamp,
    }
    if key is not None:
        signature = hmac.new(key, timestamp.encode() + body, hashlib.sha256).hexdigest()
        headers["X-GridCore-Signature"] = f"sha256={signature}"
    return headers


def open_messengers(
    targets: Sequence[NotifyTarget], store: Store, outlook: Outlook, counts: Counts
) -> list[Messenger]:
    """A messenger for each target; what they drop stands in the audit trail. Raises ConfigError."""

    async def dropped(event: Event) -> None:
        with suppress(StoreUnavailable):  # the log has it
            await store.run(operations.note(event))

    return [Messenger(target, counts, dropped=dropped, check=outlook.check) for target in targets]
