"""What the event loop comes upon that nobody awaits: told in our words, and once, or not at all.

Who does not speak TLS, or does not trust us, is no error of the hub's. That no connection can be accepted is
a condition that lasts: the loop tries again each second, and would write dozens of tracebacks each time.
"""

from __future__ import annotations

import asyncio
import errno
import resource
import ssl
from typing import Any

from gridcore.condition import Condition

SCARCE = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
"""Why a connection is not accepted now and may be later."""

QUIET = 5.0
"""Seconds without such an error after which there is room again; asyncio tries each second."""

ROUND = 0.5
"""Seconds: asyncio tells of one attempt up to a hundred times at once."""


class LoopErrors:
    """An exception handler for the loop."""

    def __init__(self) -> None:
        self._no_room = Condition(
            "no connection can be accepted: new ones wait",
            "connections are accepted again",
            do="give this service more file descriptors (LimitNOFILE in its unit; two for each node and some "
            "more), or see who holds so many connections (ss -tn)",
            level="error",
            quiet=QUIET,
        )
        self._tried = float("-inf")

    def __call__(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        error = context.get("exception")
        if isinstance(error, OSError) and error.errno in SCARCE and "socket" in context:
            if loop.time() >= self._tried + ROUND:
                self._tried = loop.time()
                limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
                self._no_room.meet(errno.errorcode[error.errno], error=error.strerror, descriptors=limit)
        elif not isinstance(error, ssl.SSLError | ConnectionError):
            loop.default_exception_handler(context)
