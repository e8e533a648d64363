"""The two headers that make `GET /gridnode/task` a held request: If-None-Match, and Prefer (RFC 7240)."""

from __future__ import annotations

import re
from collections.abc import Iterator

from werkzeug.datastructures import ETags
from werkzeug.http import parse_etags

MAX_WAIT = 50.0
"""Seconds; a longer wait is cut to this, since proxies and clients give up at a minute."""

_WAIT = re.compile(r'\s*wait\s*=\s*("?)(\d{1,9})\1\s*(?:;.*)?', re.IGNORECASE | re.ASCII)


def parse_wait(prefer: str) -> float:
    """Seconds that a `Prefer` header asks to wait, 0 to MAX_WAIT; what makes no sense is no preference."""
    for preference in prefer.split(","):
        match = _WAIT.fullmatch(preference)
        if match:
            return min(float(match[2]), MAX_WAIT)
    return 0.0


class Known:
    """The revisions that a client says it has; nothing is known where the header is empty.

    `*` is whatever is current when the request arrives, so that a wait with it ends at the next change.
    """

    __slots__ = ("_one", "_tags")

    def __init__(self, if_none_match: str, arrival: str) -> None:
        # One tag is what nodes send, and they are many.
        is_one = if_none_match[:1] == if_none_match[-1:] == '"' and if_none_match.count('"') == 2
        self._one = if_none_match[1:-1] if is_one else None
        self._tags: ETags | None = None
        if not is_one:
            tags = parse_etags(if_none_match) if if_none_match else ETags()
            self._tags = ETags([arrival]) if tags.star_tag else tags

    def __iter__(self) -> Iterator[str]:
        """All of them."""
        if self._tags is None:
            return iter([] if self._one is None else [self._one])
        return iter(self._tags.as_set(include_weak=True))

    def __contains__(self, revision: str) -> bool:
        return self._one == revision if self._tags is None else self._tags.contains_weak(revision)
