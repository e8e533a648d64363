"""The operators' half of the API, under `/api`: tasks, and what nodes there are."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import structlog
from quart import Blueprint, Response, request
from quart_schema import document_request, tag

from gridcore.protocol import TaskDefinition, TaskGuard
from hub.bodies import read_message, read_optional_message
from hub.errors import InvalidFields
from hub.store import Store
from hub.tasklist import TaskStatus
from hub.views import node_view, refuse_masks, task_view

NODE_STATUSES = ("Online", "Offline")
NODE_FILTERS = ("status", "architecture")

log = structlog.get_logger()


def answer(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(json.dumps(value), status=status, content_type="application/json")


def no_content(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without a body, and so without a type of it."""
    response = Response(b"", status=status, headers={**(headers or {})})
    del response.headers["Content-Type"]
    return response


def operators_api(store: Store) -> Blueprint:
    """The routes, over this store."""
    api = Blueprint("operators", __name__, url_prefix="/api")

    @api.post("/tasks")
    @tag(["tasks"])
    @document_request(TaskDefinition)
    async def add_task() -> Response:
        """Append a task to the list, Pending; it never starts by itself."""
        definition = await read_message(request, TaskDefinition)
        refuse_masks(definition)
        task, is_new = await store.add_task(definition)
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
        switch = await store.start_next(await read_optional_message(request, TaskGuard))
        log.info("switched", previous=switch.previous, current=switch.current)
        return answer({"previous": switch.previous, "current": switch.current})

    @api.post("/tasks/finish")
    @tag(["tasks"])
    @document_request(TaskGuard)
    async def finish() -> Response:
        """Complete the current task, and start the first pending one if there is one."""
        switch = await store.finish(await read_optional_message(request, TaskGuard))
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
        tasks = await store.tasks()
        views = [node_view(node, tasks) for node in await store.nodes()]
        return answer(
            [
                view
                for view in views
                if (not statuses or view["status"] in statuses)
                and (not architectures or view["architecture"] in architectures)
            ]
        )

    @api.get("/nodes/<node_id>")
    @tag(["nodes"])
    async def show_node(node_id: str) -> Response:
        """One node."""
        return answer(node_view(await store.node(node_id), await store.tasks()))

    @api.post("/nodes/<node_id>/stop")
    @tag(["nodes"])
    async def stop_node(node_id: str) -> Response:
        """Ask a node to stop all its containers and exit."""
        node = await store.order_stop(node_id)
        log.info("stop ordered", node=node.record.id, hostname=node.record.hostname)
        return answer({"node_id": node.record.id, "stop_requested": node.stop_requested})

    return api


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
