"""What goes on beside a playbook: items for the workers, their results, and a look at all command lines."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import redis

from tests.fleet.grid import wait_until

RESERVE = 40  # items that always wait, so that no worker is ever out of work
BETWEEN = 0.2  # s


class Feeder:
    """Integers for a queue of squares, from `begin` on, and how long no result of them came.

    Use as a context manager. `client` may be replaced while it feeds.
    """

    def __init__(self, client: redis.Redis, queues: str, begin: int) -> None:
        self.client = client
        self.pushed = begin
        self.longest_pause = 0.0  # s
        self._input, self._output, self._mark = f"{queues}:input", f"{queues}:output", f"{queues}:pushed"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._feed, daemon=True)

    def __enter__(self) -> Self:
        self.client.set(self._mark, self.pushed)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        self.pushed = self._known()

    def go_on(self, results: int = 8) -> None:
        """Wait until so many more results are there."""
        there = self._results()
        wait_until(lambda: self._results() >= there + results, f"{results} more results", 60)

    def _feed(self) -> None:
        results, since = -1, time.monotonic()
        while not self._over.wait(BETWEEN):
            with suppress(redis.RedisError):
                self._fill()
                if (now := self._results()) > results:
                    results, since = now, time.monotonic()
            self.longest_pause = max(self.longest_pause, time.monotonic() - since)

    def _fill(self) -> None:
        """What was pushed stands in Redis, too: after an answer that was lost nobody guesses."""
        pushed = self._known()
        missing = RESERVE - int(str(self.client.llen(self._input)))
        if missing > 0:
            change = self.client.pipeline(transaction=True)
            change.rpush(self._input, *range(pushed, pushed + missing))
            change.set(self._mark, pushed + missing)
            change.execute()

    def _known(self) -> int:
        return int(str(self.client.get(self._mark)))

    def _results(self) -> int:
        return int(str(self.client.llen(self._output)))


@contextmanager
def in_no_command_line(*secrets: str) -> Iterator[None]:
    """None of these stands in a command line of this machine, which sees its hosts' own, all the while."""
    seen: set[str] = set()
    agents: set[Path] = set()
    over = threading.Event()

    def look() -> None:
        while not over.wait(BETWEEN):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    seen.update(line.replace(secret, "***") for secret in secrets if secret in line)
                    if "gridnode" in line:
                        agents.add(path)

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(10)
    assert agents, "the hosts' processes cannot be seen from here"
    assert not seen, seen
