"""A log that cannot be written ends nothing, and says afterwards how much of it is missing."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from gridcore import logs


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    yield
    structlog.reset_defaults()


@pytest.mark.parametrize("form", ["text", "json"])
def test_lines_for_a_full_disk_are_lost_and_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: logs.LogFormat
) -> None:
    with Path("/dev/full").open("w") as out, (tmp_path / "log").open("w+") as disk:
        monkeypatch.setattr(sys, "stderr", out)
        logs.configure(form)
        log = structlog.get_logger()
        log.warning("first")
        log.error("second")
        os.dup2(disk.fileno(), out.fileno())  # there is room again
        log.info("third")
        log.info("fourth")
    third, fourth = (tmp_path / "log").read_text().splitlines()
    assert "third" in third
    assert "lines_lost_before" in third
    assert "2" in third.partition("lines_lost_before")[2]
    assert "lost" not in fourth


def test_who_reads_the_log_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as out:
        monkeypatch.setattr(sys, "stderr", out)
        logs.configure()
        structlog.get_logger().warning("nobody reads this")


def test_a_pipe_that_is_full_and_must_not_wait_loses_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with os.fdopen(reading, "rb"), os.fdopen(writing, "w") as out:
        monkeypatch.setattr(sys, "stderr", out)
        logs.configure()
        for _ in range(100):
            structlog.get_logger().warning("x" * 4096)


def test_without_a_standard_error_there_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    logs.configure()
    structlog.get_logger().warning("nowhere")
