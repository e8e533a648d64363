"""What systemd asks of a service through its environment."""

from __future__ import annotations

import os

import pytest

from gridcore.systemd import watchdog_interval


@pytest.mark.parametrize(
    ("env", "interval"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "180000000"}, 90),
        ({"WATCHDOG_USEC": "180000000", "WATCHDOG_PID": str(os.getpid())}, 90),
        ({"WATCHDOG_USEC": "180000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_only_the_watched_process_feeds_the_watchdog(env: dict[str, str], interval: float | None) -> None:
    assert watchdog_interval(env) == interval
