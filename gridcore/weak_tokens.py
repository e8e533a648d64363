"""Which shared tokens can be guessed: too short, too plain, or out of documentation. By a rule. Pure.

Whoever has the token can do everything, and who looks for open hubs tries what stands in manuals first. A
token that was made at random passes (of a hundred thousand of `openssl rand -hex 32` each one); one that a
person wrote so that it can be replaced later does not.
"""

from __future__ import annotations

import re
from itertools import pairwise

SHORTEST = 16
"""Characters."""
FEWEST = 8
"""Different characters."""
MOST_DIGITS = 4
"""Digits that a placeholder may have besides its words, as in `change-me-2024`, but for those that count."""
MOST_BREAKS = 2
"""Places where a token that counts up or down may begin anew (`…789abc…`)."""

MAKE_ONE = "make one with `openssl rand -hex 32`"

_WORDS = (
    "admin|after|and|api|asdf[a-z]{0,5}|auth|bar|baz|bearer|before|change|changed|chars|characters|computehub|core|"
    "credentials?|default|demo|deploy|deploying|deployment|dev|development|dummy|enter|example|fake|fill|foo|for|from|goes|"
    "grid|gridcore|gridnode|hello|here|hub|idm|in|insert|is|it|jwt|key|keys|letmein|login|long|me|must|my|name|"
    "none|not|now|of|on|or|our|own|pass|passphrase|passwd|password|paste|placeholder|please|prod|production|put|"
    "qwert[a-z]{0,5}|random|real|replace|root|sample|secret|secure|server|set|string|strong|super|test|testing|"
    "text|that|the|this|to|todo|token|use|user|username|using|value|very|welcome|with|word|write|you|your|"
    "x{3,}|(?<![a-z])an?(?![a-z])"
)
# Of two words that begin alike the longer one.
WORD = re.compile("|".join(sorted(_WORDS.split("|"), key=len, reverse=True)))
_LEFT = re.compile(r"[a-z]|[^\x00-\x7f]")
_TEMPLATE = re.compile(r"<[A-Za-z][A-Za-z_. -]*>|\$\{\w+\}|\{\{.*\}\}|%\w+%", re.ASCII)


def weakness(token: str) -> str | None:
    """Why a token can be guessed, in words that follow `it`; None where it cannot."""
    if len(token) < SHORTEST:
        return f"has {len(token)} characters, and {SHORTEST} are the least"
    if len(set(token)) < FEWEST:
        return f"has {len(set(token))} different characters, and {FEWEST} are the least"
    if _is_placeholder(token):
        return "reads like a placeholder out of documentation"
    if _repeats(token):
        return "repeats itself"
    if _counts(token):
        return "counts up or down"
    return None


def _is_placeholder(token: str) -> bool:
    """Without the words of placeholders nothing is left of it but punctuation and a few digits."""
    left = WORD.sub("", token.lower())
    if left == token.lower() or _LEFT.search(left):
        return _TEMPLATE.fullmatch(token) is not None
    digits = "".join(filter(str.isdigit, left))
    return len(digits) <= MOST_DIGITS or _counts(digits)


def _repeats(token: str) -> bool:
    """It is a piece of at most half its length, again and again."""
    return any(token[period:] == token[:-period] for period in range(1, len(token) // 2 + 1))


def _counts(token: str) -> bool:
    steps = [ord(after) - ord(before) for before, after in pairwise(token)]
    return any(len(steps) - steps.count(step) <= MOST_BREAKS for step in (1, -1))
