"""The last three runs of every slot: how each ended and the end of its log, on disk, for whoever asks why.

One file a run, its record in the first line and its log behind it, so that one rename makes both appear.
Only the records are held in memory. The newest file has the highest number.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import structlog
from pydantic import TypeAdapter, ValidationError

log = structlog.get_logger()

SLOTS = range(4096)
_SUFFIX = ".run"
_LINE_SEARCH = 4096
"""Bytes at the start of a cut log in which a line's end is looked for; longer lines are cut."""


@dataclass(frozen=True)
class Run:
    """One container of a slot, from start to end; times in seconds since the epoch, by the engine's clock."""

    instance: int
    task: str
    generation: str
    container: str
    image: str
    started: float
    ended: float
    exit_code: int | None
    kind: str
    message: str | None


@dataclass(frozen=True)
class _Kept:
    run: Run
    path: Path | None
    """None: the disk had no room even for the record."""


_RECORD = TypeAdapter(Run)


class Runs:
    """Keeps runs below `directory`, which is made (mode 0700) when there is something to keep."""

    KEPT = 3
    LOG_BYTES = 64 * 1024

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._slots: dict[int, list[_Kept]] = {}
        self._failing = False
        self._told_corrupt = False

    def keep(self, run: Run, log: bytes) -> None:
        """Make this the slot's last run. Never raises OSError: a full disk loses the log, then the record.

        A container that is kept already stays as it is: an agent that was killed before it removed the
        container knew better than its successor why that had ended.
        """
        known = self._known(run.instance)
        if any(kept.run.container == run.container for kept in known):
            return
        numbers = [_number(kept.path) for kept in known if kept.path is not None]
        path = self._slot(run.instance) / f"{max(numbers, default=0) + 1:08d}{_SUFFIX}"
        whole = self._write(path, run, cut(log, self.LOG_BYTES))
        stored = whole or self._write(path, run, b"")
        self._failing = not whole
        kept = [_Kept(run, path if stored else None), *known]
        self._slots[run.instance] = kept[: self.KEPT]
        _remove([old.path for old in kept[self.KEPT :] if old.path is not None])

    def last(self, instance: int) -> Run | None:
        """How the slot's last container ended; from memory after the first time."""
        known = self._known(instance)
        return known[0].run if known else None

    def log(self, instance: int, previous: int) -> tuple[Run, bytes] | None:
        """A run and the end of its log: `previous` 1 is the last run, 2 and 3 those before it."""
        known = self._known(instance)
        if not 1 <= previous <= len(known):
            return None
        kept = known[previous - 1]
        try:
            content = kept.path.read_bytes() if kept.path is not None else b""
        except OSError:
            content = b""  # removed by hand
        return kept.run, content.partition(b"\n")[2]

    def _slot(self, instance: int) -> Path:
        return self._directory / str(instance)

    def _known(self, instance: int) -> list[_Kept]:
        if instance not in SLOTS:
            return []
        if instance not in self._slots:
            self._slots[instance] = self._read(instance)
        return self._slots[instance]

    def _read(self, instance: int) -> list[_Kept]:
        try:
            files = sorted(self._slot(instance).iterdir(), reverse=True)
        except OSError:
            return []
        found: list[_Kept] = []
        surplus: list[Path] = []
        for path in files:
            if path.suffix != _SUFFIX or not path.stem.isdecimal():
                surplus += [path] if path.name.startswith(".") else []  # left by an agent that was killed
            elif len(found) == self.KEPT:
                surplus.append(path)
            elif run := self._record(path):
                found.append(_Kept(run, path))
            else:
                surplus.append(path)
        _remove(surplus)
        return found

    def _record(self, path: Path) -> Run | None:
        try:
            with path.open("rb") as file:
                return _RECORD.validate_json(file.readline(self.LOG_BYTES))
        except (OSError, ValidationError) as error:
            if not self._told_corrupt:
                log.warning(
                    "a run's record cannot be read; it is dropped", file=str(path), error=_line(error)
                )
            self._told_corrupt = True
            return None

    def _write(self, path: Path, run: Run, content: bytes) -> bool:
        temporary: str | None = None
        try:
            for directory in (self._directory, path.parent):
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)  # mode 0600
            with os.fdopen(handle, "wb") as file:
                file.write(_RECORD.dump_json(run) + b"\n" + content)
            Path(temporary).replace(path)
        except (OSError, ValueError) as error:  # ValueError: a text that is not Unicode
            if temporary is not None:
                _remove([Path(temporary)])
            if not self._failing:
                log.warning("a run's log cannot be kept", directory=str(path.parent), error=_line(error))
            self._failing = True
            return False
        return True


def cut(log: bytes, most: int) -> bytes:
    """The end of a log, at most so many bytes, from the start of a line or at least of a character."""
    if len(log) <= most:
        return log
    end = log[-most:] if most else b""
    line = end.find(b"\n", 0, _LINE_SEARCH)
    if 0 <= line < len(end) - 1:
        return end[line + 1 :]
    start = 0
    while start < min(3, len(end)) and end[start] & 0xC0 == 0x80:
        start += 1
    return end[start:]


def _number(path: Path) -> int:
    return int(path.stem)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _remove(paths: list[Path]) -> None:
    for path in paths:
        try:
            path.unlink(missing_ok=True)
        except OSError:  # each file by itself; the next start tries again
            continue
