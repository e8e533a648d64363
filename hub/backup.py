"""A backup: one file of JSON lines that any store of this or a later version can be filled from.

The first line says what it is and when it was taken; the last one holds the number and the SHA-256 of all
before it, so a file that was cut off or changed is never restored. It holds every secret of the hub: 0600.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from gridcore import __version__
from gridcore.errors import GridCoreError
from gridcore.files import is_there, resolve, sync_directory
from hub import codec
from hub.access import SigningKey, TokenRecord
from hub.contents import Contents
from hub.events import Event
from hub.registry import Node
from hub.tasklist import Task

MARK = "gridcore-backup"
SCHEMA = 1

Progress = Callable[[int], None]
"""Called with the number of lines that are done."""


class BackupError(GridCoreError):
    """A backup cannot be written, read or used; the text says why and what to do."""


def write_backup(contents: Contents, path: Path, progress: Progress, *, force: bool = False) -> None:
    """Write it to a file of mode 0600 that is complete and on disk when it appears; a link stays a link.

    Raises:
        BackupError: the file exists (and `force` is not set), is none to be replaced, or cannot be written.
    """
    target = resolve(path)
    try:
        is_there_already = is_there(target)
        if is_there_already and not target.is_file():
            raise BackupError(f"{path}: is no regular file; name one that can be made or replaced")
        if is_there_already and not force:
            raise BackupError(f"{path}: exists already; name another file, or use --force")
        handle, name = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)  # 0600
    except OSError as error:
        raise BackupError(f"{path}: cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(handle, "wb") as file:
            digest, count = hashlib.sha256(), 0
            for count, value in enumerate(_values(contents), 1):
                line = json.dumps(value, separators=(",", ":")).encode() + b"\n"
                digest.update(line)
                file.write(line)
                progress(count)
            end = {"end": {"lines": count, "sha256": digest.hexdigest()}}
            file.write(json.dumps(end).encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(target)
        sync_directory(target.parent)
    except OSError as error:
        Path(name).unlink(missing_ok=True)
        raise BackupError(f"{path}: cannot be written: {error.strerror}") from None
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def refuse_own_files(path: Path, own: Iterable[Path | None]) -> None:
    """Raises BackupError where a backup would replace one of the hub's own files, by whatever name."""
    for file in own:
        if file is not None and _is_same(path, file):
            raise BackupError(f"{path}: is a file of the hub itself ({file}); name another one")


def _is_same(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except OSError:  # one is not there or may not be looked at, and so is not replaced: told by who opens it
        return False


def read_backup(path: Path, progress: Progress) -> Contents:
    """The whole of a backup, checked to its last line.

    Raises:
        BackupError: it cannot be read, is none, is damaged, or was written by a newer GridCore.
    """
    try:
        with path.open("rb") as file:
            lines = _checked(file.readlines(), path)
    except OSError as error:
        raise BackupError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        return _contents(lines, progress)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BackupError(f"{path}: damaged: {type(error).__name__} in what it holds") from None


def _checked(lines: list[bytes], path: Path) -> list[bytes]:
    """The lines between the first and the last, once those two say that all is well."""
    head = _object(lines[0] if lines else b"")
    if MARK not in head:
        raise BackupError(f"{path}: this is no backup of a hub")
    if head[MARK] != SCHEMA:
        raise BackupError(
            f"{path}: was written with schema {head[MARK]} by GridCore {head.get('version')}, "
            f"this one knows {SCHEMA}; restore it with that version"
        )
    end = _object(lines[-1]).get("end")
    if not isinstance(end, dict):
        raise BackupError(f"{path}: damaged: its end is missing; it was cut off")
    digest = hashlib.sha256(b"".join(lines[:-1])).hexdigest()
    if end != {"lines": len(lines) - 1, "sha256": digest}:
        raise BackupError(f"{path}: damaged: it is not what was written; its checksum differs")
    return lines[:-1]


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _values(contents: Contents) -> Iterator[dict[str, Any]]:
    yield {MARK: SCHEMA, "version": __version__, "taken": contents.taken}
    yield {"list": codec.dump_head(contents.tasks)}
    for task in contents.tasks.tasks:
        yield {"task": codec.dump_task(task)}
    for node in contents.nodes:
        live = json.loads(codec.live_text(node.live))
        yield {"node": {"record": codec.dump_record(node.record), "live": live}}
    for key in contents.keys:
        yield {"key": codec.dump_key(key)}
    for token in contents.tokens:
        yield {"token": codec.dump_token(token)}
    for event in contents.events:
        yield {"event": codec.dump_event(event)}


def _contents(lines: list[bytes], progress: Progress) -> Contents:
    head: dict[str, Any] = {}
    tasks, nodes, keys = list[Task](), list[Node](), list[SigningKey]()
    tokens, events = list[TokenRecord](), list[Event]()
    for number, line in enumerate(lines[1:], 1):
        ((kind, value),) = json.loads(line).items()
        match kind:
            case "list":
                head = value
            case "task":
                tasks.append(codec.load_task(value))
            case "node":
                nodes.append(codec.restore_node(value["record"], value["live"]))
            case "key":
                keys.append(codec.load_key(value))
            case "token":
                tokens.append(codec.load_token(value))
            case "event":
                events.append(codec.load_event(value))
            case _:
                raise ValueError(kind)
        progress(number)
    taken = float(json.loads(lines[0])["taken"])
    return Contents(taken, codec.load_list(head, tuple(tasks)), nodes, keys, tokens, events)
