"""Which certificates of a hub are believed, and what it means when one is not.

TLS itself is Python's; here stands only which CAs count, when their file is read again, and the words for an
operator who sees a handshake fail.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

_EXPECTED = "expected a PEM file with the hub's CA, or with its self-signed certificate"
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG"}


class Doubt(Enum):
    """Why a certificate is not believed."""

    NOT_YET = auto()
    """It is not valid yet."""
    EXPIRED = auto()
    UNKNOWN_SIGNER = auto()
    OTHER_NAME = auto()
    """It does not have the name or address that was asked for."""
    OTHER = auto()


# OpenSSL's X509_V_ERR_…: numbers, since their texts differ between its versions.
_DOUBTS = {
    9: Doubt.NOT_YET,
    10: Doubt.EXPIRED,
    **dict.fromkeys((2, 18, 19, 20, 21), Doubt.UNKNOWN_SIGNER),
    **dict.fromkeys((62, 64), Doubt.OTHER_NAME),
}


def doubt_of(error: ssl.SSLCertVerificationError) -> Doubt:
    """Why a handshake ended with this."""
    return _DOUBTS.get(error.verify_code, Doubt.OTHER)


def read_ca(path: Path) -> ssl.SSLContext:
    """A context that believes the certificates in this PEM file and no others.

    Raises:
        ValueError: it cannot be read or holds no certificate; the text says what was expected.
    """
    try:
        context = ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ValueError(f"{_EXPECTED}; there is no certificate in it") from None
    except OSError as error:
        raise ValueError(f"{_EXPECTED}; it cannot be read: {error.strerror}") from None
    if not context.cert_store_stats()["x509"]:
        raise ValueError(f"{_EXPECTED}; there is no certificate in it")
    # Python 3.13 changed both defaults, and a fleet of several Pythons must agree on what it believes:
    # all that the file holds, an intermediate CA too, with whatever extensions a private CA left out.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.set_alpn_protocols(["http/1.1"])
    return context


@dataclass(frozen=True)
class Names:
    """How the person who reads an error says where the hub is and which CA counts."""

    url: str = "server_url"
    ca_file: str = "ca_file in gridnode.toml"


class Trust:
    """The CAs by which a hub is believed: those of a file that may change meanwhile, or else the system's."""

    def __init__(self, ca_file: Path | None = None, names: Names | None = None) -> None:
        """Read the file; ValueError as of `read_ca`."""
        self.names = names or Names()
        self._path = ca_file
        self._seen = self._look()
        self._context = None if ca_file is None else read_ca(ca_file)
        self._trouble: str | None = None

    @property
    def context(self) -> ssl.SSLContext | None:
        """For new connections; None for the system's CAs."""
        return self._context

    def refresh(self) -> None:
        """Read the file again if it is another one by now; a bad one leaves things as they are."""
        if self._path is None or (seen := self._look()) == self._seen:
            return
        try:
            self._context, self._trouble = read_ca(self._path), None
        except ValueError as error:
            self._trouble = f"{self._path}: {error}"
        self._seen = seen

    def explain(self, error: ssl.SSLError) -> str:
        """What a handshake that failed with this means, and what to do: one line without the address."""
        if isinstance(error, ssl.SSLCertVerificationError):
            text = self._explain_certificate(error)
        elif error.reason in _NO_TLS:
            text = f"it does not speak TLS; if the hub has none, {self.names.url} must begin with http://"
        else:
            text = f"TLS failed: {error.reason or error}"
        return f"{text} ({self._trouble})" if self._trouble else text

    def _explain_certificate(self, error: ssl.SSLCertVerificationError) -> str:
        doubt, message = doubt_of(error), error.verify_message
        if doubt is Doubt.EXPIRED:
            return "its certificate has expired; give the hub a new one (or is this machine's clock wrong?)"
        if doubt is Doubt.NOT_YET:
            return "its certificate is not valid yet; is this machine's clock right?"
        if doubt is Doubt.OTHER_NAME:
            return f"its certificate is for another name: {message.rstrip('.')}; use a name that stands in it"
        if doubt is Doubt.UNKNOWN_SIGNER:
            if self._path is not None:
                return f"its certificate is not signed by the CA in {self._path}; is that the hub's CA?"
            return (
                "its certificate is not signed by a CA that this machine knows; "
                f"name its CA, or the self-signed certificate, as {self.names.ca_file}"
            )
        return f"its certificate is refused: {message}"

    def _look(self) -> tuple[int, ...] | None:
        if self._path is None:
            return None
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return (stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
