"""How long a slot waits after its container ended."""

from __future__ import annotations

from random import Random

from agent.reasons import Reason
from agent.slots import (
    STEADY,
    SlotMemory,
    after_exit,
    after_failed_start,
    after_failure,
    after_interruption,
    seen_running,
)


class Highest(Random):
    """Jitter at its most."""

    def random(self) -> float:
        return 1.0


BAD = Reason("failed", "exit code 3")


def waits(count: int, exit_code: int, ran: float) -> list[float]:
    memory, result = SlotMemory(), []
    for _ in range(count):
        failure = Reason("failed", "text") if exit_code else None
        memory = after_exit(memory, failure, ran, 100.0, Highest())
        result.append(memory.not_before - 100.0)
    return result


def test_failures_double_from_one_second_to_five_minutes() -> None:
    assert waits(11, 1, 0.1) == [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]


def test_jitter_takes_at_most_half() -> None:
    found = [after_failure(SlotMemory(failures=3), BAD, 0.0, Random(seed)).not_before for seed in range(200)]
    assert min(found) >= 4
    assert max(found) <= 8
    assert max(found) - min(found) > 3


def test_a_quick_good_end_waits_up_to_ten_seconds() -> None:
    assert waits(6, 0, 0.1) == [1, 2, 4, 8, 10, 10]


def test_a_good_end_after_five_seconds_starts_again_at_once() -> None:
    assert waits(3, 0, 5.0) == [0, 0, 0]


def test_a_minute_of_running_wipes_the_slate() -> None:
    memory = SlotMemory(failures=8)
    assert after_exit(memory, BAD, 61.0, 0.0, Highest()).not_before == 1.0
    assert after_exit(memory, BAD, 59.0, 0.0, Highest()).not_before == 256.0


def test_restarts_are_counted_and_errors_kept_until_it_runs() -> None:
    memory = after_exit(SlotMemory(), BAD, 1.0, 0.0, Highest())
    assert (memory.restarts, memory.error) == (1, BAD)
    assert after_exit(memory, None, 9.0, 0.0, Highest()).error is None
    assert seen_running(memory, 0.0).error is None


def test_a_slot_that_keeps_failing_is_in_trouble_until_it_has_run_for_a_while() -> None:
    memory = after_failed_start(SlotMemory(), BAD, 0.0, Highest())
    assert (memory.restarts, memory.failures) == (1, 1)
    memory = after_failed_start(memory, BAD, 5.0, Highest())
    assert (memory.restarts, memory.failures) == (2, 2)
    assert seen_running(memory, 0.0).error == seen_running(memory, STEADY - 1).error == BAD
    assert seen_running(memory, STEADY).error is None


def test_going_down_with_the_engine_is_a_restart_without_a_wait() -> None:
    assert after_interruption(SlotMemory()) == SlotMemory(restarts=1)
