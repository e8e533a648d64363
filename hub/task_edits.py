"""What becomes of a task list when somebody edits it: tasks go, come back, change places and definitions.

Each step gives a new list and leaves the old one alone, as everything in `tasklist.py` does. A task that
nodes work on, because it is current or tried, stays where it is; what can be changed is the definition of
the current one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal, NamedTuple

from gridcore.protocol import TaskDefinition
from hub.errors import NothingEarlier, TaskCompleted, TaskInUse
from hub.tasklist import Task, TaskList, TaskStatus

EARLIER_KEPT = 10
"""Former definitions of a task that are kept, to go back to."""


class Place(NamedTuple):
    """Where a pending task goes: right before or after another one, or to an end; one of the three is set."""

    before: str | None = None
    after: str | None = None
    to: Literal["first", "last"] | None = None


def remove(tasks: TaskList, name: str) -> TaskList:
    """The list without a task. Raises UnknownTask, TaskInUse."""
    _idle(tasks, name)
    return replace(tasks, tasks=tuple(task for task in tasks.tasks if task.name != name))


def requeue(tasks: TaskList, name: str, now: float, entropy: int) -> tuple[TaskList, Task]:
    """The list with a completed task pending again, as the last; one that is pending already stays as it is.

    Raises:
        UnknownTask: there is none.
        TaskInUse: it is current, or tried.
    """
    task = _idle(tasks, name)
    if task.status is TaskStatus.PENDING:
        return tasks, task
    again = task.after("requeue", now, entropy)
    return replace(tasks, tasks=(*remove(tasks, name).tasks, again)), again


def move(tasks: TaskList, name: str, place: Place, entropy: int) -> TaskList:
    """The list with a pending task at another place among the pending ones.

    Raises:
        UnknownTask: it, or the one beside which it should go, is not there.
        TaskInUse: it is current or tried, or should go beside the current one or before one that is tried.
        TaskCompleted: it, or the one beside which it should go, is over.
    """
    _pending(tasks, name)
    beside = place.before or place.after
    others = [other for other in tasks.named(TaskStatus.PENDING) if other != name]
    if beside is None:
        at = 0 if place.to == "first" else len(others)
    elif beside in others:
        at = others.index(beside) + (place.after is not None)
    else:
        _pending(tasks, beside)
        return tasks  # beside itself
    if tasks.canary is not None and at == 0:
        raise TaskInUse(tasks.canary.task, is_tried=True)
    order = iter([*others[:at], name, *others[at:]])
    # Only pending tasks change places among themselves: what is completed stays where it is.
    moved = (tasks.get(next(order)) if task.status is TaskStatus.PENDING else task for task in tasks.tasks)
    after = tuple(moved)
    if after == tasks.tasks:
        return tasks
    return replace(tasks, tasks=tuple(task.revised(entropy) if task.name == name else task for task in after))


def edit(
    tasks: TaskList, name: str, change: Callable[[TaskDefinition], TaskDefinition], entropy: int
) -> tuple[TaskList, Task]:
    """The list with another definition of a task; of the current one that is a new revision.

    A change that changes nothing gives this very list. What `change` raises goes through.

    Raises:
        UnknownTask: there is none.
        TaskInUse: it is tried.
        TaskCompleted: it is over.
    """
    task = _editable(tasks, name)
    definition = change(task.definition)
    if definition.to_stored() == task.definition.to_stored():
        return tasks, task
    earlier = (task.definition, *task.earlier)[:EARLIER_KEPT]
    return _with(tasks, replace(task, definition=definition, earlier=earlier), entropy)


def revert(tasks: TaskList, name: str, entropy: int) -> tuple[TaskList, Task]:
    """The list with the definition that a task had before its last change, which is dropped.

    Raises:
        UnknownTask, TaskInUse, TaskCompleted: as for `edit`.
        NothingEarlier: it was never changed, or all changes are taken back.
    """
    task = _editable(tasks, name)
    if not task.earlier:
        raise NothingEarlier(name)
    before, *earlier = task.earlier
    return _with(tasks, replace(task, definition=before, earlier=tuple(earlier)), entropy)


def _with(tasks: TaskList, changed_task: Task, entropy: int) -> tuple[TaskList, Task]:
    task = changed_task.revised(entropy, aborted=None)
    changed = tuple(task if other.name == task.name else other for other in tasks.tasks)
    is_current = task.status is TaskStatus.RUNNING
    revision = tasks.fresh_revision(entropy) if is_current else tasks.revision
    return replace(tasks, revision=revision, tasks=changed), task


def _idle(tasks: TaskList, name: str) -> Task:
    """A task that no node works on. Raises UnknownTask, TaskInUse."""
    task = tasks.get(name)
    if task.status is TaskStatus.RUNNING:
        raise TaskInUse(name, is_tried=False)
    if tasks.canary is not None and tasks.canary.task == name:
        raise TaskInUse(name, is_tried=True)
    return task


def _pending(tasks: TaskList, name: str) -> Task:
    task = _idle(tasks, name)
    if task.status is TaskStatus.COMPLETED:
        raise TaskCompleted(name)
    return task


def _editable(tasks: TaskList, name: str) -> Task:
    task = tasks.get(name)
    return task if task.status is TaskStatus.RUNNING else _pending(tasks, name)
