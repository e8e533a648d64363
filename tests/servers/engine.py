"""A Docker engine of one's own, which can be broken: its runtime makes no container while a file says so.

It lives in a network namespace of its own, without a bridge: an engine beside another one would remove that
one's.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.children import Child, find

RUNTIME = """#!/bin/sh
case "$*" in
*create*) [ -e {broken} ] && {{ echo 'exec: "parser": executable file not found in $PATH' >&2; exit 1; }} ;;
esac
exec {runc} "$@"
"""
CONTAINERD = """version = 2
root = "{place}/c/root"
state = "{place}/c/state"
[grpc]
  address = "{place}/c.sock"
[ttrpc]
  address = "{place}/c.ttrpc"
"""


class OwnEngine:
    """`env` leads a docker client, or an agent, to it."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._broken = place / "broken"
        self.env = {"DOCKER_HOST": f"unix://{place}/d.sock"}

    def set_broken(self, broken: bool) -> None:
        """Whether it starts no container, whatever the image."""
        if broken:
            self._broken.touch()
        else:
            self._broken.unlink(missing_ok=True)

    def signal(self, number: int) -> None:
        """Send the daemon a signal: one that is stopped takes calls, and answers none."""
        os.kill(int((self._place / "pid").read_text()), number)

    def answers(self) -> bool:
        """Whether it is up."""
        env = os.environ | self.env
        return not subprocess.run(["docker", "info"], capture_output=True, check=False, env=env).returncode

    def docker(self, *arguments: str) -> str:
        """Run docker against it and give its output."""
        command = ["docker", *arguments]
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, env=os.environ | self.env, timeout=120
        )
        return done.stdout.strip()

    def load(self, image: str) -> None:
        """Bring an image of the machine's own engine here."""
        archive = self._place / "image.tar"
        subprocess.run(["docker", "save", "-o", archive, image], check=True, capture_output=True)
        self.docker("load", "-i", str(archive))
        archive.unlink()


@contextmanager
def own_engine() -> Iterator[OwnEngine]:
    """A running one; all that it made is gone afterwards."""
    place = Path(tempfile.mkdtemp(prefix="gc-engine-"))  # short: a socket's path has its limit
    runtime = place / "runtime"
    runtime.write_text(RUNTIME.format(broken=place / "broken", runc=find("runc")))
    runtime.chmod(0o755)
    (place / "containerd.toml").write_text(CONTAINERD.format(place=place))
    (place / "daemon.json").write_text("{}")
    engine = OwnEngine(place)
    containerd = Child(
        "containerd", [find("containerd"), "--config", f"{place}/containerd.toml"], place / "containerd.log"
    )
    dockerd = Child(
        "dockerd",
        [
            *(find("unshare"), "--net", find("dockerd"), "--config-file", f"{place}/daemon.json"),
            *("--data-root", f"{place}/data", "--exec-root", f"{place}/exec", "--pidfile", f"{place}/pid"),
            *("--host", f"unix://{place}/d.sock", "--containerd", f"{place}/c.sock"),
            *("--bridge", "none", "--iptables=false", "--ip-masq=false"),
            *("--add-runtime", f"own={runtime}", "--default-runtime", "own"),
        ],
        place / "dockerd.log",
    )
    try:
        containerd.start((place / "c.sock").exists)
        dockerd.start(engine.answers)
        yield engine
    finally:
        engine.set_broken(False)
        if dockerd.is_running:
            if left := engine.docker("ps", "-aq").split():
                engine.docker("rm", "-f", "-v", *left)
            dockerd.stop()
        if containerd.is_running:
            containerd.stop()
        shutil.rmtree(place, ignore_errors=True)
