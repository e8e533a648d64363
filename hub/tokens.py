"""Signed tokens: made of a record and a key, and judged again by what the hub knows of both. Pure.

A token is a JWT (RFC 7519) with HS256 and nothing else, so `alg` is ours and never the token's own choice.
What it says is fixed when it is signed; whether it still counts (its key, its expiry, its revocation) is
looked at each time that it is shown.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

import jwt

from hub.access import Access, Grant, Role, SigningKey, TokenRecord

ISSUER = "computehub"
ALGORITHM = "HS256"

LONGEST = 2048
"""Bytes; ours have a few hundred."""

MOST_CACHED = 32_768
"""Tokens whose signatures are not checked again; only valid ones get there, so strangers cannot fill it."""

_CHECKS = {
    "require": ["iss", "sub", "jti", "iat", "exp"],
    # Time is looked at here, by the clock that is passed in, and each time.
    "verify_exp": False,
    "verify_iat": False,
    "verify_nbf": False,
}
_NO_KEY = secrets.token_urlsafe(32)
"""Checks the signatures that name no key of ours, so that those take as long to be refused."""


def sign(record: TokenRecord, key: SigningKey) -> str:
    """The token of a record: the same record and key give the same text."""
    claims: dict[str, Any] = {
        "iss": ISSUER,
        "sub": record.name,
        "role": record.role.value,
        "jti": record.id,
        "iat": int(record.created),
        "exp": int(record.expires),
    }
    if record.node is not None:
        claims["node"] = record.node
    return jwt.encode(claims, key.secret, algorithm=ALGORITHM, headers={"kid": key.id})


def needs_renewal(grant: Grant, now: float) -> bool:
    """Whether a node's own token has less than a third of its life left."""
    return grant.node is not None and grant.expires - now < (grant.expires - grant.issued) / 3


@dataclass(frozen=True, slots=True)
class _Verified:
    """What a token said whose signature was right, and the key that it was right with."""

    grant: Grant
    key_id: str
    secret: str = field(repr=False)


class Verifier:
    """Judges tokens, and remembers whose signatures were right: a fleet shows the same ones all the time."""

    def __init__(self) -> None:
        self._verified: dict[bytes, _Verified] = {}

    def verify(self, token: bytes, access: Access, now: float) -> Grant | None:
        """What this token grants, or None; `now` in seconds since the epoch."""
        verified = self._verified.get(token) or self._check(token, access)
        if verified is None:
            return None
        key, grant = access.keys.get(verified.key_id), verified.grant
        if (
            key is None
            or key.retired is not None
            or key.secret != verified.secret
            or grant.expires <= now
            or grant.id in access.revoked
        ):
            self._verified.pop(token, None)
            return None
        return grant

    def __len__(self) -> int:
        return len(self._verified)

    def _check(self, token: bytes, access: Access) -> _Verified | None:
        verified = _read(token, access) if 0 < len(token) <= LONGEST else None
        if verified is not None:
            if len(self._verified) >= MOST_CACHED:
                del self._verified[next(iter(self._verified))]
            self._verified[token] = verified
        return verified


def _read(token: bytes, access: Access) -> _Verified | None:
    try:
        key_id = jwt.get_unverified_header(token).get("kid")
        key = access.keys.get(key_id) if isinstance(key_id, str) else None
        secret = key.secret if key is not None else _NO_KEY
        claims = jwt.decode(token, secret, algorithms=[ALGORITHM], issuer=ISSUER, options=_CHECKS)  # type: ignore[arg-type]  # PyJWT's own TypedDict
        grant = _grant(claims)
    except (jwt.PyJWTError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return _Verified(grant, key.id, key.secret) if key is not None else None


def _grant(claims: dict[str, Any]) -> Grant:
    """Raises ValueError, KeyError or TypeError: signed by one of our keys, but not by this program."""
    node = claims.get("node")
    texts = (claims["jti"], claims["sub"], *(() if node is None else (node,)))
    if not all(isinstance(text, str) and text for text in texts):
        raise TypeError("texts")
    role, issued, expires = Role(claims["role"]), float(claims["iat"]), float(claims["exp"])
    return Grant(claims["jti"], role, claims["sub"], issued, expires, node)
