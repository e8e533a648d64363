"""Takes integers from INPUT_QUEUE and pushes `n:n²` to OUTPUT_QUEUE, until SIGTERM.

SIGTERM loses nothing: it only sets a flag, what is in hand is computed and pushed first, and a Redis that is
away is waited for. SIGKILL does lose what is in hand, a batch at most: the kernel's for want of memory, a
power cut's, and the grid's own when `stop_timeout` is shorter than a batch takes.

Environment: INPUT_REDIS_URL, OUTPUT_REDIS_URL (default: the input's), INPUT_QUEUE, OUTPUT_QUEUE;
BATCH (10): items taken at once; ITEM_SECONDS (0): pretend that every item is that much work, one at a time.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

stopping = threading.Event()
if __name__ == "__main__":
    # Before the slow import: as process 1 of a container, a SIGTERM that finds no handler is lost.
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())

import redis  # noqa: E402

BATCH = 10  # all that a killed container loses; 1 loses least, 200 is several times as fast
TAKE_SECONDS = 1  # the longest wait in BLPOP, and so the longest that a SIGTERM goes unnoticed
SLOWEST_RETRY = 5.0

T = TypeVar("T")


def say(text: str) -> None:
    """One line for `docker logs`."""
    print(text, file=sys.stderr, flush=True)


def take(source: redis.Redis, queue: str, most: int) -> list[str | bytes]:
    """Up to `most` items; none if the queue stays empty for a second. Raises only with empty hands."""
    first = source.blpop([queue], timeout=TAKE_SECONDS)
    if first is None:
        return []
    items = [first[1]]
    if most > 1:
        try:
            items += source.lpop(queue, most - 1) or []  # type: ignore[arg-type]  # a list, as count is given
        except redis.RedisError as problem:
            say(f"took one item only: {problem}")
    return items


def answers(items: list[str | bytes]) -> list[str]:
    """`n:n²` for every integer; anything else is reported and left out."""
    done = []
    for item in items:
        try:
            number = int(item)
        except ValueError:
            say(f"not an integer: {item[:80]!r}")
        else:
            done.append(f"{number}:{number * number}")
    return done


def patiently(act: Callable[[], T], *, until_stop: bool) -> T | None:
    """Do it, and again with growing pauses while Redis is away; None if told to stop where that may be."""
    delay = 0.1
    while not (until_stop and stopping.is_set()):
        try:
            return act()
        except redis.RedisError as problem:
            say(f"trying again in {delay:.1f} s: {problem}")
            time.sleep(delay)
            delay = min(delay * 2, SLOWEST_RETRY)
    return None


def main() -> None:
    """Take, compute, give, until told to stop."""
    try:
        input_url, source_queue = os.environ["INPUT_REDIS_URL"], os.environ["INPUT_QUEUE"]
        sink_queue = os.environ["OUTPUT_QUEUE"]
        item_seconds = float(os.environ.get("ITEM_SECONDS") or 0)
        batch = 1 if item_seconds else int(os.environ.get("BATCH") or BATCH)
    except KeyError as missing:
        sys.exit(f"{missing.args[0]} is not set")
    except ValueError as wrong:
        sys.exit(f"ITEM_SECONDS and BATCH must be numbers: {wrong}")
    source = redis.Redis.from_url(input_url, socket_timeout=10)
    sink = redis.Redis.from_url(os.environ.get("OUTPUT_REDIS_URL") or input_url, socket_timeout=10)
    while not stopping.is_set():
        items = patiently(lambda: take(source, source_queue, batch), until_stop=True) or []
        time.sleep(item_seconds if items else 0)
        if results := answers(items):
            # One command, and whatever happens they stay in hand until Redis has them.
            patiently(partial(sink.rpush, sink_queue, *results), until_stop=False)


if __name__ == "__main__":
    main()
