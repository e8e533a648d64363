"""The task list: which tasks there are, which one is current, and what may become of them.

A task only ever walks along TRANSITIONS, and at most one is Running, which is *the current task*. Lists are
values: every operation gives a new list and leaves the old one alone, so that a list whose write to disk
failed is simply dropped. Nothing here knows a clock or a random source: `now` and `entropy` are passed in.

A *revision* names what is current. It changes with every change of that, also to nothing, and carries 64
random bits, so that no restart, restored backup or other hub ever names something else by the same one. Each
task has a revision of its own likewise, which changes with its definition, its place and its status.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Literal, NamedTuple

from gridcore.protocol import TaskDefinition, TaskGuard
from hub import fleet_redis
from hub.errors import (
    NoCanary,
    NotCurrent,
    NothingPending,
    NothingRunning,
    TaskConflict,
    UnknownTask,
)

_DECIDED = re.compile(r"[1-9]\d{0,17}-[0-9a-f]{16}", re.ASCII)

START_WITHIN = 900.0
"""Seconds in which the nodes of a canary must have it running: long enough to fetch a large image."""


class TaskStatus(StrEnum):
    """Where a task stands; the values are those of the wire."""

    PENDING = "Pending"
    RUNNING = "Running"
    COMPLETED = "Completed"


TaskEvent = Literal["start", "complete", "requeue"]

TRANSITIONS: Mapping[tuple[TaskStatus, TaskEvent], TaskStatus] = {
    (TaskStatus.PENDING, "start"): TaskStatus.RUNNING,
    (TaskStatus.RUNNING, "complete"): TaskStatus.COMPLETED,
    (TaskStatus.COMPLETED, "requeue"): TaskStatus.PENDING,
}
"""All that can happen to a task. What is not in it is a bug of ours, and a KeyError."""


@dataclass(frozen=True, slots=True)
class Aborted:
    """That a task was tried, and when (seconds since the epoch) and why that came to nothing."""

    at: float
    reason: str
    nodes: int
    """On so many it was tried."""


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
    aborted: Aborted | None = None
    """How the last try of this definition ended, while nothing else has become of it since."""
    revision: str = ""
    """Of this task; empty only where a hub of an earlier version wrote it last (`codec.load_list`)."""

    @property
    def name(self) -> str:
        return self.definition.name

    def after(self, event: TaskEvent, now: float, entropy: int) -> Task:
        """The task once `event` has happened to it."""
        changed = self.revised(entropy, status=TRANSITIONS[self.status, event])
        if event == "start":
            return replace(changed, started_at=now, aborted=None)
        if event == "requeue":
            return replace(changed, started_at=None, completed_at=None)
        return replace(changed, completed_at=now)

    def revised(self, entropy: int, **fields: Any) -> Task:
        """The task with these fields, and so with another revision; `entropy` is 64 random bits."""
        return replace(self, revision=f"{entropy:016x}", **fields)


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
    start_within: float = START_WITHIN
    """Seconds in which the nodes must be up."""
    waits_since: float | None = None
    """Since when they are waited for, if not since the start: a hold ended, or one was up and is not."""
    up_since: float | None = None
    """Since when all of them have been up, if they are."""
    wanted: int = 0
    """The nodes that were asked for, which may be more than there were."""

    @property
    def state(self) -> Literal["starting", "up", "healthy"]:
        """How far it has come."""
        return "healthy" if self.is_healthy else "starting" if self.up_since is None else "up"

    @property
    def clock(self) -> float:
        """When the waiting for its nodes began."""
        return self.started_at if self.waits_since is None else self.waits_since

    def anew(self, revision: str, now: float) -> Canary:
        """The same under another revision: its nodes are waited for once more."""
        return replace(self, revision=revision, waits_since=now, up_since=None, is_healthy=False)


class Assignment(NamedTuple):
    """What a node is given, and the revision that names it."""

    revision: str
    task: Task | None


def why_nothing(given: Assignment, platform: str, *, is_held: bool) -> str | None:
    """Why a node of this platform that is given this has nothing to run; None if it has, or if nothing is
    current."""
    if is_held:
        return "the fleet is held"
    if given.task is not None and given.task.definition.image_for(platform) is None:
        return f"task {given.task.name} has no image for {platform}"
    return None


@dataclass(frozen=True, slots=True)
class TaskList:
    """The tasks in the order in which they were added, and the revision of what is current.

    While a canary is tried, its task stays the first pending one: nothing can be moved before it.
    """

    revision: str
    """Of what nodes are given: while they are held, of nothing."""
    tasks: tuple[Task, ...] = ()
    is_held: bool = False
    """The fleet stands still: no node is given anything, whatever is current."""
    canary: Canary | None = None
    fleet_redis: str | None = None
    """The URL that nodes are given where a task names the fleet's Redis."""

    @classmethod
    def empty(cls, entropy: int) -> TaskList:
        """The list of a new hub; `entropy` is 64 random bits."""
        return cls(_revision(0, entropy))

    @property
    def is_new(self) -> bool:
        """Whether nobody has ever decided what is current on it, not even nothing."""
        return not is_decided(self.revision)

    @property
    def current(self) -> Task | None:
        """The task that the fleet works on."""
        return self._first(TaskStatus.RUNNING)

    @property
    def first_pending(self) -> Task | None:
        """The task that the fleet works on after the current one."""
        return self._first(TaskStatus.PENDING)

    @property
    def tried_or_current(self) -> list[Task]:
        """The tasks that some node is given, or will be once the list is held no more."""
        tried = None if self.canary is None else self._find(self.canary.task)
        return [task for task in (self.current, tried) if task is not None]

    def assigned(self, node_id: str | None) -> Assignment:
        """What this node is given, also one that the hub does not know."""
        if self.is_held:
            return Assignment(self.revision, None)
        if self.canary is not None and node_id in self.canary.nodes:
            return Assignment(self.canary.revision, self._find(self.canary.task))
        return Assignment(self.revision, self.current)

    def upcoming(self, node_id: str | None) -> Task | None:
        """The task that this node works on next, if all goes on as it is."""
        if self.canary is None or node_id not in self.canary.nodes:
            return self.first_pending
        pending = (task for task in self.tasks if task.status is TaskStatus.PENDING)
        return next((task for task in pending if task.name != self.canary.task), None)

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

    def add(self, definition: TaskDefinition, now: float, entropy: int) -> tuple[TaskList, Task, bool]:
        """The list with one more pending task, that task, and whether it is new.

        Raises:
            TaskConflict: another definition has this name.
        """
        known = self._find(definition.name)
        if known is None:
            task = Task(definition, added_at=now).revised(entropy)
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
        self.check(guard)
        if self.first_pending is None:
            raise NothingPending
        return self._switch(entropy, now)

    def finish(self, guard: TaskGuard | None, entropy: int, now: float) -> tuple[TaskList, Switch]:
        """Complete the current task, and start the first pending one if there is one.

        Raises:
            NotCurrent: the guard names something else.
            NothingRunning: there is no current task.
        """
        self.check(guard)
        if self.current is None:
            raise NothingRunning
        return self._switch(entropy, now)

    def promote(self, task: str | None, entropy: int, now: float) -> tuple[TaskList, Switch]:
        """Complete the current task, if there is one, and start the canary's for all.

        Raises:
            NoCanary: none is tried, or not this task.
        """
        self.canary_of(task)
        return self._switch(entropy, now)

    def canary_of(self, task: str | None = None) -> Canary:
        """The canary, if it is this task's. Raises NoCanary."""
        if self.canary is None or task not in (None, self.canary.task):
            raise NoCanary(self.canary.task if self.canary else None)
        return self.canary

    def hold(self, entropy: int) -> TaskList:
        """The list whose nodes are all given nothing; this one if they are held already."""
        if self.is_held:
            return self
        return replace(self, revision=self.fresh_revision(entropy), is_held=True)

    def release(self, entropy: int, now: float) -> TaskList:
        """The list whose nodes are given what is current, a canary's clock anew; this one if not held."""
        if not self.is_held:
            return self
        released = replace(self, revision=self.fresh_revision(entropy), is_held=False)
        if self.canary is None:
            return released
        return replace(released, canary=self.canary.anew(released.fresh_revision(entropy), now))

    def with_fleet_redis(self, url: str, entropy: int, now: float) -> TaskList:
        """The list whose nodes are given this URL for the fleet's Redis; this one if they are already.

        What names it has another revision then, so that nodes start their containers with the new URL.
        """
        if url == self.fleet_redis:
            return self
        changed = replace(self, fleet_redis=url)
        if self.current is not None and fleet_redis.uses(self.current.definition) and not self.is_held:
            changed = replace(changed, revision=changed.fresh_revision(entropy))
        canary = self.canary
        if canary is not None and fleet_redis.uses(self.get(canary.task).definition):
            changed = replace(changed, canary=canary.anew(changed.fresh_revision(entropy), now))
        return changed

    def fresh_revision(self, entropy: int) -> str:
        """A revision that nothing has."""
        given = [self.revision, *([self.canary.revision] if self.canary else [])]
        return _revision(max(int(revision.partition("-")[0]) for revision in given) + 1, entropy)

    def check(self, guard: TaskGuard | None) -> None:
        """Raises NotCurrent if the guard names something else than what is current."""
        if guard is None:
            return
        current = self.current.name if self.current else None
        if guard.task != current or guard.generation not in (None, self.revision):
            raise NotCurrent(current, self.revision)

    def _switch(self, entropy: int, now: float) -> tuple[TaskList, Switch]:
        ended, started, canary = self.current, self.first_pending, self.canary
        moved: dict[str, Task] = {}
        if ended is not None:
            moved[ended.name] = ended.after("complete", now, entropy)
        if started is not None:
            moved[started.name] = started.after("start", now, entropy)
        tasks = tuple(moved.get(task.name, task) for task in self.tasks)
        switch = Switch(ended.name if ended else None, started.name if started else None)
        revision = self.fresh_revision(entropy)
        if canary is not None and canary.task == switch.current:
            # The nodes that tried it go on with it as it is. Held ones have nothing to go on with.
            revision, canary = (revision if self.is_held else canary.revision), None
        return replace(self, revision=revision, tasks=tasks, canary=canary), switch

    def _first(self, status: TaskStatus) -> Task | None:
        return next((task for task in self.tasks if task.status is status), None)

    def _find(self, name: str) -> Task | None:
        return next((task for task in self.tasks if task.name == name), None)


def is_decided(revision: str) -> bool:
    """Whether it is one of a list on which somebody has decided what is current, this list or another."""
    return bool(_DECIDED.fullmatch(revision))


def _revision(counter: int, entropy: int) -> str:
    return f"{counter}-{entropy:016x}"
