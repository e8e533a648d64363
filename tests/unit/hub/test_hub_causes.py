"""Which errors are the same."""

from __future__ import annotations

import string
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridcore.protocol import HeartbeatRequest, RegisterRequest
from hub import registry
from hub.causes import GAP, MOST, WELL, cause_of, find_causes, recent_since
from hub.observed import Instant
from hub.registry import Node

NOW = Instant(monotonic=100, wall=1_700_000_000)
EXEC = {"kind": "wrong-platform", "message": "exec format error"}


def node(
    node_id: str,
    errors: Sequence[dict[str, Any]] = (),
    status: str = "Error",
    reason: str | None = None,
    now: Instant = NOW,
    containers: Sequence[dict[str, Any]] = (),
    kind: str | None = None,
    task: str | None = None,
) -> Node:
    request = RegisterRequest(node_id=node_id, hostname=f"host-{node_id}", architecture="arm", cpu_count=4)
    beat = HeartbeatRequest.model_validate(
        {
            "node_id": node_id,
            "status": status,
            "active_containers": 0,
            "errors": errors,
            "reason": reason,
            "reason_kind": kind,
            "containers": containers,
            "task": task,
        }
    )
    return registry.heartbeat(registry.register(None, request, node_id, now).node, beat, now)


def causes(*nodes: Node, since: float = 0.0) -> list[tuple[str, str, list[str]]]:
    return [
        (cause.kind, cause.cause, list(cause.node_ids))
        for cause in find_causes(nodes, since, NOW.wall, lambda text: text, ())
    ]


@pytest.mark.parametrize(
    ("message", "cause"),
    [
        ("idm-squares-5b0e6f6e-7f0e-4d3b-9c56-0c7b6a3f1d20-3: exit code 1", "exit code 1"),
        ("idm-my-task-pi-1-12: exit code 137", "exit code 137"),
        ("idm-squares-pi-1-0 did not stop within 10 s", f"{GAP} did not stop within {GAP}"),
        ("slot 3: could not start", "could not start"),
        ("pi-1: disk full", "disk full"),
        ("pi-1.lan: disk full on pi-1.lan.", f"disk full on {GAP}."),
        ("No such container: 3f9d2b4c5a6e7f80", f"No such container: {GAP}"),
        ("no space for sha256:" + "0a" * 32, f"no space for sha256:{GAP}"),
        (
            "read tcp 10.0.0.7:43210->10.0.0.1:5000: i/o timeout",
            f"read tcp {GAP}->10.0.0.1:5000: i/o timeout",
        ),
        ("gave up after 3m2.5s, then 90 seconds", f"gave up after {GAP}, then {GAP}"),
        ("since 2023-11-14T22:13:20.123Z", f"since {GAP}"),
        # What tells causes apart stays.
        ("exit code 137", "exit code 137"),
        ("needs 4096 MB, has 1400", "needs 4096 MB, has 1400"),
        ("dial tcp 10.0.0.1:5000: connection refused", "dial tcp 10.0.0.1:5000: connection refused"),
        ("pull registry:5000/squares:1", "pull registry:5000/squares:1"),
        ("pi-10 is another node", "pi-10 is another node"),
        ("two\n  lines", "two lines"),
        ("pi-1", GAP),
        ("", GAP),
    ],
)
def test_a_cause_is_the_message_without_what_differs(message: str, cause: str) -> None:
    assert cause_of(message, "pi-1", "pi-1.lan") == cause


names = st.text(string.ascii_letters + string.digits + "_.-", min_size=1, max_size=20).map(
    lambda text: "n" + text.strip(".-")
)
slots = st.integers(0, 4095)
ids = st.text("0123456789abcdef", min_size=12, max_size=64).map(lambda text: text + "0")
seconds = st.floats(0, 1e6).map(lambda span: f"{span:.1f}")


@given(
    node=names,
    other=names,
    slot=slots,
    other_slot=slots,
    id_=ids,
    other_id=ids,
    span=seconds,
    other_span=seconds,
)
def test_what_differs_between_nodes_and_slots_makes_no_other_cause(
    node: str, other: str, slot: int, other_slot: int, id_: str, other_id: str, span: str, other_span: str
) -> None:
    def message(node: str, slot: int, container: str, span: str) -> str:
        return (
            f"idm-squares-{node}-{slot}: container {container} of {node} (slot {slot}, h-{node}) "
            f"ended after {span} s: permission denied"
        )

    one = cause_of(message(node, slot, id_, span), node, f"h-{node}")
    two = cause_of(message(other, other_slot, other_id, other_span), other, f"h-{other}")
    assert one == two
    assert "permission denied" in one


@given(st.text(max_size=200), names)
def test_a_cause_of_a_cause_is_itself_and_never_empty(message: str, name: str) -> None:
    cause = cause_of(message, name, name)
    assert cause
    assert cause_of(cause, name, name) == cause


