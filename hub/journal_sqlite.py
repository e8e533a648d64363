"""The journal in an SQLite file: what the hub acknowledged is in it, whatever happens to the machine.

One thread owns the connection, so the event loop never waits in SQLite. WAL with `synchronous=FULL` syncs
once a commit. The file is private (it holds the tasks' passwords), and SQLite gives its `-wal` and `-shm`
the mode of the file itself. A lock beside the file keeps a second hub away; the kernel drops it with us.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import sqlite3
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, TypeVar

from gridcore.errors import ConfigError
from gridcore.protocol import TaskDefinition
from hub import registry
from hub.errors import StoreUnavailable
from hub.registry import DrainOrder, Instant, Live, Node, NodeRecord, Presence, StopOrder
from hub.reports import ContainerState, LastExit, NodeError
from hub.state import Change, State
from hub.store_local import LocalStore, new_entropy, read_clock
from hub.tasklist import Task, TaskList, TaskStatus

T = TypeVar("T")

APPLICATION_ID = 0x47524944
"""'GRID' in the file's header: this database is a hub's."""

SCHEMA_VERSION = 2
"""2: nodes have a drain, and what they report has containers. Tables and columns are those of 1, so a file
of 1 is used as it is; its number is raised because a hub of 1 would not understand what is written now."""
SCHEMA = """
CREATE TABLE list (revision TEXT NOT NULL);
CREATE TABLE tasks (
    name TEXT PRIMARY KEY, position INTEGER NOT NULL, status TEXT NOT NULL, definition TEXT NOT NULL,
    added_at REAL NOT NULL, started_at REAL, completed_at REAL
);
CREATE TABLE nodes (id TEXT PRIMARY KEY, record TEXT NOT NULL, live TEXT NOT NULL);
"""

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another program (a backup, an `sqlite3` shell) that has the file locked."""


async def open_sqlite(path: Path, clock: Callable[[], Instant] = read_clock) -> LocalStore:
    """A store whose state is in this file; the file is made if there is none.

    Raises:
        ConfigError: it cannot be made, read or written, is no hub's database, or another hub has it.
    """
    journal = SqliteJournal(path)
    try:
        return LocalStore(await journal.open(clock()), journal, clock=clock)
    except BaseException:
        await journal.close()
        raise


