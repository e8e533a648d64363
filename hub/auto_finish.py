"""Finishing a task by itself, where the task asks for that: when, and how. A guess, and kept a cautious one.

A task is over when its input was seen empty and its output unchanged, look after look, for `idle` seconds.
Whatever is not such a look starts the time anew: a Redis that does not answer, looks too far apart (a hub
that was held up), another revision, a held fleet, a canary. So does a restart of the hub, as nothing of this
is kept. Looks count only once the task has been Running for `idle` seconds: its input may not be filled yet.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gridcore.protocol import TaskGuard
from hub import operations
from hub.events import Actor
from hub.progress import Sample
from hub.state import Moment, Operation, Outcome, View
from hub.tasklist import Switch, TaskList

AUTO_FINISH = Actor("auto-finish")
"""Who finishes, in the audit trail."""

LONGEST_GAP = 10.0
"""Seconds between two looks beyond which nobody knows what was in between."""


@dataclass(frozen=True, slots=True)
class Quiet:
    """Since when a revision's queues have stood still, by the monotonic clock, and how they stand."""

    revision: str
    since: float
    last: float
    output: int

    @property
    def lasted(self) -> float:
        """Seconds."""
        return self.last - self.since


def idle_of(tasks: TaskList) -> float | None:
    """The `idle` that counts now; None if nothing is to be finished, however quiet it is."""
    current = tasks.current
    if current is None or current.definition.auto_finish is None or tasks.is_held or tasks.canary:
        return None
    return current.definition.auto_finish.idle


def longest_gap(idle: float) -> float:
    """Seconds that two looks may lie apart."""
    return min(idle / 5, LONGEST_GAP)


def watch_quiet(before: Quiet | None, tasks: TaskList, sample: Sample) -> Quiet | None:
    """What is known after one more look at the current task; None if its queues do not stand still."""
    idle, current = idle_of(tasks), tasks.current
    if idle is None or current is None or current.started_at is None:
        return None
    queues = sample.queues
    if queues.input.items != 0 or queues.output.items is None:
        return None
    if sample.wall - current.started_at < idle:
        return None
    goes_on = (
        before is not None
        and before.revision == tasks.revision
        and before.output == queues.output.items
        and 0 <= sample.at - before.last <= longest_gap(idle)
    )
    if before is not None and goes_on:
        return replace(before, last=sample.at)
    return Quiet(tasks.revision, sample.at, sample.at, queues.output.items)


def is_over(quiet: Quiet | None, tasks: TaskList) -> bool:
    """Whether it has been quiet for long enough."""
    idle = idle_of(tasks)
    return quiet is not None and idle is not None and quiet.lasted >= idle


def finish_quiet(guard: TaskGuard) -> Operation[Switch | None]:
    """Finish, if this is still current and may still be finished; None if not. Several hubs do it once."""
    finish = operations.finish(guard)

    def decide(view: View, at: Moment) -> Outcome[Switch | None]:
        tasks = view.tasks
        is_current = tasks.current is not None and tasks.current.name == guard.task
        if not is_current or tasks.revision != guard.generation or idle_of(tasks) is None:
            return Outcome(None)
        done = finish.decide(view, at)
        return Outcome(done.answer, done.change, done.wake)

    return Operation(decide)
