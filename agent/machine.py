"""What this machine is: CPUs, memory, names, and what tells it from its clones. Only reads files."""

from __future__ import annotations

import hashlib
import os
import platform
import socket
import struct
from pathlib import Path

from agent.spec import NodeFacts
from gridcore.platforms import architecture_of, is_known_architecture, platform_of

UNSUPPORTED = "armv6l"
SERVICE_CONFIG = Path("/etc/idm-gridcore")
_ADDRESS_IS_PERMANENT = "0"
_ALL_ZERO = "00:00:00:00:00:00"


def facts(config: Path) -> NodeFacts:
    """CPUs that this process may use, memory, and the owner label for this configuration file."""
    owner = hashlib.sha256(f"{machine_id()}\n{os.path.realpath(config)}".encode()).hexdigest()[:32]
    return NodeFacts(tuple(sorted(os.sched_getaffinity(0))), memory_mb(), owner)


def state_directory(config: Path, configured: Path | None) -> Path:
    """Where the agent keeps what should outlive it: a service's in /var/lib, else beside its configuration."""
    if configured is not None:
        return configured
    real = Path(os.path.realpath(config))
    return Path("/var/lib/gridnode") if real.parent == SERVICE_CONFIG else real.with_suffix(".state")


def hostname() -> str:
    """The machine's name for the hub."""
    return socket.gethostname() or "unnamed"


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


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip("\0\n ")
    except OSError:
        return ""
