"""Tokens are judged by what the hub knows of them, at each look; whatever else is shown grants nothing."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hub import tokens
from hub.access import Access, Grant, Role, SigningKey, TokenRecord
from hub.tokens import Verifier, needs_renewal, sign

KEY = SigningKey("k1", "0123456789abcdef" * 4, created=1.0)
OTHER = SigningKey("k2", "fedcba9876543210" * 4, created=2.0)
RECORD = TokenRecord("t1", Role.OPERATOR, "alice", created=100.0, expires=200.0, created_by="x")
NOW = 150.0


def access(*keys: SigningKey, revoked: tuple[str, ...] = ()) -> Access:
    return Access({key.id: key for key in keys}, frozenset(revoked))


def verify(token: str, known: Access | None = None, now: float = NOW) -> Grant | None:
    return Verifier().verify(token.encode(), known or access(KEY), now)


def encoded(value: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def forged(header: Any, claims: Any, secret: str = KEY.secret) -> str:
    """A token made by hand, with whatever header and claims, and a right HS256 signature by `secret`."""
    signed = f"{encoded(header)}.{encoded(claims)}"
    digest = hmac.new(secret.encode(), signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


HEADER = {"alg": "HS256", "kid": "k1", "typ": "JWT"}
CLAIMS = {"iss": "computehub", "sub": "alice", "role": "operator", "jti": "t1", "iat": 100, "exp": 200}


def test_a_token_grants_what_its_record_says() -> None:
    assert verify(sign(RECORD, KEY)) == Grant("t1", Role.OPERATOR, "alice", 100.0, 200.0)
    bound = replace(RECORD, role=Role.NODE, node="n1")
    assert verify(sign(bound, KEY)) == Grant("t1", Role.NODE, "alice", 100.0, 200.0, "n1")


def test_what_is_made_by_hand_here_is_as_good_as_what_is_signed() -> None:
    """Else the tests below would prove nothing."""
    assert verify(forged(HEADER, CLAIMS)) == verify(sign(RECORD, KEY)) is not None


@pytest.mark.parametrize(
    "token",
    [
        "",
        "a",
        "..",
        "a.b.c",
        sign(RECORD, OTHER),
        sign(RECORD, replace(OTHER, id="k1")),
        sign(RECORD, KEY)[:-2],
        sign(RECORD, KEY) + "A",
        sign(RECORD, KEY).rsplit(".", 1)[0] + ".",
        forged({**HEADER, "alg": "none"}, CLAIMS),
        forged({**HEADER, "alg": "none"}, CLAIMS).rsplit(".", 1)[0] + ".",
        forged({**HEADER, "alg": "None"}, CLAIMS),
        forged({**HEADER, "alg": "HS512"}, CLAIMS),
        forged({**HEADER, "alg": "RS256"}, CLAIMS),
        forged(HEADER, CLAIMS, secret="computehub"),
        forged(HEADER, CLAIMS, secret="k1"),
        forged(HEADER, CLAIMS, secret=""),
        forged({"alg": "HS256"}, CLAIMS),
        forged({**HEADER, "kid": ["k1"]}, CLAIMS),
        forged({**HEADER, "kid": "k9"}, CLAIMS),
        forged({**HEADER, "crit": ["x"], "x": 1}, CLAIMS),
        forged([], CLAIMS),
        forged(HEADER, []),
        forged(HEADER, {**CLAIMS, "iss": "somebody"}),
        forged(HEADER, {**CLAIMS, "role": "root"}),
        forged(HEADER, {**CLAIMS, "role": None}),
        forged(HEADER, {**CLAIMS, "exp": None}),
        forged(HEADER, {**CLAIMS, "exp": [1]}),
        forged(HEADER, {**CLAIMS, "jti": 1}),
        forged(HEADER, {**CLAIMS, "node": 1}),
        forged(HEADER, {**CLAIMS, "node": ""}),
        *(
            forged(HEADER, {name: value for name, value in CLAIMS.items() if name != missing})
            for missing in CLAIMS
        ),
        sign(replace(RECORD, name="a" * 3_000), KEY),
        "A" * 100_000,
        base64.urlsafe_b64encode(b'{"a":' * 300).decode() + ".e30.e30",
        base64.urlsafe_b64encode(b"[" * 1_400).decode() + ".e30.e30",
    ],
)
def test_all_else_grants_nothing(token: str) -> None:
    assert verify(token) is None


@settings(max_examples=300)
@given(st.binary(max_size=300) | st.from_regex(rb"[\w-]{0,40}\.[\w-]{0,80}\.[\w-]{0,43}", fullmatch=True))
def test_no_bytes_make_it_fall_over(token: bytes) -> None:
    assert Verifier().verify(token, access(KEY), NOW) is None


def test_a_changed_payload_grants_nothing() -> None:
    header, payload, signature = sign(RECORD, KEY).split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))
    claims["role"] = "admin"
    assert verify(f"{header}.{encoded(claims)}.{signature}") is None


@pytest.mark.parametrize("is_remembered", [False, True])
@pytest.mark.parametrize(
    ("known", "now"),
    [
        (access(KEY), 200.0),
        (access(KEY), 1e9),
        (access(KEY, revoked=("t1",)), NOW),
        (access(replace(KEY, retired=120.0), OTHER), NOW),
        (access(OTHER), NOW),
        (access(replace(KEY, secret=OTHER.secret)), NOW),
    ],
)
def test_what_a_token_was_good_for_is_looked_at_each_time(
    is_remembered: bool, known: Access, now: float
) -> None:
    verifier, token = Verifier(), sign(RECORD, KEY).encode()
    if is_remembered:
        assert verifier.verify(token, access(KEY), NOW) is not None
        assert len(verifier) == 1
    assert verifier.verify(token, known, now) is None
    assert len(verifier) == 0


def test_older_keys_vouch_for_what_they_signed() -> None:
    assert verify(sign(RECORD, KEY), access(KEY, OTHER)) is not None


def test_only_what_is_valid_is_remembered_and_only_so_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "MOST_CACHED", 3)
    verifier = Verifier()
    for number in range(10):
        verifier.verify(sign(replace(RECORD, id=f"x{number}"), OTHER).encode(), access(KEY), NOW)
    assert len(verifier) == 0
    shown = [sign(replace(RECORD, id=f"t{number}"), KEY).encode() for number in range(5)]
    assert all(verifier.verify(token, access(KEY), NOW) for token in shown)
    assert len(verifier) == 3
    assert all(verifier.verify(token, access(KEY), NOW) for token in shown)


@pytest.mark.parametrize(
    ("node", "now", "needed"), [("n", 166.0, False), ("n", 167.0, True), (None, 199.0, False)]
)
def test_a_nodes_own_token_is_renewed_in_the_last_third_of_its_life(
    node: str | None, now: float, needed: bool
) -> None:
    assert needs_renewal(Grant("t", Role.NODE, "n", 100.0, 200.0, node), now) is needed


def test_no_secret_stands_in_the_text_of_a_key_or_of_what_is_remembered() -> None:
    verifier, token = Verifier(), sign(RECORD, KEY).encode()
    verifier.verify(token, access(KEY), NOW)
    assert KEY.secret not in repr(KEY)
    assert KEY.secret not in repr(verifier._verified)
