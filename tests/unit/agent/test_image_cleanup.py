"""Which images are removed to keep the disk under the watermark."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from agent.errors import EngineError
from agent.image_cleanup import PulledImages, canonical, clean, used_percent


class Disk:
    """Every image takes 10 percent."""

    def __init__(self, used: float | None, in_use: set[str] | None = None, gone: set[str] | None = None):
        self.used = used
        self.in_use, self.gone = in_use or set(), gone or set()
        self.asked: list[str] = []

    def percent(self) -> float | None:
        return self.used

    async def remove(self, name: str) -> None:
        self.asked.append(name)
        if name in self.in_use:
            raise EngineError("failed", "image is being used by running container")
        if name in self.gone:
            raise EngineError("no-image", "no such image")
        assert self.used is not None
        self.used -= 10


@pytest.fixture
def book(tmp_path: Path) -> PulledImages:
    """Pulled a, b, c and d; last used in the order b, c, a, d."""
    book = PulledImages(tmp_path / "images.json")
    for now, name in enumerate("abcd"):
        book.pulled(f"{name}:1", float(now))
    book.used("a:1", 2.5)
    return book


async def test_the_longest_unused_goes_first_until_under_the_watermark(book: PulledImages) -> None:
    disk = Disk(95)
    assert await clean(book, [], disk.percent, 80, disk.remove) == ["b:1", "c:1"]
    assert book.names() == ["a:1", "d:1"]
    assert await clean(book, [], disk.percent, 80, disk.remove) == []


async def test_a_needed_image_stays_however_it_is_spelt(book: PulledImages) -> None:
    book.pulled("redis", -1.0)
    disk = Disk(99)
    needed = ["docker.io/library/redis:latest", "b:1"]
    assert await clean(book, needed, disk.percent, 1, disk.remove) == ["c:1", "a:1", "d:1"]
    assert book.names() == ["redis:latest", "b:1"]


async def test_an_image_in_use_is_left_for_another_time_and_one_that_is_gone_forgotten(
    book: PulledImages,
) -> None:
    disk = Disk(99, in_use={"b:1"}, gone={"c:1"})
    assert await clean(book, [], disk.percent, 85, disk.remove) == ["a:1", "d:1"]
    assert disk.asked == ["b:1", "c:1", "a:1", "d:1"]
    assert book.names() == ["b:1"]


async def test_nothing_is_removed_where_the_disk_cannot_be_seen(book: PulledImages) -> None:
    disk = Disk(None)
    assert await clean(book, [], disk.percent, 1, disk.remove) == []


def test_the_book_survives_the_agent(book: PulledImages, tmp_path: Path) -> None:
    book.forget("b:1")
    assert sorted(PulledImages(tmp_path / "images.json").names()) == ["a:1", "c:1", "d:1"]


def test_an_image_that_was_here_already_is_not_entered(book: PulledImages) -> None:
    book.used("mine:1", 50.0)
    assert "mine:1" not in book.names()


def test_a_use_is_written_now_and_then(book: PulledImages, tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    before = path.stat().st_ino
    for second in range(100):
        book.used("a:1", 10.0 + second)
    assert path.stat().st_ino == before
    book.used("a:1", 4000.0)
    assert json.loads(path.read_text())["a:1"] == 4000.0


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"a": "x"}', "\x00", '{"a": null}'])
def test_a_corrupt_book_is_begun_anew_with_a_warning(tmp_path: Path, content: str) -> None:
    path = tmp_path / "images.json"
    path.write_text(content)
    with capture_logs() as logs:
        book = PulledImages(path)
        assert book.names() == []
    assert len(logs) == 1
    book.pulled("a:1", 1.0)
    assert PulledImages(path).names() == ["a:1"]


def test_a_book_that_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with capture_logs():
        book = PulledImages(tmp_path / "file" / "images.json")
        book.pulled("a:1", 1.0)
    assert book.names() == ["a:1"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("redis", "redis:latest"),
        ("docker.io/library/redis:7", "redis:7"),
        ("docker.io/me/x", "me/x:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("localhost:5000/library/x:1", "localhost:5000/library/x:1"),
        ("x@sha256:00", "x@sha256:00"),
    ],
)
def test_spellings(name: str, expected: str) -> None:
    assert canonical(name) == expected


def test_the_disk_in_use_is_a_percentage(tmp_path: Path) -> None:
    used = used_percent(tmp_path)
    assert used is not None
    assert 0 < used < 100
    assert used_percent(tmp_path / "nowhere") is None
