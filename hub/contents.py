"""All that a hub keeps, as values: what a backup holds, and how it becomes a hub's state again.

The same for every store, so a backup of one can be restored into another. Marks are left out: they are leases
and how far a hub had come, which means nothing at another time.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from gridcore.errors import ConfigError
from gridcore.files import is_there, resolve
from hub.access import SigningKey, TokenRecord
from hub.events import MOST_EVENTS, Event, EventQuery
from hub.journal_sqlite import (
    APPLICATION_ID,
    BUSY_TIMEOUT,
    SCHEMA_VERSION,
    read_rest,
    read_tasks,
)
from hub.registry import Node
from hub.sqlite_events import read_events
from hub.state import EVERYONE, Change, Moment, Operation, Outcome, View
from hub.state_file import refuse_second_name, refuse_torn
from hub.store import Store
from hub.tasklist import TaskList

AT_ONCE = 500
"""Nodes, tokens or events that one transaction restores."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Contents:
    """What there is at one moment (`taken`, seconds since the epoch)."""

    taken: float
    tasks: TaskList
    nodes: Sequence[Node] = ()
    keys: Sequence[SigningKey] = field(default=(), repr=False)
    tokens: Sequence[TokenRecord] = ()
    events: Sequence[Event] = field(default=(), repr=False)
    """The oldest first."""

    @property
    def is_empty(self) -> bool:
        """Whether nobody has done anything yet."""
        return not (self.tasks.tasks or self.nodes or self.tokens)

    @property
    def counts(self) -> dict[str, int]:
        """How much there is of each."""
        kept = {"tasks": self.tasks.tasks, "nodes": self.nodes, "tokens": self.tokens, "events": self.events}
        return {name: len(values) for name, values in kept.items()}


def read_database(path: Path) -> Contents:
    """The contents of an SQLite file at one moment, also while a hub writes to it, also on a read-only disk.

    Raises:
        ConfigError: it is not there, is no hub's, or of another version, or has a second name.
        StateLost: a hub runs on it, and what that wrote last is gone.
        OSError: it cannot be read.
        sqlite3.Error, ValueError, KeyError, TypeError: it is damaged.
    """
    if not is_there(path):
        raise ConfigError(f"state: {path}: there is no such file")
    if path.stat().st_size == 0:  # SQLite would remove the log beside it
        raise ConfigError(f"state: {path} is empty")
    refuse_second_name(path)
    refuse_torn(path)
    with _opened(resolve(path)) as database:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID:
            raise ConfigError(f"state: {path} is not the database of a hub")
        if version != SCHEMA_VERSION:
            raise ConfigError(
                f"state: {path} has schema {version}, this GridCore knows {SCHEMA_VERSION}; use the GridCore "
                "that wrote it, or start the hub once with this one"
            )
        database.execute("PRAGMA query_only = ON")
        database.execute("BEGIN")  # one transaction: whatever is written meanwhile is not seen
        taken = time.time()
        tasks = read_tasks(database)
        nodes, tokens, keys, _marks = read_rest(database)
        return Contents(taken, tasks, nodes, keys, tokens, list(read_events(database)))


@contextmanager
def _opened(path: Path) -> Iterator[sqlite3.Connection]:
    """The database with all that was written, for reading."""
    log, shared = (path.with_name(path.name + end) for end in ("-wal", "-shm"))
    if os.access(path.parent, os.W_OK):
        # Not read-only: SQLite may have to bring in what a hub that was killed left in its log.
        how = "mode=rw"
    elif shared.exists():  # a hub runs that may write there, or has left all that SQLite needs
        how = "mode=ro"
    elif not log.exists() or log.stat().st_size == 0:  # nothing but the file, and nobody who writes it
        how = "immutable=1"
    else:
        with tempfile.TemporaryDirectory(prefix="computehub-") as place:  # 0700
            for file in (path, log):
                shutil.copyfile(file, Path(place, file.name))
            with _opened(Path(place, path.name)) as database:
                yield database
        return
    address = f"file:{quote(str(path))}?{how}"
    with closing(sqlite3.connect(address, uri=True, timeout=BUSY_TIMEOUT, isolation_level=None)) as database:
        yield database


async def read_store(store: Store) -> Contents:
    """The contents of an open store; what changes meanwhile may be in it or not. Raises StoreUnavailable."""
    taken, events, place = time.time(), list[Event](), ""
    while page := await store.events(EventQuery(after=place, limit=MOST_EVENTS)):
        events.extend(recorded.event for recorded in page)
        place = page[-1].id
    keys, tokens = list(store.access.keys.values()), await store.tokens()
    return Contents(taken, await store.tasks(), await store.nodes(), keys, tokens, events)


def carry_over(backup: Contents, present: Contents) -> Contents:
    """The backup, and of what is there now that which no restore takes back: who may do what (a token that
    was revoked since stays revoked), and what the audit trail tells since."""
    keys = {key.id: key for key in (*backup.keys, *present.keys)}
    tokens = {token.id: token for token in (*backup.tokens, *present.tokens)}
    last = max((event.time for event in backup.events), default=0.0)
    events = [*backup.events, *(event for event in present.events if event.time > last)]
    return replace(backup, keys=list(keys.values()), tokens=list(tokens.values()), events=events)


async def fill(store: Store, contents: Contents) -> TaskList:
    """Put all of it into an empty store, the task list last and under a revision that nothing has; the list
    as it is then. Raises StoreUnavailable."""
    for events in _portions(contents.events):
        await store.run(_put(Change(events=tuple(events))))
    await store.run(_put(Change(keys={key.id: key for key in contents.keys})))
    for tokens in _portions(contents.tokens):
        await store.run(_put(Change(tokens={token.id: token for token in tokens})))
    for nodes in _portions(contents.nodes):
        await store.run(_take_in(nodes))
    return await store.run(_restore_tasks(contents))


def _put(change: Change) -> Operation[None]:
    return Operation(lambda _view, _at: Outcome(None, change), tokens=tuple(change.tokens))


def _take_in(nodes: Sequence[Node]) -> Operation[None]:
    """Put nodes in as if they had been heard now: when that was by the clock of another hub says nothing."""

    def decide(_view: View, at: Moment) -> Outcome[None]:
        heard = (replace(node, live=replace(node.live, heard=at.now.monotonic)) for node in nodes)
        return Outcome(None, Change(nodes={node.record.id: node for node in heard}))

    return Operation(decide, nodes=tuple(node.record.id for node in nodes))


def _restore_tasks(contents: Contents) -> Operation[TaskList]:
    def decide(_view: View, at: Moment) -> Outcome[TaskList]:
        kept = contents.tasks
        # A trial on some nodes does not outlive the hub that watched it.
        tasks = replace(kept, revision=kept.fresh_revision(at.entropy()), canary=None)
        current = tasks.current.name if tasks.current else None
        counts = {name: count for name, count in contents.counts.items() if name != "events"}
        detail: Mapping[str, Any] = {"taken": contents.taken, **counts}
        return Outcome(
            tasks, Change(tasks, events=at.tell("restored", task=current, detail=detail)), EVERYONE
        )

    return Operation(decide)


def _portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    return (values[first : first + AT_ONCE] for first in range(0, len(values), AT_ONCE))
