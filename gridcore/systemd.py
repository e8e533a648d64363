"""The notify protocol of systemd (sd_notify(3)): a datagram to the socket that the service manager names.

Our own few lines, because the packages for it come without wheels and so do not install offline on ARM.
"""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(*assignments: str) -> None:
    """Send assignments such as `READY=1` or `STATUS=…`; does nothing where no manager listens.

    An assignment is one line: what breaks it in a text from elsewhere would begin another one.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    # A service must not fail because its manager went away.
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.connect(address)
        lines = (" ".join(assignment.splitlines()) for assignment in assignments)
        channel.sendall("\n".join(lines).encode(errors="replace"))
