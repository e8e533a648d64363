"""The operators' half of the API, under `/api`: tasks, nodes and their logs, and what goes wrong."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from typing import Any

import structlog
from pydantic import BaseModel, ConfigDict, Field
from quart import Blueprint, Response, request
from quart_schema import document_querystring, document_request, tag

from gridcore.protocol import MAX_LOG_LINES, TaskDefinition, TaskGuard
from hub import operations
from hub.bodies import read_message, read_optional_message, read_query
from hub.causes import find_causes, recent_since
from hub.door import actor
from hub.errors import InvalidFields, NodeOffline, NoLog, NotSupported
from hub.logdesk import Desk
from hub.redaction import hiding
from hub.registry import Node
from hub.store import Store
from hub.tasklist import TaskStatus
from hub.views import cause_view, node_view, refuse_masks, task_view

NODE_STATUSES = ("Online", "Offline")
NODE_FILTERS = ("status", "architecture")

LOG_HEADERS = {
    # A log is whatever a container wrote: no browser may take it for a page, no proxy keep it.
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

log = structlog.get_logger()


class LogQuery(BaseModel):
    """Which log of a node: its slot, how many lines of it, and how many runs ago (0: the present one)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instance: int = Field(default=0, ge=0, le=65_535)
    lines: int = Field(default=200, ge=1, le=MAX_LOG_LINES)
    previous: int = Field(default=0, ge=0, le=3)


class NoQuery(BaseModel):
    """The query of a path that takes none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def answer(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(json.dumps(value), status=status, content_type="application/json")


def no_content(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without a body, and so without a type of it."""
    response = Response(b"", status=status, headers={**(headers or {})})
    del response.headers["Content-Type"]
    return response


