"""What JSON can say that nothing behind it can hold: halves of characters, and one name said twice. Pure.

JSON may name any half of a UTF-16 pair (`"\\ud800"`). Python keeps it as text, but no UTF-8 has it, and so no
queue, no environment and no command line. An object may also give a name twice, and each reader then takes
another one of both.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

HALF = "holds half a character (a lone surrogate), which UTF-8 does not have; send whole characters"
TWICE = "given more than once"
MOST_FAULTS = 20
"""That are told at once."""
LONGEST_PLACE = 200
"""Characters after which a place is not told more exactly: it costs its length at each level."""


class Fault(NamedTuple):
    """One thing that is wrong: `field` is its place, such as `env.KEY` or `command.0`, in valid text."""

    field: str
    message: str


class _Object(dict[str, Any]):
    """An object that gives names more than once."""

    twice: tuple[str, ...] = ()


def read_json(text: str, *, parse_constant: Callable[[str], Any] | None = None) -> Any:
    """The value, with which `find_faults` finds names that were given twice; the last one counts in it.

    Raises:
        ValueError, RecursionError: as `json.loads` does.
    """
    return json.loads(text, object_pairs_hook=_read_object, parse_constant=parse_constant)


def find_faults(value: Any, *, may_repeat: bool = False) -> list[Fault]:
    """What is wrong with a JSON value, however deep; names given twice unless these are allowed."""
    faults: list[Fault] = []
    waiting = [("", value)]
    while waiting and len(faults) < MOST_FAULTS:
        place, part = waiting.pop()
        if isinstance(part, str):
            if not is_text(part):
                faults.append(Fault(place or "(body)", HALF))
        elif isinstance(part, dict):
            if not may_repeat:
                faults += [Fault(_join(place, name), TWICE) for name in getattr(part, "twice", ())]
            faults += [Fault(_join(place, name), f"the name {HALF}") for name in part if not is_text(name)]
            waiting += _parts(place, part.items())
        elif isinstance(part, list | tuple):
            waiting += _parts(place, enumerate(part))
    return faults[:MOST_FAULTS]


def is_text(text: str) -> bool:
    """Whether UTF-8 can hold it."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def mend(value: Any) -> Any:
    """A text with `?` in place of each half of a character; all else as it is."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def printable(text: str) -> str:
    """The text as UTF-8 can hold it, halves of characters as `\\ud800`."""
    return text.encode("utf-8", "backslashreplace").decode()


def _read_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    read = dict(pairs)
    if len(read) == len(pairs):
        return read
    found = _Object(read)
    found.twice = tuple(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
    return found


def _parts(place: str, parts: Any) -> Iterator[tuple[str, Any]]:
    """Those that may have a fault, the first one last, since the last one is looked at next."""
    return ((_join(place, name), part) for name, part in reversed(list(parts)) if _may_fail(part))


def _may_fail(part: Any) -> bool:
    return isinstance(part, dict | list | tuple) or (isinstance(part, str) and not part.isascii())


def _join(place: str, name: Any) -> str:
    if len(place) > LONGEST_PLACE:
        return place
    shown = printable(str(name))[:80]
    return f"{place}.{shown}" if place else shown
