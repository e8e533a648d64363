"""What goes into the fleet, and the proof of what comes out."""

from __future__ import annotations

import base64
import importlib.util
import json
import random
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import redis

from tests.fleet.engine import PROJECT, FleetError

CHUNK = 10_000

SIZE = 1024  # pixels, width and height of the picture
TILE = 64
VIEW = {"left": -2.2, "top": 1.5, "step": 3.0 / SIZE, "iterations": 255}


@dataclass(frozen=True)
class Squares:
    """How the results compare with what was asked."""

    missing: int
    wrong: int
    duplicates: int
    example: str = ""  # of what is missing or wrong

    @property
    def exact(self) -> bool:
        """Every result is there and right; duplicates are reported, not condemned."""
        return not (self.missing or self.wrong)

    def __str__(self) -> str:
        return (
            f"{self.missing} missing, {self.wrong} wrong, {self.duplicates} duplicates {self.example}".strip()
        )


def push_integers(client: redis.Redis, queue: str, count: int, pushed: Callable[[int], object]) -> None:
    """The integers from 0 to count - 1; `pushed` hears how many more are there."""
    for begin in range(0, count, CHUNK):
        numbers = range(begin, min(begin + CHUNK, count))
        client.rpush(queue, *numbers)
        pushed(len(numbers))


def read_all(
    client: redis.Redis, queue: str, seen: Callable[[int], object] = lambda _: None
) -> Iterator[str]:
    """Everything in a list, without taking it out."""
    begin = 0
    while chunk := client.lrange(queue, begin, begin + CHUNK - 1):
        assert isinstance(chunk, list)
        yield from (str(result) for result in chunk)
        begin += len(chunk)
        seen(len(chunk))


def verify_squares(results: Iterator[str], count: int) -> Squares:
    """Hold every result against the integer that it is for."""
    seen = bytearray(count)
    wrong = duplicates = 0
    example = ""
    for result in results:
        left, _, right = result.partition(":")
        if not (
            left.isdecimal() and right.isdecimal() and int(left) < count and int(right) == int(left) ** 2
        ):
            wrong += 1
            example = f"(such as {result[:60]!r})"
        elif seen[int(left)]:
            duplicates += 1
        else:
            seen[int(left)] = 1
    missing = seen.count(0)
    if missing:
        example = f"(such as {seen.index(0)})"
    return Squares(missing, wrong, duplicates, example)


def tiles() -> list[dict[str, Any]]:
    """The picture, cut up."""
    places = [(x, y) for y in range(0, SIZE, TILE) for x in range(0, SIZE, TILE)]
    return [
        {"tile": number, "x": x, "y": y, "width": TILE, "height": TILE, **VIEW}
        for number, (x, y) in enumerate(places)
    ]


def push_tiles(client: redis.Redis, queue: str) -> int:
    """All tiles, in random order: so the picture's hard middle is spread over the nodes. Returns how many."""
    described = [json.dumps(tile) for tile in tiles()]
    random.shuffle(described)
    client.rpush(queue, *described)
    return len(described)


def collect_tiles(results: Iterator[str]) -> dict[int, bytes]:
    """The pixels of every tile; duplicates must be equal, and all must be there."""
    wanted = {tile["tile"]: tile for tile in tiles()}
    pixels: dict[int, bytes] = {}
    for result in results:
        tile = json.loads(result)
        number, data = tile["tile"], zlib.decompress(base64.b64decode(tile["pixels"]))
        if len(data) != TILE * TILE or any(tile[key] != wanted[number][key] for key in ("x", "y")):
            raise FleetError(f"tile {number} came back as another")
        if pixels.setdefault(number, data) != data:
            raise FleetError(f"tile {number} came back twice, and different")
    if missing := wanted.keys() - pixels.keys():
        raise FleetError(f"{len(missing)} tiles never came back, such as {min(missing)}")
    return pixels


def recompute(pixels: dict[int, bytes], part: float = 0.05) -> int:
    """Compute some tiles here and compare every pixel. Returns how many."""
    compute = _example("mandelbrot").compute
    chosen = random.sample(tiles(), k=max(1, round(len(pixels) * part)))
    for tile in chosen:
        if compute(tile) != pixels[tile["tile"]]:
            raise FleetError(f"tile {tile['tile']} is not what this machine computes")
    return len(chosen)


def _example(name: str) -> ModuleType:
    """The worker of an example, as a module."""
    path = PROJECT / "examples" / name / "worker.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