def test_a_node_counts_once_for_a_cause_and_causes_of_many_nodes_come_first() -> None:
    many = [node(f"n{number}", [{**EXEC, "instance": slot} for slot in range(4)]) for number in range(58)]
    few = [node("m0", [{"kind": "failed", "message": "exit code 1"}]), node("m1")]
    found = find_causes([*few, *many], 0.0, NOW.wall, lambda text: text, ())
    assert [cause.summary for cause in found] == [
        "58 of 60 nodes: exec format error",
        "1 of 60 nodes: exit code 1",
    ]
    assert found[0].node_ids[0] == "n0"


def test_nodes_that_are_not_online_do_not_count() -> None:
    silent = registry.fall_silent(node("a", [EXEC], "Error", "exec format error"))
    left = registry.deregister(node("b", [EXEC]))
    found = find_causes([silent, left, node("c", [EXEC])], 0.0, NOW.wall, lambda text: text, ())
    assert [cause.summary for cause in found] == ["1 of 1 nodes: exec format error"]


def test_old_errors_do_not_count() -> None:
    old = node("a", [EXEC])
    assert causes(old, since=NOW.wall + 1) == []
    assert causes(old, since=NOW.wall) == [("wrong-platform", "exec format error", ["a"])]


def test_first_and_last_are_those_of_all_its_nodes() -> None:
    late = Instant(200, NOW.wall + 50)
    (cause,) = find_causes(
        [node("a", [EXEC], now=late), node("b", [EXEC])], 0.0, NOW.wall, lambda text: text, ()
    )
    assert (cause.first, cause.last) == (NOW.wall, NOW.wall + 50)


def test_the_reason_of_a_node_in_error_counts_with_the_errors_that_say_the_same() -> None:
    error = {"kind": "failed", "message": "idm-t-a-0: exit code 1"}
    same = node("a", [error], "Error", "exit code 1", kind="failed")
    alone = node("b", (), "Error", "exit code 1", kind="failed")
    idle = node("c", (), "Idle", "exit code 1", kind="failed")
    assert causes(same, alone, idle) == [("failed", "exit code 1", ["a", "b"])]
    # However old its errors are.
    assert causes(same, since=NOW.wall + 9) == [("failed", "exit code 1", ["a"])]


def test_a_reason_in_other_words_than_the_error_of_its_kind_is_no_second_cause() -> None:
    error = {"kind": "failed", "message": "idm-t-a-0: exit code 1"}
    assert causes(node("a", [error], "Error", "it ended with 1", kind="failed")) == [
        ("failed", "exit code 1", ["a"])
    ]


def test_a_reason_of_another_kind_is_a_cause_of_its_own_whatever_it_says() -> None:
    error = {"kind": "failed", "message": "idm-t-a-0: exit code 1"}
    assert causes(node("a", [error], "Error", "exit code 1", kind="engine")) == [
        ("engine", "exit code 1", ["a"]),
        ("failed", "exit code 1", ["a"]),
    ]


def test_two_nodes_that_say_the_same_of_different_kinds_are_two_causes() -> None:
    one = node("a", (), "Error", "not there", kind="image-not-found")
    two = node("b", (), "Error", "not there", kind="no-command")
    assert causes(one, two) == [("image-not-found", "not there", ["a"]), ("no-command", "not there", ["b"])]


def test_a_reason_without_a_kind_is_told_only_where_no_error_is() -> None:
    error = {"kind": "failed", "message": "idm-t-a-0: exit code 1"}
    assert causes(node("a", [error], "Error", "exit code 1")) == [("failed", "exit code 1", ["a"])]
    old = node("a", [error], "Error", "exit code 1")
    assert causes(old, since=NOW.wall + 9) == [("error", "exit code 1", ["a"])]


def test_a_lasting_trouble_was_seen_last_when_its_node_said_so_last() -> None:
    later = NOW._replace(wall=NOW.wall + 50)
    first = node("a", [{"kind": "engine", "message": "gone"}], "Error", "gone", kind="engine")
    again = HeartbeatRequest(
        node_id="a", status="Error", active_containers=0, reason="gone", reason_kind="engine"
    )
    (cause,) = find_causes([registry.heartbeat(first, again, later)], 0.0, later.wall, lambda text: text, ())
    assert (cause.first, cause.last) == (NOW.wall, later.wall)


@pytest.mark.parametrize("kind", ["Not A Word", "", "x" * 65, "über", "two\nlines"])
def test_a_kind_that_is_no_word_counts_as_other(kind: str) -> None:
    assert causes(node("a", (), "Error", "new trouble", kind=kind)) == [("other", "new trouble", ["a"])]


def test_a_kind_that_this_hub_has_never_heard_of_stays_what_it_is() -> None:
    assert causes(node("a", (), "Error", "hot", kind="too-hot")) == [("too-hot", "hot", ["a"])]


