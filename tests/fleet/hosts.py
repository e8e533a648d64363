"""Systemd hosts on this machine, each with its own Docker engine, reached over SSH as root.

    python -m tests.fleet.hosts up --prefix NAME --count N
    python -m tests.fleet.hosts down --prefix NAME

`up` prints where the SSH configuration and an Ansible inventory lie. Everything made carries a label with the
prefix, so `down` finds all of it, also after a crash.
"""

from __future__ import annotations

import argparse
import io
import json
import secrets
import shutil
import sys
import tarfile
import time
import zlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.fleet import images
from tests.fleet.engine import LABEL, MACHINE, PROJECT, FleetError, docker, labelled, run

STATE = PROJECT / ".cache" / "fleet"

# What systemd and a nested engine need short of --privileged, which fails where CAP_SYS_RESOURCE is missing.
CAPABILITIES = (
    "SYS_ADMIN NET_ADMIN SYS_PTRACE MKNOD DAC_READ_SEARCH SYS_NICE IPC_LOCK SYSLOG AUDIT_CONTROL SYS_CHROOT "
    "LINUX_IMMUTABLE"
)
HOST_OPTIONS = [
    *["--cgroupns=host", "--volume=/sys/fs/cgroup:/sys/fs/cgroup:rw", "--tmpfs=/run", "--tmpfs=/run/lock"],
    *["--security-opt=seccomp=unconfined", "--security-opt=apparmor=unconfined"],
    "--stop-signal=SIGRTMIN+3",
    *(f"--cap-add={capability}" for capability in CAPABILITIES.split()),
]


@dataclass(frozen=True)
class Host:
    """One host: a container of the outer engine that behaves like a machine."""

    prefix: str
    name: str  # within the fleet
    address: str

    @property
    def container(self) -> str:
        """The container's name, which is the host's hostname too."""
        return f"{self.prefix}-{self.name}"

    def ssh_command(self, *command: str) -> list[str]:
        """The words that run a shell command on the host."""
        return ["ssh", "-F", str(STATE / self.prefix / "ssh_config"), self.container, "--", *command]

    def ssh(self, command: str, *, stdin: bytes | None = None, timeout: float = 60) -> str:
        """Run a shell command on the host as root; returns what it printed, failure raises `FleetError`."""
        return run(self.ssh_command(command), stdin=stdin, timeout=timeout)

    def put(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """Write a file on the host; the content travels on standard input."""
        self.ssh(
            f"umask 077; cat >{path}.new && chmod {mode:o} {path}.new && mv {path}.new {path}", stdin=content
        )

    def pause(self) -> None:
        """Freeze everything on the host, its inner containers too."""
        docker("pause", self.container)

    def unpause(self) -> None:
        """Let a paused host go on."""
        docker("unpause", self.container)

    def kill(self) -> None:
        """Pull the plug."""
        docker("kill", self.container)

    def start(self) -> None:
        """Boot a killed host and wait until it is ready."""
        docker("start", self.container)
        self.wait_ready()

    def reboot(self) -> None:
        """Pull the plug, boot again."""
        self.kill()
        self.start()

    def cut_off(self) -> None:
        """Pull the network cable."""
        docker("network", "disconnect", self.prefix, self.container)

    def reconnect(self) -> None:
        """Plug the network cable in again: same address."""
        docker("network", "connect", "--ip", self.address, self.prefix, self.container)

    def wait_ready(self, timeout: float = 90) -> None:
        """Wait until systemd is up, sshd answers and the inner engine works."""
        ready = "systemctl is-system-running --wait >/dev/null; docker info --format '{{.Driver}}'"
        deadline = time.monotonic() + timeout
        while True:
            try:
                driver = self.ssh(ready, timeout=max(1.0, deadline - time.monotonic()))
            except FleetError as problem:
                if time.monotonic() > deadline:
                    raise FleetError(
                        f"{self.container} is not ready after {timeout:.0f} s: {problem}"
                    ) from None
                time.sleep(0.2)
            else:
                if driver != "overlay2":
                    raise FleetError(f"{self.container}: the inner engine uses {driver!r}, not overlay2")
                return


@dataclass(frozen=True)
class Fleet:
    """The hosts of one prefix, in the order of their names' first mention."""

    prefix: str
    hosts: dict[str, Host]

    @property
    def state(self) -> Path:
        """Where keys, addresses and secrets of this fleet lie (mode 0700)."""
        return STATE / self.prefix

    def secret(self, name: str) -> str:
        """A password of this fleet, made when it is first asked for and kept in a 0600 file."""
        path = self.state / name
        if not path.exists():
            self.keep(name, secrets.token_urlsafe(24))
        return path.read_text()

    def keep(self, name: str, secret: str) -> None:
        """Put a secret where inventories look for it."""
        path = self.state / name
        path.touch(mode=0o600)
        path.write_text(secret)


def client_key() -> Path:
    """The key that opens every host; made once for this user."""
    key = images.CACHE / "id_ed25519"
    if not key.exists():
        key.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "gridcore fleet", "-f", key])
    return key


