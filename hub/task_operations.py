"""What operators do with the task list beside adding and switching, each as an Operation.

Editing a list leaves the revision alone but where it changes what nodes are given. What changes nothing has
no event. `judge_canary` is the hub's own: of several hubs that look, one sees each transition.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from gridcore.protocol import TaskDefinition, TaskGuard
from hub import canary as trying
from hub import fleet_redis, task_edits
from hub.errors import GenerationChanged
from hub.events import name_nodes
from hub.operations import switched
from hub.redaction import hiding
from hub.state import EVERYONE, Change, Moment, Operation, Outcome, View, wake_of
from hub.task_edits import Place
from hub.tasklist import Canary, Switch, Task, TaskList, TaskStatus

IfMatch = Callable[[str], bool]
"""Whether a request was made for this revision."""

REASON_SHOWN = 500
"""Characters of the reason for an abort that its event has."""


# --- The list ----------------------------------------------------------------------------------------------


def remove_task(name: str, if_match: IfMatch | None = None) -> Operation[None]:
    """Drop a pending or completed task. Raises UnknownTask, GenerationChanged, TaskInUse."""

    def decide(view: View, at: Moment) -> Outcome[None]:
        _check(view, name, if_match)
        status = view.tasks.get(name).status.value
        tasks = task_edits.remove(view.tasks, name)
        events = at.tell("task-removed", task=name, detail={"status": status})
        return Outcome(None, Change(tasks, events=events))

    return Operation(decide)


def requeue_task(name: str, if_match: IfMatch | None = None) -> Operation[Task]:
    """Put a completed task back, as the last pending one.

    Raises UnknownTask, GenerationChanged, TaskInUse.
    """

    def decide(view: View, at: Moment) -> Outcome[Task]:
        _check(view, name, if_match)
        tasks, task = task_edits.requeue(view.tasks, name, at.now.wall, at.entropy())
        if tasks is view.tasks:
            return Outcome(task)
        return Outcome(task, Change(tasks, events=at.tell("task-requeued", task=name)))

    return Operation(decide)


def move_task(name: str, place: Place, if_match: IfMatch | None = None) -> Operation[TaskList]:
    """Put a pending task elsewhere among the pending ones.

    Raises UnknownTask, GenerationChanged, TaskInUse, TaskCompleted.
    """

    def decide(view: View, at: Moment) -> Outcome[TaskList]:
        _check(view, name, if_match)
        tasks = task_edits.move(view.tasks, name, place, at.entropy())
        if tasks is view.tasks:
            return Outcome(tasks)
        where = {key: value for key, value in place._asdict().items() if value is not None}
        return Outcome(tasks, Change(tasks, events=at.tell("task-moved", task=name, detail=where)))

    return Operation(decide)


def edit_task(
    name: str, change: Callable[[TaskDefinition], TaskDefinition], if_match: IfMatch | None = None
) -> Operation[Task]:
    """Give a pending or the current task another definition.

    Raises:
        UnknownTask, TaskInUse, TaskCompleted: it is not there, tried, or over.
        GenerationChanged: `if_match` does not take the task as it is.
        And what `change` raises.
    """

    def decide(view: View, at: Moment) -> Outcome[Task]:
        _check(view, name, if_match)
        tasks, task = task_edits.edit(view.tasks, name, change, at.entropy())
        fleet_redis.check(task.definition, tasks.fleet_redis)
        return _edited(view, at, tasks, task, "task-changed")

    return Operation(decide)


def revert_task(name: str, if_match: IfMatch | None = None) -> Operation[Task]:
    """Take back the last change of a task's definition. Raises as `edit_task` does, and NothingEarlier."""

    def decide(view: View, at: Moment) -> Outcome[Task]:
        _check(view, name, if_match)
        tasks, task = task_edits.revert(view.tasks, name, at.entropy())
        return _edited(view, at, tasks, task, "task-reverted")

    return Operation(decide)


def _edited(view: View, at: Moment, tasks: TaskList, task: Task, kind: str) -> Outcome[Task]:
    if tasks is view.tasks:
        return Outcome(task)
    before, after = view.tasks.get(task.name).definition.to_stored(), task.definition.to_stored()
    fields = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    is_current = task.status is TaskStatus.RUNNING
    # The names of what is new, not the values: some are secrets.
    events = at.tell(kind, task=task.name, detail={"fields": fields, "is_current": is_current})
    return Outcome(task, Change(tasks, events=events), EVERYONE if is_current else None)


def _check(view: View, name: str, if_match: IfMatch | None) -> None:
    """Raises UnknownTask, and GenerationChanged where this is not the task that was looked at."""
    tasks, task = view.tasks, view.tasks.get(name)
    is_current = task.status is TaskStatus.RUNNING
    # The generation names the current task as well as its own revision does, and no other one.
    names = (task.revision, tasks.revision) if is_current else (task.revision,)
    if if_match is not None and not any(map(if_match, names)):
        current = tasks.current.name if tasks.current else None
        raise GenerationChanged(name, task.revision, current, tasks.revision)


