"""What nodes ask very often, and what they are answered: the same rules for both ways in.

The routes of `gridnode.py` take any request; `lane.py` takes the plain ones of our own agents, for a fraction
of the cost. Neither decides anything: that is here.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gridcore.condition import Condition
from gridcore.platforms import PLATFORMS
from gridcore.protocol import NODE_ID_PATTERN, HeartbeatRequest, TaskConfig
from hub import fleet_redis, operations, token_operations
from hub.errors import StateLost
from hub.events import Actor
from hub.logdesk import Desk
from hub.longpoll import Known
from hub.news import News
from hub.pace import Pace
from hub.registry import Node
from hub.store import Store
from hub.tasklist import Assignment, Task, TaskList, is_decided, why_nothing
from hub.tokens import needs_renewal
from hub.waiters import Waiters

NUDGE = "GridCore-Heartbeat", "now"
"""The header that goes with a held request that ends because an order waits for the node's next heartbeat."""

NEW_LIST = (
    "If the hub lost its state, put the last backup back with `computehub restore`. If it is to be a new "
    "one, start a task (POST /api/tasks/next) or hold the fleet (POST /api/tasks/hold)"
)
"""What to do about nodes that know more than the hub."""

NODE_ID = re.compile(NODE_ID_PATTERN)

SPREAD_FROM = 10.0
SPREAD = 0.2
"""Waits of SPREAD_FROM seconds and more are shortened by up to this share, by chance: a whole fleet that was
told of a switch at once would else come back at once, again and again."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is current? `asker` is the node's id, where it gives one; `known` is what it has been told."""

    asker: str | None
    platform: str
    known: Known


@dataclass(frozen=True, slots=True)
class Found:
    """What a question is answered with; `is_new` is what the asker does not know yet."""

    given: Assignment
    tasks: TaskList
    is_new: bool = False
    is_nudge: bool = False


class NodeCalls:
    """The calls, over one store."""

    def __init__(
        self,
        store: Store,
        waiters: Waiters,
        desk: Desk,
        news: News,
        *,
        prefetch: bool,
        token_ttl: float,
        took_up: Callable[[str], None],
        pace: Pace,
    ) -> None:
        """`desk` is what nodes are asked for, `news` takes what is told later, `took_up` is told of a
        generation that a node reports for the first time. Nodes' own tokens count `token_ttl` seconds."""
        self.store = store
        self.waiters = waiters
        self._desk = desk
        self._news = news
        self._prefetch = prefetch
        self._token_ttl = token_ttl
        self._took_up = took_up
        self._pace = pace
        self._assigned, self._upcoming = _AssignedTasks(), _NextTask()
        self._tasks = store.latest_tasks
        self._given = self._tasks.assigned(None)
        self._new_list = Condition(
            "the list of tasks is new, and nodes have tasks of another one: did the hub lose its state?",
            "nodes follow the list of tasks again",
            do=f"{NEW_LIST}; nodes go on computing till then",
            level="error",
        )

    def given(self, tasks: TaskList, asker: str | None) -> Assignment:
        """What a node is given, or whoever does not say which node it is."""
        if tasks is not self._tasks:  # lists are values; to look through a long one for each node would cost
            self._tasks, self._given = tasks, tasks.assigned(None)
        return self._given if tasks.canary is None else tasks.assigned(asker)

    async def heartbeat(self, report: HeartbeatRequest, by: Actor) -> dict[str, Any]:
        """Note what a node reports, and say what is wanted of it."""
        node_id = report.node_id
        beat = await self.store.run(operations.heartbeat(report))
        if beat.is_back:
            self._news.back(node_id)
        if beat.is_failing:
            self._news.failing(node_id, report.reason)
        elif beat.has_recovered:
            self._news.recovered(node_id)
        if beat.takes_up:
            self._took_up(beat.takes_up)
        wire: dict[str, Any] = {
            "stop_requested": beat.stop_requested,
            "known": beat.known,
            "drain": beat.drain,
            "heartbeat_interval": self._pace.interval(),
        }
        if self._prefetch:
            wire["prefetch"] = self._upcoming.image(self.store.latest_tasks, node_id, beat.platform)
        if beat.platform is not None:
            tasks = self.store.latest_tasks
            given = self.given(tasks, node_id)
            wire["nothing"] = why_nothing(given, beat.platform, is_held=tasks.is_held)
        if beat.known:
            wire["token"] = await self._renewal(by)
            logs = await self._desk.take(node_id)
            if logs:
                wire["logs"] = [order.model_dump(mode="json") for order in logs]
        # As `HeartbeatAnswer` has it; to make one for each heartbeat would cost more than all the rest.
        return {name: value for name, value in wire.items() if value is not None}

    async def deregister(self, node_id: str, by: Actor) -> Node | None:
        """Note a node's last word; None if it was not there."""
        node = await self.store.run(operations.deregister(node_id), by)
        self._news.left(node_id)
        return node

    async def arrive(self, question: Question, *, may_hold: bool) -> Found | None:
        """What a question that just arrived is answered, or None where it is to be held.

        It has to be among the waiters already, so that nothing that happens meanwhile is missed.
        """
        if question.asker is not None and await self.store.hear(question.asker):
            self._news.back(question.asker)
        tasks = self.store.latest_tasks
        if self.given(tasks, question.asker).revision not in question.known:
            # Or another hub has told the node already what this one has not seen yet.
            tasks = await self.store.tasks()
        return await self._judge(question, tasks, may_hold=may_hold)

    async def look(self, question: Question) -> Found | None:
        """The same for a question that is held, and was woken."""
        return await self._judge(question, self.store.latest_tasks, may_hold=True)

    def glance(self, question: Question) -> Found | None:
        """What is new for a held question, as far as that needs no waiting."""
        tasks = self.store.latest_tasks
        given = self.given(tasks, question.asker)
        return None if given.revision in question.known else Found(given, tasks, is_new=True)

    def over(self, question: Question) -> Found:
        """The answer of a question whose time is up."""
        tasks = self.store.latest_tasks
        given = self.given(tasks, question.asker)
        return Found(given, tasks, is_new=given.revision not in question.known)

    async def _judge(self, question: Question, tasks: TaskList, *, may_hold: bool) -> Found | None:
        given = self.given(tasks, question.asker)
        if given.revision not in question.known:
            self._insist(tasks, question)
            return Found(given, tasks, is_new=True)
        if not may_hold:
            return Found(given, tasks)
        asker = question.asker
        if asker is not None and (await self.store.take_nudge(asker) or await self._desk.take_nudge(asker)):
            return Found(given, tasks, is_nudge=True)
        return Found(given, tasks) if self.waiters.is_closed else None

    def _insist(self, tasks: TaskList, question: Question) -> None:
        """Raises StateLost: the list is new, so it says nothing about what this node has.

        A hub that is started on an empty disk, or on a Redis that lost everything, has such a list. That is
        no order to stop computing; the first decision of an operator is.
        """
        if not tasks.is_new:
            self._new_list.over()
        elif any(map(is_decided, question.known)):
            self._new_list.meet(node=question.asker)
            raise StateLost("This list of tasks is new, and the node has a task of another one", NEW_LIST)

    def body(self, found: Found, platform: str) -> bytes:
        """What is given, as JSON."""
        return self._assigned.body(found.tasks, found.given, platform)

    async def _renewal(self, by: Actor) -> str | None:
        """What a node is to use from now on whose own token ends soon."""
        if by.grant is None or not needs_renewal(by.grant, time.time()):
            return None
        return await self.store.run(token_operations.renew(by.grant, self._token_ttl), by)


