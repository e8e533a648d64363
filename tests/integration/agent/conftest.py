"""Real parts for the agent's tests: an engine, a registry on loopback, small images, and agent processes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from agent.machine import owner
from agent.spec import OWNER
from tests.integration.agent.fixed_hub import TOKEN, FixedHub, TalkingHub
from tests.integration.nursery import Process, the_nursery
from tests.servers.authority import Pair
from tests.servers.children import free_port

WORKER = """#!/bin/sh
# Ends cleanly on SIGTERM; MODE: run (default), deaf (ignores SIGTERM), fail, quit.
trap 'echo stopping; exit 0' TERM
[ "$MODE" = deaf ] && { trap '' TERM; echo deaf; }
[ "$MODE" = fail ] && { echo "no luck" >&2; exit 3; }
[ "$MODE" = quit ] && exit 0
while :; do sleep 0.1; done
"""
ALIEN = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\xed\xfe" + bytes(44)
"""The head of a program for a machine that does not exist: no emulator may know it."""


def docker(*arguments: str, check: bool = True) -> str:
    """Run docker and give its output."""
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    if check and done.returncode:
        raise AssertionError(f"docker {' '.join(arguments)}: {done.stderr}")
    return done.stdout.strip()


def eventually(check: Callable[[], Any], what: str, seconds: float = 20.0) -> Any:
    """Ask until the answer is true; a plain failure that says what did not happen in time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := check():
            return result
        time.sleep(0.05)
    raise AssertionError(f"not within {seconds:g} s: {what}")


def has_a_deaf_one(agent: Agent) -> bool:
    """Whether a container of the agent runs that will not end by SIGTERM: one that just starts still does."""
    return any(docker("logs", name, check=False) == "deaf" for name in agent.containers().values())


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """A Docker engine must answer; `make test` starts one."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.fail("no Docker engine answers; run tests/fleet/machine.sh first (make test does)")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry on loopback: host:port."""
    real = Registry(tmp_path_factory.mktemp("registry"))
    real.start()
    try:
        yield real.address
    finally:
        real.stop()


class Registry:
    """A `docker-registry` process; `accounts` is a file in htpasswd's form, where it wants a login.

    With a `pair` it speaks TLS.
    """

    def __init__(
        self, root: Path, accounts: Path | None = None, host: str = "127.0.0.1", pair: Pair | None = None
    ) -> None:
        self.address = f"{host}:{free_port()}"
        self._root = root
        self._scheme = "https" if pair else "http"
        tls = f", tls: {{certificate: {pair.certificate}, key: {pair.key}}}" if pair else ""
        login = f"auth: {{htpasswd: {{realm: test, path: {accounts}}}}}\n" if accounts else ""
        (root / "config.yml").write_text(
            f"version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n"
            f"http: {{addr: '{self.address}'{tls}}}\n{login}"
        )
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it answers."""
        command = ["docker-registry", "serve", str(self._root / "config.yml")]
        with (self._root / "log").open("a") as output:
            self._process = subprocess.Popen(command, stdout=output, stderr=output)
        eventually(self._answers, "the registry answers")

    def stop(self) -> None:
        """Take it away; a second time does nothing."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
        self._process = None

    def pulls(self, image: str) -> int:
        """How often an image's manifest has been asked for so far."""
        name, _, tag = image.removeprefix(f"{self.address}/").partition(":")
        log = (self._root / "log").read_text()
        return sum(log.count(f'"{method} /v2/{name}/manifests/{tag} ') for method in ("GET", "HEAD"))

    def offer(self, name: str, worker: str) -> str:
        """Push the worker under a name of its own, and remove it from this machine."""
        image = f"{self.address}/{name}"
        docker("tag", worker, image)
        docker("push", image)
        docker("rmi", image)
        return image

    def _answers(self) -> bool:
        try:
            any_authority = ssl._create_unverified_context()  # noqa: S323  our own, a moment ago
            url = f"{self._scheme}://{self.address}/v2/"
            with urllib.request.urlopen(url, timeout=1, context=any_authority):
                return True
        except urllib.error.HTTPError:  # it wants a login
            return True
        except OSError:
            return False


