"""From a node's spans to the hub's times."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from gridcore.protocol import ContainerReport
from hub.reports import ContainerState, read_containers

NOW = 1_700_000_000.0
spans = st.floats(min_value=0, allow_nan=False)  # infinite ones, too: JSON's 1e999 is one


def report(**fields: Any) -> ContainerReport:
    return ContainerReport.model_validate({"instance": 0, "state": "running", **fields})


def read(now: float, before: tuple[ContainerState, ...] = (), **fields: Any) -> ContainerState:
    (container,) = read_containers([report(**fields)], before, now)
    return container


def test_times_are_the_hubs_and_whole_seconds() -> None:
    ended = {"kind": "failed", "exit_code": 3, "message": "m", "ago": 20.4, "ran": 1.5}
    container = read(NOW, age=10.4, last_exit=ended)
    assert container.started == NOW - 10
    assert container.last_exit is not None
    assert (container.last_exit.time, container.last_exit.ran) == (NOW - 20, 1.5)
    assert read(NOW).started is None
    assert read(NOW).last_exit is None


def test_a_start_that_is_shown_does_not_dance_with_the_way_of_the_heartbeats() -> None:
    container = read(NOW, age=10, last_exit={"kind": "finished", "ago": 11})
    for late in (0.4, 0.7, 1.4, 0.0):
        age = 10 + 30
        again = read(NOW + 30 + late, (container,), age=age, last_exit={"kind": "finished", "ago": age + 1})
        assert (again.started, again.last_exit) == (container.started, container.last_exit)


def test_another_start_is_another_time() -> None:
    container = read(NOW, age=10)
    assert read(NOW + 30, (container,), age=5).started == NOW + 25
    assert read(NOW + 30, (container,)).started is None


@given(age=spans, ago=spans, ran=spans)
def test_every_span_makes_a_time_that_can_be_shown(age: float, ago: float, ran: float) -> None:
    container = read(NOW, age=age, last_exit={"kind": "k", "ago": ago, "ran": ran})
    assert container.last_exit is not None
    assert container.started is not None
    for moment in (container.started, container.last_exit.time):
        assert datetime.fromtimestamp(moment, UTC).year > 1900
    assert container.last_exit.ran < float("inf")
