"""What this machine is: CPUs, memory, names, and what tells it from its clones. Only reads files."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from agent.settings import Settings
from agent.spec import NodeFacts
from gridcore.errors import ConfigError
from gridcore.json_values import printable
from gridcore.platforms import architecture_of, is_known_architecture, platform_of

UNSUPPORTED = "armv6l"
SERVICE_CONFIG = Path("/etc/idm-gridcore")
_ADDRESS_IS_PERMANENT = "0"
_ALL_ZERO = "00:00:00:00:00:00"

CGROUP = Path("/sys/fs/cgroup")
CONTROLLERS = Path("/proc/cgroups")
_UNENFORCED = {
    "memory": "memory limits are not enforced: this kernel has no memory controller "
    "(Raspberry Pi: add cgroup_enable=memory to cmdline.txt and reboot)",
    "pids": "process limits are not enforced: this kernel has no pids controller",
    "cpuset": "containers are not bound to their CPUs: this kernel has no cpuset controller",
}


@dataclass(frozen=True)
class Identity:
    """What the node says of itself when it registers; `platform` None while the engine has not told."""

    hostname: str
    architecture: str
    platform: str | None
    cpu_count: int
    machine: str
    refusal: str | None = None
    """Why this machine cannot run containers at all."""


def facts(config: Path, settings: Settings) -> NodeFacts:
    """What of this machine the agent may use, and the owner label for this configuration file.

    Raises:
        ConfigError: the owner's `cpus` leave none.
    """
    available = usable_cpus()
    try:
        cpus = available if settings.cpus is None else parse_cpus(settings.cpus, available)
    except ValueError as error:
        raise ConfigError(f"{config}: {error}") from None
    gpus = gpu_count() if settings.gpu_count is None else settings.gpu_count
    warnings = limit_warnings() + misfits(settings, available)
    return NodeFacts(cpus, memory_mb(), owner(config), gpus, warnings)


def owner(config: Path) -> str:
    """The label of all that the agent with this configuration file made on this machine."""
    return hashlib.sha256(f"{machine_id()}\n{os.path.realpath(config)}".encode()).hexdigest()[:32]


def usable_cpus() -> tuple[int, ...]:
    """The CPUs that this process may use, in order."""
    return tuple(sorted(os.sched_getaffinity(0)))


def state_directory(config: Path, configured: Path | None) -> Path:
    """Where the agent keeps what should outlive it: /var/lib for a service, else beside its configuration."""
    if configured is not None:
        return configured
    real = Path(os.path.realpath(config))
    return Path("/var/lib/gridnode") if real.parent == SERVICE_CONFIG else real.with_suffix(".state")


def parse_cpus(value: int | str, available: tuple[int, ...]) -> tuple[int, ...]:
    """The CPUs that the owner gives of those `available`: the first `value`, or those in a list like `0-3,6`.

    Raises:
        ValueError: none of them is there.
    """
    if isinstance(value, int):
        return available[:value]
    asked = _cpu_set(value)
    if chosen := tuple(cpu for cpu in available if cpu in asked):
        return chosen
    raise ValueError(f'cpus: none of "{value}" is there; this process may use {_listed(available)}')


def cpus_warning(value: int | str, available: tuple[int, ...]) -> str | None:
    """What of the owner's `cpus` this machine does not have, or None."""
    if isinstance(value, int):
        lacking = f"{value} asked for" if value > len(available) else ""
    else:
        missing = tuple(sorted(_cpu_set(value) - set(available)))
        lacking = f'"{value}" names {_listed(missing)}' if missing else ""
    return f"cpus: {lacking}, this process may use {_listed(available)}" if lacking else None


def misfits(settings: Settings, available: tuple[int, ...]) -> tuple[str, ...]:
    """What of good settings does not fit this machine, one line each, naming the key."""
    found: list[str] = []
    if settings.cpus is not None:
        try:
            parse_cpus(settings.cpus, available)
        except ValueError as error:
            return (str(error),)
        if warning := cpus_warning(settings.cpus, available):
            found.append(warning)
    if settings.container_memory > memory_mb():
        found.append(f"container_memory: {settings.container_memory} MB, this machine has {memory_mb()} MB")
    if settings.ca_file is not None and not settings.server_url.lower().startswith("https:"):
        found.append("ca_file: counts for https:// only, and server_url is http://")
    if settings.allowed_images == ():
        found.append("allowed_images: empty, so that every image is refused")
    return tuple(found)


