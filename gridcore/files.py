"""Files that only one program may use, and files replaced whole: always what a path resolves to.

A symbolic link is followed, so that it stays a link and both of its ends are one file. A hard link has no end
to follow: there the file itself is locked, whatever it is called.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

_held: dict[Path, FileLock] = {}
"""This process's locks by resolved path: a file that it replaces stays locked."""


class FileInUse(Exception):
    """Another process, or another lock of this one, holds the file."""


def resolve(path: Path) -> Path:
    """The absolute path without links; it need not exist."""
    return Path(os.path.realpath(path))


def is_there(path: Path) -> bool:
    """Whether the path leads to something.

    `Path.exists` says no to some failures and raises others, not the same in each Python: here each failure
    but "there is none" is told.

    Raises:
        OSError: nobody can tell, as in a directory that this user may not enter.
    """
    try:
        path.stat()
    except FileNotFoundError:
        return False
    return True


def is_locked(path: Path) -> bool:
    """Whether another process has a `FileLock` on what is there. Raises OSError.

    Not to be asked by whoever has it open as a database: see there.
    """
    return resolve(path) not in _held and _is_taken(resolve(path))


def is_name_locked(path: Path) -> bool:
    """Whether another process has a `FileLock` by this name, whatever is there now. Raises OSError."""
    lock = _beside(resolve(path))
    return resolve(path) not in _held and is_there(lock) and _is_taken(lock)


def _is_taken(file: Path) -> bool:
    handle = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def _beside(file: Path) -> Path:
    return file.with_name(file.name + ".lock")


class FileLock:
    """Keeps others from a file or directory until `close`, or the end of the process.

    Two locks make one: on `NAME.lock` beside the file, which holds whoever replaces the file, and on the file
    itself, which holds for each of its names. A directory, or a file in a directory that cannot be written,
    has the second alone. SQLite's own locks end when any descriptor of its file is closed: take this before
    the database is opened, and close it after.

    Raises:
        FileInUse: somebody has it.
        OSError: it cannot be locked here.
    """

    def __init__(self, path: Path) -> None:
        self.path = resolve(path)
        self.beside: Path | None = None
        """The file beside it that is locked, too."""
        self._handles: list[int] = []
        try:
            if not self.path.is_dir():
                self._lock_name(_beside(self.path))
            self.follow()
        except BaseException:
            self.close()
            raise
        _held[self.path] = self

    def follow(self) -> None:
        """Lock what is there now, too: call it when the file has been made or moved into its place.

        Raises:
            FileInUse: somebody has that.
            OSError: it cannot be locked.
        """
        try:
            handle = _opened(self.path)
        except FileNotFoundError:
            return  # the name is held
        if any(os.path.sameopenfile(handle, held) for held in self._handles):
            os.close(handle)
            return
        self._take(handle)

    def follow_into(self, handle: int) -> None:
        """Lock the open file that is about to be moved into this one's place."""
        self._take(os.dup(handle))

    def close(self) -> None:
        """Let others have it."""
        if _held.get(self.path) is self:
            del _held[self.path]
        while self._handles:
            os.close(self._handles.pop())

    def _lock_name(self, beside: Path) -> None:
        try:
            handle = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            if not is_there(self.path):
                raise
            return  # nobody like us can replace the file there
        self._take(handle)
        self.beside = beside

    def _take(self, handle: int) -> None:
        self._handles.append(handle)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileInUse(str(self.path)) from None


def write_private(path: Path, text: str) -> None:
    """Replace what a path resolves to: atomically, mode 0600, on disk before this returns.

    Raises:
        OSError: the directory cannot be written.
    """
    path = resolve(path)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)  # mkstemp makes it 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            if lock := _held.get(path):
                lock.follow_into(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """See that a file's new name is on disk, too."""
    directory = os.open(path, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)  # a network file system wants it writable
    except FileNotFoundError:
        raise
    except OSError:  # a directory, or not ours to write
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
