"""A certificate authority of a test's own, made by the machine's `openssl`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.servers.children import find

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]

# All that a strict client looks for: Python is one from 3.13 on.
CONFIGURATION = """\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""


@dataclass(frozen=True)
class Pair:
    """The files of a certificate and its key, both PEM."""

    certificate: Path
    key: Path


class Authority:
    """Signs certificates for servers on loopback; clients trust `certificate`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._own = Pair(directory / "ca.pem", directory / "ca.key")
        self._make(self._own, "GridCore test authority", CONFIGURATION, "authority")

    @property
    def certificate(self) -> Path:
        """What clients trust."""
        return self._own.certificate

    def issue(self, name: str, hosts: str = "DNS:localhost,IP:127.0.0.1") -> Pair:
        """A certificate for these hosts, in files named `name`."""
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        own = ["-CA", str(self._own.certificate), "-CAkey", str(self._own.key)]
        self._make(pair, name, f"{CONFIGURATION}subjectAltName = {hosts}\n", "server", *own)
        return pair

    def _make(self, pair: Pair, name: str, configuration: str, section: str, *more: str) -> None:
        path = self._directory / "openssl.cnf"
        path.write_text(configuration)
        done = subprocess.run(
            [
                *[find("openssl"), "req", "-x509", *KEY, "-config", str(path), "-extensions", section, *more],
                *["-subj", f"/CN={name}", "-keyout", str(pair.key), "-out", str(pair.certificate)],
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
