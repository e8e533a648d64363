"""Answers to failed attempts take their time: longer with each from the same address, never very long.

Only answers to requests without a valid token come here; who shows a valid one is never kept waiting,
wherever else that address has failed. All of it is bounded: the addresses that are remembered, how long, and
the answers that are held at once.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from ipaddress import IPv6Address, IPv6Network

from hub.proxies import read_address

FIRST_DELAY = 0.05
"""Seconds for the first failed attempt: a mistyped token is nothing that anybody should wait for."""

GROWTH = 1.25
LONGEST_DELAY = 4.0
"""Seconds; reached with the twenty-first attempt."""

QUIET = 300.0
"""Seconds without a failed attempt after which an address begins anew."""

MOST_ADDRESSES = 10_000
MOST_HELD = 256
"""Answers held at once; further ones are refused at once."""


class Failures:
    """How often which address failed of late; `pause` waits so many seconds, or until the hub ends."""

    def __init__(
        self, pause: Callable[[float], Awaitable[None]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._pause = pause
        self._clock = clock
        self._counts: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._held = 0

    async def slow_down(self, source: str | None) -> bool:
        """Hold the answer to a failed attempt; False, and at once, if too many are held already."""
        delay = self._note(neighbourhood(source))
        if self._held >= MOST_HELD:
            return False
        self._held += 1
        try:
            await self._pause(delay)
        finally:
            self._held -= 1
        return True

    def __len__(self) -> int:
        """The addresses that are remembered."""
        return len(self._counts)

    def _note(self, key: str) -> float:
        """Count one more, and say how long its answer is to take."""
        now = self._clock()
        count, last = self._counts.pop(key, (0, now))
        count = 1 if now - last >= QUIET else count + 1
        self._counts[key] = count, now  # at the end: the oldest stand first
        while len(self._counts) > MOST_ADDRESSES or now - next(iter(self._counts.values()))[1] >= QUIET:
            self._counts.popitem(last=False)
        return delay_of(count)


def delay_of(count: int) -> float:
    """Seconds that the answer to this failed attempt in a row takes."""
    return min(LONGEST_DELAY, FIRST_DELAY * GROWTH ** min(count - 1, 100))


def neighbourhood(source: str | None) -> str:
    """Whom an address counts with: one IPv6 customer has 2^64 addresses to try from."""
    address = read_address(source) if source else None
    if isinstance(address, IPv6Address):
        return str(IPv6Network((address, 64), strict=False))
    return str(address or source)
