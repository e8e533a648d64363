"""A kill for want of memory is told by the kernel's counters, not by an exit code."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.engine_events import EventLines
from agent.memory_kills import REPEATED, UNSURE, MemoryKills, Word, machine_kills


class Kernel:
    """The machine's counter."""

    total: int | None = 7

    def __call__(self) -> int | None:
        return self.total


@pytest.fixture
def kernel() -> Kernel:
    return Kernel()


def word(kills: MemoryKills, container: str, ended: float, *, by_engine: bool = False) -> Word:
    return kills.word(container, ended, by_engine=by_engine, killed=True)


def test_a_kill_while_the_counter_stood_still_was_something_else(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    kills.look(10.0)
    kills.look(20.0)
    assert word(kills, "a", 15.0) is Word.NOTHING


def test_a_rise_that_nothing_explains_casts_its_doubt_on_all_that_ended_with_it(kernel: Kernel) -> None:
    # Which of them it was is not known, so none of them takes it from another.
    kills = MemoryKills(kernel, 0.0)
    kills.look(10.0)
    kernel.total = 8
    kills.look(20.0)
    assert word(kills, "before", 9.0) is Word.NOTHING
    assert [word(kills, name, 15.0) for name in ("then", "another")] == [Word.MACHINE, Word.MACHINE]
    kills.look(60.0)
    assert word(kills, "long after", 55.0) is Word.NOTHING
    assert kills.word("its own exit", 15.0, by_engine=False, killed=False) is Word.NOTHING


def test_an_end_some_seconds_after_a_rise_is_not_called_something_elses(kernel: Kernel) -> None:
    # On a busy machine a container at the lowest weight takes so long to end once it was killed.
    kills = MemoryKills(kernel, 0.0)
    kernel.total = 8
    kills.look(10.0)
    kills.look(50.0)
    assert word(kills, "late", 18.0) is Word.MACHINE
    assert word(kills, "later", 45.0) is Word.NOTHING


def test_the_engines_word_explains_the_last_rise_and_an_earlier_one_keeps_its_doubt(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    kernel.total = 8  # outside all containers
    kills.look(1.0)
    kills.look(8.0)
    kernel.total = 9
    kills.told("a", 9.0, 9.0)
    assert word(kills, "killed by hand", 2.0) is Word.MACHINE
    assert word(kills, "killed by hand then", 9.5) is Word.MACHINE


def test_what_the_engine_heard_is_sure_and_explains_the_rise(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    kernel.total = 9
    kills.told("a", 7.0, 7.0)
    kills.look(10.0)
    assert word(kills, "a", 5.0) is Word.CONTAINER
    assert word(kills, "b", 5.0, by_engine=True) is Word.CONTAINER
    assert word(kills, "c", 5.0) is Word.NOTHING


def test_a_kill_in_a_container_that_lives_explains_the_rise_to_all_others(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    kernel.total = 8
    kills.told("a pool that lost a worker", 5.0, 5.0)
    assert word(kills, "killed by hand just then", 4.5) is Word.NOTHING
    kernel.total = 10
    kills.told("a pool that lost a worker", 15.0, 15.0)
    assert word(kills, "b", 14.5) is Word.MACHINE, "two were killed"


def test_the_engine_is_waited_for_only_while_a_rise_is_not_explained(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    kills.look(4.0)
    assert not kills.is_open("a", 3.0, by_engine=False)
    kernel.total = 8
    kills.look(5.0)
    assert kills.is_open("a", 4.5, by_engine=False)
    assert not kills.is_open("a", 4.5, by_engine=True)
    kills.told("b", 6.5, 6.5)
    assert not kills.is_open("a", 4.5, by_engine=False)
    assert word(kills, "a", 4.5) is Word.NOTHING


def test_who_outlived_a_kill_in_it_was_killed_by_something_else_long_after(
    kernel: Kernel,
) -> None:
    kills = MemoryKills(kernel, 0.0)
    kernel.total = 9
    for container in "ab":
        kills.told(container, 100.0, 100.0)
    assert word(kills, "a", 100.0 + UNSURE) is Word.CONTAINER, "it took its time to end"
    assert word(kills, "b", 101.0 + UNSURE) is Word.EARLIER
    own_exit = kills.word("b", 101.0 + UNSURE, by_engine=True, killed=False)
    assert own_exit is Word.EARLIER, "a fault hours after a kill that it outlived has nothing to do with that"


def test_an_old_kill_that_only_the_engine_remembers_is_told_by_the_counter(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 100.0)
    kills.look(200.0)
    assert word(kills, "a", 190.0, by_engine=True) is Word.EARLIER
    assert word(kills, "b", 99.0 + UNSURE, by_engine=True) is Word.CONTAINER, "nobody watched for long enough"
    kernel.total = 8
    kills.look(300.0)
    assert word(kills, "c", 290.0, by_engine=True) is Word.CONTAINER
    kernel.total = None
    kills.look(400.0)
    assert word(kills, "d", 390.0, by_engine=True) is Word.CONTAINER


def test_a_kill_that_a_container_outlives_is_found_once(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    kernel.total = 8
    kills.told("a", 10.0, 10.0)
    asked = [("a", 10.0 + UNSURE - 1), ("b", 10.0 + UNSURE), ("a", 10.0 + UNSURE), ("a", 11.0 + UNSURE)]
    assert [kills.outlived(*one) for one in asked] == [False, False, True, False]


def test_what_the_engine_remembers_from_before_the_watch_is_waited_for_and_counts(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 100.0)
    kills.look(101.0)
    assert kills.is_open("a", 90.0, by_engine=False)
    assert not kills.is_open("b", 100.5, by_engine=False), "it ended under our eyes"
    kills.told("a", 89.0, 101.5)
    assert not kills.is_open("a", 90.0, by_engine=False)
    assert word(kills, "a", 90.0) is Word.CONTAINER
    kills.told("killed by hand long after a kill in it", 20.0, 101.5)
    assert word(kills, "killed by hand long after a kill in it", 90.0) is Word.EARLIER
    assert not kills.outlived("a", 140.0), "an agent that is restarted would tell it each time"
    kills.look(106.0)
    assert not kills.is_open("c", 90.0, by_engine=False), "it has said all that it remembers"


def test_a_kill_of_which_the_engine_tells_again_explains_no_other(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    kernel.total = 9
    kills.told("a", 5.0, 5.0)
    kills.told("a", 5.0, 6.0)
    assert word(kills, "b", 4.5) is Word.MACHINE, "two were killed, and one was told"


def test_what_an_engine_tells_again_of_a_container_that_is_gone_clears_no_other(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    kernel.total = 9
    kills.told("a", 4.0, 4.0)
    assert word(kills, "b", 4.0) is Word.MACHINE
    kills.forget_gone({"b"})
    kills.told("a", 4.0, 6.0)
    assert word(kills, "b", 4.0) is Word.MACHINE


def test_an_event_may_come_before_the_list_that_shows_its_container(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    kernel.total = 8
    kills.told("new", 4.0, 4.0)
    kills.forget_gone(set())
    assert word(kills, "new", 4.0) is Word.CONTAINER


def test_what_is_remembered_of_containers_that_are_gone_has_an_end(kernel: Kernel) -> None:
    kills = MemoryKills(kernel, 0.0)
    for number in range(3 * REPEATED):
        kills.told(str(number), 4.0, 4.0)
    kills.forget_gone({"0"})
    assert word(kills, "0", 4.0) is Word.CONTAINER, "it is there"
    assert word(kills, str(2 * REPEATED - 1), 4.0) is Word.NOTHING
    assert word(kills, str(2 * REPEATED), 4.0) is Word.CONTAINER


def test_a_kill_that_a_container_outlives_is_found_without_a_counter_too(kernel: Kernel) -> None:
    kernel.total = None
    kills = MemoryKills(kernel, 0.0)
    kills.told("a", 10.0, 10.0)
    kills.look(10.0 + UNSURE)
    assert kills.outlived("a", 10.0 + UNSURE)


def test_without_a_counter_or_before_it_was_watched_nobody_knows(kernel: Kernel) -> None:
    assert word(MemoryKills(kernel, 100.0), "a", 90.0) is Word.UNKNOWN
    kernel.total = None
    kills = MemoryKills(kernel, 0.0)
    kills.look(10.0)
    assert word(kills, "a", 5.0) is Word.UNKNOWN
    kernel.total = 3  # readable at last: what it counted before is no rise
    kills.look(20.0)
    assert word(kills, "b", 15.0) is Word.UNKNOWN
    kills.look(30.0)
    assert word(kills, "b", 25.0) is Word.NOTHING


def test_the_machines_counter_is_read_from_its_statistics(tmp_path: Path) -> None:
    statistics = tmp_path / "vmstat"
    statistics.write_text("pgfault 12\noom_kill_elsewhere 5\noom_kill 3\nnuma_hit 1\n")
    assert machine_kills(statistics) == 3
    statistics.write_text("pgfault 12\n")
    assert machine_kills(statistics) is None
    assert machine_kills(tmp_path / "none") is None
    assert isinstance(machine_kills(), int)


def test_oom_events_are_found_in_a_stream_that_comes_in_pieces() -> None:
    stream = (
        b'{"status":"die","Action":"die","Actor":{"ID":"a"},"timeNano":1500000000}\n'
        b'{"status":"oom","Action":"oom","Actor":{"ID":"b","Attributes":{}},"timeNano":2500000000}\n'
        b"not JSON\n[]\n{}\n"
        b'{"Action":"oom","Actor":{"ID":"c"},"timeNano":3500000000}\n'
    )
    for size in (1, 7, len(stream)):
        lines = EventLines()
        pieces = [stream[at : at + size] for at in range(0, len(stream), size)]
        assert [found for piece in pieces for found in lines.out_of_memory(piece)] == [("b", 2.5), ("c", 3.5)]


def test_an_endless_event_is_not_kept() -> None:
    lines = EventLines()
    assert lines.out_of_memory(b"x" * 100_000) == []
    assert lines.out_of_memory(b"x" * 100_000) == []
    assert len(lines._rest) <= 64 * 1024
