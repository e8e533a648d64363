"""A token that can be guessed is told from one that was made at random, by a rule."""

from __future__ import annotations

import base64
import secrets
import string
from collections.abc import Callable

import pytest

from gridcore.config import new_token
from gridcore.weak_tokens import weakness

PLACEHOLDER = "reads like a placeholder"


@pytest.mark.parametrize(
    ("token", "why"),
    [
        ("", "has 0 characters"),
        ("k7Pq-3vX9wZ_b2c", "has 15 characters"),
        ("abcabcabcabcabcabcabca", "has 3 different characters"),
        ("11111111222222223333333", "has 3 different"),
        ("change-me-in-production", PLACEHOLDER),
        ("your-secret-token-change-this", PLACEHOLDER),
        ("CHANGE_ME_BEFORE_PRODUCTION", PLACEHOLDER),
        ("Change.This.Secret.Token", PLACEHOLDER),
        ("changemeinproduction", PLACEHOLDER),
        ("<your-secret-token-here>", PLACEHOLDER),
        ("YourTokenGoesHere12345", PLACEHOLDER),
        ("<token-of-our-cluster>", PLACEHOLDER),
        ("${GRIDCORE_TOKEN}", PLACEHOLDER),
        ("{{vault_gridcore_token}}", PLACEHOLDER),
        ("%HUB_SHARED_SECRET%", PLACEHOLDER),
        ("insert-a-token-here", PLACEHOLDER),
        ("replace-with-a-long-random-string", PLACEHOLDER),
        ("super-secret-password-2024", PLACEHOLDER),
        ("test-token-1234567890", PLACEHOLDER),
        ("paste-the-token-of-the-hub-here", PLACEHOLDER),
        ("qwertyuiop-secret", PLACEHOLDER),
        ("k7Pq3vX9k7Pq3vX9", "repeats itself"),
        ("k7Pq3vX9k7Pq3vX9k7P", "repeats itself"),
        ("0123456789abcdef", "counts"),
        ("zyxwvutsrqponmlkji", "counts"),
        ("1234567890123456", "counts"),
    ],
)
def test_what_can_be_guessed_is_told_with_its_reason(token: str, why: str) -> None:
    assert (weakness(token) or "").startswith(why)


@pytest.mark.parametrize(
    "token",
    [
        "an-example-secret-of-some-length",
        "correct-horse-battery-staple",
        "token-of-the-cellar-fleet",
        "8f14e45fceea167a",
        "secret-8294710364",
    ],
)
def test_what_nobody_would_find_in_a_manual_passes(token: str) -> None:
    assert weakness(token) is None


@pytest.mark.parametrize(
    "make",
    [
        new_token,
        lambda: secrets.token_hex(32),
        lambda: base64.b64encode(secrets.token_bytes(18)).decode(),
        lambda: "".join(secrets.choice(string.ascii_lowercase) for _ in range(32)),
        lambda: "".join(secrets.choice(string.punctuation + string.ascii_letters) for _ in range(24)),
        lambda: str(secrets.randbits(256)),
    ],
)
def test_a_token_made_at_random_always_passes(make: Callable[[], str]) -> None:
    assert [token for token in (make() for _ in range(2_000)) if weakness(token)] == []


@pytest.mark.parametrize("token", ["asdftukppqionrpoyezlymwsopviuanx", "qwertkppqionrpoyezlymwsopviuanxb"])
def test_a_token_that_begins_like_a_row_of_keys_by_chance_passes(token: str) -> None:
    assert weakness(token) is None
