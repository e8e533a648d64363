"""TLS of a real hub: who trusts it, how its certificate is renewed while it runs, what bad files are told."""

from __future__ import annotations

import http.client
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import TOKEN, HubProcess
from tests.servers.authority import Authority, Pair
from tests.servers.children import wait_until

WAIT = 25


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


class TlsHub(HubProcess):
    """A hub that speaks TLS with the files `hub.pem` and `hub.key` of its directory."""

    def __init__(self, directory: Path, authority: Authority) -> None:
        super().__init__(directory)
        self.authority = authority
        self.shown = Pair(directory / "hub.pem", directory / "hub.key")
        self.show(authority.issue("first"))
        with self.config.open("a") as config:
            config.write(f'tls_certificate = "{self.shown.certificate}"\ntls_key = "{self.shown.key}"\n')

    def show(self, pair: Pair) -> None:
        """Put these files in place; a hub that runs does not look at them by itself."""
        shutil.copy(pair.certificate, self.shown.certificate)
        shutil.copy(pair.key, self.shown.key)
        self.shown.key.chmod(0o600)

    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=self.authority.certificate)

    def connect(self, timeout: float = 30) -> http.client.HTTPConnection:
        return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=self.trusting())

    def hang_up(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGHUP)

    def name(self, server_name: str = "127.0.0.1") -> str:
        """The common name of the certificate that a new connection sees."""
        with (
            socket.create_connection(("127.0.0.1", self.port), timeout=10) as plain,
            self.trusting().wrap_socket(plain, server_hostname=server_name) as wrapped,
        ):
            subject: Any = (wrapped.getpeercert() or {})["subject"]
            return str(dict(entry[0] for entry in subject)["commonName"])


@pytest.fixture
def hub(tmp_path: Path, authority: Authority) -> Iterator[TlsHub]:
    process = TlsHub(tmp_path, authority)
    yield process
    process.end()


def test_who_has_the_ca_is_answered_and_who_has_not_does_not_believe_it(hub: TlsHub) -> None:
    hub.start()
    assert hub.get("/health", token=None).body == b"OK"
    assert hub.get("/api/tasks").status == 200
    assert "ends=" in hub.log
    assert "ends soon" in hub.log  # the authority's certificates live for two days
    with (
        socket.create_connection(("127.0.0.1", hub.port), timeout=10) as plain,
        pytest.raises(ssl.SSLCertVerificationError),
    ):
        ssl.create_default_context().wrap_socket(plain, server_hostname="127.0.0.1")
    assert hub.get("/health", token=None).status == 200
    assert hub.stop() == 0
    assert "Traceback" not in hub.log


def test_plain_http_to_a_tls_port_is_answered_with_nothing_and_logs_nothing(hub: TlsHub) -> None:
    hub.start()
    for sent in (b"GET /health HTTP/1.1\r\nHost: hub\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b""):
        with socket.create_connection(("127.0.0.1", hub.port), timeout=10) as plain:
            plain.sendall(sent)
            plain.shutdown(socket.SHUT_WR)
            assert b"HTTP" not in plain.recv(1000)
    assert hub.get("/health", token=None).status == 200
    assert "Traceback" not in hub.log
    assert "error" not in hub.log.lower()


@pytest.mark.parametrize(
    ("version", "is_spoken"), [(ssl.TLSVersion.TLSv1_2, True), (ssl.TLSVersion.TLSv1_3, True), (None, False)]
)
def test_tls_1_2_and_1_3_are_spoken_over_http_1_1_and_older_ones_are_not(
    hub: TlsHub, version: ssl.TLSVersion | None, is_spoken: bool
) -> None:
    hub.start()
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{hub.port}", "-alpn", "h2,http/1.1"]
    flag = {ssl.TLSVersion.TLSv1_2: "-tls1_2", ssl.TLSVersion.TLSv1_3: "-tls1_3", None: "-tls1_1"}[version]
    # An old version needs an old security level, or the client is the one that refuses.
    done = subprocess.run(
        [*command, flag, "-cipher", "ALL@SECLEVEL=0"], input=b"", capture_output=True, timeout=20, check=False
    )
    assert (b"ALPN protocol: http/1.1" in done.stdout) == is_spoken
    assert (b"BEGIN CERTIFICATE" in done.stdout) == is_spoken


@pytest.mark.parametrize("server_name", ["127.0.0.1", "localhost"])
def test_a_renewed_certificate_is_shown_to_new_connections_while_old_ones_are_held(
    hub: TlsHub, server_name: str
) -> None:
    hub.start()
    etag = hub.get("/gridnode/task").headers["ETag"]
    answers: list[tuple[int, bytes]] = []

    def hold() -> None:
        connection = hub.connect(timeout=WAIT + 5)
        headers = {"Authorization": f"Bearer {TOKEN}", "If-None-Match": etag, "Prefer": f"wait={WAIT}"}
        connection.request("GET", "/gridnode/task", headers=headers)
        answer = connection.getresponse()
        answers.append((answer.status, answer.read()))
        connection.close()

    held = [threading.Thread(target=hold) for _ in range(3)]
    for thread in held:
        thread.start()
    time.sleep(0.5)
    assert hub.name(server_name) == "first"
    hub.show(hub.authority.issue("second"))
    assert hub.name(server_name) == "first"
    hub.hang_up()
    wait_until(lambda: hub.name(server_name) == "second", "the new certificate is shown")
    assert answers == []
    hub.post("/api/tasks", {"name": "a", "image": "x:1"})
    hub.post("/api/tasks/next")
    for thread in held:
        thread.join(10)
    assert [status for status, _ in answers] == [200] * 3
    assert all(b'"task_name": "a"' in body for _, body in answers)
    assert hub.log.count("was reloaded") == 1


def test_a_bad_pair_is_refused_with_one_line_and_the_old_one_stays(hub: TlsHub) -> None:
    hub.start()
    other = hub.authority.issue("other")
    shutil.copy(other.key, hub.shown.key)  # only half of the new pair is there yet
    hub.hang_up()
    wait_until(lambda: "not reloaded" in hub.log, "the refusal is logged")
    line = next(line for line in hub.log.splitlines() if "not reloaded" in line)
    assert "is not the key of the certificate" in line
    assert hub.name() == "first"
    assert hub.get("/health", token=None).status == 200
    hub.shown.key.unlink()
    hub.hang_up()
    wait_until(lambda: hub.log.count("not reloaded") == 2, "the second refusal is logged")
    assert hub.name("localhost") == "first"
    hub.show(other)
    hub.hang_up()
    wait_until(lambda: hub.name() == "other", "the whole new pair is taken")


def test_large_bodies_and_large_answers_pass_whole(hub: TlsHub) -> None:
    hub.start()
    for number in range(30):
        body = {"name": f"a{number}", "image": "x:1", "command": ["x" * 900] * 60}
        assert hub.post("/api/tasks", body).status == 201
    answer = hub.get("/api/tasks")
    assert len(answer.body) > 1_500_000
    assert len(answer.json["tasks"]) == 30
    log = {"node_id": "n", "id": "nobody-waits", "text": "x" * 900_000}
    assert hub.post("/gridnode/logs", log).status == 204
    assert hub.post("/gridnode/logs", b"x" * 2_000_000).status == 413


def test_sighup_without_tls_changes_nothing_and_says_so(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path).start()
    try:
        assert hub.process is not None
        hub.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "SIGHUP changes nothing" in hub.log, "it is logged")
        assert hub.get("/health", token=None).status == 200
    finally:
        hub.end()