def up(prefix: str, names: Iterable[str], options: Sequence[str] = ()) -> Fleet:
    """Start the hosts, all at once, and wait until every one is ready. A fleet of that prefix is replaced.

    `options` go to the outer engine's `docker create`, beside those that every host needs.
    """
    run([MACHINE], timeout=900)
    image = images.host_image()
    down(prefix)
    state = STATE / prefix
    state.mkdir(parents=True, mode=0o700)
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", prefix, "-f", state / "ssh_host_ed25519_key"])
    subnet = _make_network(prefix)
    addresses = (f"{subnet}.{number}" for number in range(11, 250))
    hosts = {name: Host(prefix, name, address) for name, address in zip(names, addresses, strict=False)}
    fleet = Fleet(prefix, hosts)
    _write_state(fleet)
    with ThreadPoolExecutor(len(hosts)) as pool:
        list(pool.map(lambda host: _boot(host, image, options), hosts.values()))
    return fleet


def load(prefix: str) -> Fleet:
    """The fleet that an earlier `up` left running."""
    known = STATE / prefix / "fleet.json"
    if not known.exists():
        raise FleetError(f"no fleet {prefix!r}: python -m tests.fleet.hosts up --prefix {prefix} --count N")
    addresses: dict[str, str] = json.loads(known.read_text())
    return Fleet(prefix, {name: Host(prefix, name, address) for name, address in addresses.items()})


def down(prefix: str) -> None:
    """Remove containers, volumes, network and state of this prefix; nothing there is fine."""
    if containers := labelled("container", prefix):
        docker("rm", "--force", "--volumes", *containers)
    if volumes := labelled("volume", prefix):
        docker("volume", "rm", "--force", *volumes)
    if networks := labelled("network", prefix):
        docker("network", "rm", *networks)
    shutil.rmtree(STATE / prefix, ignore_errors=True)


def _make_network(prefix: str) -> str:
    """A bridge of our own with fixed addresses, so that a host comes back as who it was. Returns `a.b.c`."""
    first = zlib.crc32(prefix.encode())
    for offset in range(256):
        subnet = f"10.213.{(first + offset) % 256}"
        try:
            docker(
                "network", "create", "--subnet", f"{subnet}.0/24", "--gateway", f"{subnet}.1",
                "--label", f"{LABEL}={prefix}", prefix,
            )  # fmt: skip
        except FleetError as problem:
            if "overlaps" not in str(problem):
                raise
        else:
            return subnet
    raise FleetError("no free network in 10.213.0.0/16; `docker network prune` may help")


def _boot(host: Host, image: str, options: Sequence[str]) -> None:
    label = f"{LABEL}={host.prefix}"
    docker("volume", "create", "--label", label, host.container)
    docker(
        "create", "--name", host.container, "--hostname", host.container, "--label", label,
        "--network", host.prefix, "--ip", host.address, "--volume", f"{host.container}:/var/lib/docker",
        *HOST_OPTIONS, *options, image,
    )  # fmt: skip
    docker("cp", "-", f"{host.container}:/", stdin=_keys_for(host))
    docker("start", host.container)
    host.wait_ready()


