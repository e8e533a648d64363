"""The hub's certificate and key: read from PEM files, told what is wrong with them, and when they end.

Whoever reads them here gets a context that is complete or an error, never half of a new pair.
"""

from __future__ import annotations

import ssl
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from gridcore.errors import ConfigError

_BEGIN, _END = "-----BEGIN CERTIFICATE-----", "-----END CERTIFICATE-----"
_SEQUENCE, _VERSION, _UTC_TIME = 0x30, 0xA0, 0x17
_MISMATCH = "KEY_VALUES_MISMATCH"

WARN_BEFORE = 14 * 86_400.0
"""Seconds before a certificate's end from which on it is warned about."""

HAS_EXPIRED = "the certificate has expired: clients refuse it"
ENDS_SOON = "the certificate ends soon; renew it, then reload the hub"
KEY_IS_OPEN = "everybody on this machine can read the TLS key; `chmod 600` it"


@dataclass(frozen=True, slots=True)
class Pair:
    """What is shown to clients: a context for their connections, and when its certificate ends."""

    context: ssl.SSLContext
    ends: datetime
    is_key_open: bool
    """Others than the file's owner and group can read the key."""

    def ending(self, now: float) -> str | None:
        """What to say of its end (`now`: seconds since the epoch), or None while that is far."""
        left = self.ends.timestamp() - now
        if left <= 0:
            return HAS_EXPIRED
        return ENDS_SOON if left < WARN_BEFORE else None


def read_pair(certificate: Path, key: Path) -> Pair:
    """The pair in these files; the certificate's file holds the whole chain, the hub's own first.

    Raises:
        ConfigError: one line that names the configuration's key, the file and what was expected.
    """
    ends = _read_end(certificate)
    try:
        mode = key.stat().st_mode
        with key.open("rb"):
            pass
    except OSError as error:
        raise ConfigError(f"tls_key: {key} cannot be read: {error.strerror}") from None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION
    # Held requests are one a connection: with HTTP/2 they would need another server loop, and win nothing.
    context.set_alpn_protocols(["http/1.1"])
    try:
        context.load_cert_chain(certificate, key, password=_refuse_password)
    except _Encrypted:
        raise ConfigError(
            f"tls_key: {key} is encrypted; expected a key without a passphrase (mode 0600 protects it)"
        ) from None
    except ssl.SSLError as error:
        if error.reason == _MISMATCH:
            raise ConfigError(
                f"tls_key: {key} is not the key of the certificate in tls_certificate ({certificate})"
            ) from None
        reason = error.reason or "it cannot be read as one"
        raise ConfigError(
            f"tls_key: {key}: expected the certificate's private key in PEM ({reason})"
        ) from None
    except OSError as error:
        raise ConfigError(f"tls_certificate: {certificate} cannot be read: {error.strerror}") from None
    return Pair(context, ends, bool(mode & stat.S_IROTH))


class _Encrypted(Exception):
    """The key wants a passphrase, and a service has nobody to ask."""


def _refuse_password() -> str:
    raise _Encrypted


def _read_end(path: Path) -> datetime:
    """When the first certificate of a PEM file ends."""
    expected = f"tls_certificate: {path}: expected a certificate in PEM, with its chain after it"
    try:
        text = path.read_text(encoding="ascii", errors="replace")
    except OSError as error:
        raise ConfigError(f"tls_certificate: {path} cannot be read: {error.strerror}") from None
    try:
        return not_after(first_of(text))
    except (ValueError, IndexError):
        raise ConfigError(expected) from None


def first_of(text: str) -> bytes:
    """The first certificate of a PEM file, in DER, whatever stands around it. Raises ValueError."""
    begin, end = text.find(_BEGIN), text.find(_END)
    if not 0 <= begin < end:
        raise ValueError("there is no certificate")
    return ssl.PEM_cert_to_DER_cert(text[begin : end + len(_END)])


def not_after(certificate: bytes) -> datetime:
    """When a certificate in DER ends. Python's `ssl` tells that only of a peer's, after a handshake.

    Raises:
        ValueError, IndexError: this is no certificate.
    """
    _, whole, _ = _element(certificate)
    _, rest, _ = _element(whole)
    tag, _, after = _element(rest)
    fields = after if tag == _VERSION else rest
    for _ in range(3):  # the serial number, the signature's algorithm, the issuer
        _, _, fields = _element(fields)
    tag, validity, _ = _element(fields)
    if tag != _SEQUENCE:
        raise ValueError("no certificate")
    _, _, after = _element(validity)
    tag, text, _ = _element(after)
    form = "%y%m%d%H%M%SZ" if tag == _UTC_TIME else "%Y%m%d%H%M%SZ"
    return datetime.strptime(text.decode("ascii"), form).replace(tzinfo=UTC)


def _element(der: bytes) -> tuple[int, bytes, bytes]:
    """The tag and the content of the first element, and what comes after it."""
    tag, length, start = der[0], der[1], 2
    if length & 0x80:
        start += length & 0x7F
        length = int.from_bytes(der[2:start], "big")
    if len(der) < start + length:
        raise ValueError("cut off")
    return tag, der[start : start + length], der[start + length :]
