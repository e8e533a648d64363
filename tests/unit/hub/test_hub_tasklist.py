"""The task list, first by example, then against a simpler model of itself."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gridcore.protocol import TaskDefinition, TaskGuard
from hub.errors import NotCurrent, NothingPending, NothingRunning, TaskConflict, UnknownTask
from hub.tasklist import TRANSITIONS, TaskList, TaskStatus

NAMES = ("a", "b", "c", "d")


def task(name: str, image: str = "x:1") -> TaskDefinition:
    return TaskDefinition(name=name, image=image)


def filled(*names: str) -> TaskList:
    tasks = TaskList.empty(entropy=0)
    for name in names:
        tasks, _, _ = tasks.add(task(name), now=0)
    return tasks


def test_a_task_goes_from_pending_through_running_to_completed_and_back_to_the_queue() -> None:
    assert list(TRANSITIONS.items()) == [
        ((TaskStatus.PENDING, "start"), TaskStatus.RUNNING),
        ((TaskStatus.RUNNING, "complete"), TaskStatus.COMPLETED),
        ((TaskStatus.COMPLETED, "requeue"), TaskStatus.PENDING),
    ]


def test_a_revision_is_a_counter_and_64_random_bits() -> None:
    assert TaskList.empty(entropy=255).revision == "0-00000000000000ff"
    tasks, _ = filled("a").start_next(None, entropy=2**64 - 1, now=0)
    assert tasks.revision == "1-ffffffffffffffff"


def test_a_task_carries_the_times_of_what_happened_to_it() -> None:
    tasks, _, _ = TaskList.empty(0).add(task("a"), now=1)
    tasks, _ = tasks.start_next(None, 0, now=2)
    tasks, _ = tasks.finish(None, 0, now=3)
    done = tasks.get("a")
    assert (done.added_at, done.started_at, done.completed_at) == (1, 2, 3)
    with pytest.raises(UnknownTask):
        tasks.get("b")


def test_an_operation_leaves_the_list_that_it_was_given_alone() -> None:
    before = filled("a", "b")
    before.start_next(None, 1, now=0)
    assert before.current is None


def test_a_definition_is_the_same_when_only_its_spelling_differs() -> None:
    tasks, _, _ = TaskList.empty(0).add(task("a"), now=0)
    respelt = TaskDefinition.model_validate({"name": "a", "image": "x:1", "input_queue": "", "env": None})
    assert tasks.add(respelt, now=1)[2] is False


class TaskListMachine(RuleBasedStateMachine):
    """Three plain lists and one name must tell the same story as the real thing."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = TaskList.empty(entropy=0)
        self.revisions = [self.tasks.revision]
        self.images: dict[str, str] = {}
        self.pending: list[str] = []
        self.completed: list[str] = []
        self.current: str | None = None

    @rule(name=st.sampled_from(NAMES), image=st.sampled_from(("x:1", "x:2")))
    def add(self, name: str, image: str) -> None:
        if self.images.get(name, image) != image:
            with pytest.raises(TaskConflict):
                self.tasks.add(task(name, image), now=0)
            return
        self.tasks, _, is_new = self.tasks.add(task(name, image), now=0)
        assert is_new == (name not in self.images)
        if is_new:
            self.images[name] = image
            self.pending.append(name)

    @rule(
        call=st.sampled_from(("start_next", "finish")),
        guard=st.none() | st.sampled_from(NAMES),
        generation=st.sampled_from(("none", "right", "old")),
    )
    def switch(self, call: str, guard: str | None, generation: str) -> None:
        given = {"none": None, "right": self.tasks.revision, "old": self.revisions[0]}[generation]
        message = None if guard is None else TaskGuard(task=guard, generation=given)
        operation = getattr(self.tasks, call)
        is_stale = given is not None and given != self.tasks.revision
        expected: type[Exception] | None = None
        if message and (guard != self.current or is_stale):
            expected = NotCurrent
        elif call == "start_next" and not self.pending:
            expected = NothingPending
        elif call == "finish" and self.current is None:
            expected = NothingRunning
        if expected:
            with pytest.raises(expected):
                operation(message, entropy=len(self.revisions), now=0)
            return
        self.tasks, change = operation(message, entropy=len(self.revisions), now=0)
        started = self.pending.pop(0) if self.pending else None
        assert (change.previous, change.current) == (self.current, started)
        if self.current is not None:
            self.completed.append(self.current)
        self.current = started
        self.revisions.append(self.tasks.revision)

    @invariant()
    def tells_the_same_story(self) -> None:
        current = self.tasks.current
        assert (current.name if current else None) == self.current
        assert self.tasks.named(TaskStatus.PENDING) == self.pending
        assert self.tasks.named(TaskStatus.COMPLETED) == self.completed
        assert len(self.tasks.named(TaskStatus.RUNNING)) <= 1

    @invariant()
    def names_each_current_task_by_a_revision_of_its_own(self) -> None:
        assert self.tasks.revision == self.revisions[-1]
        assert len(set(self.revisions)) == len(self.revisions)


TestTaskListMachine = TaskListMachine.TestCase
