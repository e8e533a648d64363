"""From a request to who sends it: the shared token, a signed one, or nobody; and from which address."""

from __future__ import annotations

import hmac
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hub.events import Actor
from hub.proxies import Proxies
from hub.settings import HubSettings
from hub.store import Store
from hub.tokens import Verifier

SHARED = "shared token"
"""What the audit trail calls all who have that one."""

Headers = Sequence[tuple[bytes, bytes]]


class Bearers:
    """Judges what requests show, with nothing but what this hub has in memory."""

    def __init__(self, settings: HubSettings, store: Store, clock: Callable[[], float] = time.time) -> None:
        self._shared = [token.encode() for token in settings.shared_tokens]
        self._proxies = Proxies(settings.trusted_proxies)
        self._store = store
        self._clock = clock
        self._verifier = Verifier()

    def source(self, scope: Mapping[str, Any]) -> str | None:
        """The address that a request came from."""
        client = scope.get("client")
        return self._proxies.source(client[0] if client else None, scope["headers"])

    def identify(self, headers: Headers, source: str | None) -> Actor | None:
        """Who it is, or None where there is no valid token."""
        token = _token(headers)
        # All of them, whichever it is: how long that takes must say nothing.
        if sum([hmac.compare_digest(token, shared) for shared in self._shared]):
            return Actor(SHARED, source)
        grant = self._verifier.verify(token, self._store.access, self._clock())
        return None if grant is None else Actor(grant.name, source, grant.id, grant)


def _token(headers: Headers) -> bytes:
    """What follows `Bearer` in the first Authorization header; nothing where there is none."""
    value = next((value for name, value in headers if name.lower() == b"authorization"), b"")
    scheme, _, token = value.partition(b" ")
    return token.strip() if scheme.lower() == b"bearer" else b""
