"""The audit trail in an SQLite file; each function is part of a transaction of the journal's."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from typing import Any

from hub import codec
from hub.events import Event, EventQuery, Recorded
from hub.journal_memory import place_of


def add_events(database: sqlite3.Connection, events: Sequence[Event]) -> None:
    """Append these."""
    database.executemany(
        "INSERT INTO events (time, kind, who, task, node, event) VALUES (?, ?, ?, ?, ?, ?)",
        (
            (
                event.time,
                event.kind,
                event.who,
                event.task,
                event.node,
                json.dumps(codec.dump_event(event)),
            )
            for event in events
        ),
    )


def find_events(database: sqlite3.Connection, query: EventQuery) -> list[Recorded]:
    """The part of the trail that was asked for."""
    conditions, values = ["1"], list[Any]()
    if query.after is not None:
        conditions.append("id > ?")
        values.append(place_of(query.after))
    elif query.before is not None:
        conditions.append("id < ?")
        values.append(place_of(query.before))
    if query.kinds:
        conditions.append(f"kind IN ({', '.join('?' * len(query.kinds))})")
        values.extend(query.kinds)
    for name in ("task", "node", "who"):
        if (wanted := getattr(query, name)) is not None:
            conditions.append(f"{name} = ?")
            values.append(wanted)
    for name, how in (("since", ">="), ("until", "<")):
        if (moment := getattr(query, name)) is not None:
            conditions.append(f"time {how} ?")
            values.append(moment)
    order = "ASC" if query.after is not None else "DESC"
    text = f"SELECT id, event FROM events WHERE {' AND '.join(conditions)} ORDER BY id {order} LIMIT ?"  # noqa: S608  values are bound
    rows = database.execute(text, (*values, query.limit))
    return [Recorded(str(place), codec.load_event(json.loads(event))) for place, event in rows]


def read_events(database: sqlite3.Connection) -> Iterator[Event]:
    """The whole audit trail, the oldest event first."""
    for (event,) in database.execute("SELECT event FROM events ORDER BY id"):
        yield codec.load_event(json.loads(event))
