"""What a process and its children take, from /proc: memory while they live, CPU also of those that ended.

The process must lead a session of its own: whatever it starts stays in it and is found there.
"""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

MIB = 2**20
_TICKS = os.sysconf("SC_CLK_TCK")


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that matter here; `cpu` in seconds, reaped children included."""

    session: int
    cpu: float


@dataclass(frozen=True)
class Sample:
    """Bytes of a session at one moment.

    `resident` counts the leader's whole RSS, and of the others the proportional share (PSS): the text that
    several docker clients share is there once. The leader's own PSS would be too kind, since other Python
    processes on the machine, this one for instance, share its text.
    """

    at: float
    leader: int
    resident: int
    rss_sum: int
    children: int


def stat(pid: int) -> Stat | None:
    """None: there is no such process (any more)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # from the third field on: a name may hold spaces
    return Stat(int(fields[3]), sum(map(int, fields[11:15])) / _TICKS)


def memory(pid: int) -> dict[str, int] | None:
    """`Rss` and `Pss` in bytes; None: it is gone, or not ours to look at."""
    try:
        with Path(f"/proc/{pid}/smaps_rollup").open() as file:
            lines = [line.split() for line in file]
    except OSError:
        return None
    found = {line[0].rstrip(":"): int(line[1]) * 1024 for line in lines[1:] if len(line) == 3}
    return found if "Rss" in found else None


@dataclass
class Sampler:
    """Looks at a session every `every` seconds on a thread of its own, until closed."""

    leader: int
    every: float = 0.02
    samples: list[Sample] = field(default_factory=list)
    _strangers: set[int] = field(default_factory=set)
    _closed: threading.Event = field(default_factory=threading.Event)

    def start(self) -> Sampler:
        """Begin."""
        self._thread = threading.Thread(target=self._run, daemon=True, name="sampler")
        self._thread.start()
        return self

    def close(self) -> None:
        """Look no more."""
        self._closed.set()
        self._thread.join(5)

    def since(self, moment: float) -> list[Sample]:
        """The samples from a moment of the monotonic clock on."""
        return [sample for sample in list(self.samples) if sample.at >= moment]

    def _run(self) -> None:
        while not self._closed.is_set():
            began = time.monotonic()
            if (sample := self._look(began)) is not None:
                self.samples.append(sample)
            self._closed.wait(max(0.001, began + self.every - time.monotonic()))

    def _look(self, now: float) -> Sample | None:
        own = memory(self.leader)
        if own is None:
            return None
        children = [taken for pid in self._others() if (taken := memory(pid)) is not None]
        return Sample(
            now,
            own["Rss"],
            own["Rss"] + sum(child["Pss"] for child in children),
            own["Rss"] + sum(child["Rss"] for child in children),
            len(children),
        )

    def _others(self) -> list[int]:
        present = {int(name) for name in os.listdir("/proc") if name.isdecimal()}  # noqa: PTH208 # 50 times a second
        self._strangers &= present  # a number may come again
        mine = []
        for pid in present - self._strangers - {self.leader}:
            seen = stat(pid)
            if seen is None or seen.session != self.leader:
                self._strangers.add(pid)
            elif not _is_copy(pid, self.leader):
                mine.append(pid)
        return mine


def _is_copy(pid: int, parent: int) -> bool:
    """Whether a child has not become another program yet: it then still uses its parent's memory."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() == Path(f"/proc/{parent}/cmdline").read_bytes()
    except OSError:
        return True


def engine_pid(address: str = "/var/run/docker.sock") -> int | None:
    """The engine behind a socket, or None where that is not to be seen."""
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(address)
            raw = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except OSError:
            return None
    pid = int(struct.unpack("3i", raw)[0])
    if pid <= 1:  # systemd made the socket
        try:
            pid = int(Path("/var/run/docker.pid").read_text())
        except (OSError, ValueError):
            return None
    return pid if stat(pid) is not None else None
