"""The task list: which tasks there are, which one is current, and what may become of them.

A task only ever walks along TRANSITIONS, and at most one is Running, which is *the current task*. Lists are
values: every operation gives a new list and leaves the old one alone, so that a list whose write to disk
failed is simply dropped. Nothing here knows a clock or a random source: `now` and `entropy` are passed in.

A *revision* names what is current. It changes with every change of that, also to nothing, and carries 64
random bits, so that no restart, restored backup or other hub ever names something else by the same one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Literal

from gridcore.protocol import TaskDefinition, TaskGuard
from hub.errors import NotCurrent, NothingPending, NothingRunning, TaskConflict, UnknownTask


class TaskStatus(StrEnum):
    """Where a task stands; the values are those of the wire."""

    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETED = "Completed"


TaskEvent = Literal["start", "complete"]

TRANSITIONS: Mapping[tuple[TaskStatus, TaskEvent], TaskStatus] = {
    (TaskStatus.PENDING, "start"): TaskStatus.RUNNING,
    (TaskStatus.RUNNING, "complete"): TaskStatus.COMPLETED,
}
"""All that can happen to a task. What is not in it is a bug of ours, and a KeyError."""


@dataclass(frozen=True, slots=True)
class Task:
    """A definition and how far it has come; times in seconds since the epoch, by the hub's clock."""

    definition: TaskDefinition
    added_at: float
    status: TaskStatus = TaskStatus.PENDING
    started_at: float | None = None
    completed_at: float | None = None
    earlier: tuple[TaskDefinition, ...] = ()
    """What the definition was before it was changed, the latest first."""

    @property
    def name(self) -> str:
        return self.definition.name

    def after(self, event: TaskEvent, now: float) -> Task:
        """The task once `event` has happened to it."""
        status = TRANSITIONS[self.status, event]
        if event == "start":
            return replace(self, status=status, started_at=now)
        return replace(self, status=status, completed_at=now)


@dataclass(frozen=True, slots=True)
class Switch:
    """A change of what is current: what was, and what is now."""

    previous: str | None
    current: str | None


@dataclass(frozen=True, slots=True)
class Canary:
    """The next task, tried on some nodes while the others go on; times in seconds, since the epoch."""

    task: str
    revision: str
    nodes: tuple[str, ...]
    started_at: float
    healthy_after: float
    """Seconds that the nodes must stay up to be called healthy."""
    is_healthy: bool = False


@dataclass(frozen=True, slots=True)
class TaskList:
    """The tasks in the order in which they were added, and the revision of what is current."""

    revision: str
    tasks: tuple[Task, ...] = ()
    is_held: bool = False
    """The fleet stands still: no node is given anything, whatever is current."""
    canary: Canary | None = None

    @classmethod
    def empty(cls, entropy: int) -> TaskList:
        """The list of a new hub; `entropy` is 64 random bits."""
        return cls(_revision(0, entropy))

    @property
    def current(self) -> Task | None:
        """The task that the fleet works on."""
        return self._first(TaskStatus.RUNNING)

    @property
    def first_pending(self) -> Task | None:
        """The task that the fleet works on after the current one."""
        return self._first(TaskStatus.PENDING)

    def named(self, status: TaskStatus) -> list[str]:
        """The names of all tasks of one status, in the list's order."""
        return [task.name for task in self.tasks if task.status is status]

    def get(self, name: str) -> Task:
        """The task of this name.

        Raises:
            UnknownTask: there is none.
        """
        task = self._find(name)
        if task is None:
            raise UnknownTask(name)
        return task

    def add(self, definition: TaskDefinition, now: float) -> tuple[TaskList, Task, bool]:
        """The list with one more pending task, that task, and whether it is new.

        Raises:
            TaskConflict: another definition has this name.
        """
        known = self._find(definition.name)
        if known is None:
            task = Task(definition, added_at=now)
            return replace(self, tasks=(*self.tasks, task)), task, True
        if known.definition.to_stored() != definition.to_stored():
            raise TaskConflict(definition.name)
        return self, known, False

    def start_next(self, guard: TaskGuard | None, entropy: int, now: float) -> tuple[TaskList, Switch]:
        """Complete the current task, if there is one, and start the first pending one.

        Raises:
            NotCurrent: the guard names something else.
            NothingPending: no task waits; the current one goes on.
        """
        self._check(guard)
        if self.first_pending is None:
            raise NothingPending
        return self._switch(entropy, now)

    def finish(self, guard: TaskGuard | None, entropy: int, now: float) -> tuple[TaskList, Switch]:
        """Complete the current task, and start the first pending one if there is one.

        Raises:
            NotCurrent: the guard names something else.
            NothingRunning: there is no current task.
        """
        self._check(guard)
        if self.current is None:
            raise NothingRunning
        return self._switch(entropy, now)

    def _switch(self, entropy: int, now: float) -> tuple[TaskList, Switch]:
        ended, started = self.current, self.first_pending
        moved: dict[str, Task] = {}
        if ended is not None:
            moved[ended.name] = ended.after("complete", now)
        if started is not None:
            moved[started.name] = started.after("start", now)
        tasks = tuple(moved.get(task.name, task) for task in self.tasks)
        counter = int(self.revision.partition("-")[0]) + 1
        switch = Switch(ended.name if ended else None, started.name if started else None)
        return replace(self, revision=_revision(counter, entropy), tasks=tasks), switch

    def _check(self, guard: TaskGuard | None) -> None:
        if guard is None:
            return
        current = self.current.name if self.current else None
        if guard.task != current or guard.generation not in (None, self.revision):
            raise NotCurrent(current, self.revision)

    def _first(self, status: TaskStatus) -> Task | None:
        return next((task for task in self.tasks if task.status is status), None)

    def _find(self, name: str) -> Task | None:
        return next((task for task in self.tasks if task.name == name), None)


def _revision(counter: int, entropy: int) -> str:
    return f"{counter}-{entropy:016x}"
