"""How often nodes are asked to send heartbeats."""

from __future__ import annotations

import pytest

from hub.pace import JITTER, LONGEST, RATE, Pace, wanted_interval


@pytest.mark.parametrize("nodes", [0, 1, 1_000, int(RATE * 30)])
def test_nodes_keep_their_own_interval_while_they_are_few_and_the_hub_is_idle(nodes: int) -> None:
    assert wanted_interval(nodes, 0.1) is None


def test_many_nodes_are_asked_for_fewer_heartbeats_and_never_for_more_than_45_s() -> None:
    assert wanted_interval(10_000, 0.1) == 40.0
    assert wanted_interval(1_000_000, 0.1) == LONGEST


def test_a_busy_hub_asks_for_fewer_whatever_the_number() -> None:
    assert wanted_interval(10, 0.9) == LONGEST


def test_each_node_is_told_a_little_less_than_the_others() -> None:
    times = iter([0.0, 9.0])
    clock = iter([0.0, 10.0])
    pace = Pace(cpu=lambda: next(times), clock=lambda: next(clock))
    assert pace.interval() is None
    pace.take(10)
    told = {pace.interval() for _ in range(100)}
    assert len(told) > 10
    assert all(interval is not None and LONGEST * (1 - JITTER) <= interval <= LONGEST for interval in told)


def test_the_load_is_that_since_the_last_look() -> None:
    times, clock = iter([0.0, 9.0, 9.1]), iter([0.0, 10.0, 20.0])
    pace = Pace(cpu=lambda: next(times), clock=lambda: next(clock))
    pace.take(10)
    assert pace.interval() is not None
    pace.take(10)
    assert pace.interval() is None
