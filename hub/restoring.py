"""Putting a backup in the place of a hub's state: all of it or nothing, and what was there is not lost."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from gridcore.errors import ConfigError
from gridcore.files import resolve, sync_directory
from hub.backup import BackupError
from hub.contents import Contents, carry_over, fill, read_database, read_store
from hub.errors import StoreUnavailable
from hub.journal_sqlite import open_sqlite
from hub.redis_repair import open_for_repair, restore_redis
from hub.settings import HubSettings
from hub.sqlite_errors import advice_on, words_of
from hub.state_file import lock_database
from hub.tasklist import TaskList

COMPANIONS = ("", "-wal", "-shm")
"""What belongs to an SQLite file: itself, and what SQLite keeps beside it."""


async def take_contents(settings: HubSettings) -> Contents:
    """What the hub of these settings keeps, whether it runs or not.

    Raises:
        BackupError, ConfigError: there is nothing to read, or it cannot be read.
    """
    try:
        if settings.database is not None:
            return read_database(settings.database)
        if settings.redis is None:
            raise BackupError("state: memory: is kept nowhere, so there is nothing to back up or restore")
        async with open_for_repair(settings.redis) as store:
            found = store.sight.found
            if found is None or not found.standing.list_version:
                raise BackupError("state: this Redis holds no task list, so there is nothing to back up")
            if not store.sight.has_seen:
                await store.sight.take()  # which says what it cannot make sense of
            return await read_store(store)
    except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
        reason = words_of(error) if isinstance(error, sqlite3.Error) else type(error).__name__
        advice = f". {advice}" if (advice := advice_on(error)) else ""
        raise BackupError(f"state: {settings.database or 'redis'} cannot be read: {reason}{advice}") from None
    except OSError as error:
        raise BackupError(f"state: {error.filename or ''}: {error.strerror}") from None
    except StoreUnavailable as error:
        raise BackupError(f"state: {error}") from None


async def restore(settings: HubSettings, backup: Contents) -> tuple[TaskList, Path | None]:
    """Make this backup the hub's state; the task list as it is then, and where the file is that was there.

    Raises:
        BackupError, ConfigError: a hub runs, or the state cannot be written; hubs take nothing of it then.
    """
    try:
        if settings.database is not None:
            return await _restore_database(settings.database, backup)
        if settings.redis is None:
            raise BackupError("state: memory: is kept nowhere, so there is nothing to back up or restore")
        return await restore_redis(settings.redis, backup), None
    except StoreUnavailable as error:
        raise BackupError(f"state: {error}") from None
    except OSError as error:
        raise BackupError(f"state: {error.filename or ''}: {error.strerror}") from None


async def _restore_database(name: Path, backup: Contents) -> tuple[TaskList, Path | None]:
    path = resolve(name)  # a link stays a link
    with _locked(path):
        made = path.with_name(f"{path.name}.restoring")
        try:
            _remove(made)
            present = _read_present(path)
            store = await open_sqlite(made, begins=False)
            try:
                tasks = await fill(store, carry_over(backup, present) if present else backup)
            finally:
                await store.close()
            _give(made, path.parent)
            return tasks, _put_in_place(made, path)
        finally:
            _remove(made)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """No hub starts on this file meanwhile. Raises ConfigError if one runs, or the file has a second name."""
    lock = lock_database(path)
    try:
        if lock.beside is not None:
            _give(lock.beside, path.parent)
        yield
    finally:
        lock.close()


def _read_present(path: Path) -> Contents | None:
    """What is there now; None where it cannot be read, since a restore is for just that."""
    try:
        return read_database(path)
    except (ConfigError, OSError, sqlite3.Error, ValueError, KeyError, TypeError):
        return None


def _put_in_place(made: Path, path: Path) -> Path | None:
    """Move a finished file to where the hub looks; the path to which what was there has gone."""
    aside = None
    if path.exists():
        with suppress(sqlite3.Error):
            _fold(path)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        aside = path.with_name(f"{path.name}.before-restore-{stamp}")
        for end in COMPANIONS[1:]:  # none is left of a file that is sound
            with suppress(FileNotFoundError):
                path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
        try:
            os.link(path, aside)  # so there is no moment without a state
        except OSError:  # a file system without such links
            path.rename(aside)
    made.replace(path)
    sync_directory(path.parent)
    return aside


def _fold(path: Path) -> None:
    """Bring what SQLite keeps beside the file into it."""
    database = sqlite3.connect(path, isolation_level=None)
    try:
        database.execute("PRAGMA journal_mode = DELETE")
    finally:
        database.close()


def _give(path: Path, directory: Path) -> None:
    """Where root restores, the file belongs to whom the directory belongs to: to the hub's user."""
    if os.geteuid() == 0:
        owner = directory.stat()
        os.chown(path, owner.st_uid, owner.st_gid)


def _remove(made: Path) -> None:
    for end in (*COMPANIONS, ".lock"):
        made.with_name(made.name + end).unlink(missing_ok=True)
