"""Programs that a test starts: on ports that stay free for them, ended by their process id.

The kernel kills them when the thread that started them ends, so that a test run which dies leaves none. So
start them in the main thread, or in one that lives as long as they must.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PORTS = range(20_000, 32_000)
"""Below the kernel's ephemeral ports: no connection takes one while a server is down for a moment."""

PATIENCE = 20.0
"""Seconds in which a server must answer; on an idle machine it takes a twentieth of one."""

_claims: list[socket.socket] = []
"""One bound name a port that was given out; the kernel frees it when this process ends."""

ENDING = 10.0
"""Seconds that a server gets to end when it is asked to."""


class ServerError(Exception):
    """A server did not do what it must; the text holds the end of its log."""


class Child:
    """One program, started as often as the test likes."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name = name
        self._command = command
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended; one that is paused counts as running."""
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it wrote, over all its starts."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def start(self, is_up: Callable[[], bool]) -> None:
        """Start it and wait until it is up. Raises ServerError, and then it does not run."""
        assert not self.is_running, f"{self.name} runs already"
        with self._log.open("ab") as log:
            # setpriv asks the kernel for the signal and then becomes the program: the id is the program's.
            command = [find("setpriv"), "--pdeathsig", "KILL", "--", *self._command]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(lambda: is_up() or not self.is_running, f"{self.name} answers")
        except ServerError:
            self.kill()
            raise ServerError(f"{self.name} does not answer:\n{self.log[-2000:]}") from None
        if not self.is_running:
            raise ServerError(f"{self.name} ended at once:\n{self.log[-2000:]}")

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self._signal(signal.SIGTERM)
        assert self._process is not None
        return self._process.wait(ENDING)

    def kill(self) -> None:
        """SIGKILL, if it still runs."""
        if self._process is not None and self.is_running:
            self._process.kill()
            self._process.wait(ENDING)

    def pause(self) -> None:
        """SIGSTOP: connections stay open, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        assert self.is_running, f"{self.name} does not run"
        self._process.send_signal(number)


def find(program: str) -> str:
    """The path of a program, also of one that is not on an ordinary user's PATH."""
    path = shutil.which(program, path=os.pathsep.join([*os.get_exec_path(), "/usr/sbin", "/sbin"]))
    if path is None:
        raise ServerError(f"{program} is not installed; `make setup` installs it")
    return path


def free_ports() -> Iterator[int]:
    """Ports of loopback that nobody listens on, each given once: other test processes get others."""
    for port in random.sample(PORTS, len(PORTS)):
        claim = socket.socket(socket.AF_UNIX)
        try:
            claim.bind(f"\0gridcore-test-port-{port}")
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            claim.close()
            continue
        _claims.append(claim)
        yield port


def free_port() -> int:
    """One of them."""
    return next(free_ports())


def accepts(port: int, address: str = "127.0.0.1") -> bool:
    """Whether something listens there."""
    try:
        socket.create_connection((address, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(holds: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Look until it holds. Raises ServerError."""
    deadline = time.monotonic() + patience
    while not holds():
        if time.monotonic() > deadline:
            raise ServerError(f"in vain waited {patience:g} s until {what}")
        time.sleep(0.01)
