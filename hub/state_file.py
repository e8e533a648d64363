"""The file that a hub with SQLite has open: whether it is still the one, and what the log is told of it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import structlog

from gridcore.condition import Condition
from gridcore.errors import ConfigError
from gridcore.files import is_locked, is_there, resolve
from hub.errors import StateLost, StoreUnavailable

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
        self._database: sqlite3.Connection | None = None
        self._trouble = Condition(
            "the state cannot be written",
            "the state can be written again",
            do="changes are refused with 503 till then, and nodes go on computing",
            level="error",
        )

    def opened(self, database: sqlite3.Connection, *, is_new: bool = False) -> None:
        """It is open now, and was read from; `is_new`: nothing was in it. Raises OSError."""
        self._database = database
        self._identity = self._look()
        if is_new and self._begins:  # a first start, or a file that was emptied or is not where it was
            log.warning(
                "there was no state in the file: the hub begins with no tasks and no nodes",
                file=str(self._path),
            )

    @contextmanager
    def writing(self) -> Iterator[None]:
        """What fails in the block is told once, and so is that it goes well again.

        Raises StateLost where the file is not the one that was opened: what is written would be lost.
        """
        try:
            self._insist()
            yield
        except StoreUnavailable as error:
            self._trouble.meet(str(error), why=str(error))
            raise
        self._trouble.over()

    def _insist(self) -> None:
        try:
            found = self._look()
        except OSError:
            found = None
        if found is None or found != self._identity:
            raise StateLost(
                f"{self._path}, or what SQLite keeps beside it ({', '.join(WRITTEN_LAST)}), was removed, "
                "emptied or replaced while the hub runs",
                "The hub goes by what it knows, and keeps no change any more. Stop it, put the file or a "
                "backup (`computehub restore`) in its place, and start it again",
            )

    def _look(self) -> list[tuple[int, int]] | None:
        files = [self._path, *beside(self._path)]
        found = [file.stat() for file in files]
        is_whole = found[0].st_size and (found[1].st_size or self._wrote_nothing_last())
        return [(each.st_dev, each.st_ino) for each in found] if is_whole else None

    def _wrote_nothing_last(self) -> bool:
        """Whether an empty log is as it should be: a checkpoint may have cut it, and SQLite knows of that."""
        if self._database is None:
            return False
        try:
            _busy, frames, _moved = self._database.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        except sqlite3.Error:  # it looked for what is not there any more
            return False
        return bool(frames <= 0)


def beside(path: Path) -> list[Path]:
    """What SQLite has beside an open file, whatever links lead to it."""
    file = resolve(path)
    return [file.with_name(file.name + end) for end in WRITTEN_LAST]


def refuse_torn(path: Path) -> None:
    """Raises StateLost where a hub has the file open, and what it wrote last is not beside it any more."""
    log, _ = beside(path)
    if not log.exists() and is_locked(path):
        raise StateLost(
            f"{log} was removed while the hub runs",
            f"What stands in {path.name} is older than what the hub knows. Stop the hub: it writes all "
            "of it there",
        )
