"""Waiting in a test for what has no event: a fixed sleep is too short on one machine, too long on another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


async def until(check: Callable[[], object], seconds: float = 20) -> None:
    """Ask every 5 ms until the answer is true; TimeoutError after `seconds`."""
    async with asyncio.timeout(seconds):
        while not check():  # noqa: ASYNC110 # what is waited for has no event
            await asyncio.sleep(0.005)
