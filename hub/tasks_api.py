"""The task list for operators, under `/api/tasks`: adding, switching, editing, holding, trying."""

from __future__ import annotations

import asyncio

import structlog
from quart import Blueprint, Response, request
from quart_schema import document_headers, document_request, document_response, tag
from werkzeug.http import parse_etags

from gridcore.orders import CanaryRequest, MoveRequest, TriedTask
from gridcore.protocol import TaskDefinition, TaskGuard
from hub import canary as trying
from hub import operations, task_operations
from hub.bodies import (
    read_message,
    read_object,
    read_optional_message,
    read_optional_object,
    read_query,
    validate,
)
from hub.description import document_answer_headers, document_example, optional_body
from hub.door import actor
from hub.operators import NoBody, NoQuery, answer, document_problems, no_content, read_nothing
from hub.patching import apply_patch
from hub.store import Store
from hub.task_edits import Place
from hub.task_messages import (
    Aborted,
    Finished,
    Held,
    NextBody,
    Order,
    Started,
    Switched,
    TaskHeaders,
    TaskListView,
    TaskPatch,
    TaskView,
)
from hub.task_operations import IfMatch
from hub.tasklist import Task, TaskStatus
from hub.views import canary_view, refuse_masks, task_view

ETAG = ("The task's `revision`: what `If-Match` takes.", True)

log = structlog.get_logger()


