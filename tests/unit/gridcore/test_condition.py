"""A condition is told once when it begins and once when it ends, however often it is met."""

from __future__ import annotations

import asyncio
from typing import Any

from structlog.testing import capture_logs

from gridcore.condition import MOST_KINDS, Condition


class Now:
    """A clock that stands until it is moved."""

    def __init__(self) -> None:
        self.seconds = 100.0

    def read(self) -> float:
        return self.seconds


def test_it_is_told_when_it_begins_and_when_it_ends_with_how_often_and_how_long() -> None:
    now = Now()
    full = Condition("the disk is full", "there is room again", do="make room", clock=now.read)
    with capture_logs() as lines:
        full.over()
        for _ in range(1000):
            full.meet(path="/hub.db")
        assert full.is_met
        now.seconds += 12.34
        full.over()
        full.over()
    assert lines == [
        {"event": "the disk is full", "path": "/hub.db", "do": "make room", "log_level": "warning"},
        {"event": "there is room again", "seconds": 12.3, "times": 1000, "log_level": "info"},
    ]
    assert not full.is_met


def test_it_is_told_again_once_for_each_other_kind_and_when_it_begins_anew() -> None:
    away = Condition("away", "back")
    with capture_logs() as lines:
        for kind in ("refused", "timeout") * 10:
            away.meet(kind, why=kind)
        away.over()
        away.meet("refused", why="refused")
    assert [line.get("why") for line in lines] == ["refused", "timeout", None, "refused"]
    assert away.times == 1


def test_who_words_it_anew_each_time_fills_no_log() -> None:
    away = Condition("away", "back")
    with capture_logs() as lines:
        for number in range(1000):
            away.meet(f"word {number}")
        away.over()
    assert len(lines) == MOST_KINDS + 1


async def test_what_nobody_sees_end_ends_once_it_was_not_met_for_a_while() -> None:
    rare = Condition("no descriptor is left", "descriptors are left", level="error", quiet=0.05)
    with capture_logs() as lines:
        for _ in range(5):
            rare.meet()
            await asyncio.sleep(0.02)
        assert rare.is_met
        assert [line["log_level"] for line in lines] == ["error"]
        await settled(rare)
    told: list[dict[str, Any]] = [dict(line) for line in lines]
    assert [(line["event"], line.get("times")) for line in told] == [
        ("no descriptor is left", None),
        ("descriptors are left", 5),
    ]


async def settled(condition: Condition) -> None:
    async with asyncio.timeout(5):
        while condition.is_met:  # noqa: ASYNC110  # it has no event
            await asyncio.sleep(0.01)