@pytest.fixture
def own_registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry that the test may take away."""
    root = tmp_path / "registry"
    root.mkdir()
    own = Registry(root)
    own.start()
    yield own
    own.stop()
    remove_images(own.address)


def remove_images(address: str) -> None:
    """Remove every image of a registry from this machine."""
    names = docker("images", "--format", "{{.Repository}}:{{.Tag}}", "--filter", f"reference={address}/*")
    if names:
        docker("rmi", "-f", *names.splitlines(), check=False)


@pytest.fixture(scope="session")
def images(registry: str) -> Iterator[dict[str, str]]:
    """Pushed images: `worker` (this platform), `foreign` (arm64 only), `list` (a list without ours).

    `alien` says that it is for this platform, but its only program is not.
    """
    names = {name: f"{registry}/{name}:1" for name in ("worker", "foreign", "list", "alien")}
    subprocess.run(
        ["docker", "load"], input=image_archive(names["alien"], "amd64", program=ALIEN), check=True
    )
    docker("push", names["alien"])
    subprocess.run(["docker", "load"], input=image_archive(names["worker"], "amd64"), check=True)
    docker("push", names["worker"])
    subprocess.run(["docker", "load"], input=image_archive(names["foreign"], "arm64"), check=True)
    docker("push", names["foreign"])
    docker("manifest", "create", "--insecure", names["list"], names["foreign"])
    docker("manifest", "push", "--insecure", "--purge", names["list"])
    docker("rmi", names["foreign"])
    yield names
    for name in names.values():
        docker("rmi", "-f", name, check=False)


def image_archive(name: str, architecture: str, program: bytes | None = None) -> bytes:
    """A `docker save` archive of busybox, or of one strange program, labelled with any architecture."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.fail("busybox-static is missing; run tests/fleet/machine.sh first (make test does)")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        if program is None:
            tar.add(os.path.realpath(busybox), "bin/busybox")
            for applet in ("sh", "sleep", "cat", "echo", "env", "head", "dd"):
                link = tarfile.TarInfo(f"bin/{applet}")
                link.type, link.linkname = tarfile.SYMTYPE, "busybox"
                tar.addfile(link)
        files = {"worker": WORKER.encode()} if program is None else {"worker": program, "bin/sh": program}
        for where, content in files.items():
            file = tarfile.TarInfo(where)
            file.size, file.mode = len(content), 0o755
            tar.addfile(file, io.BytesIO(content))
    digest = hashlib.sha256(layer.getvalue()).hexdigest()
    config = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Cmd": ["/worker"], "Env": ["PATH=/bin"], "Labels": {"gridcore.test": architecture}},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [],
    }
    raw = json.dumps(config).encode()
    manifest = [
        {
            "Config": f"{hashlib.sha256(raw).hexdigest()}.json",
            "RepoTags": [name],
            "Layers": [f"{digest}/layer.tar"],
        }
    ]
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for path, data in (
            (manifest[0]["Config"], raw),
            (f"{digest}/layer.tar", layer.getvalue()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(str(path))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return archive.getvalue()


@pytest.fixture
def hub() -> Iterator[FixedHub]:
    """A hub that speaks the fixed protocol only."""
    fixed = FixedHub()
    yield fixed
    fixed.close()


@pytest.fixture
def make_hub() -> Iterator[Callable[[], TalkingHub]]:
    """Make hubs that can also give orders; each has its own task and nodes."""
    made: list[TalkingHub] = []

    def make() -> TalkingHub:
        made.append(TalkingHub())
        return made[-1]

    yield make
    for hub in made:
        hub.close()


class Agent:
    """A `gridnode` process with a configuration of its own; its containers carry a node id of its own.

    A `fresh` one is started as a person's shell would, by an interpreter of its own.
    """

    def __init__(self, directory: Path, hub_url: str, *, fresh: bool = False, **settings: Any) -> None:
        self.node_id = f"t-{uuid.uuid4().hex[:12]}"
        self.config = directory / "gridnode.toml"
        self.log = directory / "gridnode.log"
        values = {"server_url": hub_url, "token": TOKEN, "node_id": self.node_id, "container_memory": 32}
        values |= {"parallelism": 2, "heartbeat_interval": 1, "stop_timeout": 5, **settings}
        self.config.write_text(
            "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items() if v is not None)
        )
        self.config.chmod(0o600)
        self._is_fresh = fresh
        self.process: Process | None = None

    def start(self, **env: str) -> Agent:
        """Run `gridnode` in the background, its log into a file."""
        words = ["--config", str(self.config)]
        if not self._is_fresh:
            self.process = the_nursery("gridnode").start(words, self.log, self.log, env)
            return self
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent.cli", *words],
                stdout=output,
                stderr=output,
                env=os.environ | env,
                start_new_session=True,
            )
        return self

    def signal(self, number: int) -> None:
        """Send a signal to the agent alone."""
        assert self.process is not None
        self.process.send_signal(number)

    def wait(self, seconds: float = 30.0) -> int:
        """The exit code."""
        assert self.process is not None
        return self.process.wait(seconds)

    def stop(self, seconds: float = 30.0) -> int:
        """SIGTERM, and the exit code."""
        self.signal(signal.SIGTERM)
        return self.wait(seconds)

    def blocks(self, number: int) -> bool:
        """Whether the process holds a signal back or handles it, rather than dying of it."""
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        masks = [line.split()[1] for line in status.splitlines() if line.startswith(("SigBlk", "SigCgt"))]
        return any(int(mask, 16) & 1 << (number - 1) for mask in masks)

    def containers(self, *, running: bool = True) -> dict[str, str]:
        """Container id → name, of this node; only running ones, or all."""
        all_too = [] if running else ["--all"]
        rows = docker(
            "ps",
            "--no-trunc",
            "--format",
            "{{.ID}} {{.Names}}",
            "--filter",
            f"name=-{self.node_id}-",
            *all_too,
        )
        return dict(row.split(" ", 1) for row in rows.splitlines())

    def ask(self, *words: str) -> str:
        """Run `gridnode status`, `pause` or `resume` beside it, and give its output."""
        done = the_nursery("gridnode").run([words[0], "--config", str(self.config), *words[1:]], timeout=30)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def set(self, **settings: Any) -> None:
        """Change the configuration; the next start reads it."""
        lines = [
            line for line in self.config.read_text().splitlines() if line.partition(" ")[0] not in settings
        ]
        lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
        self.config.write_text("\n".join(lines) + "\n")

    def kill(self) -> None:
        """SIGKILL, as the kernel does."""
        self.signal(signal.SIGKILL)
        self.wait()

    def output(self) -> str:
        """What the agent logged so far."""
        return self.log.read_text()


@pytest.fixture
def make_agent(tmp_path: Path) -> Iterator[Callable[..., Agent]]:
    """Make agents; whatever they leave is removed at the end."""
    made: list[Agent] = []

    def make(hub_url: str, **settings: Any) -> Agent:
        directory = tmp_path / f"agent{len(made)}"
        directory.mkdir()
        made.append(Agent(directory, hub_url, **settings))
        return made[-1]

    yield make
    for agent in made:
        print(agent.log.read_text() if agent.log.exists() else "never started")
        if agent.process is not None and agent.process.poll() is None:
            agent.process.kill()
            agent.process.wait()
        if leftovers := agent.containers(running=False):
            docker("rm", "-f", "-v", *leftovers)
        if scratch := docker("volume", "ls", "-q", "--filter", f"label={OWNER}={owner(agent.config)}"):
            docker("volume", "rm", *scratch.splitlines())


class Hub:
    """A `computehub` process on a loopback port of its own, its state in a file."""

    def __init__(self, directory: Path, **settings: Any) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.database = directory / "hub.db"
        self.config = directory / "computehub.toml"
        self.config.write_text(
            f'bind = "127.0.0.1:{self.port}"\ntoken = "{TOKEN}"\nstate = "sqlite:///{self.database}"\n'
            + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        )
        self.config.chmod(0o600)
        self.log = directory / "hub.log"
        self.process: Process | None = None

    def start(self) -> None:
        self.process = the_nursery("computehub").start(["--config", str(self.config)], self.log, self.log)
        eventually(self._answers, "the hub answers")

    def stop(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(10) == 0

    def _answers(self) -> bool:
        try:
            return bool(self.call("GET", "/health") == "OK")
        except OSError:
            return False

    def call(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            self.url + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={"Authorization": f"Bearer {TOKEN}"},
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            text = answer.read().decode()
        return json.loads(text) if text[:1] in "[{n" else text

    def node(self, node_id: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.call("GET", f"/api/nodes/{node_id}")
        except urllib.error.HTTPError:  # not registered yet
            return {"status": None, "active_containers": 0, "errors": []}
        return found

    def run_task(self, name: str, image: str, **fields: Any) -> None:
        self.call("POST", "/api/tasks", {"name": name, "image": image, **fields})
        self.call("POST", "/api/tasks/next")


@contextmanager
def running_hub(directory: Path, **settings: Any) -> Iterator[Hub]:
    """A hub process with these settings, gone at the end."""
    hub = Hub(directory, **settings)
    hub.start()
    try:
        yield hub
    finally:
        assert hub.process is not None
        hub.process.kill()
        hub.process.wait()
        print(hub.log.read_text())


@pytest.fixture
def computehub(tmp_path: Path) -> Iterator[Hub]:
    """A hub process."""
    with running_hub(tmp_path) as hub:
        yield hub
