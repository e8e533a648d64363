"""TLS of the running hub: the pair that new connections get, and how another one takes its place.

The listening socket keeps one context for good; it hands each new connection the pair that counts then, so a
renewed certificate needs no restart, and connections that are held live on with the one they began with.
"""

from __future__ import annotations

import ssl
import time
from asyncio import sslproto
from datetime import datetime
from pathlib import Path

import structlog
from hypercorn.config import Config

from gridcore.errors import ConfigError
from hub.certificates import HAS_EXPIRED, KEY_IS_OPEN, Pair, read_pair

LOOK_INTERVAL = 86_400.0
"""Seconds between two looks at when it ends."""

HANDSHAKE_TIME = 20.0
"""Seconds that a handshake may take: who connects and says nothing does not stay."""

READ_BUFFER = 8 * 1024
"""Bytes that a connection reads at once. With the 256 KiB of asyncio, which each connection keeps, a held
request costs 277 KiB, with these 29 (measured on 400)."""

log = structlog.get_logger()


class Tls:
    """The certificate and key of these files, as they were when they were last read and found good."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Read them. Raises ConfigError."""
        self._paths = (certificate, key)
        self._pair = read_pair(certificate, key)
        # Called for each handshake, also where the client names no server.
        self._pair.context.sni_callback = self._choose
        self.context = self._pair.context
        """What the listening socket has, whichever pair counts."""
        sslproto.SSLProtocol.max_size = READ_BUFFER
        self._tell(self._pair)

    @property
    def ends(self) -> float:
        """When the certificate that new connections get ends: seconds since the epoch."""
        return self._pair.ends.timestamp()

    def reload(self) -> None:
        """Read both files again for new connections; a bad pair leaves things as they are."""
        try:
            pair = read_pair(*self._paths)
        except ConfigError as error:
            log.warning("the certificate was not reloaded, the old one stays", error=str(error))
            return
        self._pair = pair
        log.info("the certificate was reloaded", ends=_text(pair.ends))
        self._tell(pair, is_new=False)

    async def look(self) -> None:
        """Warn if the certificate ends soon."""
        self._warn(self._pair)

    def _choose(self, connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
        if connection.context is not self._pair.context:
            connection.context = self._pair.context

    def _tell(self, pair: Pair, *, is_new: bool = True) -> None:
        if is_new:
            log.info("TLS", certificate=str(self._paths[0]), ends=_text(pair.ends))
        if pair.is_key_open:
            log.warning(KEY_IS_OPEN, key=str(self._paths[1]))
        self._warn(pair)

    def _warn(self, pair: Pair) -> None:
        said = pair.ending(time.time())
        if said == HAS_EXPIRED:
            log.error(said, ended=_text(pair.ends))
        elif said is not None:
            log.warning(said, ends=_text(pair.ends))


class TlsConfig(Config):
    """Hypercorn's configuration with a context of ours."""

    def __init__(self, tls: Tls) -> None:
        super().__init__()
        self._tls = tls
        self.ssl_handshake_timeout = HANDSHAKE_TIME

    @property
    def ssl_enabled(self) -> bool:
        return True

    def create_ssl_context(self) -> ssl.SSLContext:
        return self._tls.context


def _text(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")
