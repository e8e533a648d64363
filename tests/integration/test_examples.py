"""The example workers as plain processes against a real Redis: what is taken is answered."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from tests.servers.children import free_port

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class RedisServer:
    """A redis-server of our own on loopback, which can go away and come back with its data."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.directory = directory
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis.from_url(self.url, decode_responses=True)

    def start(self) -> None:
        options = {
            "port": self.port,
            "bind": "127.0.0.1",
            "dir": self.directory,
            "appendonly": "yes",
            "save": "",
        }
        words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
        try:
            self.process = subprocess.Popen(["redis-server", *words], stdout=subprocess.DEVNULL)
        except FileNotFoundError:
            pytest.fail("redis-server is not installed; run tests/fleet/machine.sh (make test does)")
        wait_for(self.answers, "redis-server answers")

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.ConnectionError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(10)


def wait_for(condition: Callable[[], object], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.02)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis."""
    server = RedisServer(tmp_path)
    server.start()
    yield server
    server.client.close()
    server.stop()


@pytest.fixture
def start_worker(server: RedisServer) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts `examples/<name>/worker.py` on the queues `in` and `out`; kills what still runs at the end."""
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, **environment: str) -> subprocess.Popen[bytes]:
        queues = {"INPUT_REDIS_URL": server.url, "INPUT_QUEUE": "in", "OUTPUT_QUEUE": "out"}
        process = subprocess.Popen(
            [sys.executable, EXAMPLES / name / "worker.py"],
            env={"PATH": os.environ["PATH"], **queues, **environment},
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait(10)


def terminate(process: subprocess.Popen[bytes]) -> float:
    """SIGTERM; the worker must exit 0 by itself. Returns how long that took."""
    begin = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(15) == 0
    return time.monotonic() - begin


def test_squares_answers_every_integer_once(server: RedisServer, start_worker: Callable[..., object]) -> None:
    numbers = range(-5, 3000)
    server.client.rpush("in", *numbers)
    start_worker("squares")
    start_worker("squares", BATCH="7")
    wait_for(lambda: server.client.llen("out") >= len(numbers), "all results")
    assert sorted(server.client.lrange("out", 0, -1)) == sorted(f"{n}:{n * n}" for n in numbers)


def test_a_squares_worker_has_a_few_items_in_hand_and_no_more(
    server: RedisServer, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    """They are what it loses if it is killed at that moment; so it is looked at in many moments."""
    server.client.rpush("in", *range(100_000))
    worker = start_worker("squares")
    wait_for(lambda: server.client.llen("out") > 500, "it is at work")
    in_hand: list[int] = []
    while len(in_hand) < 100:
        worker.send_signal(signal.SIGSTOP)
        time.sleep(0.01)  # Redis has done what it was asked before
        with server.client.pipeline(transaction=True) as look:
            look.llen("in")
            look.llen("out")
            waiting, done = look.execute()
        worker.send_signal(signal.SIGCONT)
        assert waiting > 0, "it ran out of work too early to prove anything"
        in_hand.append(100_000 - waiting - done)
        time.sleep(0.003)
    assert 0 < max(in_hand) <= 10


def test_what_is_no_integer_is_left_out(server: RedisServer, start_worker: Callable[..., object]) -> None:
    server.client.rpush("in", "1", "one", "", "2")
    start_worker("squares")
    wait_for(lambda: server.client.llen("out") == 2, "the two good items")
    assert server.client.lrange("out", 0, -1) == ["1:1", "2:4"]


def test_an_idle_worker_stops_within_a_second_or_so(
    server: RedisServer, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    worker = start_worker("squares")
    wait_for(lambda: server.client.info("clients")["blocked_clients"], "the worker waits in BLPOP")
    assert terminate(worker) < 2.5


def test_sigterm_finishes_the_item_in_hand_and_takes_no_other(
    server: RedisServer, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    server.client.rpush("in", *range(10))
    worker = start_worker("squares", ITEM_SECONDS="1")
    wait_for(lambda: server.client.llen("in") < 10, "the first item is taken")
    took = terminate(worker)
    assert 0.5 < took < 2.5
    assert server.client.lrange("out", 0, -1) == ["0:0"]
    assert server.client.lrange("in", 0, -1) == [str(n) for n in range(1, 10)]


def test_stopping_in_the_middle_of_a_flood_loses_nothing(
    server: RedisServer, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    numbers = range(30_000)
    server.client.rpush("in", *numbers)
    for _ in range(3):
        mark = server.client.llen("out") + 500  # by this worker: one that begins does not hear SIGTERM yet
        worker = start_worker("squares", BATCH="20")
        wait_for(lambda mark=mark: server.client.llen("out") > mark, "the worker computes")  # type: ignore[misc]
        terminate(worker)
    done = [str(line).split(":")[0] for line in server.client.lrange("out", 0, -1)]
    left = server.client.lrange("in", 0, -1)
    assert left, "the flood was over too early to prove anything"
    assert sorted([*done, *left], key=int) == [str(n) for n in numbers]


def test_a_redis_that_comes_back_gets_the_item_in_hand(
    server: RedisServer, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    server.client.rpush("in", 7, 8, 9)
    worker = start_worker("squares", ITEM_SECONDS="0.8")
    wait_for(lambda: server.client.llen("in") == 2, "the first item is taken")
    server.stop()
    time.sleep(2)  # the item is done by now, and there is nowhere to put it
    assert worker.poll() is None
    server.start()
    wait_for(lambda: server.client.llen("out") == 3, "all three results")
    assert server.client.lrange("out", 0, -1) == ["7:49", "8:64", "9:81"]


def test_sigterm_while_redis_is_away_ends_an_idle_worker(
    server: RedisServer, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    worker = start_worker("squares")
    wait_for(lambda: server.client.info("clients")["blocked_clients"], "the worker waits in BLPOP")
    server.stop()
    time.sleep(0.5)
    took = terminate(worker)
    server.start()
    assert took < 6


def test_a_missing_variable_is_one_plain_line(start_worker: Callable[..., object]) -> None:
    for name in ("squares", "mandelbrot"):
        ended = subprocess.run(
            [sys.executable, EXAMPLES / name / "worker.py"],
            env={"INPUT_REDIS_URL": "redis://127.0.0.1:1/0", "INPUT_QUEUE": "in"},
            capture_output=True,
            check=False,
        )
        assert ended.returncode == 1
        assert ended.stderr == b"OUTPUT_QUEUE is not set\n"


def test_mandelbrot_renders_a_tile(
    server: RedisServer, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    place = {"tile": 3, "x": 2, "y": 1, "width": 4, "height": 2}
    view = {"left": -2.0, "top": 1.0, "step": 0.5, "iterations": 255}
    server.client.rpush("in", json.dumps(place | view), "no tile", "{}")
    worker = start_worker("mandelbrot")
    wait_for(lambda: server.client.llen("out"), "a result")
    terminate(worker)
    (result,) = (json.loads(text) for text in server.client.lrange("out", 0, -1))
    pixels = zlib.decompress(base64.b64decode(result.pop("pixels")))
    assert result == place
    assert len(pixels) == 8
    assert pixels[4:7] == bytes([0, 0, 0])  # -1, -0.5 and 0 on the real axis lie inside
    assert pixels[7] == 6  # 0.5 goes 0, 0.5, 0.75, 1.06, 1.63, 3.15: the sixth is outside