def missing_mounts(settings: Settings) -> tuple[str, ...]:
    """The owner's mounts that are not there, one line each.

    Not for the service itself, which does not see all that the engine sees: its /home is empty.
    """
    here = (mount.split(":")[0] for mount in settings.mounts)
    return tuple(f"mounts: there is no {path} on this machine" for path in here if _is_missing(path))


def gpu_count(root: Path = Path("/")) -> int:
    """NVIDIA GPUs; also looked for in /proc, since a service with private devices does not see /dev's."""
    devices = len(list((root / "dev").glob("nvidia[0-9]*")))
    driver = root / "proc/driver/nvidia/gpus"
    try:
        return max(devices, len(list(driver.iterdir())))
    except OSError:
        return devices


def limit_warnings(cgroup: Path = CGROUP, controllers: Path = CONTROLLERS) -> tuple[str, ...]:
    """The limits that this kernel does not enforce, one line each, for the operator and the owner."""
    missing = [name for name in _UNENFORCED if not _controls(name, cgroup, controllers)]
    return tuple(_UNENFORCED[name] for name in missing)


def hostname() -> str:
    """The machine's name for the hub."""
    return printable(socket.gethostname()) or "unnamed"


def memory_mb() -> int:
    """The machine's memory in MB (2^20 bytes)."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20


def machine_id() -> str:
    """systemd's machine-id; on a machine without one, its name."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        if text := _read(Path(path)):
            return text
    return hostname()


def fingerprint() -> str:
    """A hash that differs between two machines made from one disk image.

    The machine-id is cloned with the disk; the board's serial number (Raspberry Pi) or else a network
    card's address is not.
    """
    board = _read(Path("/proc/device-tree/serial-number")) or network_address()
    return hashlib.sha256(f"{machine_id()}\n{board}".encode()).hexdigest()[:32]


def network_address(root: Path = Path("/sys/class/net")) -> str:
    """The first permanent hardware address; in a virtual machine without one, that of the default route."""
    permanent, routed = [], ""
    default = _default_interface()
    for card in sorted(root.iterdir()) if root.is_dir() else []:
        address = _read(card / "address")
        if not address or address == _ALL_ZERO:
            continue
        if _read(card / "addr_assign_type") == _ADDRESS_IS_PERMANENT and (card / "device").exists():
            permanent.append(address)
        if card.name == default:
            routed = address
    return permanent[0] if permanent else routed


def guessed_architecture() -> str:
    """The user land's architecture, while the engine has not told its own.

    A 32-bit system on a 64-bit ARM kernel says `aarch64` but runs `arm` images.
    """
    machine = platform.machine()
    if machine == "aarch64" and struct.calcsize("P") == 4:
        return "arm"
    return architecture_of(platform_of(machine)) if is_known_architecture(machine) else machine


def _default_interface(routes: Path = Path("/proc/net/route")) -> str | None:
    for line in _read(routes).splitlines()[1:]:
        columns = line.split()
        if len(columns) > 1 and columns[1] == "00000000":
            return columns[0]
    return None


def _controls(name: str, cgroup: Path, controllers: Path) -> bool:
    """Whether a controller is there: cgroup v2 lists what it has, v1 has a table with a column `enabled`."""
    if unified := _read(cgroup / "cgroup.controllers"):
        return name in unified.split()
    rows = [line.split() for line in _read(controllers).splitlines() if not line.startswith("#")]
    enabled = {row[0]: row[3] for row in rows if len(row) == 4}
    return not enabled or enabled.get(name) == "1"


def _cpu_set(text: str) -> set[int]:
    """`0-3,6` as numbers."""
    cpus: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus


def _listed(cpus: tuple[int, ...]) -> str:
    """`CPU 0-3,6`: numbers as people write them."""
    spans: list[list[int]] = []
    for cpu in cpus:
        if spans and spans[-1][1] == cpu - 1:
            spans[-1][1] = cpu
        else:
            spans.append([cpu, cpu])
    return "CPU " + ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def _is_missing(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass  # not for this user to see
    return False


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
