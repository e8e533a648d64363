"""Real hubs that start in a few milliseconds: forked off a process that has imported everything already.

Each is `computehub --config FILE` in a process of its own, which can be killed like any other; only the half
second of imports is saved. So a hundred restarts fit into a test.

    python -m tests.integration.hub_nursery

reads lines `config<TAB>log` on standard input, starts a hub for each, and answers with its process id. It and
its hubs end with whoever started it.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType

from tests.integration.hub_process import HubProcess, Process, environment

PR_SET_PDEATHSIG = 1


class Nursery:
    """The process that hubs are forked off. Used with `with`, from the thread that lives as long."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.hub_nursery"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def __enter__(self) -> Nursery:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate(timeout=30)

    def start(self, config: Path, log: Path) -> int:
        """Start a hub; its process id. It does not answer yet."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(f"{config}\t{log}\n")
            self._process.stdin.flush()
            return int(self._process.stdout.readline())


class NurseryHub(HubProcess):
    """A hub of a nursery's, for tests that look at what it answers and not at how it ends."""

    def __init__(self, directory: Path, nursery: Nursery) -> None:
        super().__init__(directory)
        self._nursery = nursery

    def _begin(self) -> Process:
        return _Forked(self._nursery.start(self.config, self._log))


class _Forked:
    """A process that is no child of ours: it can be told and waited for, but has no exit code."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._handle = os.pidfd_open(pid)

    def poll(self) -> int | None:
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        code = self._look(timeout)
        if code is None:
            raise TimeoutError(f"process {self.pid} runs on")
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            signal.pidfd_send_signal(self._handle, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def __del__(self) -> None:
        os.close(self._handle)

    def _look(self, timeout: float | None) -> int | None:
        readable, _, _ = select.select([self._handle], [], [], timeout)
        return -1 if readable else None


def serve_nursery() -> None:
    """Fork a hub for each line, until there are no more."""
    import hub.cli
    import hub.serve

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        config, log = line.rstrip("\n").split("\t")
        child = os.fork()
        if child == 0:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            for number, target in ((os.open(os.devnull, os.O_RDONLY), 0), (output, 1), (output, 2)):
                os.dup2(number, target)
            try:
                hub.cli.main(["--config", config])
            finally:
                os._exit(1)
        print(child, flush=True)


if __name__ == "__main__":
    serve_nursery()