def test_the_same_text_of_another_kind_is_another_cause() -> None:
    other = {**EXEC, "kind": "failed"}
    assert len(causes(node("a", [EXEC]), node("b", [other]))) == 2


def test_texts_are_masked_before_they_are_compared() -> None:
    nodes = [node(name, [{"kind": "k", "message": f"bad password secret-{name}"}]) for name in "ab"]
    (cause,) = find_causes(nodes, 0.0, NOW.wall, lambda text: text[: text.index("secret-")] + "***", ())
    assert (cause.cause, cause.example) == ("bad password ***", "bad password ***")


def test_only_the_most_frequent_causes_are_told() -> None:
    letters = [a + b for a in string.ascii_lowercase for b in string.ascii_lowercase][: MOST + 10]
    assert len(causes(*(node(text, [{"kind": "k", "message": text * 2}]) for text in letters))) == MOST


def test_errors_count_for_an_hour_or_since_the_task_started() -> None:
    assert recent_since(10_000, None) == 6_400
    assert recent_since(10_000, 9_000) == 9_000
    assert recent_since(10_000, 1_000) == 6_400


def working(state: str = "running", age: float | None = None, instance: int = 0) -> dict[str, Any]:
    return {"instance": instance, "state": state, "age": age}


BAD = {"instance": 0, "kind": "failed", "message": "exit code 1"}


@pytest.mark.parametrize(
    ("status", "containers", "lasts"),
    [
        ("Error", [working("waiting")], True),
        ("Running", [working("starting")], True),
        ("Running", [working(age=WELL - 1)], True),
        ("Running", [working(age=WELL)], False),
        ("Error", [working(age=WELL), working("waiting", instance=1)], False),
        ("Running", [working(age=WELL, instance=1)], False),
        ("Idle", [], False),
        ("Running", [], False),
        ("Error", [], True),
    ],
)
def test_an_error_of_a_slot_counts_until_the_slot_runs_again_for_a_while(
    status: str, containers: list[dict[str, Any]], lasts: bool
) -> None:
    found = causes(node("a", [BAD], status, containers=containers))
    assert found == ([("failed", "exit code 1", ["a"])] if lasts else [])


def test_of_a_slots_errors_the_last_one_counts() -> None:
    errors = [BAD, {**BAD, "message": "exit code 2"}, BAD, {**BAD, "kind": "disk", "message": "full"}]
    assert causes(node("a", errors, "Error", containers=[working("waiting")])) == [("disk", "full", ["a"])]


@pytest.mark.parametrize(
    ("status", "reason", "kind", "after", "lasts"),
    [
        ("Error", "in other words", "image-missing", WELL, True),
        ("Idle", "in other words", "image-missing", WELL, True),
        # What is wrong now is something else, even if it says the same.
        ("Error", "no such image x:1", "failed", WELL, False),
        ("Idle", "no such image x:1", "no-task", WELL, False),
        ("Running", None, None, WELL - 1, True),
        ("Running", None, None, WELL, False),
        # An older agent.
        ("Error", None, None, WELL, True),
        ("Error", "in other words", None, WELL, True),
        ("Idle", "no such image x:1", None, WELL, False),
    ],
)
def test_an_error_of_a_node_counts_while_its_kind_is_that_of_the_nodes_reason_and_for_a_minute(
    status: str, reason: str | None, kind: str | None, after: float, lasts: bool
) -> None:
    missing = {"kind": "image-missing", "message": "no such image x:1"}
    found = find_causes([node("a", [missing], status, reason, kind=kind)], 0.0, NOW.wall + after, str, ())
    assert ("image-missing" in {cause.kind for cause in found}) is lasts


def test_a_clock_that_was_set_back_hides_no_error() -> None:
    ahead = node("a", [EXEC], now=replace_wall(NOW, 7_200))
    assert causes(ahead, since=recent_since(NOW.wall, None))


def replace_wall(moment: Instant, seconds: float) -> Instant:
    return moment._replace(wall=moment.wall + seconds)


@pytest.mark.parametrize(
    ("task", "running", "is_told"),
    [
        ("old", ("new",), False),
        ("new", ("new",), True),
        ("tried", ("new", "tried"), True),
        (None, ("new",), True),
        ("old", (), False),
    ],
)
def test_what_went_wrong_with_a_task_counts_while_it_runs(
    task: str | None, running: tuple[str, ...], is_told: bool
) -> None:
    failed = {"instance": 0, "kind": "failed", "message": "exit code 1", "task": task}
    slot = {"instance": 0, "state": "starting", "restarts": 1}
    one = node("a", [failed], "Running", containers=[slot])
    found = find_causes([one], 0.0, NOW.wall, str, running)
    assert [cause.kind for cause in found] == (["failed"] if is_told else [])
    one = node("a", reason="exit code 1", kind="failed", task=task)
    assert bool(find_causes([one], 0.0, NOW.wall, str, running)) is is_told, "and so does the node's reason"
