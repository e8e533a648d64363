"""The nodes' half of the API, under `/gridnode`: the only answers that carry a task's real secrets."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import structlog
from quart import Blueprint, Response, request
from quart_schema import document_request, tag

from gridcore.platforms import DEFAULT_PLATFORM, PLATFORMS, canonical_platform
from gridcore.protocol import (
    NODE_ID_PATTERN,
    DeregisterRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    LogsMessage,
    RegisterAnswer,
    RegisterRequest,
    TaskConfig,
)
from hub import operations, token_operations
from hub.bodies import read_message
from hub.door import actor
from hub.events import Actor
from hub.logdesk import Desk
from hub.longpoll import Known, parse_wait
from hub.news import News
from hub.operators import answer, no_content
from hub.roles import insist_on
from hub.store import Store
from hub.tasklist import Assignment, Task, TaskList
from hub.tokens import needs_renewal
from hub.waiters import Waiter, Waiters

NUDGE = {"GridCore-Heartbeat": "now"}
"""Ends a held request because an order waits for this node's next heartbeat."""

_NODE_ID = re.compile(NODE_ID_PATTERN)

log = structlog.get_logger()


def gridnode_api(
    store: Store,
    waiters: Waiters,
    desk: Desk,
    news: News,
    *,
    prefetch: bool,
    token_ttl: float,
    took_up: Callable[[str], None],
) -> Blueprint:
    """The routes, over this store; `waiters` are the held requests, `desk` is what nodes are asked for, and
    `news` takes what is told later. Nodes' own tokens count `token_ttl` seconds. `took_up` is told of a
    generation that a node reports for the first time."""
    api = Blueprint("gridnode", __name__, url_prefix="/gridnode")
    assigned, upcoming = _AssignedTasks(), _NextTask()

    @api.post("/register")
    @tag(["gridnode"])
    @document_request(RegisterRequest)
    async def register() -> Response:
        """Take a node in; it keeps its id, or gets one."""
        message = await read_message(request, RegisterRequest)
        by = actor(request)
        if message.node_id is not None:
            insist_on(by, message.node_id)
        joined = await store.run(token_operations.register(message, by.grant, token_ttl), by)
        registration, node = joined.registration, joined.registration.node
        if registration.clone_of:
            log.warning(
                "a second machine came with a node's id, probably from a copied disk; it gets its own",
                id=registration.clone_of,
                new_id=node.record.id,
                hostname=node.record.hostname,
            )
        log.info(
            "node joined" if registration.is_new else "node registered again",
            node=node.record.id,
            hostname=node.record.hostname,
            platform=node.record.platform,
        )
        reply = RegisterAnswer(
            node_id=node.record.id,
            stop_requested=node.stop_requested,
            drain=node.draining,
            token=joined.token,
        )
        task = config_of((await store.tasks()).assigned(node.record.id), node.record.platform)
        without_token = None if reply.token else {"token"}
        wire = reply.model_dump(mode="json", exclude=without_token)
        return answer({**wire, "current_task": task.to_wire() if task else None})

    @api.post("/heartbeat")
    @tag(["gridnode"])
    @document_request(HeartbeatRequest)
    async def heartbeat() -> Response:
        """Note what a node reports, and tell it what is wanted of it."""
        message = await read_message(request, HeartbeatRequest)
        by = actor(request)
        insist_on(by, message.node_id)
        beat = await store.run(operations.heartbeat(message))
        if beat.is_back:
            news.back(message.node_id)
        if beat.is_failing:
            news.failing(message.node_id, message.reason)
        if beat.takes_up:
            took_up(beat.takes_up)
        reply = HeartbeatAnswer(
            stop_requested=beat.stop_requested,
            known=beat.known,
            drain=beat.drain,
            logs=await desk.take(message.node_id) if beat.known else [],
            prefetch=upcoming.image(store.latest_tasks, message.node_id, beat.platform) if prefetch else None,
            token=await _renewal(by) if beat.known else None,
        )
        without = None if reply.logs else {"logs"}
        return answer(reply.model_dump(mode="json", exclude=without, exclude_none=True))

    @api.post("/logs")
    @tag(["gridnode"])
    @document_request(LogsMessage)
    async def bring_logs() -> Response:
        """The log that an operator waits for; 204, also when nobody waits any more. Up to 1 MiB."""
        message = await read_message(request, LogsMessage)
        insist_on(actor(request), message.node_id)
        await desk.answer(message)
        return no_content(204)

    @api.get("/task")
    @tag(["gridnode"])
    async def show_task() -> Response:
        """What is current for a platform and node; held with `If-None-Match` and `Prefer: wait=N`."""
        node_id = request.args.get("node_id", "")
        platform = canonical_platform(request.args.get("platform") or DEFAULT_PLATFORM)
        # An id that cannot be one is no reason to leave a node without its task.
        asker = node_id if _NODE_ID.fullmatch(node_id) else None
        if asker is not None:
            insist_on(actor(request), asker)
        deadline = asyncio.get_running_loop().time() + parse_wait(",".join(request.headers.getlist("Prefer")))
        if asker is not None and await store.hear(asker):
            news.back(asker)
        with waiters.holding(asker) as waiter:
            found = await _wait_for_news(asker, waiter, deadline)
        given = found.tasks.assigned(asker)
        headers = {"ETag": f'"{given.revision}"', **(NUDGE if found.is_nudge else {})}
        if not found.is_new:
            return no_content(304, headers)
        body = assigned.body(found.tasks, given, platform)
        return Response(body, headers=headers, content_type="application/json")

    async def _wait_for_news(asker: str | None, waiter: Waiter, deadline: float) -> _Found:
        """What is current once the client does not know it, its node is to be nudged, or time is up."""
        # The waiter was there before this looks, so nothing that happens in between is missed.
        tasks = store.latest_tasks
        arrival = tasks.assigned(asker).revision
        known = Known(",".join(request.headers.getlist("If-None-Match")), arrival)
        if arrival not in known:  # or another hub has told the node already what this one has not seen yet
            tasks = await store.tasks()
        while tasks.assigned(asker).revision in known:
            if deadline <= asyncio.get_running_loop().time():
                return _Found(tasks)
            if asker is not None and (await store.take_nudge(asker) or await desk.take_nudge(asker)):
                return _Found(tasks, is_nudge=True)
            if waiters.is_closed:
                return _Found(tasks)
            await waiter.wait(deadline)
            tasks = store.latest_tasks
        return _Found(tasks, is_new=True)

    @api.post("/deregister")
    @tag(["gridnode"])
    @document_request(DeregisterRequest)
    async def deregister() -> Response:
        """The last act of a node that stops: it is Offline now."""
        message = await read_message(request, DeregisterRequest)
        insist_on(actor(request), message.node_id)
        node = await store.run(operations.deregister(message.node_id), actor(request))
        if node is not None:
            log.info("node left", node=node.record.id, hostname=node.record.hostname)
        return no_content(204)

    async def _renewal(by: Actor) -> str | None:
        """What a node is to use from now on whose own token ends soon."""
        if by.grant is None or not needs_renewal(by.grant, time.time()):
            return None
        return await store.run(token_operations.renew(by.grant, token_ttl), by)

    return api


class _Found(NamedTuple):
    tasks: TaskList
    is_new: bool = False
    is_nudge: bool = False


def config_of(given: Assignment, platform: str) -> TaskConfig | None:
    """What a node of this platform is told, or None."""
    return TaskConfig.of(given.task.definition, platform, given.revision) if given.task else None


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
            task = config_of(given, platform)
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
