"""The journal in an SQLite file: what the hub acknowledged is in it, whatever happens to the machine.

One thread owns the connection, so the event loop never waits in SQLite. WAL with `synchronous=FULL` syncs
once a commit. The file is private (it holds the tasks' passwords), and SQLite gives its `-wal` and `-shm`
the mode of the file itself. A lock keeps a second hub away, by whatever name; the kernel drops it with us.
"""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from gridcore.errors import ConfigError
from gridcore.files import FileLock
from hub import codec
from hub.errors import StoreFull, StoreUnavailable
from hub.events import EventQuery, Recorded
from hub.observed import Instant
from hub.registry import Node
from hub.sqlite_errors import advice_on, code_of, words_of
from hub.sqlite_events import add_events, find_events
from hub.state import Change, State
from hub.state_file import StateFile, lock_database
from hub.store_local import LocalStore, new_entropy, read_clock
from hub.tasklist import Task, TaskList

T = TypeVar("T")

APPLICATION_ID = 0x47524944
"""'GRID' in the file's header: this database is a hub's."""

SCHEMA_VERSION = 3
"""2: nodes have a drain, and what they report has containers; the number alone was raised, because a hub of
1 would not understand what is written. 3: tasks and their list have `more`; tokens, keys, marks, events."""
SCHEMA = """
CREATE TABLE list (revision TEXT NOT NULL);
CREATE TABLE tasks (
    name TEXT PRIMARY KEY, position INTEGER NOT NULL, status TEXT NOT NULL, definition TEXT NOT NULL,
    added_at REAL NOT NULL, started_at REAL, completed_at REAL
);
CREATE TABLE nodes (id TEXT PRIMARY KEY, record TEXT NOT NULL, live TEXT NOT NULL);
"""
SINCE_3 = """
ALTER TABLE list ADD COLUMN more TEXT NOT NULL DEFAULT '{}';
ALTER TABLE tasks ADD COLUMN more TEXT NOT NULL DEFAULT '{}';
CREATE TABLE tokens (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE keys (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE marks (id TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE events (
    id INTEGER PRIMARY KEY AUTOINCREMENT, time REAL NOT NULL, kind TEXT NOT NULL, who TEXT NOT NULL,
    task TEXT, node TEXT, event TEXT NOT NULL
);
CREATE INDEX events_by_time ON events (time)
"""
"""What files of 1 and 2 lack; in columns of its own stands what events are filtered by."""

HEARD = "CREATE TABLE IF NOT EXISTS heard (id TEXT PRIMARY KEY, at REAL NOT NULL)"
"""When nodes were heard, by the clock of `observed.py`; under CLOCK how far that has come. A table that an
earlier hub of this schema does not know, and leaves alone."""

CLOCK = ""
PUT_HEARD = "INSERT OR REPLACE INTO heard VALUES (?, ?)"

BUSY_TIMEOUT = 5.0
"""Seconds to wait for another program (a backup, an `sqlite3` shell) that has the file locked."""


async def open_sqlite(
    path: Path, clock: Callable[[], Instant] = read_clock, *, begins: bool = True
) -> LocalStore:
    """A store whose state is in this file; the file is made if there is none. `begins`: a hub starts with it.

    Raises:
        ConfigError: it cannot be made, read or written, is no hub's database, or another hub has it.
        StoreUnavailable: it cannot be opened now, for a reason that may pass.
    """
    journal = SqliteJournal(path, begins=begins)
    try:
        return LocalStore(await journal.open(), journal, clock=clock)
    except BaseException:
        await journal.close()
        raise


