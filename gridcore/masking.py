"""Hiding secrets in text that people read: answers, logs, messages about a bad configuration.

Nothing here finds every secret. It hides passwords in URLs, which is where tasks and settings carry them,
and rather hides too much than too little.
"""

from __future__ import annotations

import re

from gridcore.protocol import MASK

_SCHEME = r"[A-Za-z][A-Za-z0-9+.-]{0,31}://"
# Up to the last `@` of the word, since people forget to escape an `@` or a `/` in a password.
_IN_TEXT = re.compile(rf"(?P<before>{_SCHEME}[^\s/:@]*:)(?P<secret>\S*)(?=@)")
# A field that is nothing but a URL: its scheme may be missing, its password may hold blanks.
_WHOLE_URL = re.compile(rf"(?P<before>^(?:{_SCHEME}|(?!{_SCHEME}))[^/:@]*:)(?P<secret>.*)(?=@)", re.DOTALL)
_IN_QUERY = re.compile(
    r"(?P<before>[?&](?:password|passwd|pwd|token|secret)=)(?P<secret>[^&\s]*)", re.IGNORECASE
)


def mask_text(text: str) -> str:
    """The text with the password of every URL in it as `***`."""
    return _masked(text, _IN_TEXT)


def mask_url(url: str) -> str:
    """The URL, also one without a scheme, with its password as `***`."""
    return _masked(url, _WHOLE_URL)


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
