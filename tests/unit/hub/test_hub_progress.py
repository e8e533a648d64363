"""Rates out of queue lengths, and when a task that stands still is finished: pure, times are given."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gridcore.protocol import TaskConfig, TaskDefinition, TaskGuard
from hub.auto_finish import Quiet, finish_quiet, is_over, watch_quiet
from hub.events import EventQuery
from hub.operations import add_task, start_next
from hub.progress import WINDOW, History, Sample, seconds_left
from hub.queues import Length, Queues
from hub.store_local import open_memory
from hub.tasklist import TaskList

IDLE = 50.0
STARTED = 1_000.0


def sample(at: float, input_: int | None, output: int | None) -> Sample:
    return Sample(at, STARTED + at, Queues(Length(input_), Length(output)))


def rate(*samples: tuple[float, int | None, int | None]) -> float | None:
    history = History()
    for one in samples:
        history.add(sample(*one))
    return history.rate()


def test_the_rate_is_the_growth_of_the_output() -> None:
    assert rate((0, 100, 0), (10, 500, 40)) == 4.0


def test_where_the_output_says_nothing_the_input_does() -> None:
    assert rate((0, 100, None), (10, 80, None)) == 2.0
    assert rate((0, 100, 7), (10, 80, 7)) == 2.0, "an output that stands still while the input shrinks"
    assert rate((0, 100, 9), (10, 80, 3)) == 2.0, "an output that somebody collects"


def test_what_stands_still_has_a_rate_of_zero() -> None:
    assert rate((0, 5, 5), (10, 5, 5)) == 0.0


@pytest.mark.parametrize(
    "samples",
    [
        [],
        [(0.0, 1, 1)],
        [(0.0, 10, 1), (0.5, 9, 2)],
        [(0.0, None, None), (10.0, None, None)],
        [(0.0, 10, None), (10.0, 30, None), (20.0, 5, None)],
        [(0.0, 10, 1), (5.0, None, None), (10.0, 5, 6)],
    ],
    ids=["nothing", "one look", "too close", "unknown", "filled meanwhile", "unknown in between"],
)
def test_a_rate_that_cannot_be_known_is_none(samples: list[tuple[float, int | None, int | None]]) -> None:
    assert rate(*samples) is None


def test_only_the_last_minute_counts() -> None:
    assert rate((0, 0, 0), (100, 0, 1_000), (100 + WINDOW, 0, 1_000 + 6 * int(WINDOW))) == 6.0


@pytest.mark.parametrize(
    ("items", "pace", "left"),
    [(10, 2.0, 5.0), (0, None, 0.0), (10, 0.0, None), (10, None, None), (None, 2.0, None)],
)
def test_what_is_left_needs_a_length_and_a_pace(
    items: int | None, pace: float | None, left: float | None
) -> None:
    assert seconds_left(items, pace) == left


# --- Auto-finish -------------------------------------------------------------------------------------------


def definition(**fields: Any) -> TaskDefinition:
    queues = {
        "input_redis": "redis://r",
        "output_redis": "redis://r",
        "input_queue": "in",
        "output_queue": "out",
    }
    return TaskDefinition.model_validate(
        {"name": "t", "image": "x:1", "auto_finish": {"idle": IDLE}, **queues, **fields}
    )


@pytest.fixture
def tasks() -> TaskList:
    added, _, _ = TaskList.empty(1).add(definition(), STARTED, 0)
    started, _ = added.start_next(None, 2, STARTED)
    return started


def watch(tasks: TaskList, samples: list[Sample]) -> Quiet | None:
    quiet = None
    for one in samples:
        quiet = watch_quiet(quiet, tasks, one)
    return quiet


def looks(begin: int, end: int, step: int = 5, **counts: int | None) -> list[Sample]:
    lengths = {"input_": 0, "output": 7, **counts}
    return [sample(float(at), lengths["input_"], lengths["output"]) for at in range(begin, end + 1, step)]


def test_a_task_is_over_when_its_queues_stood_still_for_that_long(tasks: TaskList) -> None:
    assert not is_over(watch(tasks, looks(100, 145)), tasks)
    assert is_over(watch(tasks, looks(100, 150)), tasks)


def test_nothing_counts_before_the_task_ran_for_that_long(tasks: TaskList) -> None:
    assert watch(tasks, looks(0, 45)) is None
    assert not is_over(watch(tasks, looks(0, 95)), tasks)
    assert is_over(watch(tasks, looks(0, 100)), tasks)


@pytest.mark.parametrize(
    "disturbance",
    [
        sample(125, 1, 7),
        sample(125, 0, 8),
        sample(125, 0, 6),
        sample(125, None, 7),
        sample(125, 0, None),
    ],
    ids=["an item", "a result", "one collected", "input unknown", "output unknown"],
)
def test_whatever_is_no_quiet_look_starts_the_time_anew(tasks: TaskList, disturbance: Sample) -> None:
    assert is_over(watch(tasks, [*looks(100, 120), sample(125, 0, 7), *looks(130, 150)]), tasks)
    assert not is_over(watch(tasks, [*looks(100, 120), disturbance, *looks(130, 175)]), tasks)
    assert is_over(watch(tasks, [*looks(100, 120), disturbance, *looks(130, 180)]), tasks)


def test_looks_too_far_apart_start_the_time_anew(tasks: TaskList) -> None:
    assert not is_over(watch(tasks, [*looks(100, 120), *looks(131, 176)]), tasks)


def test_another_revision_starts_the_time_anew(tasks: TaskList) -> None:
    quiet = watch(tasks, looks(100, 145))
    revised = replace(tasks, revision="9-0000000000000009")
    assert not is_over(watch_quiet(quiet, revised, sample(150, 0, 7)), revised)


def test_a_held_fleet_is_not_finished(tasks: TaskList) -> None:
    held = replace(tasks, is_held=True)
    assert watch(held, looks(100, 200)) is None
    assert not is_over(watch(tasks, looks(100, 200)), held)


def test_a_task_that_does_not_ask_for_it_is_never_over() -> None:
    added, _, _ = TaskList.empty(1).add(definition(auto_finish=None), STARTED, 0)
    started, _ = added.start_next(None, 2, STARTED)
    assert watch(started, looks(100, 500)) is None


@pytest.mark.parametrize("missing", ["input_redis", "input_queue", "output_redis", "output_queue"])
def test_auto_finish_wants_queues_to_look_at(missing: str) -> None:
    with pytest.raises(ValueError, match=missing):
        definition(**{missing: None})


def test_nodes_are_not_told_of_auto_finish() -> None:
    told = TaskConfig.of(definition(), "linux/amd64", "1-0")
    assert told is not None
    assert "auto_finish" not in told.to_wire()


async def test_two_hubs_that_find_it_over_finish_it_once() -> None:
    store = open_memory()
    await store.run(add_task(definition()))
    await store.run(add_task(definition(name="u")))
    await store.run(start_next(None))
    guard = TaskGuard(task="t", generation=(await store.tasks()).revision)
    first, second = await store.run(finish_quiet(guard)), await store.run(finish_quiet(guard))
    assert first is not None
    assert (first.previous, first.current) == ("t", "u")
    assert second is None
    switches = await store.events(EventQuery(kinds=frozenset({"switched"})))
    assert len(switches) == 2, "the start, and one finish"
