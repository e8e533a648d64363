"""What the node says of itself."""

from __future__ import annotations

from agent.errors import EngineUnreachable
from agent.planner import Image, State
from agent.reasons import Reason
from agent.report import Board, Report, clip, report_of
from agent.slots import SlotMemory
from agent.spec import Wanted
from tests.unit.agent.test_planner import READY, running, wanted_for

BAD = Reason("failed", "exit code 3")
AWAY = Reason("registry-away", "registry away")


def test_running_idle_and_error_as_the_protocol_defines_them() -> None:
    wanted = wanted_for("one", parallelism=1)
    container = running(wanted.slots[0])
    assert report_of(State(wanted, (container,), 0.0, image=READY), None).status == "Running"
    nothing = Reason("no-task", "no task")
    assert report_of(State(Wanted(reason=nothing), (), 0.0), None) == Report(reason=nothing)
    waiting = State(wanted, (), 0.0, {0: SlotMemory(error=BAD, not_before=9)}, image=READY)
    report = report_of(waiting, None)
    assert (report.status, report.reason, report.task) == ("Error", BAD, "one")
    trying = State(wanted, (), 0.0, waiting.memory, busy_instances={0}, image=READY)
    assert report_of(trying, None).status == "Error"  # not Idle in between
    unsteady = State(wanted, (container,), 0.0, waiting.memory, image=READY)
    assert (report_of(unsteady, None).status, report_of(unsteady, None).active_containers) == ("Error", 1)
    fetching = State(wanted, (), 0.0, image=Image("one:1", "fetching", 1, error=AWAY))
    assert (report_of(fetching, None).status, report_of(fetching, None).reason) == ("Error", AWAY)
    failed = State(wanted, (), 0.0, image=Image("one:1", "failed", 1, 9.0, AWAY))
    assert report_of(failed, None).reason == AWAY
    gone = State(
        wanted, (), 0.0, {0: SlotMemory(error=Reason("no-image", "it is fetched again"))}, image=failed.image
    )
    assert report_of(gone, None).reason == AWAY, "what slots wait for now, not what was before"
    away = report_of(State(wanted, (container,), 0.0, image=READY), EngineUnreachable("engine", "gone"))
    assert (away.status, away.reason, away.active_containers) == ("Error", Reason("engine", "gone"), 1)


def test_an_idle_node_says_why_by_a_kind_too() -> None:
    wanted = wanted_for("one", parallelism=1)
    fetching = report_of(State(wanted, (), 0.0, image=Image("one:1", "fetching")), None)
    assert (fetching.status, fetching.reason) == ("Idle", Reason("fetching", "fetching one:1"))
    held = report_of(State(wanted, (), 0.0), None, held="paused by its owner")
    assert held.reason == Reason("owner", "paused by its owner")
    unasked = report_of(State(None, (), 0.0), None)
    assert unasked.reason == Reason("unasked", "waiting for the hub's first word")


def test_a_container_on_its_way_out_is_what_the_node_still_runs() -> None:
    old = running(wanted_for("one").slots[0])
    report = report_of(State(wanted_for("two", "2-b"), (old,), 0.0), None)
    assert (report.task, report.slots[0].state) == (old.task, "stopping")


def test_errors_wait_for_a_heartbeat_and_survive_one_that_failed() -> None:
    board = Board()
    for number in range(25):
        board.error("kind", f"error {number}")
    taken = board.take_errors()
    assert [e.message for e in taken] == [f"error {n}" for n in range(5, 25)]
    board.error("kind", "late")
    board.keep_errors(taken)
    assert [e.message for e in board.take_errors()] == [f"error {n}" for n in range(6, 25)] + ["late"]


def test_another_task_ends_the_errors_shown_of_the_last_one_and_loses_none_that_was_not_sent() -> None:
    board = Board()
    board.error("config", "the node id could not be written")
    board.error("image-not-found", "pulling x: not there")
    board.error("failed", "idm-x-n-0: exit code 3", 0)
    board.begin_task()
    assert [trouble.kind for trouble in board.recent] == ["config"]
    assert [error.kind for error in board.take_errors()] == ["config", "image-not-found", "failed"]


def test_texts_are_cut_at_a_kibibyte_of_utf8() -> None:
    assert len(clip("ä" * 2000).encode()) == 1024
    assert len(clip("x" + "ä" * 2000).encode()) == 1023


def test_systemd_is_told_the_reason_in_its_words() -> None:
    report = Report(status="Idle", reason=Reason("owner", "outside hours 22:00-07:00"))
    assert report.sentence() == "Idle: no task (outside hours 22:00-07:00)"