def test_a_key_that_others_can_read_is_warned_about(hub: TlsHub) -> None:
    hub.shown.key.chmod(0o644)
    hub.start()
    assert "everybody on this machine can read the TLS key" in hub.log
    assert hub.get("/health", token=None).status == 200


@pytest.mark.shutdown
def test_sigterm_answers_held_requests_over_tls_and_exits_0_within_2_s(hub: TlsHub) -> None:
    hub.start()
    etag = hub.get("/gridnode/task").headers["ETag"]
    statuses: list[int] = []

    def hold() -> None:
        headers = {"If-None-Match": etag, "Prefer": "wait=50"}
        statuses.append(hub.get("/gridnode/task", headers=headers).status)

    held = [threading.Thread(target=hold) for _ in range(5)]
    for thread in held:
        thread.start()
    time.sleep(0.7)
    with socket.create_connection(("127.0.0.1", hub.port)):  # a handshake that never comes
        begun_at = time.monotonic()
        assert hub.stop() == 0
        assert time.monotonic() - begun_at < 2
    for thread in held:
        thread.join(5)
    assert statuses == [304] * 5
    assert "Traceback" not in hub.log


def _missing(hub: TlsHub) -> str:
    hub.shown.certificate.unlink()
    return "tls_certificate: "


def _no_certificate(hub: TlsHub) -> str:
    shutil.copy(hub.shown.key, hub.shown.certificate)
    return "expected a certificate in PEM"


def _garbage(hub: TlsHub) -> str:
    hub.shown.certificate.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    return "expected a certificate in PEM"


def _no_key(hub: TlsHub) -> str:
    shutil.copy(hub.shown.certificate, hub.shown.key)
    return "expected the certificate's private key in PEM"


def _other_key(hub: TlsHub) -> str:
    shutil.copy(hub.authority.issue("other").key, hub.shown.key)
    return "is not the key of the certificate"


def _encrypted(hub: TlsHub) -> str:
    clear = hub.shown.key.rename(hub.shown.key.with_suffix(".clear"))
    command = [
        "openssl",
        "pkey",
        "-in",
        str(clear),
        "-aes256",
        "-passout",
        "pass:x",
        "-out",
        str(hub.shown.key),
    ]
    subprocess.run(command, capture_output=True, check=True)
    return "is encrypted; expected a key without a passphrase"


def _unreadable(hub: TlsHub) -> str:
    hub.shown.key.unlink()
    hub.shown.key.mkdir()
    return f"tls_key: {hub.shown.key} cannot be read: Is a directory"


def _half(hub: TlsHub) -> str:
    text = hub.config.read_text()
    hub.config.write_text("\n".join(line for line in text.splitlines() if not line.startswith("tls_key")))
    return f"{hub.config}: tls_key: missing, and tls_certificate is given"


def test_the_check_warns_of_a_key_that_everybody_can_read(hub: TlsHub) -> None:
    hub.shown.key.chmod(0o644)
    told = "everybody on this machine can read the TLS key"
    assert told in hub.command("--check").stderr
    hub.shown.key.chmod(0o600)
    assert told not in hub.command("--check").stderr


@pytest.mark.parametrize(
    "spoil", [_missing, _no_certificate, _garbage, _no_key, _other_key, _encrypted, _unreadable, _half]
)
@pytest.mark.parametrize("check", [(), ("--check",)])
def test_files_that_cannot_be_used_are_one_line_and_exit_code_78(
    hub: TlsHub, spoil: Any, check: tuple[str, ...]
) -> None:
    told = spoil(hub)
    done = hub.command(*check)
    assert done.returncode == 78
    assert told in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not hub.database.exists()
