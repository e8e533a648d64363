"""Takes tiles of the Mandelbrot set from INPUT_QUEUE and pushes their pixels to OUTPUT_QUEUE, until SIGTERM.

An item is JSON: `{"tile": 0, "x": 0, "y": 0, "width": 64, "height": 64,
"left": -2.2, "top": 1.5, "step": 0.003, "iterations": 255}`; left and top are the upper left corner of the
picture, step the size of a pixel, x, y, width and height count pixels. A result is
`{"tile": 0, "x": 0, "y": 0, "width": 64, "height": 64, "pixels": "…"}`: base64 of zlib of one byte a pixel,
row by row, 0 inside the set, else the iteration that left it (1 to 255).

SIGTERM only sets a flag: the tile in hand is finished and pushed first, also when Redis is away for a while.
SIGKILL loses that tile: one is taken at a time, so that it is no more.
Environment: INPUT_REDIS_URL, OUTPUT_REDIS_URL (default: the input's), INPUT_QUEUE, OUTPUT_QUEUE.
"""

from __future__ import annotations

import base64
import json
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

stopping = threading.Event()
if __name__ == "__main__":
    # Before the slow import: as process 1 of a container, a SIGTERM that finds no handler is lost.
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())

import redis  # noqa: E402

TAKE_SECONDS = 1  # the longest wait in BLPOP, and so the longest that a SIGTERM goes unnoticed
SLOWEST_RETRY = 5.0

T = TypeVar("T")


def say(text: str) -> None:
    """One line for `docker logs`."""
    print(text, file=sys.stderr, flush=True)


def escape(cx: float, cy: float, iterations: int) -> int:
    """The iteration that leaves the circle of radius 2; 0 if none does.

    In plain floats: Python's complex product may be rounded differently on another architecture.
    """
    x = y = 0.0
    for count in range(1, iterations + 1):
        xx, yy = x * x, y * y
        if xx + yy > 4.0:
            return count
        y = 2.0 * x * y + cy
        x = xx - yy + cx
    return 0


def compute(tile: dict[str, Any]) -> bytes:
    """The tile's pixels, one byte each."""
    columns = [tile["left"] + (tile["x"] + column) * tile["step"] for column in range(tile["width"])]
    rows = [tile["top"] - (tile["y"] + row) * tile["step"] for row in range(tile["height"])]
    iterations = min(tile["iterations"], 255)
    return bytes(escape(cx, cy, iterations) for cy in rows for cx in columns)


def answer(item: str | bytes) -> str | None:
    """The result for one item; None for what is no tile."""
    try:
        tile = json.loads(item)
        pixels = compute(tile)
    except (ValueError, KeyError, TypeError) as problem:
        say(f"not a tile: {item[:80]!r} ({problem!r})")
        return None
    place = {key: tile[key] for key in ("tile", "x", "y", "width", "height")}
    return json.dumps({**place, "pixels": base64.b64encode(zlib.compress(pixels)).decode()})


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
    except KeyError as missing:
        sys.exit(f"{missing.args[0]} is not set")
    source = redis.Redis.from_url(input_url, socket_timeout=10)
    sink = redis.Redis.from_url(os.environ.get("OUTPUT_REDIS_URL") or input_url, socket_timeout=10)
    while not stopping.is_set():
        taken = patiently(lambda: source.blpop([source_queue], timeout=TAKE_SECONDS), until_stop=True)
        result = answer(taken[1]) if taken else None
        if result:
            patiently(partial(sink.rpush, sink_queue, result), until_stop=False)


if __name__ == "__main__":
    main()
