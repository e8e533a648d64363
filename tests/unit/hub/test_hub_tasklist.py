"""The task list, first by example, then against a simpler model of itself."""

from __future__ import annotations

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gridcore.protocol import TaskDefinition, TaskGuard
from hub import canary as trying
from hub import task_edits
from hub.errors import (
    CanaryRunning,
    NoCanary,
    NoCanaryNodes,
    NotCurrent,
    NothingEarlier,
    NothingPending,
    NothingRunning,
    Refused,
    TaskCompleted,
    TaskConflict,
    TaskInUse,
    UnknownTask,
)
from hub.registry import Live, Node, NodeRecord
from hub.task_edits import EARLIER_KEPT, Place
from hub.tasklist import TRANSITIONS, Canary, Task, TaskList, TaskStatus

NAMES = ("a", "b", "c", "d")
NODES = ("n1", "n2")


def task(name: str, image: str = "x:1") -> TaskDefinition:
    return TaskDefinition(name=name, image=image)


def filled(*names: str) -> TaskList:
    tasks = TaskList.empty(entropy=0)
    for name in names:
        tasks, _, _ = tasks.add(task(name), now=0, entropy=0)
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
    tasks, _, _ = TaskList.empty(0).add(task("a"), now=1, entropy=0)
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
    tasks, _, _ = TaskList.empty(0).add(task("a"), now=0, entropy=0)
    respelt = TaskDefinition.model_validate({"name": "a", "image": "x:1", "input_queue": "", "env": None})
    assert tasks.add(respelt, now=1, entropy=0)[2] is False


def test_a_guard_of_null_asks_that_nothing_is_current() -> None:
    tasks, _ = filled("a", "b").start_next(TaskGuard(task=None), 1, now=0)
    with pytest.raises(NotCurrent):
        tasks.start_next(TaskGuard(task=None), 2, now=0)


def test_a_requeued_task_is_the_last_one_and_has_no_times() -> None:
    tasks = filled("a", "b")
    for entropy in (1, 2):
        tasks, _ = tasks.start_next(None, entropy, now=5)
    tasks, _, _ = tasks.add(task("c"), now=6, entropy=0)
    tasks, again = task_edits.requeue(tasks, "a", now=7, entropy=0)
    assert tasks.named(TaskStatus.PENDING) == ["c", "a"]
    assert (again.added_at, again.started_at, again.completed_at) == (0, None, None)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        (Place(before="b"), ["d", "b", "c"]),
        (Place(after="b"), ["b", "d", "c"]),
        (Place(to="first"), ["d", "b", "c"]),
        (Place(to="last"), ["b", "c", "d"]),
        (Place(before="d"), ["b", "c", "d"]),
    ],
)
def test_a_move_changes_the_order_of_the_pending_tasks_only(place: Place, expected: list[str]) -> None:
    tasks = filled(*NAMES)
    tasks, _ = tasks.start_next(None, 1, now=0)
    moved = task_edits.move(tasks, "d", place, 0)
    assert moved.named(TaskStatus.PENDING) == expected
    assert (moved.current, moved.revision) == (tasks.current, tasks.revision)


def test_only_ten_former_definitions_are_kept() -> None:
    tasks = filled("a")
    for number in range(EARLIER_KEPT + 3):
        tasks, _ = task_edits.edit(tasks, "a", lambda _, n=number: task("a", f"y:{n}"), 0)  # type: ignore[misc]  # a default argument binds it
    earlier = [definition.image for definition in tasks.get("a").earlier]
    assert earlier == [f"y:{number}" for number in range(EARLIER_KEPT + 1, 1, -1)]


def able_node(node_id: str) -> Node:
    record = NodeRecord(node_id, "pi", "aarch64", 4, "linux/arm64", agent_version="1")
    return Node(record, Live(heard=0, last_seen=0))


