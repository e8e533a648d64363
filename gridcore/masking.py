"""Hiding secrets in text that people read: answers, logs, messages about a bad configuration.

Nothing here finds every secret. It hides passwords in URLs, which is where tasks and settings carry them,
and rather hides too much than too little.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

from gridcore.protocol import MASK

SHORTEST_SECRET = 6
"""Characters; a shorter value (`1`, `true`) would be hidden wherever it stands in ordinary text."""

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,31}://"
# Up to the last `@` of the word, since people forget to escape an `@` or a `/` in a password.
_IN_TEXT = re.compile(rf"(?P<before>{_SCHEME}[^\s/:@]*:)(?P<secret>\S*)(?=@)")
_BEFORE = re.compile(rf"{_SCHEME}[^\s/:@]*:")
_BLANK = re.compile(r"\s")
# A field that is nothing but a URL: its scheme may be missing, its password may hold blanks.
_WHOLE_URL = re.compile(rf"(?P<before>^(?:{_SCHEME}|(?!{_SCHEME}))[^/:@]*:)(?P<secret>.*)(?=@)", re.DOTALL)
_IN_QUERY = re.compile(
    r"(?P<before>[?&](?:password|passwd|pwd|token|secret)=)(?P<secret>[^&\s]*)", re.IGNORECASE
)


def mask_text(text: str) -> str:
    """The text with the password of every URL in it as `***`; in time proportional to its length."""
    if "://" not in text and "@" not in text:
        return text
    return _IN_QUERY.sub(rf"\g<before>{MASK}", "".join(_without_passwords(text)))


def _without_passwords(text: str) -> Iterator[str]:
    """What `_IN_TEXT` would leave, in pieces. It looks through a word once for each `://` in it, which in a
    log of a megabyte without blanks would keep the process busy for hours; this looks at a word once."""
    done = 0
    while match := _BEFORE.search(text, done):
        blank = _BLANK.search(text, match.end())
        end = blank.start() if blank else len(text)
        at = text.rfind("@", match.end(), end)
        if at < 0:  # nor has any later place of this word
            yield text[done:end]
            done = end
        else:
            yield text[done : match.end()] + MASK
            done = at
    yield text[done:]


def mask_url(url: str) -> str:
    """The URL, also one without a scheme, with its password as `***`."""
    return _masked(url, _WHOLE_URL)


def url_password(url: str) -> str | None:
    """The password in a URL, if there is one."""
    match = _WHOLE_URL.search(url) if "@" in url else None
    return match["secret"] or None if match else None


def mask_values(text: str, secrets: Iterable[str]) -> str:
    """The text with each of these values, and every URL's password, as `***`; short values stand."""
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= SHORTEST_SECRET:
            text = text.replace(secret, MASK)
    return mask_text(text)


def is_masked(text: str) -> bool:
    """Whether a password in it reads `***`: a copy of an answer of ours, and no real password."""
    return any(
        MASK in match["secret"]
        for pattern in (_IN_TEXT, _WHOLE_URL, _IN_QUERY)
        for match in pattern.finditer(text)
    )


def _masked(text: str, pattern: re.Pattern[str]) -> str:
    if "://" not in text and "@" not in text:
        return text
    return _IN_QUERY.sub(rf"\g<before>{MASK}", pattern.sub(rf"\g<before>{MASK}", text))
