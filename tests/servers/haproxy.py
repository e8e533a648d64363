"""A real HAProxy in front of several hubs."""

from __future__ import annotations

import re
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from tests.servers.children import Child, accepts, find, free_port, wait_until

EXAMPLE = Path(__file__).resolve().parents[2] / "docs/haproxy.cfg"
"""What operators are given."""

CONFIGURATION = """\
global
    maxconn 4000
    stats socket {directory}/admin mode 600 level admin

defaults
    mode http
    timeout connect 1s
    timeout client 75s
    timeout server 75s
    timeout http-keep-alive 75s
    timeout queue 5s

frontend hub
    bind 127.0.0.1:{port}
    default_backend hubs

backend hubs
    balance leastconn
    option httpchk GET /health
    # A hub that cannot be reached has done nothing: another one is asked at once. One that was reached and
    # did not answer may have done it: only what changes nothing is asked again.
    retries 3
    option redispatch 1
    retry-on conn-failure empty-response
    http-request disable-l7-retry unless METH_GET
    default-server check inter 500ms fall 2 rise 1 observe layer4 error-limit 1 on-error mark-down
{servers}
"""


class Haproxy:
    """Starts with `with`; listens on `port`, asks each hub's /health by itself."""

    def __init__(self, directory: Path, configuration: str, port: int, address: str = "127.0.0.1") -> None:
        """`configuration` listens on `port` of `address`, and has its admin socket at `directory`/admin."""
        directory.mkdir(parents=True, exist_ok=True)
        self.port = port
        self._address = address
        path = directory / "haproxy.cfg"
        path.write_text(configuration)
        self._admin = directory / "admin"
        self._child = Child("haproxy", [find("haproxy"), "-db", "-q", "-f", str(path)], directory / "log")

    @classmethod
    def before(cls, directory: Path, hub_ports: Sequence[int]) -> Haproxy:
        """In front of hubs on loopback."""
        port = free_port()
        servers = "\n".join(
            f"    server hub{number} 127.0.0.1:{hub}" for number, hub in enumerate(hub_ports, 1)
        )
        return cls(directory, CONFIGURATION.format(directory=directory, port=port, servers=servers), port)

    @classmethod
    def of_example(
        cls, directory: Path, hubs: Mapping[str, str], address: str = "127.0.0.1", pem: Path | None = None
    ) -> Haproxy:
        """The example, but for where it listens, writes, and finds `hubs`: `ADDRESS:PORT options` each.

        Without `pem`, certificate and key in one file, it listens without TLS.
        """
        port = free_port()
        return cls(directory, example(directory, hubs, port, address, pem), port, address)

    def __enter__(self) -> Haproxy:
        self._child.start(lambda: accepts(self.port, self._address))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._child.kill()

    @property
    def up(self) -> set[str]:
        """The hubs that it sends requests to: `hub1` is the first."""
        with socket.socket(socket.AF_UNIX) as admin:
            admin.settimeout(5)
            admin.connect(str(self._admin))
            admin.sendall(b"show stat\n")
            answer = b"".join(iter(lambda: admin.recv(65536), b"")).decode()
        head, *rows = [line.split(",") for line in answer.splitlines() if line.strip()]
        column = head.index("status")
        return {row[1] for row in rows if row[1].startswith("hub") and row[column].startswith("UP")}

    def wait_until_up(self, count: int) -> None:
        """Wait until so many hubs are up. Raises ServerError."""
        wait_until(lambda: len(self.up) == count, f"{count} hubs are up")


def example(
    directory: Path,
    hubs: Mapping[str, str],
    port: int,
    address: str = "127.0.0.1",
    pem: Path | None = None,
    connections: int = 1_000,
) -> str:
    """The example's text as `Haproxy.of_example` has it, for so many connections at most."""
    text = EXAMPLE.read_text()
    shown = re.search(r"(    server hub-\d+ [\d.:]+\n)+", text)
    bind = re.search(r"bind :443 ssl crt /etc/haproxy/hub.pem(.+)", text)
    assert shown, f"{EXAMPLE} has no servers any more"
    assert bind, f"{EXAMPLE} listens in another way now"
    changed = {
        shown[0]: "".join(f"    server {name} {hub}\n" for name, hub in hubs.items()),
        bind[0]: f"bind {address}:{port}" + (f" ssl crt {pem}{bind[1]}" if pem else ""),
        "maxconn 60000": f"maxconn {connections}",
        "log /dev/log local0": "log stdout format raw local0",
        "/run/haproxy/admin.sock mode 660": f"{directory}/admin mode 600",
    }
    for theirs, own in changed.items():
        assert theirs in text, f"{EXAMPLE} does not say {theirs!r} any more"
        text = text.replace(theirs, own)
    return text
