"""Real parts for the agent's tests: an engine, a registry on loopback, small images, and agent processes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent.machine import owner
from agent.spec import OWNER
from tests.integration.agent.fixed_hub import TOKEN, FixedHub

WORKER = """#!/bin/sh
# Ends cleanly on SIGTERM; MODE: run (default), deaf (ignores SIGTERM), fail, quit.
trap 'echo stopping; exit 0' TERM
[ "$MODE" = deaf ] && trap '' TERM
[ "$MODE" = fail ] && { echo "no luck" >&2; exit 3; }
[ "$MODE" = quit ] && exit 0
while :; do sleep 0.1; done
"""


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


@pytest.fixture(scope="session", autouse=True)
def engine() -> None:
    """A Docker engine must answer; `make test` starts one."""
    if subprocess.run(["docker", "info"], capture_output=True, check=False).returncode:
        pytest.fail("no Docker engine answers; run tests/fleet/machine.sh first (make test does)")


@pytest.fixture(scope="session")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry on loopback: host:port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = tmp_path_factory.mktemp("registry")
    config = root / "config.yml"
    config.write_text(
        f"version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n"
        f"http: {{addr: '127.0.0.1:{port}'}}\n"
    )
    with (root / "log").open("w") as output:
        process = subprocess.Popen(["docker-registry", "serve", str(config)], stdout=output, stderr=output)
    try:
        eventually(lambda: _answers(f"http://127.0.0.1:{port}/v2/"), "the registry answers")
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1):
            return True
    except OSError:
        return False


@pytest.fixture(scope="session")
def images(registry: str) -> Iterator[dict[str, str]]:
    """Pushed images: `worker` (this platform), `foreign` (arm64 only), `list` (a list without ours)."""
    names = {name: f"{registry}/{name}:1" for name in ("worker", "foreign", "list")}
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


def image_archive(name: str, architecture: str) -> bytes:
    """A `docker save` archive of a busybox image, labelled with any architecture."""
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.fail("busybox-static is missing; run tests/fleet/machine.sh first (make test does)")
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        tar.add(os.path.realpath(busybox), "bin/busybox")
        for applet in ("sh", "sleep", "cat", "echo", "env", "head", "dd"):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
        script = tarfile.TarInfo("worker")
        script.size, script.mode = len(WORKER), 0o755
        tar.addfile(script, io.BytesIO(WORKER.encode()))
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


class Agent:
    """A `gridnode` process with a configuration of its own; its containers carry a node id of its own."""

    def __init__(self, directory: Path, hub_url: str, **settings: Any) -> None:
        self.node_id = f"t-{uuid.uuid4().hex[:12]}"
        self.config = directory / "gridnode.toml"
        self.log = directory / "gridnode.log"
        values = {"server_url": hub_url, "token": TOKEN, "node_id": self.node_id, "container_memory": 32}
        values |= {"parallelism": 2, "heartbeat_interval": 1, "stop_timeout": 5, **settings}
        self.config.write_text(
            "".join(f"{k} = {json.dumps(v)}\n" for k, v in values.items() if v is not None)
        )
        self.config.chmod(0o600)
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> Agent:
        """Run `gridnode` in the background, its log into a file."""
        with self.log.open("ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "agent.cli", "--config", str(self.config)],
                stdout=output,
                stderr=output,
                env=os.environ | env,
                start_new_session=True,
            )
        return self

    def signal(self, number: int) -> None:
        """Send a signal to the agent alone."""
        assert self.process is not None
        os.kill(self.process.pid, number)

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
            docker("rm", "-f", *leftovers)
        if scratch := docker("volume", "ls", "-q", "--filter", f"label={OWNER}={owner(agent.config)}"):
            docker("volume", "rm", *scratch.splitlines())
