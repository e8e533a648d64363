"""What is kept of tokens: the keys that sign them, and a record of each; never a token itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum


class Role(StrEnum):
    """What a token allows; the values are those of the wire."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"
    NODE = "node"
    JOIN = "join"


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key that signs tokens while it is the newest, and vouches for those it signed until it is retired.

    Times in seconds since the epoch.
    """

    id: str
    secret: str = field(repr=False)
    created: float = 0.0
    retired: float | None = None


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is known of a token that was given out; times in seconds since the epoch."""

    id: str
    role: Role
    name: str
    created: float
    expires: float
    created_by: str
    node: str | None = None
    """The only node that may use it; None if any may."""
    revoked: float | None = None
    key: str | None = None
    """The id of the key that signs it."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a valid token says of who shows it; times in seconds since the epoch."""

    id: str
    role: Role
    name: str
    issued: float
    expires: float
    node: str | None = None
    """The only node that it may act for; None if it may for any."""


@dataclass(frozen=True, slots=True)
class Access:
    """What it takes to judge a token: the keys by id, and the ids of the tokens that were revoked."""

    keys: Mapping[str, SigningKey] = field(default_factory=dict)
    revoked: frozenset[str] = frozenset()

    @property
    def signing_key(self) -> SigningKey | None:
        """The newest key that is not retired: the one that signs."""
        usable = [key for key in self.keys.values() if key.retired is None]
        return max(usable, key=lambda key: (key.created, key.id), default=None)
