"""The nodes' half of the API, under `/gridnode`: the only answers that carry a task's real secrets."""

from __future__ import annotations

import asyncio

import structlog
from pydantic import BaseModel, RootModel
from quart import Blueprint, Response, request
from quart_schema import document_headers, document_querystring, document_request, document_response, tag

from gridcore.platforms import DEFAULT_PLATFORM, canonical_platform
from gridcore.protocol import (
    DeregisterRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    LogsMessage,
    NodeId,
    RegisterAnswer,
    RegisterRequest,
    TaskConfig,
)
from hub import token_operations
from hub.bodies import read_message
from hub.description import document_answer_headers, document_empty, document_example
from hub.door import actor
from hub.logdesk import Desk
from hub.longpoll import Known, parse_wait
from hub.node_calls import NODE_ID, NUDGE, Found, NodeCalls, Question, config_of, spread
from hub.operators import answer, no_content
from hub.roles import insist_on

ETAG = ("The revision of what is current.", True)
NUDGE_NAME = NUDGE[0]
NUDGE_TEXT = ("`now`: an order waits for this node, which its next heartbeat is told.", False)

log = structlog.get_logger()


class TaskQuery(BaseModel):
    """Who asks."""

    platform: str = DEFAULT_PLATFORM
    node_id: NodeId | None = None


class TaskHeaders(BaseModel):
    """What makes it a held request."""

    if_none_match: str | None = None
    """The ETag of the last answer."""
    prefer: str | None = None
    """`wait=N`: seconds that the hub may hold the request; 50 at most."""


class GivenTask(RootModel[TaskConfig | None]):
    """What the node is to run; null where there is nothing."""


def gridnode_api(calls: NodeCalls, desk: Desk, *, token_ttl: float) -> Blueprint:
    """The routes; nodes' own tokens count `token_ttl` seconds."""
    api = Blueprint("gridnode", __name__, url_prefix="/gridnode")
    store, waiters = calls.store, calls.waiters

    @api.post("/register")
    @tag(["gridnode"])
    @document_request(RegisterRequest)
    @document_example({"node_id": None, "hostname": "pi-1", "architecture": "aarch64", "cpu_count": 4})
    @document_response(RegisterAnswer)
    async def register_node() -> Response:
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
        tasks = await store.tasks()
        task = config_of(tasks, tasks.assigned(node.record.id), node.record.platform)
        without_token = None if reply.token else {"token"}
        wire = reply.model_dump(mode="json", exclude=without_token)
        return answer({**wire, "current_task": task.to_wire() if task else None})

    @api.post("/heartbeat")
    @tag(["gridnode"])
    @document_request(HeartbeatRequest)
    @document_example({"node_id": "pi-1", "status": "Idle", "active_containers": 0})
    @document_response(HeartbeatAnswer)
    async def send_heartbeat() -> Response:
        """Note what a node reports, and tell it what is wanted of it."""
        message = await read_message(request, HeartbeatRequest)
        insist_on(actor(request), message.node_id)
        return answer(await calls.heartbeat(message, actor(request)))

    @api.post("/logs")
    @tag(["gridnode"])
    @document_request(LogsMessage)
    @document_example({"node_id": "pi-1", "id": "5f1c", "text": "what it wrote\n"})
    @document_empty(204, "Taken, or not needed any more.")
    async def bring_logs() -> Response:
        """The log that an operator waits for; 204, also when nobody waits any more. Up to 1 MiB."""
        message = await read_message(request, LogsMessage, any_text=True)
        insist_on(actor(request), message.node_id)
        await desk.answer(message)
        return no_content(204)

    @api.get("/task")
    @tag(["gridnode"])
    @document_querystring(TaskQuery)
    @document_headers(TaskHeaders)
    @document_response(GivenTask)
    @document_empty(304, "What is current is what `If-None-Match` names, and the wait is over.")
    @document_answer_headers(200, {"ETag": ETAG})
    @document_answer_headers(304, {"ETag": ETAG, NUDGE_NAME: NUDGE_TEXT})
    async def show_assigned_task() -> Response:
        """What is current for a platform and node; held with `If-None-Match` and `Prefer: wait=N`."""
        node_id = request.args.get("node_id", "")
        platform = canonical_platform(request.args.get("platform") or DEFAULT_PLATFORM)
        # An id that cannot be one is no reason to leave a node without its task.
        asker = node_id if NODE_ID.fullmatch(node_id) else None
        if asker is not None:
            insist_on(actor(request), asker)
        arrival = calls.given(store.latest_tasks, asker).revision
        known = Known(",".join(request.headers.getlist("If-None-Match")), arrival)
        wait = spread(parse_wait(",".join(request.headers.getlist("Prefer"))))
        found = await _find(Question(asker, platform, known), wait)
        headers = {"ETag": f'"{found.given.revision}"', **(dict([NUDGE]) if found.is_nudge else {})}
        if not found.is_new:
            return no_content(304, headers)
        return Response(calls.body(found, platform), headers=headers, content_type="application/json")

    async def _find(question: Question, wait: float) -> Found:
        """What is current once the client does not know it, its node is to be nudged, or time is up."""
        deadline = asyncio.get_running_loop().time() + wait
        with waiters.holding(question.asker) as waiter:
            found = await calls.arrive(question, may_hold=wait > 0)
            while found is None:
                await waiter.wait(deadline)
                if deadline <= asyncio.get_running_loop().time():
                    return calls.over(question)
                found = await calls.look(question)
        return found

    @api.post("/deregister")
    @tag(["gridnode"])
    @document_request(DeregisterRequest)
    @document_example({"node_id": "pi-1"})
    @document_empty(204, "The node is Offline, or was not known.")
    async def deregister_node() -> Response:
        """The last act of a node that stops: it is Offline now."""
        message = await read_message(request, DeregisterRequest)
        insist_on(actor(request), message.node_id)
        node = await calls.deregister(message.node_id, actor(request))
        if node is not None:
            log.info("node left", node=node.record.id, hostname=node.record.hostname)
        return no_content(204)

    return api
