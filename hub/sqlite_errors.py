"""What SQLite's failures mean for a person: which of them say nothing against what is in the file."""

from __future__ import annotations

import sqlite3

PASSING = {
    sqlite3.SQLITE_FULL: "Make room on its disk, then start the hub again: what is there is whole",
    sqlite3.SQLITE_IOERR: "Look whether its disk is full, or failing (`dmesg`), then start the hub again",
    sqlite3.SQLITE_CANTOPEN: "Look whether its disk is full, and its directory this user's to write in",
    sqlite3.SQLITE_BUSY: "Another program has locked it, an `sqlite3` shell perhaps: end that",
}
"""What to do about a failure that says nothing against what is in the file."""


def advice_on(error: BaseException) -> str | None:
    """What to do where a file cannot be used now, and may be whole; None for one that is damaged."""
    return PASSING.get(code_of(error))


def words_of(error: BaseException) -> str:
    """SQLite's own words for it, on one line."""
    return str(_cause_of(error)).splitlines()[0]


def code_of(error: BaseException) -> int:
    """SQLite's primary result code of an error, or of its cause; 0 where there is none."""
    return int(getattr(_cause_of(error), "sqlite_errorcode", 0)) & 0xFF


def _cause_of(error: BaseException) -> BaseException:
    return error.__cause__ if isinstance(error.__cause__, sqlite3.Error) else error
