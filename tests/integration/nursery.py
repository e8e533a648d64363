"""Real hubs and agents that start in a few milliseconds: forked off one that has imported everything.

Each is `computehub WORDS…` or `gridnode WORDS…` in a process of its own, which starts, ends and is killed
like any other, exit code included; only the imports are saved, a second of CPU each. Standard input is empty.

    python -m tests.integration.nursery PROGRAM DIRECTORY

reads lines `{"words": […], "out": FILE, "err": FILE, "env": {…}, "ordinary": BOOL}` on standard input, starts
a process for each, and answers with its id, which stays its own until an empty line follows. When one has
ended, DIRECTORY holds its exit code in a file named by its number. It and all of them end with whoever
started it.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Protocol

from tests.servers.children import wait_until

PR_SET_PDEATHSIG = 1

PROGRAMS = {
    "computehub": ("hub.cli", "hub.serve", "hub.backup", "hub.restoring", "gridcore.client"),
    "gridnode": ("agent.cli", "agent.service", "agent.probe", "agent.status", "agent.control"),
}
"""The module whose `main` each is, and what it imports late."""


class Nursery:
    """The process that all processes of a program are forked off."""

    def __init__(self, program: str) -> None:
        self._lock = threading.Lock()
        self._numbers = count(1)
        self._ends = tempfile.TemporaryDirectory(prefix="gridcore-nursery-")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.nursery", program, self._ends.name],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def start(
        self,
        words: Sequence[str],
        out: Path,
        err: Path,
        env: Mapping[str, str] | None = None,
        ordinary: bool = False,
    ) -> Forked:
        """Start the program with these words, without the rights of root where `ordinary`; it does not
        answer yet. What it writes is appended."""
        asked = {
            "words": words,
            "out": str(out),
            "err": str(err),
            "env": {**(env or {})},
            "ordinary": ordinary,
        }
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps(asked) + "\n")
            self._process.stdin.flush()
            pid = int(self._process.stdout.readline())
            forked = Forked(pid, Path(self._ends.name, str(next(self._numbers))))
            self._process.stdin.write("\n")  # from now on its id may go to somebody else
            self._process.stdin.flush()
            return forked

    def run(
        self,
        words: Sequence[str],
        timeout: float,
        env: Mapping[str, str] | None = None,
        ordinary: bool = False,
    ) -> subprocess.CompletedProcess[str]:
        """What the program did with these words. Raises TimeoutError, and then it is gone."""
        with tempfile.TemporaryDirectory() as directory:
            out, err = Path(directory, "out"), Path(directory, "err")
            process = self.start(words, out, err, env, ordinary)
            try:
                code = process.wait(timeout)
            finally:
                process.kill()
            return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

    def close(self) -> None:
        """End it, and all that were forked off it."""
        self._process.communicate(timeout=30)
        self._ends.cleanup()


class Process(Protocol):
    """What is asked of a process that was started."""

    @property
    def pid(self) -> int: ...
    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


class Forked:
    """A process that is no child of ours: its exit code stands in a file once it has one."""

    def __init__(self, pid: int, end: Path) -> None:
        self.pid = pid
        self._end = end
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
        if not readable:
            return None
        wait_until(self._end.exists, f"the nursery has seen process {self.pid} end")
        return int(self._end.read_text())


@cache
def the_nursery(program: str) -> Nursery:
    """The one of this run of tests."""
    nursery = Nursery(program)
    atexit.register(nursery.close)
    return nursery


def environment() -> dict[str, str]:
    """Without what a person's shell may say about GridCore."""
    return {name: value for name, value in os.environ.items() if not name.startswith("IDM_GRIDCORE_")}


def serve_nursery(program: str, ends: Path) -> None:
    """Fork a process for each line, until there are no more."""
    modules = [importlib.import_module(name) for name in PROGRAMS[program]]
    children: dict[int, int] = {}

    def reap(*_signal: object) -> None:
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            end = ends / str(children.pop(pid))
            end.with_suffix(".new").write_text(str(os.waitstatus_to_exitcode(status)))
            end.with_suffix(".new").rename(end)

    gc.freeze()  # or each would copy all that there is when it collects its garbage
    signal.signal(signal.SIGCHLD, reap)
    for number, line in enumerate(iter(sys.stdin.readline, ""), 1):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        child = os.fork()
        if child == 0:
            asked = json.loads(line)
            _become_a_process_of_its_own(asked["out"], asked["err"])
            os.environ.update(asked["env"])
            if asked["ordinary"]:
                _give_up_capabilities()
            sys.argv = [program, *asked["words"]]
            sys.modules["__main__"].__package__ = None  # an installed command, whose usage names it
            modules[0].main()
        children[child] = number
        print(child, flush=True)
        sys.stdin.readline()
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})


def _give_up_capabilities() -> None:
    """Be held by the modes of files like anybody else, and still read Python's own in root's home."""
    libc = ctypes.CDLL(None, use_errno=True)
    version_3, nothing = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
    if libc.capset(version_3, nothing) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _become_a_process_of_its_own(out: str, err: str) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whatever the tests themselves run under
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
    for target, path, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, out, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
        (2, err, os.O_WRONLY | os.O_CREAT | os.O_APPEND),
    ):
        opened = os.open(path, flags, 0o600)
        os.dup2(opened, target)
        os.close(opened)


if __name__ == "__main__":
    serve_nursery(sys.argv[1], Path(sys.argv[2]))
