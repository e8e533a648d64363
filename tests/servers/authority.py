"""A certificate authority of a test's own, made by the machine's `openssl`."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.servers.children import find

KEY = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc", "-days", "2"]


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
        _openssl(
            *["req", "-x509", *KEY, "-subj", "/CN=GridCore test authority"],
            *["-keyout", str(self._own.key), "-out", str(self._own.certificate)],
        )

    @property
    def certificate(self) -> Path:
        """What clients trust."""
        return self._own.certificate

    def issue(self, name: str, hosts: str = "DNS:localhost,IP:127.0.0.1") -> Pair:
        """A certificate for these hosts, in files named `name`."""
        pair = Pair(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        _openssl(
            *["req", "-x509", *KEY, "-subj", f"/CN={name}"],
            *["-CA", str(self._own.certificate), "-CAkey", str(self._own.key)],
            *["-addext", f"subjectAltName={hosts}", "-addext", "basicConstraints=critical,CA:FALSE"],
            *["-keyout", str(pair.key), "-out", str(pair.certificate)],
        )
        return pair


def _openssl(*arguments: str) -> None:
    done = subprocess.run([find("openssl"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