def tasks_api(store: Store) -> Blueprint:
    """The routes, over this store."""
    api = Blueprint("tasks", __name__, url_prefix="/api/tasks")

    @api.post("")
    @tag(["tasks"])
    @document_request(TaskDefinition)
    @document_example({"name": "primes-2", "image": "registry.lan:5000/primes:2", "memory": 512})
    @document_response(TaskView, 200)
    @document_response(TaskView, 201)
    @document_answer_headers(200, {"ETag": ETAG})
    @document_answer_headers(201, {"ETag": ETAG})
    @document_problems(400, 409, 422, 503)
    async def add_task() -> Response:
        """Append a task to the list, Pending; it never starts by itself."""
        definition = await read_message(request, TaskDefinition)
        refuse_masks(definition)
        task, is_new = await store.run(operations.add_task(definition), actor(request))
        if is_new:
            log.info("task added", task=task.name)
        return _shown(task, 201 if is_new else 200)

    @api.get("")
    @tag(["tasks"])
    @document_response(TaskListView)
    async def list_tasks() -> Response:
        """The current task, the pending and the completed ones, and all of them in full."""
        tasks = await store.tasks()
        return answer(
            {
                "current": tasks.current.name if tasks.current else None,
                "pending": tasks.named(TaskStatus.PENDING),
                "completed": tasks.named(TaskStatus.COMPLETED),
                "generation": tasks.revision,
                "held": tasks.is_held,
                "fleet_redis": tasks.fleet_redis is not None,
                "canary": canary_view(tasks.canary) if tasks.canary else None,
                "tasks": [task_view(task) for task in tasks.tasks],
            }
        )

    @api.get("/<name>")
    @tag(["tasks"])
    @document_response(TaskView)
    @document_answer_headers(200, {"ETag": ETAG})
    @document_problems(404)
    async def show_task(name: str) -> Response:
        """One task in full."""
        return _shown((await store.tasks()).get(name))

    @api.post("/next")
    @tag(["tasks"])
    @optional_body
    @document_request(NextBody)
    @document_example({"task": "primes-1"})
    @document_response(Started)
    @document_problems(400, 409, 422, 503)
    async def start_next_task() -> Response:
        """Complete the current task and start the first pending one; or with `canary` try it first."""
        body = await read_optional_object(request)
        if body is not None and "canary" in body:
            return await _try_next(validate(body, CanaryRequest))
        guard = None if body is None else validate(body, TaskGuard)
        switch = await store.run(operations.start_next(guard), actor(request))
        log.info("switched", previous=switch.previous, current=switch.current)
        return answer({"previous": switch.previous, "current": switch.current})

    async def _try_next(wanted: CanaryRequest) -> Response:
        tasks, nodes = await store.tasks(), await store.nodes()
        task = tasks.first_pending
        candidates: tuple[str, ...] = ()
        if task is not None:
            candidates = await asyncio.to_thread(trying.choose, nodes, task.definition, wanted.canary)
        operation = task_operations.try_next(
            candidates, wanted.canary, wanted.healthy_after, wanted.start_within, wanted.guard
        )
        canary = await store.run(operation, actor(request))
        log.info("canary started", task=canary.task, nodes=list(canary.nodes))
        current = (await store.tasks()).current
        name = current.name if current else None
        text = f"{canary.task} is being tried on {len(canary.nodes)} of the {canary.wanted} nodes asked for."
        return answer({"previous": name, "current": name, "canary": canary_view(canary), "message": text})

    @api.post("/finish")
    @tag(["tasks"])
    @optional_body
    @document_request(TaskGuard)
    @document_example({"task": "primes-1"})
    @document_response(Finished)
    @document_problems(400, 409, 422, 503)
    async def finish_task() -> Response:
        """Complete the current task, and start the next one if there is one."""
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

    @api.post("/promote")
    @tag(["tasks"])
    @optional_body
    @document_request(TriedTask)
    @document_example({"task": "primes-2"})
    @document_response(Switched)
    @document_problems(400, 409, 422, 503)
    async def promote_canary() -> Response:
        """Make the task that is tried the current one of all nodes; the current one is completed."""
        switch = await store.run(task_operations.promote(await _tried_task()), actor(request))
        log.info("promoted", previous=switch.previous, current=switch.current)
        return answer({"previous": switch.previous, "current": switch.current})

    @api.post("/abort")
    @tag(["tasks"])
    @optional_body
    @document_request(TriedTask)
    @document_example({"task": "primes-2"})
    @document_response(Aborted)
    @document_problems(400, 409, 422, 503)
    async def abort_canary() -> Response:
        """Give the nodes that try a task the current one again; the task stays the first pending one."""
        canary = await store.run(task_operations.abort(await _tried_task()), actor(request))
        log.info("canary aborted", task=canary.task)
        current = (await store.tasks()).current
        nodes, name = list(canary.nodes), current.name if current else None
        return answer({"aborted": canary.task, "nodes": nodes, "current": name})

    async def _tried_task() -> str | None:
        read_query(request, NoQuery)
        body = await read_optional_message(request, TriedTask)
        return body.task if body else None

    @api.post("/hold")
    @tag(["tasks"])
    @document_response(Held)
    @document_problems(400, 422, 503)
    async def hold_fleet() -> Response:
        """Give no node anything, also those that come later, until `release`."""
        await read_nothing(request)
        tasks = await store.run(task_operations.hold(), actor(request))
        log.info("fleet held")
        return answer({"held": tasks.is_held, "current": tasks.current.name if tasks.current else None})

    @api.post("/release")
    @tag(["tasks"])
    @document_response(Held)
    @document_problems(400, 422, 503)
    async def release_fleet() -> Response:
        """Give nodes what is current again."""
        await read_nothing(request)
        tasks = await store.run(task_operations.release(), actor(request))
        log.info("fleet released")
        return answer({"held": tasks.is_held, "current": tasks.current.name if tasks.current else None})

    @api.delete("/<name>")
    @tag(["tasks"])
    @document_headers(TaskHeaders)
    @document_response(NoBody, 204)
    @document_problems(400, 404, 409, 412, 422, 503)
    async def remove_task(name: str) -> Response:
        """Drop a pending or completed task."""
        await read_nothing(request)
        await store.run(task_operations.remove_task(name, _if_match()), actor(request))
        log.info("task removed", task=name)
        return no_content(204)

    @api.patch("/<name>")
    @tag(["tasks"])
    @document_request(TaskPatch)
    @document_example({"image": "registry.lan:5000/primes:3", "memory": None})
    @document_headers(TaskHeaders)
    @document_response(TaskView)
    @document_answer_headers(200, {"ETag": ETAG})
    @document_problems(400, 404, 409, 412, 422, 503)
    async def edit_task(name: str) -> Response:
        """Change a definition by a JSON merge patch; of the current task that is a new generation."""
        read_query(request, NoQuery)
        patch = await read_object(request)
        operation = task_operations.edit_task(name, lambda before: apply_patch(before, patch), _if_match())
        task = await store.run(operation, actor(request))
        log.info("task changed", task=name)
        return _shown(task)

    @api.post("/<name>/revert")
    @tag(["tasks"])
    @document_headers(TaskHeaders)
    @document_response(TaskView)
    @document_answer_headers(200, {"ETag": ETAG})
    @document_problems(400, 404, 409, 412, 422, 503)
    async def revert_task(name: str) -> Response:
        """Take back the last change of a definition."""
        await read_nothing(request)
        task = await store.run(task_operations.revert_task(name, _if_match()), actor(request))
        log.info("task reverted", task=name)
        return _shown(task)

    @api.post("/<name>/requeue")
    @tag(["tasks"])
    @document_headers(TaskHeaders)
    @document_response(TaskView)
    @document_answer_headers(200, {"ETag": ETAG})
    @document_problems(400, 404, 409, 412, 422, 503)
    async def requeue_task(name: str) -> Response:
        """Put a completed task back into the list, as the last pending one."""
        await read_nothing(request)
        task = await store.run(task_operations.requeue_task(name, _if_match()), actor(request))
        log.info("task requeued", task=name)
        return _shown(task)

    @api.post("/<name>/move")
    @tag(["tasks"])
    @document_request(MoveRequest)
    @document_example({"to": "first"})
    @document_headers(TaskHeaders)
    @document_response(Order)
    @document_answer_headers(200, {"ETag": ETAG})
    @document_problems(400, 404, 409, 412, 422, 503)
    async def move_task(name: str) -> Response:
        """Put a pending task before or after another one, or first or last."""
        read_query(request, NoQuery)
        wanted = await read_message(request, MoveRequest)
        place = Place(wanted.before, wanted.after, wanted.to)
        tasks = await store.run(task_operations.move_task(name, place, _if_match()), actor(request))
        log.info("task moved", task=name)
        return _with_etag(answer({"pending": tasks.named(TaskStatus.PENDING)}), tasks.get(name))

    return api


def _shown(task: Task, status: int = 200) -> Response:
    """The task in full, with its ETag."""
    return _with_etag(answer(task_view(task), status), task)


def _with_etag(response: Response, task: Task) -> Response:
    response.headers["ETag"] = f'"{task.revision}"'
    return response


def _if_match() -> IfMatch | None:
    """Whether a revision is one that this request's If-Match names; None if there is no such header."""
    values = request.headers.getlist("If-Match")
    if not values:
        return None
    tags = parse_etags(",".join(values))
    return lambda revision: tags.contains_weak(revision)