# --- The fleet ---------------------------------------------------------------------------------------------


def hold() -> Operation[TaskList]:
    """Give no node anything until `release`, also those that come later."""

    def decide(view: View, at: Moment) -> Outcome[TaskList]:
        tasks = view.tasks.hold(at.entropy())
        return _held(view, at, tasks, "fleet-held")

    return Operation(decide)


def release() -> Operation[TaskList]:
    """Give nodes what is current again."""

    def decide(view: View, at: Moment) -> Outcome[TaskList]:
        tasks = view.tasks.release(at.entropy(), at.now.wall)
        return _held(view, at, tasks, "fleet-released")

    return Operation(decide)


def name_fleet_redis(url: str) -> Operation[TaskList]:
    """Give nodes this URL where a task names the fleet's Redis."""

    def decide(view: View, at: Moment) -> Outcome[TaskList]:
        tasks = view.tasks.with_fleet_redis(url, at.entropy(), at.now.wall)
        if tasks is view.tasks:
            return Outcome(tasks)
        return Outcome(tasks, Change(tasks, events=at.tell("fleet-redis-changed")), EVERYONE)

    return Operation(decide)


def _held(view: View, at: Moment, tasks: TaskList, kind: str) -> Outcome[TaskList]:
    if tasks is view.tasks:
        return Outcome(tasks)
    current = tasks.current.name if tasks.current else None
    return Outcome(tasks, Change(tasks, events=at.tell(kind, task=current)), EVERYONE)


# --- A task that is tried ----------------------------------------------------------------------------------


def try_next(
    candidates: tuple[str, ...],
    wanted: int,
    healthy_after: float,
    start_within: float,
    guard: TaskGuard | None = None,
) -> Operation[Canary]:
    """Try the first pending task on `wanted` of the candidates, the first that can; spans in seconds.

    Raises NotCurrent, CanaryRunning, NothingPending, NoCanaryNodes.
    """

    def decide(view: View, at: Moment) -> Outcome[Canary]:
        nodes = [node for node in map(view.node, candidates) if node is not None]
        asked = Canary("", "", (), at.now.wall, healthy_after, start_within=start_within, wanted=wanted)
        tasks = trying.begin(view.tasks, guard, nodes, asked, at.entropy())
        begun = tasks.canary_of()
        spans = {"wanted": wanted, "healthy_after": healthy_after, "start_within": start_within}
        detail = {**name_nodes(list(begun.nodes)), **spans}
        events = at.tell("canary-started", task=begun.task, detail=detail)
        return Outcome(begun, Change(tasks, events=events), wake_of(begun.nodes))

    return Operation(decide, nodes=candidates)


def promote(task: str | None = None) -> Operation[Switch]:
    """Make what is tried, if it is this task, the current task of all. Raises NoCanary."""

    def decide(view: View, at: Moment) -> Outcome[Switch]:
        tasks, switch = view.tasks.promote(task, at.entropy(), at.now.wall)
        return switched(view, at, tasks, switch, "promote")

    return Operation(decide)


def abort(task: str | None = None) -> Operation[Canary]:
    """Give the nodes that try this task the current one again. Raises NoCanary."""

    def decide(view: View, at: Moment) -> Outcome[Canary]:
        ended = view.tasks.canary_of(task)
        return Outcome(ended, *_abort(view, at, ended, f"aborted by {at.by.who}"))

    return Operation(decide)


def judge_canary(known: Canary) -> Operation[str | None]:
    """Look at the nodes of this canary, and note how it does; the kind of the event that this made, if any.

    Nothing happens while the fleet is held, or if another canary, or none, is there by now.
    """

    def decide(view: View, at: Moment) -> Outcome[str | None]:
        canary = view.tasks.canary
        if canary is None or canary.nodes != known.nodes or view.tasks.is_held:
            return Outcome(None)
        verdict = trying.judge(canary, {node_id: view.node(node_id) for node_id in canary.nodes}, at.now)
        if isinstance(verdict, str):
            reason = hiding(view.tasks)(verdict)[:REASON_SHOWN]
            return Outcome("canary-aborted", *_abort(view, at, canary, reason))
        if verdict is canary:
            return Outcome(None)
        tasks = replace(view.tasks, canary=verdict)
        if not verdict.is_healthy:
            return Outcome(None, Change(tasks))
        detail = {**name_nodes(list(canary.nodes)), "healthy_after": canary.healthy_after}
        events = at.tell("canary-healthy", task=canary.task, detail=detail)
        return Outcome("canary-healthy", Change(tasks, events=events))

    return Operation(decide, nodes=known.nodes)


def _abort(view: View, at: Moment, canary: Canary, reason: str) -> tuple[Change, str | None]:
    """The change, and whom it wakes."""
    detail = {"reason": reason, "state": canary.state, **name_nodes(list(canary.nodes))}
    events = at.tell("canary-aborted", task=canary.task, detail=detail)
    tasks = trying.abort(view.tasks, reason, at.now.wall, at.entropy())
    return Change(tasks, events=events), wake_of(canary.nodes)