def operators_api(store: Store, desk: Desk) -> Blueprint:
    """The routes, over this store; at the `desk` operators wait for logs."""
    api = Blueprint("operators", __name__, url_prefix="/api")

    @api.post("/tasks")
    @tag(["tasks"])
    @document_request(TaskDefinition)
    async def add_task() -> Response:
        """Append a task to the list, Pending; it never starts by itself."""
        definition = await read_message(request, TaskDefinition)
        refuse_masks(definition)
        task, is_new = await store.run(operations.add_task(definition), actor(request))
        if is_new:
            log.info("task added", task=task.name)
        return answer(task_view(task), 201 if is_new else 200)

    @api.get("/tasks")
    @tag(["tasks"])
    async def list_tasks() -> Response:
        """The current task, the pending and the completed ones, and all of them in full."""
        tasks = await store.tasks()
        return answer(
            {
                "current": tasks.current.name if tasks.current else None,
                "pending": tasks.named(TaskStatus.PENDING),
                "completed": tasks.named(TaskStatus.COMPLETED),
                "generation": tasks.revision,
                "tasks": [task_view(task) for task in tasks.tasks],
            }
        )

    @api.get("/tasks/<name>")
    @tag(["tasks"])
    async def show_task(name: str) -> Response:
        """One task in full."""
        return answer(task_view((await store.tasks()).get(name)))

    @api.post("/tasks/next")
    @tag(["tasks"])
    @document_request(TaskGuard)
    async def start_next() -> Response:
        """Complete the current task and start the first pending one."""
        guard = await read_optional_message(request, TaskGuard)
        switch = await store.run(operations.start_next(guard), actor(request))
        log.info("switched", previous=switch.previous, current=switch.current)
        return answer({"previous": switch.previous, "current": switch.current})

    @api.post("/tasks/finish")
    @tag(["tasks"])
    @document_request(TaskGuard)
    async def finish() -> Response:
        """Complete the current task, and start the first pending one if there is one."""
        guard = await read_optional_message(request, TaskGuard)
        switch = await store.run(operations.finish(guard), actor(request))
        log.info("finished", completed=switch.previous, started=switch.current)
        follow_up = f"{switch.current} has started" if switch.current else "nothing is pending"
        return answer(
            {
                "completed": switch.previous,
                "started": switch.current,
                "message": f"{switch.previous} is completed; {follow_up}.",
            }
        )

    @api.get("/nodes")
    @tag(["nodes"])
    async def list_nodes() -> Response:
        """All nodes, offline ones too; `?status=` and `?architecture=` select."""
        _check_filters()
        statuses, architectures = request.args.getlist("status"), request.args.getlist("architecture")
        tasks, nodes = await store.tasks(), await store.nodes()
        hide = hiding(tasks)

        def views() -> Response:
            shown = (node_view(node, tasks, hide) for node in nodes)
            return answer(
                [
                    view
                    for view in shown
                    if (not statuses or view["status"] in statuses)
                    and (not architectures or view["architecture"] in architectures)
                ]
            )

        # Thousands of nodes take their time, and heartbeats must not wait for it.
        return await asyncio.to_thread(views)

    @api.get("/nodes/<node_id>")
    @tag(["nodes"])
    async def show_node(node_id: str) -> Response:
        """One node."""
        node, tasks = await store.node(node_id), await store.tasks()
        return answer(node_view(node, tasks, hiding(tasks)))

    @api.post("/nodes/<node_id>/stop")
    @tag(["nodes"])
    async def stop_node(node_id: str) -> Response:
        """Ask a node to stop all its containers and exit."""
        node = await store.run(operations.order_stop(node_id), actor(request))
        log.info("stop ordered", node=node.record.id, hostname=node.record.hostname)
        return answer({"node_id": node.record.id, "stop_requested": node.stop_requested})

    @api.post("/nodes/<node_id>/drain")
    @tag(["nodes"])
    async def drain_node(node_id: str) -> Response:
        """Have a node stop its containers and stay registered, until `resume`."""
        node = await store.run(operations.order_drain(node_id), actor(request))
        log.info("drain ordered", node=node.record.id, hostname=node.record.hostname)
        return answer(_orders(node))

    @api.post("/nodes/<node_id>/resume")
    @tag(["nodes"])
    async def resume_node(node_id: str) -> Response:
        """Take back a drain, and a stop that the node has not been told of."""
        node = await store.run(operations.order_resume(node_id), actor(request))
        log.info("resume ordered", node=node.record.id, hostname=node.record.hostname)
        return answer(_orders(node))

    @api.get("/nodes/<node_id>/logs")
    @tag(["nodes"])
    @document_querystring(LogQuery)
    async def show_log(node_id: str) -> Response:
        """The last lines of a container's log, as text; waits until the node brings them."""
        wanted = read_query(request, LogQuery)
        node = await store.node(node_id)
        if node.record.agent_version is None:
            raise NotSupported(node_id, "logs", "Look at `docker logs` on the node itself.")
        if not node.is_online:
            raise NodeOffline(node_id)
        brought = await desk.ask(node_id, wanted.instance, wanted.lines, wanted.previous)
        hide = hiding(await store.tasks())
        if brought.error is not None:
            raise NoLog(hide(brought.error))
        # So does a megabyte.
        text = await asyncio.to_thread(hide, brought.text)
        body = text.encode("utf-8", "replace")  # JSON can carry halves of characters
        return Response(body, headers=LOG_HEADERS, content_type="text/plain; charset=utf-8")

    @api.get("/problems")
    @tag(["nodes"])
    async def list_problems() -> Response:
        """What goes wrong on the nodes that are Online, grouped by cause, the most frequent first."""
        read_query(request, NoQuery)
        tasks, nodes = await store.tasks(), await store.nodes()
        since = recent_since(time.time(), tasks.current.started_at if tasks.current else None)
        causes = await asyncio.to_thread(find_causes, nodes, since, hiding(tasks))
        return answer([cause_view(cause) for cause in causes])

    return api


def _orders(node: Node) -> dict[str, Any]:
    return {
        "node_id": node.record.id,
        "draining": node.draining,
        "stop_requested": node.stop_requested,
    }


def _check_filters() -> None:
    """Raises InvalidFields: a misspelt filter would answer with nodes that nobody asked for."""
    errors = [
        {"field": name[:80], "message": f"unknown filter; known are {', '.join(NODE_FILTERS)}"}
        for name in request.args
        if name not in NODE_FILTERS
    ]
    if any(status not in NODE_STATUSES for status in request.args.getlist("status")):
        errors.append({"field": "status", "message": f"expected {' or '.join(NODE_STATUSES)}"})
    if errors:
        raise InvalidFields(errors)
