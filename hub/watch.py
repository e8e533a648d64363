"""Watching the current task's queues all the time, and any other task's when somebody asks.

Each hub looks for itself and keeps what it saw for a few minutes, in memory. Where the task asks for it,
looks come closer together, and a task that stands still is finished.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable

import structlog

from gridcore.protocol import TaskDefinition, TaskGuard
from hub import fleet_redis
from hub.auto_finish import AUTO_FINISH, Quiet, finish_quiet, idle_of, is_over, longest_gap, watch_quiet
from hub.observed import Instant
from hub.progress import History, Sample
from hub.queues import QueueEyes
from hub.store import Store
from hub.store_local import read_clock
from hub.tasklist import Task, TaskList

LOOK_INTERVAL = 5.0
"""Seconds between two looks at the current task."""

FRESH = 1.0
"""Seconds for which a look is as good as a new one: however many people ask, a Redis is asked once."""

MOST_TASKS = 32
"""Tasks whose samples are kept."""

log = structlog.get_logger()


class Watch:
    """The samples of each task that was looked at, and how long the current one has stood still."""

    def __init__(self, store: Store, eyes: QueueEyes, clock: Callable[[], Instant] = read_clock) -> None:
        self._store = store
        self._eyes = eyes
        self._clock = clock
        self._seen: OrderedDict[str, _Seen] = OrderedDict()
        self._quiet: Quiet | None = None
        self._due = float("-inf")
        self.finished = 0
        """Tasks that this hub finished by itself."""

    @property
    def quiet(self) -> Quiet | None:
        """How long the current task has stood still; None if it does not, or nobody asked for that."""
        return self._quiet

    def latest(self, task: Task) -> Sample | None:
        """The last look at this task that is kept."""
        seen = self._seen.get(task.name)
        return seen.history.latest if seen and seen.definition == task.definition else None

    async def look(self, task: Task) -> History:
        """What is known of a task's queues, with a look of now in it."""
        seen = self._history(task)
        async with seen.turn:
            latest = seen.history.latest
            if latest is None or self._clock().monotonic - latest.at >= FRESH:
                queues = await self._eyes.look(
                    fleet_redis.resolve(task.definition, self._store.latest_tasks.fleet_redis)
                )
                now = self._clock()
                seen.history.add(Sample(now.monotonic, now.wall, queues))
        return seen.history

    async def step(self) -> None:
        """Look at the current task if it is time to, and finish it if it is over. Raises StoreUnavailable."""
        tasks = await self._store.tasks()
        current = tasks.current
        now = self._clock().monotonic
        if current is None:
            self._quiet = None
        elif now >= self._due or self._is_pressing(tasks):
            sample = (await self.look(current)).latest
            self._due = now + LOOK_INTERVAL
            # The list of before the look: an empty input is no sign for a task that came meanwhile.
            self._quiet = watch_quiet(self._quiet, tasks, sample) if sample else None
            if is_over(self._quiet, tasks):
                await self._finish(tasks, current)
        await self._eyes.close_unused()

    async def _finish(self, tasks: TaskList, task: Task) -> None:
        guard = TaskGuard(task=task.name, generation=tasks.revision)
        self._quiet = None
        switch = await self._store.run(finish_quiet(guard), AUTO_FINISH)
        if switch is not None:
            self.finished += 1
            log.info("finished by itself", completed=switch.previous, started=switch.current)

    def _is_pressing(self, tasks: TaskList) -> bool:
        """Whether looks must come closer together than LOOK_INTERVAL: twice as often as they have to."""
        idle = idle_of(tasks)
        if idle is None or tasks.current is None:
            return False
        latest = self.latest(tasks.current)
        return latest is None or self._clock().monotonic - latest.at >= longest_gap(idle) / 2

    def _history(self, task: Task) -> _Seen:
        seen = self._seen.get(task.name)
        if seen is None or seen.definition != task.definition:
            seen = self._seen[task.name] = _Seen(task.definition)
        self._seen.move_to_end(task.name)
        while len(self._seen) > MOST_TASKS:
            self._seen.popitem(last=False)
        return seen


class _Seen:
    """A task's samples; of the definition that they belong to, since a task can be changed."""

    def __init__(self, definition: TaskDefinition) -> None:
        self.definition = definition
        self.history = History()
        self.turn = asyncio.Lock()
