"""The file that a hub with SQLite has open: whether it is still the one, and what the log is told of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from gridcore.condition import Condition
from gridcore.errors import ConfigError
from gridcore.files import FileInUse, FileLock, is_locked, is_name_locked, is_there, resolve
from hub.errors import StateLost, StoreUnavailable
from hub.sqlite_shared import OpenFiles, are_whole

log = structlog.get_logger()


def make_place(directory: Path) -> None:
    """Make the directory of a first state, where this user may; what is there stays as it is.

    Raises:
        ConfigError: it cannot be made.
    """
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"state: {directory} cannot be made: {error.strerror}. Make it for the hub's user, "
            "or name another file in the configuration"
        ) from None


def place_warning(file: Path) -> str | None:
    """Why a hub of this user could not open its state there, or None; nothing is made.

    No error: the service's directory is made when it starts first, after its configuration was checked.
    """
    try:
        if is_there(file):
            is_usable = file.is_file() and os.access(file, os.R_OK | os.W_OK)
            why = "this user cannot read and write it, or it is no file"
        else:
            is_usable = resolve(file).parent.is_dir() and os.access(resolve(file).parent, os.W_OK | os.X_OK)
            why = f"there is no directory {file.parent} in which this user can write"
    except OSError as error:
        is_usable, why = False, error.strerror or type(error).__name__
    return None if is_usable else f"state: {file} cannot be opened: {why}; as it is, the hub would not start"


WRITTEN_LAST = ("-wal", "-shm")
"""What SQLite has beside the file while it is open. Its last changes are in these alone."""


class StateFile:
    """One file and what is beside it, from `opened` on."""

    def __init__(self, path: Path, *, begins: bool = True) -> None:
        """`begins`: a hub begins with it; whoever fills it with a state tells nobody that it was empty."""
        self._path = path
        self._begins = begins
        self._identity: list[tuple[int, int]] | None = None
        self._files: OpenFiles | None = None
        self._trouble = Condition(
            "the state cannot be written",
            "the state can be written again",
            do="changes are refused with 503 till then, and nodes go on computing",
            level="error",
        )

    def opened(self, *, is_new: bool = False) -> None:
        """It is open now, and was read from; `is_new`: nothing was in it. Raises OSError."""
        self._files = OpenFiles(resolve(self._path), *beside(self._path))
        self._files.note()
        self._identity = self._look()
        if is_new and self._begins:  # a first start, or a file that was emptied or is not where it was
            log.warning(
                "there was no state in the file: the hub begins with no tasks and no nodes",
                file=str(self._path),
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What fails in the block is told once, and so is that it goes well again."""
        try:
            yield
        except StoreUnavailable as error:
            self._trouble.meet(str(error), why=str(error))
            raise
        if self._files is not None:
            self._files.note()
        self._trouble.over()

    @contextmanager
    def closing(self) -> Iterator[None]:
        """SQLite closes it in the block."""
        files, self._files = self._files, None
        if files is None:
            yield
            return
        try:
            files.before_close()
            yield
        finally:
            files.close()

    def insist(self) -> None:
        """Raises StateLost where what is there is not what SQLite takes it for: writes would be lost."""
        if self._files is None:
            return
        try:
            found = self._look()
        except OSError:
            found = None
        if found is None or found != self._identity or not self._files.are_right():
            raise StateLost(
                f"{self._path}, or what SQLite keeps beside it ({', '.join(WRITTEN_LAST)}), was removed, "
                "replaced, or written or cut by something else while the hub runs",
                "The hub goes by what it knows, and keeps no change any more. Stop it, put the file or a "
                "backup (`computehub restore`) in its place, and start it again",
            )

    def _look(self) -> list[tuple[int, int]] | None:
        found = [file.stat() for file in (self._path, *beside(self._path))]
        return [(each.st_dev, each.st_ino) for each in found] if found[0].st_size else None


def beside(path: Path) -> list[Path]:
    """What SQLite has beside an open file, whatever links lead to it."""
    file = resolve(path)
    return [file.with_name(file.name + end) for end in WRITTEN_LAST]


def lock_database(path: Path) -> FileLock:
    """Keep hubs away from this file, by whatever name they come to it.

    Raises:
        ConfigError: a hub has it, or it has a second name.
        OSError: it cannot be locked here.
    """
    try:
        lock = FileLock(path)
    except FileInUse:
        raise ConfigError(
            f"state: {path} belongs to another hub that runs now; stop that one, or name another file"
        ) from None
    try:
        refuse_second_name(path)
    except ConfigError:
        lock.close()
        raise
    return lock


def refuse_second_name(path: Path) -> None:
    """Raises ConfigError where hard links lead to the file: what SQLite wrote last is beside one of them."""
    if is_there(path) and path.is_file() and (names := path.stat().st_nlink) > 1:
        raise ConfigError(
            f"state: {path} has {names} names (hard links), and what SQLite wrote last is in a file beside "
            f"one of them. Remove the others (`find / -xdev -samefile {path}` shows them)"
        )


def refuse_torn(path: Path) -> None:
    """Raises StateLost where a hub runs with it, and what is there is not what that has open."""
    log, _ = beside(path)
    is_open = is_locked(path)
    if not is_open and is_name_locked(path):
        raise StateLost(
            f"{path} was replaced while the hub runs",
            "It is not what the hub knows. Stop the hub, and put the file or a backup in its place",
        )
    if is_open and not log.exists():
        raise StateLost(
            f"{log} was removed while the hub runs",
            f"What stands in {path.name} is older than what the hub knows. Stop the hub: it writes all "
            "of it there",
        )
    if is_open and not are_whole(*beside(path)):
        raise StateLost(
            f"{log} was cut or overwritten while the hub runs",
            f"What stands in {path.name} is older than what the hub knows, and the rest is gone",
        )
