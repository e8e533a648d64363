"""What people are told of: edges out of levels, once each. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from hub.events import Event, Recorded
from hub.notify_rules import (
    OLDEST,
    SETTLING,
    Memory,
    Notification,
    Now,
    Seen,
    as_it_is,
    judge,
    merge,
    nodes_gone,
)

NOW = 1_700_000_000.0
SHARE = 0.2


class Story:
    """Looks one after the other, and what each was told."""

    def __init__(self, *shares: float) -> None:
        self.memory = Memory("0")
        self._shares = shares or (SHARE,)

    def see(self, *happened: Recorded, **seen: Any) -> list[Notification]:
        given = {"time": NOW, "task": "t", "revision": "1-0", "started_at": NOW - SETTLING, **seen}
        self.memory, told = judge(Memory.load(self.memory.dump()), Seen(**given), happened, self._shares)
        return told

    def told(self, **seen: Any) -> list[str]:
        return [note.event for note in self.see(**seen)]


def recorded(kind: str, time: float = NOW, place: str = "5", **detail: Any) -> Recorded:
    return Recorded(place, Event(time, kind, "hub", task="t", detail=detail))


def test_a_queue_that_becomes_empty_is_told_once() -> None:
    story = Story()
    assert [story.told(input_items=items) for items in (3, 0, 0, 1, 0)] == [
        [],
        ["queue-empty"],
        [],
        [],
        ["queue-empty"],
    ]


def test_a_queue_that_was_never_filled_is_no_news() -> None:
    assert Story().told(input_items=0) == []


def test_what_is_not_known_is_not_empty() -> None:
    story = Story()
    assert [story.told(input_items=items) for items in (3, None, None)] == [[], [], []]
    assert story.told(input_items=0) == ["queue-empty"], "it was seen full before, and is seen empty now"


def test_the_items_of_one_task_say_nothing_of_the_next() -> None:
    story = Story()
    story.see(input_items=3)
    assert story.told(task="u", input_items=0) == []


def test_a_task_that_fails_on_more_than_a_share_is_told_once_until_it_was_well_again() -> None:
    story = Story()
    shares = [2, 3, 5, 3, 2, 3, 1, 3]
    told = [story.told(online=10, failing=failing) for failing in shares]
    assert told == [[], ["task-failing"], [], [], [], [], [], ["task-failing"]]


def test_nobody_is_called_failing_right_after_a_switch() -> None:
    assert Story().told(online=10, failing=10, started_at=NOW - SETTLING + 1) == []


def test_a_fleet_without_nodes_fails_on_none() -> None:
    assert Story(0.0).told(online=0, failing=0) == []


def test_each_share_is_told_to_those_who_set_it() -> None:
    story = Story(0.1, 0.5)
    assert [note.share for note in story.see(online=10, failing=2)] == [0.1]
    assert [note.share for note in story.see(online=10, failing=6)] == [0.5]


def test_a_mass_loss_is_one_message_with_the_count() -> None:
    (note,) = Story().see(recorded("nodes-offline", count=5_000, nodes=["a", "b"]))
    assert (note.event, note.detail["count"], note.id) == ("nodes-gone", 5_000, "event-5")
    assert note.text == "5000 nodes are gone."


@pytest.mark.parametrize("kind", ["canary-healthy", "canary-aborted", "canary-promoted"])
def test_the_result_of_a_canary_is_told(kind: str) -> None:
    (note,) = Story().see(recorded(kind, reason="node a: exit code 1"))
    assert (note.event, note.task, note.detail["result"]) == ("canary", "t", kind.removeprefix("canary-"))
    assert "exit code 1" in note.text


def test_other_events_are_read_and_not_told() -> None:
    story = Story()
    assert story.see(recorded("switched", place="7"), recorded("node-left", place="8")) == []
    assert story.memory.cursor == "8"


def test_what_happened_while_no_hub_ran_is_told_for_an_hour() -> None:
    assert Story().see(recorded("nodes-offline", NOW - OLDEST + 1, count=1, nodes=["a"]))
    assert not Story().see(recorded("nodes-offline", NOW - OLDEST - 1, count=1, nodes=["a"]))


def test_losses_that_wait_are_told_as_one() -> None:
    merged = merge(nodes_gone("1", NOW, 3, ["a"]), nodes_gone("2", NOW, 4, ["b"]))
    assert (merged.detail, merged.id) == ({"count": 7, "nodes": ["a", "b"]}, "2")


def test_of_others_that_wait_the_last_is_told_and_the_rest_counted() -> None:
    (note,) = Story().see(recorded("canary-aborted", reason="x"))
    assert merge(merge(note, note), replace(note, id="9")).detail["earlier"] == 2


# --- What is so when it is sent ----------------------------------------------------------------------------


def still(note: Notification, lost: tuple[str, ...] = (), **seen: Any) -> Notification | None:
    given = {"time": NOW, "task": "t", "revision": "1-0", "started_at": NOW - SETTLING, **seen}
    return as_it_is(note, Now(Seen(**given), frozenset(lost)))


@pytest.mark.parametrize(
    ("count", "names", "lost", "expected"),
    [
        (2, ["a", "b"], ("a", "b", "c"), (2, ["a", "b"])),
        (2, ["a", "b"], ("b", "c"), (1, ["b"])),
        (2, ["a", "b"], ("c",), None),
        (9, ["a", "b"], ("a", *map(str, range(20))), (8, ["a"])),
        (9, ["a", "b"], ("b", "c", "d"), (3, ["b"])),
        (9, ["a", "b"], (), None),
    ],
)
def test_only_nodes_that_are_still_gone_are_told_of(
    count: int, names: list[str], lost: tuple[str, ...], expected: tuple[int, list[str]] | None
) -> None:
    told = still(nodes_gone("1", NOW, count, names), lost)
    assert (told and (told.detail["count"], told.detail["nodes"])) == expected
    assert told is None or told.id == "1"


def test_a_node_that_is_gone_twice_is_gone_once() -> None:
    told = merge(nodes_gone("1", NOW, 2, ["a", "b"]), nodes_gone("2", NOW, 2, ["b", "c"]))
    assert (told.detail["count"], told.detail["nodes"]) == (3, ["a", "b", "c"])


def test_a_queue_that_was_filled_meanwhile_is_not_told_as_empty() -> None:
    story = Story()
    story.see(input_items=3)
    (note,) = story.see(input_items=0)
    assert [still(note, input_items=items) for items in (0, None)] == [note, note]
    assert still(note, input_items=1) is None
    assert still(note, task="other", input_items=0) is None


def test_a_task_that_fails_no_more_is_not_told_as_failing() -> None:
    story = Story()
    (note,) = story.see(online=10, failing=8)
    told = still(note, online=9, failing=4)
    assert told is not None
    assert (told.text.split(".")[0], told.id) == ("Task t fails on 4 of 9 nodes", note.id)
    assert still(note, online=10, failing=1) is None
    assert still(note, online=0) is None
    assert still(note, task="other", online=10, failing=8) is None


def test_a_canary_that_is_over_is_not_told_as_healthy() -> None:
    healthy, aborted = Story().see(recorded("canary-healthy"), recorded("canary-aborted", reason="r"))
    assert still(healthy, healthy="t") == healthy
    assert still(healthy) is None
    assert still(aborted) == aborted