def spread(wait: float) -> float:
    """A wait that ends at another time than those of others that began now."""
    return wait if wait < SPREAD_FROM else wait * random.uniform(1 - SPREAD, 1)  # noqa: S311  no secret


def config_of(tasks: TaskList, given: Assignment, platform: str) -> TaskConfig | None:
    """What a node of this platform is told of an assignment out of this list, or None."""
    if given.task is None:
        return None
    definition = fleet_redis.resolve(given.task.definition, tasks.fleet_redis)
    return TaskConfig.of(definition, platform, given.revision)


class _AssignedTasks:
    """What nodes are given as each platform gets it, encoded once a revision and not once a node."""

    def __init__(self) -> None:
        self._bodies: dict[str, dict[str, bytes]] = {}

    def body(self, tasks: TaskList, given: Assignment, platform: str) -> bytes:
        """An assignment out of this list, as JSON."""
        bodies = self._bodies.get(given.revision)
        if bodies is None:
            # Two are in use at once while a task is tried, and never more.
            in_use = {tasks.revision, tasks.canary.revision if tasks.canary else tasks.revision}
            self._bodies = {revision: kept for revision, kept in self._bodies.items() if revision in in_use}
            bodies = self._bodies[given.revision] = {}
        body = bodies.get(platform)
        if body is None:
            task = config_of(tasks, given, platform)
            body = json.dumps(task.to_wire() if task else None).encode()
            if platform in PLATFORMS:  # a few: strangers must not fill the memory
                bodies[platform] = body
        return body


class _NextTask:
    """The images that are needed next, looked for once a list and not once a heartbeat."""

    def __init__(self) -> None:
        self._tasks: TaskList | None = None
        self._task: Task | None = None

    def image(self, tasks: TaskList, node_id: str, platform: str | None) -> str | None:
        """The image that this node, of this platform, will need next, if there is one."""
        if tasks is not self._tasks:  # lists are values: another one may have another first task
            self._tasks, self._task = tasks, tasks.first_pending
        tries = tasks.canary is not None and node_id in tasks.canary.nodes
        task = tasks.upcoming(node_id) if tries else self._task
        if task is None or platform is None:
            return None
        return task.definition.image_for(platform)