class SqliteJournal:
    """Writes changes to the file, one transaction each, in a thread of its own."""

    def __init__(self, path: Path, *, begins: bool = True) -> None:
        self._path = path
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="journal")
        self._lock: FileLock | None = None
        self._connection: sqlite3.Connection | None = None
        self._file = StateFile(path, begins=begins)
        self._kept = TaskList(revision="")  # the list as the file has it: only what differs is written

    async def open(self) -> State:
        """Lock, make or check the file, and read the state from it. Raises ConfigError."""
        return await self._in_thread(self._open)

    async def commit(self, change: Change) -> None:
        await self._in_thread(lambda: self._keep(lambda database: self._write(database, change)))
        if change.tasks is not None:
            self._kept = change.tasks

    async def keep_live(self, nodes: Sequence[Node], observed: float) -> None:
        rows = [(node.live, node.record.id) for node in nodes]

        def update(database: sqlite3.Connection) -> None:
            database.executemany(
                "UPDATE nodes SET live = ? WHERE id = ?",
                ((codec.live_text(live), node_id) for live, node_id in rows),
            )
            heard = ((node_id, live.heard) for live, node_id in rows)
            database.executemany(PUT_HEARD, [(CLOCK, observed), *heard])

        await self._in_thread(lambda: self._keep(update))

    async def events(self, query: EventQuery) -> Sequence[Recorded]:
        return await self._in_thread(lambda: self._transaction(lambda database: find_events(database, query)))

    async def forget_events(self, before: float) -> int:
        def delete(database: sqlite3.Connection) -> int:
            return database.execute("DELETE FROM events WHERE time < ?", (before,)).rowcount

        return await self._in_thread(lambda: self._keep(delete))

    async def close(self) -> None:
        try:
            await self._in_thread(self._close)
        finally:
            self._thread.shutdown()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    def _open(self) -> State:
        try:
            self._lock = lock_database(self._path)
            # Made by us and not by SQLite, so that no moment exists in which others can read it.
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.fchmod(handle, 0o600)
            finally:
                os.close(handle)
            self._lock.follow()
        except OSError as error:
            raise ConfigError(
                f"state: {self._path} cannot be opened: {error.strerror}. "
                "Make its directory, let this user write there, or name another file"
            ) from None
        try:
            return self._load()
        except (sqlite3.Error, StoreUnavailable) as error:
            if advice := advice_on(error):
                raise StoreUnavailable(
                    f"state: {self._path} cannot be opened: {words_of(error)}. {advice}"
                ) from None
            raise self._unusable(words_of(error)) from None
        except (ValueError, KeyError, TypeError) as error:
            raise self._unusable(type(error).__name__) from None

    def _unusable(self, reason: str) -> ConfigError:
        return ConfigError(
            f"state: {self._path} cannot be used: {reason}. Restore it from a backup, "
            "or move it away to begin with no tasks and no nodes"
        )

    def _load(self) -> State:
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
        if version < SCHEMA_VERSION:
            self._transaction(lambda database: _bring_up(database, version))
        self._transaction(lambda database: database.execute(HEARD))
        self._file.opened(is_new=not tables)
        self._kept = read_tasks(database)
        heard: dict[str, float] = dict(database.execute("SELECT id, at FROM heard"))
        # What was heard after the clock was last kept says how far it had come as well.
        observed = max(heard.values(), default=0.0)
        return State(self._kept, *read_rest(database, observed, heard), observed)

    def _keep(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """A transaction that writes."""
        with self._file.writing():
            return self._transaction(work)

    def _transaction(self, work: Callable[[sqlite3.Connection], T]) -> T:
        if self._connection is None:
            raise StoreUnavailable(f"{self._path} is closed")
        database = self._connection
        self._file.insist()
        try:
            database.execute("BEGIN IMMEDIATE")
            result = work(database)
            database.execute("COMMIT")
        except sqlite3.Error as error:
            if database.in_transaction:
                database.execute("ROLLBACK")
            if code_of(error) == sqlite3.SQLITE_FULL:
                # Whatever is asked: what is removed is written down, too, before it makes room.
                do = "Make room on its disk, then send the request again: till then even DELETE is refused"
                raise StoreFull(f"{self._path}: {error}", do) from error
            raise StoreUnavailable(f"{self._path}: {error}") from error
        return result

    def _write(self, database: sqlite3.Connection, change: Change) -> None:
        if change.tasks is not None:
            self._write_tasks(database, change.tasks)
        for node_id, node in change.nodes.items():
            if node is None:
                database.execute("DELETE FROM nodes WHERE id = ?", (node_id,))
                database.execute("DELETE FROM heard WHERE id = ?", (node_id,))
            else:
                database.execute(
                    "INSERT INTO nodes VALUES (?, ?, ?) "
                    "ON CONFLICT (id) DO UPDATE SET record = excluded.record, live = excluded.live",
                    (node_id, json.dumps(codec.dump_record(node.record)), codec.live_text(node.live)),
                )
                database.execute(PUT_HEARD, (node_id, node.live.heard))
        for token_id, token in change.tokens.items():
            _put(database, "tokens", token_id, codec.dump_token(token) if token else None)
        for key_id, key in change.keys.items():
            _put(database, "keys", key_id, codec.dump_key(key) if key else None)
        for name, mark in change.marks.items():
            _put(database, "marks", name, dict(mark) if mark is not None else None)
        add_events(database, change.events)

    def _write_tasks(self, database: sqlite3.Connection, tasks: TaskList) -> None:
        more = json.dumps(codec.dump_head(tasks))
        database.execute("UPDATE list SET revision = ?, more = ?", (tasks.revision, more))
        kept = {task.name: (position, task) for position, task in enumerate(self._kept.tasks)}
        names = {task.name for task in tasks.tasks}
        database.executemany(
            "DELETE FROM tasks WHERE name = ?", ((name,) for name in kept if name not in names)
        )
        database.executemany(
            "INSERT OR REPLACE INTO tasks VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                _task_row(position, task)
                for position, task in enumerate(tasks.tasks)
                if kept.get(task.name) != (position, task)
            ),
        )

    def _close(self) -> None:
        if self._connection is not None:
            with self._file.closing():
                self._connection.close()
            self._connection = None
        if self._lock is not None:
            self._lock.close()
            self._lock = None


