"""The images: a systemd host, a small Python base, and the examples built on it.

No registry is needed. Each image is named by the hash of its recipe, so a second run finds it at once.
The suite is the controller's own on Debian and bookworm elsewhere; `GRIDCORE_SUITE` and `GRIDCORE_MIRROR`
choose others.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fleet.engine import PROJECT, FleetError, docker, image_exists

CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "idm-gridcore" / "fleet"
SETUP = Path(__file__).with_name("image")

HOST_PACKAGES = (
    "systemd systemd-sysv dbus openssh-server sudo procps iproute2 iptables kmod ca-certificates curl "
    "docker.io docker-registry python3 python3-venv python3-apt libfaketime e2fsprogs"
)
PYTHON_PACKAGES = "python3-minimal python3-redis"
UNREAD = ["doc", "man", "info", "locale"]
WITH_CLIENT_IN_ENGINE = ("bullseye", "bookworm")  # later releases ship the `docker` command as docker-cli


def suite() -> str:
    """The Debian release of the hosts."""
    if chosen := os.environ.get("GRIDCORE_SUITE"):
        return chosen
    release = platform.freedesktop_os_release()
    return release.get("VERSION_CODENAME", "bookworm") if release.get("ID") == "debian" else "bookworm"


def mirror() -> str:
    """The package mirror that this machine itself uses, where it is a Debian."""
    if chosen := os.environ.get("GRIDCORE_MIRROR"):
        return chosen
    if platform.freedesktop_os_release().get("ID") == "debian":
        asked = ["apt-get", "indextargets", "--format", "$(SITE)", "Created-By: Packages"]
        sites = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.split()
        if sites:
            return sites[0]
    return "http://deb.debian.org/debian"


@contextmanager
def _one_builder() -> Iterator[None]:
    """Several fleets may start at once; one builds, the others wait and then find the image."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "build.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _import_system(name: str, variant: str, packages: str, setup: Path, changes: list[str]) -> str:
    """Make a root file system with mmdebstrap, straight into the engine. Returns the image's tag."""
    recipe = "\n".join([suite(), variant, packages, setup.read_text(), *changes, *UNREAD])
    tag = f"{name}:{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with _one_builder():
        if image_exists(tag):
            return tag
        make = [*_as_root(), "mmdebstrap", "--quiet", f"--variant={variant}"]
        make += [f"--include={','.join(packages.split())}", "--aptopt=APT::Install-Recommends false"]
        make += [f"--dpkgopt=path-exclude=/usr/share/{unread}/*" for unread in UNREAD]
        make += [f'--customize-hook=sh {setup} "$1"', suite(), "-", mirror()]
        options = [f"--change={change}" for change in changes]
        log = CACHE / f"{name}.log"
        with log.open("wb") as written:
            maker = subprocess.Popen(make, stdout=subprocess.PIPE, stderr=written)
            taker = subprocess.Popen(
                ["docker", "import", *options, "-", f"{tag}-new"],
                stdin=maker.stdout,
                stdout=subprocess.DEVNULL,
                stderr=written,
            )
            assert maker.stdout is not None  # a pipe
            maker.stdout.close()  # or a maker whose taker has failed would wait for ever
            failed = taker.wait() or maker.wait()
        # The engine takes a torn archive as well: only a whole one gets the name that others look for.
        if failed:
            raise FleetError(f"the image {name} could not be made; see {log} (mirror {mirror()}, {suite()})")
        docker("tag", f"{tag}-new", tag)
        docker("rmi", f"{tag}-new")
        return tag


def _as_root() -> list[str]:
    """The words that make one root; none where that would ask a question: mmdebstrap then unshares."""
    if os.geteuid() == 0 or not shutil.which("sudo"):
        return []
    asked = subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)
    return [] if asked.returncode else ["sudo", "-n"]


def host_image() -> str:
    """The systemd host: sshd, its own Docker engine, Python, and a registry that is not started."""
    changes = [
        "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "ENV container=docker",
        'CMD ["/lib/systemd/systemd"]',
    ]
    client = "" if suite() in WITH_CLIENT_IN_ENGINE else " docker-cli"
    return _import_system("gridcore-host", "apt", HOST_PACKAGES + client, SETUP / "host-setup.sh", changes)


def python_base() -> str:
    """Python with the `redis` client and little else, for the examples' `ARG BASE`."""
    changes = ["ENV PATH=/usr/local/bin:/usr/bin:/bin", "ENV PYTHONUNBUFFERED=1"]
    return _import_system(
        "gridcore-python-base", "essential", PYTHON_PACKAGES, SETUP / "python-setup.sh", changes
    )


def example_image(name: str) -> str:
    """Build `examples/<name>` on the local base and return its tag."""
    tag = f"gridcore-example-{name}:latest"
    docker(
        "build", "--quiet", "--build-arg", f"BASE={python_base()}", "--tag", tag, PROJECT / "examples" / name,
        timeout=300,
    )  # fmt: skip
    return tag
