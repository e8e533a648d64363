"""What SQLite's processes share about an open file, read beside SQLite: is what it goes by what is there?

SQLite takes for granted that nobody else writes its files. Whoever copies a backup over one of them, or cuts
one, is believed, and what is acknowledged after that is gone at the next crash. The index in `-shm` says how
much of the log counts and how much of that is in the file: by that each of the three can be told from what
somebody put there, also where another program (a backup, a shell) moves the log into the file meanwhile.

Source: https://sqlite.org/walformat.html.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path

_INDEX = struct.Struct("=4x4x4xBxHI4x8x8s8x")
"""isInit, szPage, mxFrame, aSalt of a WalIndexHdr, of which there are two; in the machine's byte order."""
_MOVED = struct.Struct("=I28xI")
"""nBackfill and nBackfillAttempted of the WalCkptInfo that follows the two."""
_SIZE = 2 * _INDEX.size + _MOVED.size
_LOG_HEAD, _FRAME_HEAD = 32, 24
_LOG_SALT = slice(16, 24)
_LEAST_INDEX = 32_768
"""Bytes of an index with nothing in it."""

Face = tuple[int, int]
"""A file's size, and when it was written last, in ns."""


@dataclass(frozen=True)
class Shared:
    """The index of a log at one moment."""

    frames: int
    """Pages in the log that count."""
    page: int
    """Bytes of one."""
    salt: bytes
    """Of this log; another one after it began anew."""
    moved: tuple[int, int]
    """How many of them are in the file, and how many are to be, or were: more while they are being moved."""

    @classmethod
    def read(cls, handle: int) -> Shared | None:
        """By an open `-shm`; None while it is being written, or is none."""
        data = os.pread(handle, _SIZE, 0)
        half = _INDEX.size
        if len(data) < _SIZE or data[:half] != data[half : 2 * half]:
            return None
        is_made, page, frames, salt = _INDEX.unpack_from(data)
        moved, tried = _MOVED.unpack_from(data, 2 * half)
        return cls(frames, 65_536 if page == 1 else page, salt, (moved, tried)) if is_made else None

    def is_log(self, handle: int) -> bool:
        """Whether the open `-wal` is the log that this is the index of, and whole."""
        if self.frames == 0:  # it may have been cut
            return True
        is_whole = os.fstat(handle).st_size >= _LOG_HEAD + self.frames * (_FRAME_HEAD + self.page)
        return is_whole and os.pread(handle, _LOG_HEAD, 0)[_LOG_SALT] == self.salt


class OpenFiles:
    """The three files as they are open, each by a descriptor of its own.

    `close` only after SQLite has closed them: its locks end with any descriptor of the same file.
    """

    def __init__(self, file: Path, log: Path, shared: Path) -> None:
        """Raises OSError."""
        self._handles: list[int] = []
        try:
            for path, how in ((file, os.O_RDONLY), (log, os.O_RDONLY), (shared, os.O_RDWR)):
                self._handles.append(os.open(path, how | os.O_CLOEXEC))
        except OSError:
            self.close()
            raise
        self._file, self._log, self._shared = self._handles
        self._noted: tuple[Shared, Face] | None = None

    def are_right(self) -> bool:
        """Whether log and index belong together, and only SQLite has changed the file since `note`."""
        if os.fstat(self._shared).st_size < _LEAST_INDEX:  # SQLite would read what is not there
            return False
        seen = self._look()
        if seen is None:
            return True
        shared, face = seen
        if not shared.is_log(self._log):
            return Shared.read(self._shared) != shared  # it began anew while this looked
        if self._noted is None:
            return True
        noted, was = self._noted
        if noted.salt == shared.salt and shared.frames < noted.frames:  # all three are as they were once
            return False
        has_moved = (noted.salt, noted.moved) != (shared.salt, shared.moved)
        is_moving = shared.moved[0] != shared.moved[1]
        return has_moved or is_moving or was == face

    def note(self) -> None:
        """What is there now was put there by SQLite."""
        self._noted = self._look()

    def before_close(self) -> None:
        """Let SQLite close an index that somebody has cut: what it has mapped must be there to be read.

        All of it empty, so that it is made anew from the log: half of one says that nothing is in the log.
        """
        if os.fstat(self._shared).st_size < _LEAST_INDEX:
            os.ftruncate(self._shared, 0)
            os.ftruncate(self._shared, _LEAST_INDEX)

    def close(self) -> None:
        while self._handles:
            os.close(self._handles.pop())

    def _look(self) -> tuple[Shared, Face] | None:
        """The index, and the file while that was so; None where it changes all the time."""
        for _ in range(3):
            before = Shared.read(self._shared)
            found = os.fstat(self._file)
            if before is not None and before == Shared.read(self._shared):
                return before, (found.st_size, found.st_mtime_ns)
        return None


def are_whole(log: Path, shared: Path) -> bool:
    """Whether the files beside a database belong together. Not to be asked by whoever has it open."""
    handles: list[int] = []
    try:
        handles += (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (log, shared))
        seen = Shared.read(handles[1])
        return seen is None or seen.is_log(handles[0]) or Shared.read(handles[1]) != seen
    except FileNotFoundError:
        return False
    finally:
        for handle in handles:
            os.close(handle)