def _bring_up(database: sqlite3.Connection, version: int) -> None:
    """Make the tables of a new file (version 0), or what those of an older version lack."""
    if version == 0:
        for statement in SCHEMA.split(";"):
            database.execute(statement)
        database.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        database.execute("INSERT INTO list VALUES (?)", (TaskList.empty(new_entropy()).revision,))
    if version < 3:
        for statement in SINCE_3.split(";"):
            database.execute(statement)
    database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


def _put(database: sqlite3.Connection, table: str, key: str, record: dict[str, Any] | None) -> None:
    if record is None:
        database.execute(f"DELETE FROM {table} WHERE id = ?", (key,))  # noqa: S608  our own table names
    else:
        database.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (key, json.dumps(record)))  # noqa: S608  likewise


def _task_row(position: int, task: Task) -> tuple[Any, ...]:
    kept = codec.dump_task(task)
    texts = (task.name, position, kept["status"], json.dumps(kept["definition"]))
    times = (task.added_at, task.started_at, task.completed_at)
    return (*texts, *times, json.dumps({name: kept[name] for name in ("earlier", "aborted", "revision")}))


def read_tasks(database: sqlite3.Connection) -> TaskList:
    """The task list in a database."""
    (revision, more) = database.execute("SELECT revision, more FROM list").fetchone()
    rows = database.execute(
        "SELECT definition, added_at, status, started_at, completed_at, more FROM tasks ORDER BY position"
    )
    names = ("added_at", "status", "started_at", "completed_at")
    tasks = (
        codec.load_task(
            {
                **json.loads(row[5]),
                "definition": json.loads(row[0]),
                **dict(zip(names, row[1:5], strict=True)),
            }
        )
        for row in rows
    )
    return codec.load_list({**json.loads(more), "revision": revision}, tuple(tasks))


def read_rest(
    database: sqlite3.Connection, now: float = 0.0, heard: Mapping[str, float] | None = None
) -> tuple[Any, Any, Any, Any]:
    """The nodes, the tokens, the keys and the marks, each in the order in which they came; when nodes were
    `heard` and what is `now`, by the clock of `observed.py`."""

    def records(table: str) -> dict[str, Any]:
        rows = database.execute(f"SELECT id, record FROM {table} ORDER BY rowid")  # noqa: S608  our own table names
        return {key: json.loads(record) for key, record in rows}

    nodes = [
        codec.restore_node(json.loads(record), json.loads(live), now, (heard or {}).get(node_id))
        for node_id, record, live in database.execute("SELECT id, record, live FROM nodes ORDER BY rowid")
    ]
    tokens = [codec.load_token(record) for record in records("tokens").values()]
    return nodes, tokens, [codec.load_key(record) for record in records("keys").values()], records("marks")
