"""The pure part of tests/fleet/chaos: a seed decides everything, and what is wrong is seen as wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice, pairwise

import pytest

from tests.fleet.chaos.look import Box, Sight, Want, judge_containers, judge_kept, judge_word
from tests.fleet.chaos.record import Record, Seen, spread
from tests.fleet.chaos.run import FAULTS
from tests.fleet.chaos.schedule import Injection, choose, draw, schedule

SECONDS = {"kill": (0.0, 0.0), "hang": (5.0, 25.0), "fill": (1.0, 2.0), "cut": (66.0, 80.0)}


def plan(seed: int = 7, length: int = 40, hosts: int = 3) -> list[Injection]:
    return list(islice(schedule(seed, SECONDS, hosts), length))


def test_the_same_seed_makes_the_same_plan() -> None:
    assert plan() == plan()
    # The order in which the faults were written down is nothing that decides.
    turned = dict(reversed(SECONDS.items()))
    assert plan() == list(islice(schedule(7, turned, 3), 40))


def test_another_seed_makes_another_plan() -> None:
    assert len({tuple(plan(seed)) for seed in range(20)}) == 20


def test_every_fault_comes_once_before_any_comes_twice() -> None:
    for seed in range(50):
        for end in range(1, 41):
            times = Counter(injection.fault for injection in plan(seed)[:end])
            counts = [times[name] for name in SECONDS]
            assert max(counts) - min(counts) <= 1


def test_no_fault_comes_twice_in_a_row() -> None:
    for seed in range(50):
        names = [injection.fault for injection in plan(seed)]
        assert all(one != other for one, other in pairwise(names))


def test_a_single_fault_may_be_asked_for() -> None:
    only = list(islice(schedule(1, {"kill": (0.0, 0.0)}, 1), 3))
    assert [(one.number, one.fault, one.host) for one in only] == [(n, "kill", 0) for n in (1, 2, 3)]


def test_parameters_stay_in_their_bounds_and_hosts_all_have_their_turn() -> None:
    injections = plan(length=400)
    for one in injections:
        shortest, longest = SECONDS[one.fault]
        assert shortest <= one.seconds <= longest
        assert 0 <= one.fraction <= 1
    assert {one.host for one in injections} == {0, 1, 2}
    assert [one.number for one in injections] == list(range(1, 401))


def test_faults_are_chosen_by_name() -> None:
    assert choose([], ["a", "b"]) == ["a", "b"]
    assert choose(["b"], ["a", "b"]) == ["b"]
    with pytest.raises(ValueError, match="no such fault: c; there are a, b"):
        choose(["c"], ["a", "b"])


def test_a_few_landings_meet_every_fault() -> None:
    assert draw(7, list(FAULTS), 12) == draw(7, list(reversed(FAULTS)), 12)
    assert len(set(draw(7, list(FAULTS), 12))) == 12
    assert draw(7, ["a", "b"], 12) == ["a", "b"]
    for first in range(0, 1000, 10):
        met = {name for seed in range(first, first + 10) for name in draw(seed, list(FAULTS), 12)}
        assert len(met) >= len(FAULTS) - 1


def test_every_fault_of_the_catalogue_says_what_it_is() -> None:
    assert len(FAULTS) == 29
    assert all(name == fault.name and fault.about for name, fault in FAULTS.items())


WANT = Want("task", "image", "7-a", 2)


def box(number: int, **changes: object) -> Box:
    one = Box(
        id=f"id{number}", name=f"idm-task-node-{number}", image="image", ours=True, task="task",
        generation="7-a", cpu=str(number), status="running", started="10:00",
    )  # fmt: skip
    return replace(one, **changes)  # type: ignore[arg-type] # names and values are this test's own


FOREIGN = box(9, ours=False, name="idm-task-node-1")
GOOD = Sight((box(0), box(1)), agent="100")


def test_a_node_that_does_as_wanted_is_right() -> None:
    assert judge_containers(WANT, GOOD) == []
    assert judge_containers(WANT, Sight((*GOOD.boxes, FOREIGN), agent="100")) == []


@pytest.mark.parametrize(
    ("boxes", "text"),
    [
        ((box(0),), "1 containers, not 2"),
        ((box(0), box(1), box(2)), "3 containers, not 2"),
        ((box(0), FOREIGN), "1 containers, not 2"),
        ((box(0), box(1, cpu="0")), "CPUs"),
        ((box(0), box(1, cpu="")), "CPUs"),
        ((box(0), box(1, cpu="0-1")), "CPUs"),
        ((box(0), box(1, status="exited")), "is exited"),
        ((box(0), box(1, status="paused")), "is paused"),
        ((box(0), box(1, task="old")), "not of task"),
        ((box(0), box(1, generation="6-b")), "not of task"),
        ((box(0), box(1, image="other")), "not of task"),
    ],
)
def test_what_runs_wrongly_is_seen(boxes: tuple[Box, ...], text: str) -> None:
    assert any(text in line for line in judge_containers(WANT, Sight(boxes, agent="100")))


def test_a_host_without_an_agent_or_that_cannot_be_seen_is_not_right() -> None:
    assert judge_containers(WANT, replace(GOOD, agent="")) == ["no agent runs"]
    assert judge_containers(WANT, Sight(trouble="no route")) == ["cannot be looked at: no route"]


def test_what_was_healthy_must_be_the_same() -> None:
    assert judge_kept(GOOD, GOOD, set(), "same") == []
    fresh = Sight((box(0), box(3, name="idm-task-node-1")), agent="100")
    assert judge_kept(GOOD, fresh, set(), "same") == ["idm-task-node-1 was healthy and is gone"]
    assert judge_kept(GOOD, fresh, {"id1"}, "same") == []
    again = Sight((box(0), box(1, started="10:05")), agent="100")
    assert judge_kept(GOOD, again, set(), "same") == ["idm-task-node-1 was healthy and was restarted"]


def test_a_foreign_container_is_healthy_too() -> None:
    with_foreign = Sight((*GOOD.boxes, FOREIGN), agent="100")
    assert judge_kept(with_foreign, GOOD, set(), "same") == ["idm-task-node-1 was healthy and is gone"]


def test_the_agent_is_the_same_or_another_as_the_fault_says() -> None:
    other = replace(GOOD, agent="200")
    assert judge_kept(GOOD, other, set(), "same") == ["the agent is another process"]
    assert judge_kept(GOOD, other, set(), "any") == judge_kept(GOOD, other, set(), "new") == []
    assert "did not hit" in judge_kept(GOOD, GOOD, set(), "new")[0]


def test_the_hubs_word_is_held_against_what_is_wanted() -> None:
    heard = "2026-11-24T14:00:00.500Z"
    word: dict[str, object] = {"status": "Online", "runtime_status": "Running", "active_containers": 2}
    word |= {"task": "task", "last_seen": heard}
    assert judge_word(WANT, word, datetime(2026, 11, 24, 14, tzinfo=UTC).timestamp()) == []
    late = datetime(2026, 11, 24, 14, 0, 1, tzinfo=UTC).timestamp()
    assert judge_word(WANT, word, late) == [f"the hub has not heard the node since {heard}"]
    for change in (
        {"status": "Offline"},
        {"active_containers": 1},
        {"task": "old"},
        {"runtime_status": "Error"},
    ):
        assert len(judge_word(WANT, word | change)) == 1


def test_the_table_tells_times_spread_and_violations() -> None:
    record = Record(
        [
            Seen("cut", 4.0),
            Seen("kill", 1.0),
            Seen("kill", 3.0, ("bad",)),
            Seen("kill", 8.0),
            Seen("hang", None, ("a", "b")),
        ]
    )
    assert record.rows() == [
        ("cut", "1", "4.0 / 4.0 / 4.0", "0", "0"),
        ("hang", "1", "- (1 never)", "0", "2"),
        ("kill", "3", "1.0 / 3.0 / 8.0", "0", "1"),
    ]
    assert record.violations == 3
    assert spread([1.0, None]) == "1.0 / 1.0 / 1.0 (1 never)"


def test_lost_items_are_laid_to_the_fault_that_had_them_in_hand() -> None:
    record = Record(
        [Seen("kill", 1.0, taken=10), Seen("hub", 1.0, hurt=False, taken=20), Seen("kill", 1.0, taken=20)]
    )
    record.count_lost([0, 9, 10, 20])  # 20 was taken after the last look: in hand, not lost
    assert [one.lost for one in record.seen] == [2, 1, 0]
    assert record.seen[1].violations == ("1 items lost, and no container was to end",)
    assert record.violations == 1