class SqliteJournal:
    """Writes changes to the file, one transaction each, in a thread of its own."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._lock: int | None = None
        self._connection: sqlite3.Connection | None = None
        self._kept = TaskList(revision="")  # the list as the file has it: only what differs is written

    async def open(self, now: Instant) -> State:
        """Lock, make or check the file, and read the state from it. Raises ConfigError."""
        return await self._in_thread(lambda: self._open(now))

    async def commit(self, change: Change) -> None:
        await self._in_thread(lambda: self._transaction(lambda database: self._write(database, change)))
        if change.tasks is not None:
            self._kept = change.tasks

    async def keep_live(self, nodes: Sequence[Node]) -> None:
        rows = [(node.live, node.record.id) for node in nodes]

        def update(database: sqlite3.Connection) -> None:
            database.executemany(
                "UPDATE nodes SET live = ? WHERE id = ?",
                ((_live_text(live), node_id) for live, node_id in rows),
            )

        await self._in_thread(lambda: self._transaction(update))

    async def close(self) -> None:
        try:
            await self._in_thread(self._close)
        finally:
            self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self, now: Instant) -> State:
        try:
            self._take_lock()
            # Made by us and not by SQLite, so that no moment exists in which others can read it.
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(handle, 0o600)
            finally:
                os.close(handle)
        except OSError as error:
            raise ConfigError(
                f"state: {self._path} cannot be opened: {error.strerror}. "
                "Make its directory, let this user write there, or name another file"
            ) from None
        try:
            return self._load(now)
        except (sqlite3.Error, ValueError, KeyError, TypeError) as error:
            reason = str(error).splitlines()[0] if isinstance(error, sqlite3.Error) else type(error).__name__
            raise ConfigError(
                f"state: {self._path} cannot be used: {reason}. Restore it from a backup, "
                "or move it away to begin with no tasks and no nodes"
            ) from None

    def _take_lock(self) -> None:
        lock_path = self._path.with_name(self._path.name + ".lock")
        self._lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"state: {self._path} belongs to another hub that runs now; "
                "stop that one, or name another file"
            ) from None

    def _load(self, now: Instant) -> State:
        database = sqlite3.connect(self._path, timeout=BUSY_TIMEOUT, isolation_level=None)
        self._connection = database
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (tables,) = database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (application,) = database.execute("PRAGMA application_id").fetchone()
        if tables and application != APPLICATION_ID:
            raise ConfigError(f"state: {self._path} is a database, but not one of a hub; name another file")
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"state: {self._path} was written by a newer GridCore (schema {version}, "
                f"this one knows {SCHEMA_VERSION}); install that version again"
            )
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        (health,) = database.execute("PRAGMA quick_check(1)").fetchone()
        if health != "ok":
            raise sqlite3.DatabaseError(f"the file is damaged: {health}")
        if not tables:
            self._create()
        elif version < SCHEMA_VERSION:
            self._transaction(_set_version)
        self._kept = _read_tasks(database)
        return State(self._kept, _read_nodes(database, now))

    def _create(self) -> None:
        def make(database: sqlite3.Connection) -> None:
            for statement in SCHEMA.split(";"):
                database.execute(statement)
            database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            _set_version(database)
            database.execute("INSERT INTO list VALUES (?)", (TaskList.empty(new_entropy()).revision,))

        self._transaction(make)

    def _transaction(self, work: Callable[[sqlite3.Connection], None]) -> None:
        if self._connection is None:
            raise StoreUnavailable(f"{self._path} is closed")
        database = self._connection
        try:
            database.execute("BEGIN IMMEDIATE")
            work(database)
            database.execute("COMMIT")
        except sqlite3.Error as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise StoreUnavailable(f"{self._path}: {error}") from error

    def _write(self, database: sqlite3.Connection, change: Change) -> None:
        if change.tasks is not None:
            database.execute("UPDATE list SET revision = ?", (change.tasks.revision,))
            kept = {task.name: (position, task) for position, task in enumerate(self._kept.tasks)}
            database.executemany(
                "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    _task_row(position, task)
                    for position, task in enumerate(change.tasks.tasks)
                    if kept.get(task.name) != (position, task)
                ),
            )
        for node_id, node in change.nodes.items():
            if node is None:
                database.execute("DELETE FROM nodes WHERE id = ?", (node_id,))
            else:
                database.execute(
                    "INSERT INTO nodes VALUES (?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET record = excluded.record, live = excluded.live",
                    (node_id, json.dumps(asdict(node.record)), _live_text(node.live)),
                )

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _set_version(database: sqlite3.Connection) -> None:
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _task_row(position: int, task: Task) -> tuple[Any, ...]:
    definition = json.dumps(task.definition.to_stored())
    times = (task.added_at, task.started_at, task.completed_at)
    return (task.name, position, task.status.value, definition, *times)


_KEPT = [field.name for field in fields(Live) if field.name not in ("heard", "nudged")]
"""What of a Live outlasts this run of the hub."""


def _live_text(live: Live) -> str:
    # `asdict` copies deeply: too slow for the containers of a fleet.
    return json.dumps({name: getattr(live, name) for name in _KEPT}, default=_fields_of)


def _fields_of(value: Any) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _read_tasks(database: sqlite3.Connection) -> TaskList:
    (revision,) = database.execute("SELECT revision FROM list").fetchone()
    rows = database.execute(
        "SELECT definition, added_at, status, started_at, completed_at FROM tasks ORDER BY position"
    )
    return TaskList(
        revision,
        tuple(
            Task(
                TaskDefinition.model_validate_json(definition),
                added_at,
                TaskStatus(status),
                started,
                completed,
            )
            for definition, added_at, status, started, completed in rows
        ),
    )


def _read_nodes(database: sqlite3.Connection, now: Instant) -> list[Node]:
    return [
        registry.restore(_read_record(json.loads(record)), _read_live(json.loads(live), now), now)
        for record, live in database.execute("SELECT record, live FROM nodes ORDER BY rowid")
    ]


def _read_record(kept: dict[str, Any]) -> NodeRecord:
    states = {
        "presence": Presence(kept["presence"]),
        "stop": StopOrder(kept["stop"]),
        "drain": DrainOrder(kept.get("drain", DrainOrder.NONE)),
    }
    return NodeRecord(**{**kept, **states})


def _read_live(kept: dict[str, Any], now: Instant) -> Live:
    parts = {
        "errors": tuple(NodeError(**error) for error in kept["errors"]),
        "containers": tuple(_read_container(container) for container in kept.get("containers", ())),
        "warnings": tuple(kept.get("warnings", ())),
    }
    return Live(heard=now.monotonic, **{**kept, **parts})


def _read_container(kept: dict[str, Any]) -> ContainerState:
    ended = kept["last_exit"]
    return ContainerState(**{**kept, "last_exit": LastExit(**ended) if ended else None})
