"""The notify protocol of systemd (sd_notify(3)): a datagram to the socket that the service manager names.

Our own few lines, because the packages for it come without wheels and so do not install offline on ARM.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from contextlib import suppress


def watchdog_interval(env: Mapping[str, str] = os.environ) -> float | None:
    """Seconds between two `WATCHDOG=1`, half of what the unit allows; None where nobody waits for them."""
    usec, pid = env.get("WATCHDOG_USEC", ""), env.get("WATCHDOG_PID", "")
    # A child inherits the variables, but is not the process that systemd watches.
    if not usec.isdecimal() or int(usec) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(usec) / 2e6


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` or `STATUS=…`; does nothing where no manager listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A service must not fail because its manager went away.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        channel.sendall("\n".join(assignments).encode())
