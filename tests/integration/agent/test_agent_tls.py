"""A hub behind TLS: whom the agent believes, what it says of the others, and a CA that is renewed under it.

Certificates are made with openssl, the servers are real, on loopback.
"""

from __future__ import annotations

import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gridcore.client import AiohttpTransport, HubClient, Request
from gridcore.errors import HubUnreachable
from gridcore.trust import Trust
from tests.integration.agent.conftest import Agent, eventually
from tests.integration.agent.fixed_hub import TOKEN, FixedHub, TalkingHub, task

MakeAgent = Callable[..., Agent]


def openssl(*arguments: str, text: str = "") -> None:
    done = subprocess.run(["openssl", *arguments], input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


class Authority:
    """A CA of its own in `directory`: `file` is its certificate."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.file = directory / "ca.pem"
        self._key = directory / "ca.key"
        curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        self._curve = curve
        openssl(
            *["req", "-x509", *curve, "-keyout", str(self._key), "-out", str(self.file)],
            *["-subj", f"/CN=CA {directory.name}", "-days", "2"],
        )

    def server(self, names: str = "IP:127.0.0.1,DNS:localhost", *, expired: bool = False) -> ssl.SSLContext:
        """A server's side of TLS with a certificate for these names."""
        key, request, extensions = (self.directory / f"server.{end}" for end in ("key", "csr", "ext"))
        certificate = self.directory / "server.pem"
        extensions.write_text(f"subjectAltName = {names}\n")
        openssl(*["req", *self._curve, "-keyout", str(key), "-out", str(request), "-subj", "/CN=hub"])
        span = ["-startdate", "20200101000000Z", "-enddate", "20200102000000Z"] if expired else ["-days", "1"]
        settings = self.directory / "ca.cnf"
        (self.directory / "index.txt").write_text("")
        settings.write_text(
            f"[ca]\ndefault_ca = ca\ndatabase = {self.directory}/index.txt\n"
            f"new_certs_dir = {self.directory}\nrand_serial = yes\npolicy = any\n"
            f"default_md = sha256\nunique_subject = no\n[any]\ncommonName = supplied\n"
        )
        openssl(
            *["ca", "-batch", "-config", str(settings), "-cert", str(self.file), "-keyfile", str(self._key)],
            *["-in", str(request), "-out", str(certificate), "-extfile", str(extensions), "-notext", *span],
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        return context


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ours")


@pytest.fixture
def theirs(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "theirs")


@contextmanager
def serving(tls: ssl.SSLContext | None, port: int = 0) -> Iterator[FixedHub]:
    hub = FixedHub(port, tls)
    try:
        yield hub
    finally:
        hub.close()


async def ask(url: str, ca_file: Path | None = None) -> object:
    """What one question comes to, with a new connection."""
    async with AiohttpTransport(url, Trust(ca_file)) as transport:
        return await HubClient(transport, TOKEN).task("linux/amd64", "n1")


async def why_not(url: str, ca_file: Path | None = None) -> str:
    with pytest.raises(HubUnreachable) as caught:
        await ask(url, ca_file)
    (line,) = str(caught.value).splitlines()
    return line


async def test_a_hub_whose_ca_is_in_the_file_is_believed(ours: Authority, theirs: Authority) -> None:
    with serving(ours.server()) as hub:
        await ask(hub.url, ours.file)
        await ask(hub.url.replace("127.0.0.1", "localhost"), ours.file)
        assert [seen.token for seen in hub.seen] == [TOKEN, TOKEN]
        bundle = ours.directory / "both.pem"
        bundle.write_text(
            f"# Zertifizierungsstelle für alle\n{theirs.file.read_text()}{ours.file.read_text()}"
        )
        await ask(hub.url, bundle)


async def test_a_self_signed_certificate_may_stand_there_itself(tmp_path: Path) -> None:
    certificate, key = tmp_path / "hub.pem", tmp_path / "hub.key"
    openssl(
        *["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", str(key), "-out", str(certificate)],
        *["-subj", "/CN=hub", "-addext", "subjectAltName = IP:127.0.0.1"],
        *["-addext", "basicConstraints = critical,CA:FALSE"],
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with serving(context) as hub:
        await ask(hub.url, certificate)
        assert "name its CA, or the self-signed certificate, as ca_file" in await why_not(hub.url)


async def test_a_hub_that_is_not_believed_sees_no_token_and_the_reason_is_plain(
    ours: Authority, theirs: Authority
) -> None:
    with serving(ours.server()) as hub:
        line = await why_not(hub.url, theirs.file)
        assert line == (
            f"{hub.url} cannot be reached: its certificate is not signed by the CA in {theirs.file}; "
            "is that the hub's CA?"
        )
        assert "name its CA" in await why_not(hub.url)
        assert hub.seen == []
    with serving(ours.server("DNS:elsewhere.example")) as hub:
        line = await why_not(hub.url, ours.file)
        assert "its certificate is for another name: " in line
        assert "127.0.0.1" in line.partition("another name")[2]
        line = await why_not(hub.url.replace("127.0.0.1", "localhost"), ours.file)
        assert "'localhost'" in line.partition("another name")[2]
        assert hub.seen == []
    with serving(ours.server(expired=True)) as hub:
        assert "its certificate has expired" in await why_not(hub.url, ours.file)
        assert hub.seen == []


async def test_http_where_tls_is_expected_and_the_other_way_round(ours: Authority) -> None:
    with serving(None) as hub:
        line = await why_not(hub.url.replace("http:", "https:"), ours.file)
        assert line.endswith("it does not speak TLS; if the hub has none, server_url must begin with http://")
    with serving(ours.server()) as hub:
        line = await why_not(hub.url.replace("https:", "http:"))
        assert line.endswith("if the hub speaks TLS, server_url must begin with https://")
        assert hub.seen == []


async def test_a_renewed_ca_counts_after_the_first_failure_and_a_bad_one_changes_nothing(
    ours: Authority, theirs: Authority, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    shutil.copy(ours.file, file)
    ask_task = Request("GET", "/gridnode/task", token=TOKEN)
    with serving(ours.server()) as hub:
        port = hub.port
        async with AiohttpTransport(hub.url, Trust(file)) as transport:
            await transport(ask_task)
            file.write_text("half of a certif")
            hub.close()
            with serving(ours.server(), port):
                await HubClient(transport, TOKEN).call(ask_task)
            with serving(theirs.server(), port):
                with pytest.raises(HubUnreachable, match=r"there is no certificate in it\)$"):
                    await HubClient(transport).call(ask_task)
                shutil.copy(theirs.file, file)
                await HubClient(transport).call(ask_task)  # its second try finds it


def test_an_agent_works_over_tls_and_takes_up_a_new_ca_while_it_computes(
    ours: Authority, theirs: Authority, images: dict[str, str], make_agent: MakeAgent, tmp_path: Path
) -> None:
    file = tmp_path / "ca.pem"
    shutil.copy(ours.file, file)
    hub = TalkingHub(tls=ours.server())
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url, ca_file=str(file)).start()
    try:
        before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    finally:
        hub.close()
    hub = TalkingHub(hub.port, theirs.server())
    hub.task = task("squares", images["worker"])
    try:
        eventually(lambda: "is that the hub's CA?" in agent.ask("status"), "the reason shows", 30)
        assert hub.seen == []
        renewed = tmp_path / "renewed.pem"
        shutil.copy(theirs.file, renewed)
        renewed.replace(file)
        eventually(lambda: hub.calls("/gridnode/heartbeat"), "a heartbeat arrives", 30)
        eventually(lambda: "answers" in agent.ask("status"), "the agent has heard the answer")
        assert agent.containers() == before
        assert "Traceback" not in agent.output()
        assert agent.stop() == 0
    finally:
        hub.close()


def test_an_agent_exchanges_its_join_token_and_no_token_shows_anywhere(
    images: dict[str, str], make_agent: MakeAgent
) -> None:
    join, own, second = "j0in-secret-token", "0wn-secret-token", "0wn-second-token"
    hub = TalkingHub()
    try:
        hub.tokens = {join, own}
        hub.registered = {"token": own}
        hub.task = task("squares", images["worker"])
        agent = make_agent(hub.url, token=None, join_token=join).start()
        before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
        assert [seen.token for seen in hub.calls("/gridnode/register")] == [join]
        assert {seen.token for seen in hub.seen if seen.path != "/gridnode/register"} == {own}
        hub.tokens = {own, second}
        hub.additions = {"token": second}
        eventually(lambda: hub.seen[-1].token == second, "the next token is taken")
        assert f'token = "{second}"\n' in agent.config.read_text()
        assert f'join_token = "{join}"\n' in agent.config.read_text()
        assert agent.config.stat().st_mode & 0o777 == 0o600
        hub.tokens = set()
        eventually(lambda: "`join_token` is tried next" in agent.ask("status"), "the refusal shows")
        assert agent.process is not None
        commands = Path(f"/proc/{agent.process.pid}/cmdline").read_bytes().decode()
        shown = agent.output() + agent.ask("status") + agent.ask("status", "--json") + commands
        assert [token for token in (join, own, second) if token in shown] == []
        hub.seen.clear()
        time.sleep(3)
        assert len(hub.seen) <= 1
        assert agent.containers() == before
        assert agent.stop() == 0
    finally:
        hub.close()