def _keys_for(host: Host) -> bytes:
    """A tar archive with what lets us in, and lets us know that it is this host."""
    host_key = STATE / host.prefix / "ssh_host_ed25519_key"
    files = {
        "root/.ssh/authorized_keys": client_key().with_suffix(".pub").read_bytes(),
        "etc/ssh/ssh_host_ed25519_key": host_key.read_bytes(),
        "etc/ssh/ssh_host_ed25519_key.pub": host_key.with_suffix(".pub").read_bytes(),
    }
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for path, content in files.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(content), 0o600
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


def _write_state(fleet: Fleet) -> None:
    state, hosts = fleet.state, fleet.hosts.values()
    public = (state / "ssh_host_ed25519_key.pub").read_text().strip()
    (state / "known_hosts").write_text("".join(f"{host.address} {public}\n" for host in hosts))
    common = (
        f"  User root\n  IdentityFile {client_key()}\n  IdentitiesOnly yes\n  BatchMode yes\n"
        f"  UserKnownHostsFile {state / 'known_hosts'}\n  StrictHostKeyChecking yes\n"
        "  ConnectTimeout 5\n  ServerAliveInterval 5\n  LogLevel ERROR\n"
    )
    named = "".join(f"Host {host.container}\n  HostName {host.address}\n" for host in hosts)
    (state / "ssh_config").write_text(f"{named}Host *\n{common}")
    (state / "fleet.json").write_text(json.dumps({host.name: host.address for host in hosts}))
    (state / "inventory.json").write_text(json.dumps(inventory(fleet), indent=2))
    for name in ("token", "redis_password"):
        fleet.secret(name)


def inventory(fleet: Fleet) -> dict[str, object]:
    """An Ansible inventory (YAML or JSON): the first host is hub and Redis, the others compute.

    A fleet of one does all of it. Secrets are looked up in the state directory when a playbook runs.
    """
    first, *others = fleet.hosts.values()

    def lookup(name: str) -> str:
        return "{{ lookup('ansible.builtin.file', '" + str(fleet.state / name) + "') }}"

    def members(hosts: Iterable[Host]) -> dict[str, object]:
        return {"hosts": {host.container: {} for host in hosts}}

    return {
        "all": {
            "vars": {
                "ansible_user": "root",
                "ansible_ssh_private_key_file": str(client_key()),
                "ansible_ssh_common_args": f"-F {fleet.state / 'ssh_config'}",
                "gridcore_token": lookup("token"),
                "gridcore_redis_password": lookup("redis_password"),
                "gridcore_redis_bind": "0.0.0.0",
                "gridcore_hub_url": f"http://{first.address}:8080",
                "gridcore_docker_insecure_registries": [f"{first.address}:5000"],
            },
            "hosts": {host.container: {"ansible_host": host.address} for host in fleet.hosts.values()},
            "children": {
                "gridcore_hub": members([first]),
                "gridcore_redis": members([first]),
                "gridcore_agents": {"children": {"x86_64": members(others or [first])}},
            },
        }
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.hosts", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for command in ("up", "down"):
        one = commands.add_parser(command)
        one.add_argument("--prefix", required=True)
        if command == "up":
            one.add_argument("--count", type=int, default=1)
    chosen = parser.parse_args()
    try:
        if chosen.command == "down":
            down(chosen.prefix)
            return
        begin = time.monotonic()
        fleet = up(chosen.prefix, [str(number + 1) for number in range(chosen.count)])
    except FleetError as problem:
        sys.exit(f"fleet: {problem}")
    print(f"{chosen.count} hosts ready in {time.monotonic() - begin:.1f} s")
    print(f"ssh -F {fleet.state / 'ssh_config'} {next(iter(fleet.hosts.values())).container}")
    print(f"ansible-playbook -i {fleet.state / 'inventory.json'} …")


if __name__ == "__main__":
    main()
