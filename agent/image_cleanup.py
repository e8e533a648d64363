"""The disk kept under a watermark by removing images: pulled by this agent, needed by no task.

What the agent pulled is a small JSON book beside its configuration. A lost book loses no image: what it does
not name is not ours to remove.
"""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import structlog

from agent.errors import EngineError
from gridcore.files import write_private

log = structlog.get_logger()

WRITE_EVERY = 3600.0
"""Seconds: a use is written only if the book's time is older, since a task's image is used all day."""


class PulledImages:
    """The images that this agent pulled, and when each was last used; `now` in seconds since the epoch."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._used = self._read()
        self._written = dict(self._used)

    def pulled(self, name: str, now: float) -> None:
        """The agent has fetched this image, which was not here before."""
        self._used[canonical(name)] = now
        self._write()

    def used(self, name: str, now: float) -> None:
        """A container of this image is wanted; images that the agent did not pull are not entered."""
        name = canonical(name)
        if name not in self._used:
            return
        self._used[name] = now
        if abs(now - self._written.get(name, 0.0)) >= WRITE_EVERY:
            self._write()

    def forget(self, name: str) -> None:
        """The image is no longer here, or no longer ours."""
        if self._used.pop(canonical(name), None) is not None:
            self._write()

    def names(self) -> list[str]:
        """The images, the one whose last use is longest ago first."""
        return sorted(self._used, key=lambda name: (self._used[name], name))

    def _read(self) -> dict[str, float]:
        try:
            content = json.loads(self._path.read_bytes())
            return {canonical(str(name)): float(used) for name, used in content.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            log.warning(
                "the book of pulled images cannot be read; a new one is begun", error=str(error)[:200]
            )
            return {}

    def _write(self) -> None:
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(self._path, json.dumps(self._used, indent=1))
        except OSError as error:
            log.warning("the book of pulled images cannot be written", error=str(error)[:200])
        self._written = dict(self._used)


async def clean(
    book: PulledImages,
    needed: Collection[str],
    used_percent: Callable[[], float | None],
    watermark: float,
    remove: Callable[[str], Awaitable[None]],
) -> list[str]:
    """Remove images until the disk is under the watermark (percent in use); answers what was removed.

    `needed`: never removed. An image that the engine does not let go (in use) stays for another time.
    """
    keep = {canonical(name) for name in needed}
    removed: list[str] = []
    for name in book.names():
        used = used_percent()
        if used is None or used <= watermark:
            break
        if name in keep:
            continue
        try:
            await remove(name)
        except EngineError as error:
            if error.kind == "no-image":  # removed behind our back
                book.forget(name)
            continue
        book.forget(name)
        removed.append(name)
    return removed


def used_percent(path: Path) -> float | None:
    """How much of the file system at `path` is in use, as df counts; None where that cannot be told."""
    try:
        disk = os.statvfs(path)
    except OSError:
        return None
    used = disk.f_blocks - disk.f_bfree
    usable = used + disk.f_bavail
    return 100.0 * used / usable if usable else None


def canonical(name: str) -> str:
    """One name for all spellings of it: `docker.io/library/redis` is `redis:latest`."""
    for prefix in ("docker.io/", "index.docker.io/"):
        name = name.removeprefix(prefix)
    name = name.removeprefix("library/")
    if "@" in name or ":" in name.rpartition("/")[2]:
        return name
    return f"{name}:latest"