class TaskListMachine(RuleBasedStateMachine):
    """Three plain lists and one name must tell the same story as the real thing."""

    def __init__(self) -> None:
        super().__init__()
        self.tasks = TaskList.empty(entropy=0)
        self.named: dict[tuple[str, str], Task] = {}
        self.given = {self.tasks.revision}
        self.draws = 0
        self.images: dict[str, list[str]] = {}
        self.pending: list[str] = []
        self.completed: list[str] = []
        self.current: str | None = None
        self.tried: str | None = None
        self.held = False

    def entropy(self) -> int:
        """As a random source gives it: never the same twice."""
        self.draws += 1
        return self.draws

    @rule(name=st.sampled_from(NAMES), image=st.sampled_from(("x:1", "x:2")))
    def add(self, name: str, image: str) -> None:
        known = self.images.get(name)
        if known is not None and known[0] != image:
            with pytest.raises(TaskConflict):
                self.tasks.add(task(name, image), now=0, entropy=self.entropy())
            return
        self.tasks, _, is_new = self.tasks.add(task(name, image), now=0, entropy=self.entropy())
        assert is_new == (known is None)
        if is_new:
            self.images[name] = [image]
            self.pending.append(name)

    @rule(
        call=st.sampled_from(("start_next", "finish")),
        guard=st.none() | st.sampled_from(NAMES) | st.just("nothing"),
        generation=st.sampled_from(("none", "right", "old")),
    )
    def switch(self, call: str, guard: str | None, generation: str) -> None:
        given = {"none": None, "right": self.tasks.revision, "old": "0-old"}[generation]
        name = None if guard == "nothing" else guard
        message = None if guard is None else TaskGuard(task=name, generation=given)
        expected: type[Refused] | None = None
        if message and (name != self.current or given not in (None, self.tasks.revision)):
            expected = NotCurrent
        elif call == "start_next" and not self.pending:
            expected = NothingPending
        elif call == "finish" and self.current is None:
            expected = NothingRunning
        if expected:
            with pytest.raises(expected):
                getattr(self.tasks, call)(message, entropy=self.entropy(), now=0)
            return
        before = self.tasks
        self.tasks, change = getattr(before, call)(message, entropy=self.entropy(), now=0)
        assert change.previous == self.current
        self.moved_on(before)
        assert change.current == self.current

    @rule(task=st.none() | st.sampled_from(NAMES))
    def promote(self, task: str | None) -> None:
        if self.tried is None or task not in (None, self.tried):
            with pytest.raises(NoCanary):
                self.tasks.promote(task, self.entropy(), now=0)
            return
        before = self.tasks
        self.tasks, _ = before.promote(task, self.entropy(), now=0)
        self.moved_on(before)

    def moved_on(self, before: TaskList) -> None:
        """The current task is over, the first pending one is current; which is what was tried, if any was."""
        started = self.pending.pop(0) if self.pending else None
        if self.current is not None:
            self.completed.append(self.current)
        self.current = started
        assert self.tried in (None, started)
        if before.canary is not None and not self.held:
            # Those that tried it see no change at all.
            assert [self.tasks.assigned(node).revision for node in NODES] == [before.canary.revision] * 2
        else:
            self.is_fresh(self.tasks.revision)
        self.tried = None

    @rule(wanted=st.integers(1, 3), nodes=st.sampled_from(((), NODES)))
    def try_next(self, wanted: int, nodes: tuple[str, ...]) -> None:
        asked = Canary("", "", (), 0, healthy_after=60, wanted=wanted)
        able = [able_node(node_id) for node_id in nodes]
        expected: type[Refused] | None = None
        if self.tried:
            expected = CanaryRunning
        elif not self.pending:
            expected = NothingPending
        elif not nodes:
            expected = NoCanaryNodes
        if expected:
            with pytest.raises(expected):
                trying.begin(self.tasks, None, able, asked, self.entropy())
            return
        before, nodes = self.tasks, nodes[:wanted]
        self.tasks = trying.begin(before, None, able, asked, self.entropy())
        self.tried = self.pending[0]
        canary = self.tasks.canary_of(self.tried)
        assert canary.nodes == nodes
        assert self.tasks.assigned("another") == before.assigned("another")
        self.is_fresh(canary.revision)
        # For what comes next it makes no difference how many there were.
        self.tasks = TaskList(
            self.tasks.revision,
            self.tasks.tasks,
            self.tasks.is_held,
            Canary(canary.task, canary.revision, NODES, 0, 60, wanted=wanted),
        )

    @rule()
    def abort(self) -> None:
        if self.tried is None:
            with pytest.raises(NoCanary):
                trying.abort(self.tasks, "why", 0, self.entropy())
            return
        others, was_new = self.tasks.assigned("another"), self.tasks.is_new
        self.tasks = trying.abort(self.tasks, "why", 0, self.entropy())
        if was_new:  # that nothing is current is decided now, which nodes that had a task are told by
            self.is_fresh(self.tasks.revision)
            others = others._replace(revision=self.tasks.revision)
        assert {self.tasks.assigned(node) for node in (*NODES, "another")} == {others}
        self.tried = None

    @rule()
    def hold(self) -> None:
        before = self.tasks
        self.tasks = before.hold(self.entropy())
        assert (self.tasks is before) == self.held
        if not self.held:
            self.is_fresh(self.tasks.revision)
        self.held = True

    @rule()
    def release(self) -> None:
        before = self.tasks
        self.tasks = before.release(self.entropy(), now=5)
        assert (self.tasks is before) == (not self.held)
        if self.held:
            self.is_fresh(self.tasks.revision)
            if self.tasks.canary is not None:
                self.is_fresh(self.tasks.canary.revision)
        self.held = False

    @rule(name=st.sampled_from(NAMES))
    def remove(self, name: str) -> None:
        if error := self.why_not(name, {"pending", "completed"}):
            with pytest.raises(error):
                task_edits.remove(self.tasks, name)
            return
        self.tasks = task_edits.remove(self.tasks, name)
        del self.images[name]
        for names in (self.pending, self.completed):
            if name in names:
                names.remove(name)

    @rule(name=st.sampled_from(NAMES))
    def requeue(self, name: str) -> None:
        if error := self.why_not(name, {"pending", "completed"}):
            with pytest.raises(error):
                task_edits.requeue(self.tasks, name, now=0, entropy=self.entropy())
            return
        self.tasks, _ = task_edits.requeue(self.tasks, name, now=0, entropy=self.entropy())
        if name in self.completed:
            self.completed.remove(name)
            self.pending.append(name)

    @precondition(lambda self: self.pending)
    @rule(name=st.sampled_from(NAMES), beside=st.sampled_from(NAMES), how=st.sampled_from(Place._fields))
    def move(self, name: str, beside: str, how: str) -> None:
        place = {"to": Place(to="first"), "before": Place(before=beside), "after": Place(after=beside)}[how]
        error = self.why_not(name, {"pending"})
        rest = [other for other in self.pending if other != name]
        at = 0
        if how != "to" and beside != name:
            if beside in rest:
                at = rest.index(beside) + (how == "after")
            elif error is None:
                error = self.why_not(beside, {"pending"})
        if error is None and self.tried and at == 0 and not (how != "to" and beside == name):
            error = TaskInUse
        if error:
            with pytest.raises(error):
                task_edits.move(self.tasks, name, place, self.entropy())
            return
        before = self.tasks.revision
        self.tasks = task_edits.move(self.tasks, name, place, self.entropy())
        assert self.tasks.revision == before
        if how == "to" or beside != name:
            self.pending = [*rest[:at], name, *rest[at:]]

    @rule(name=st.sampled_from(NAMES), image=st.sampled_from(("x:1", "x:2", "x:3")), back=st.booleans())
    def change(self, name: str, image: str, *, back: bool) -> None:
        error = self.why_not(name, {"pending", "current"})
        if error is None and back and len(self.images[name]) == 1:
            error = NothingEarlier

        def act() -> TaskList:
            if back:
                return task_edits.revert(self.tasks, name, self.entropy())[0]
            return task_edits.edit(self.tasks, name, lambda _: task(name, image), self.entropy())[0]

        if error:
            with pytest.raises(error):
                act()
            return
        before, self.tasks = self.tasks.revision, act()
        if back:
            del self.images[name][0]
        elif self.images[name][0] != image:
            self.images[name] = [image, *self.images[name]][: EARLIER_KEPT + 1]
        else:
            assert self.tasks.revision == before
            return
        if name == self.current:
            self.is_fresh(self.tasks.revision)
        else:
            assert self.tasks.revision == before

    def why_not(self, name: str, allowed: set[str]) -> type[Refused] | None:
        """What forbids to touch a task, if only those that are so may be touched."""
        if name not in self.images:
            return UnknownTask
        if name == self.current:
            return None if "current" in allowed else TaskInUse
        if name == self.tried:
            return TaskInUse
        return TaskCompleted if name in self.completed and "completed" not in allowed else None

    def is_fresh(self, revision: str) -> None:
        assert revision not in self.given
        self.given.add(revision)

    @invariant()
    def tells_the_same_story(self) -> None:
        current = self.tasks.current
        assert (current.name if current else None) == self.current
        assert self.tasks.named(TaskStatus.PENDING) == self.pending
        assert sorted(self.tasks.named(TaskStatus.COMPLETED)) == sorted(self.completed)
        assert len(self.tasks.named(TaskStatus.RUNNING)) <= 1
        for known in self.tasks.tasks:
            definitions = (known.definition, *known.earlier)
            assert [definition.image for definition in definitions] == self.images[known.name]

    @invariant()
    def gives_each_state_of_a_task_a_revision_of_its_own(self) -> None:
        for known in self.tasks.tasks:
            assert self.named.setdefault((known.name, known.revision), known) == known

    @invariant()
    def gives_each_node_its_own(self) -> None:
        canary = self.tasks.canary
        assert (canary.task if canary else None) == self.tried
        for node, expected in (("n1", self.tried or self.current), ("another", self.current)):
            given = self.tasks.assigned(node).task
            assert (given.name if given else None) == (None if self.held else expected)
        assert self.tasks.revision in self.given
        assert canary is None or self.tried == self.pending[0]


TestTaskListMachine = TaskListMachine.TestCase
