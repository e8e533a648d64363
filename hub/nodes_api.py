"""Nodes for operators, under `/api/nodes`: what they do, their logs, orders; and what goes wrong."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import structlog
from quart import Blueprint, Response, request
from quart_schema import document_querystring, document_request, document_response, tag

from gridcore.orders import NodeSelection
from gridcore.platforms import canonical_platform
from hub import node_operations, operations, token_operations
from hub.bodies import read_message, read_query, refuse_broken_text
from hub.causes import find_causes, recent_since
from hub.description import document_example, document_text
from hub.door import actor
from hub.errors import InvalidFields, NodeOffline, NoLog, NotSupported, PartlyDone, StoreUnavailable
from hub.events import Actor, name_nodes
from hub.logdesk import Desk
from hub.node_messages import (
    CauseList,
    LogQuery,
    NodeFilters,
    NodeList,
    NodeOrders,
    NodeView,
    OrderedNodes,
)
from hub.node_operations import CHUNK, ManyOrder, Ordered
from hub.operators import (
    NoBody,
    NoQuery,
    answer,
    answer_list,
    document_problems,
    no_content,
    read_nothing,
)
from hub.redaction import hiding
from hub.registry import Node
from hub.store import Store
from hub.views import cause_view, node_view

NODE_STATUSES = ("Online", "Offline")
NODE_FILTERS = ("status", "architecture", "platform", "label")

LOG_HEADERS = {
    # A log is whatever a container wrote: no browser may take it for a page, no proxy keep it.
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

log = structlog.get_logger()


def nodes_api(store: Store, desk: Desk) -> Blueprint:
    """The routes, over this store; at the `desk` operators wait for logs."""
    api = Blueprint("nodes", __name__, url_prefix="/api")
    listing = asyncio.Lock()

    @api.get("/nodes")
    @tag(["nodes"])
    @document_querystring(NodeFilters)
    @document_response(NodeList)
    @document_problems(422)
    async def list_nodes() -> Response:
        """All nodes, offline ones too; `?status=`, `?architecture=`, `?platform=` and `?label=k=v` select."""
        is_asked = _Filter()
        tasks, nodes = await store.tasks(), await store.nodes()
        hide = hiding(tasks)

        def views() -> Response:
            return answer_list(node_view(node, tasks, hide) for node in nodes if is_asked(node))

        # Thousands of nodes take their time, and heartbeats must not wait for it: however many people ask.
        async with listing:
            return await asyncio.to_thread(views)

    @api.post("/nodes/drain")
    @tag(["nodes"])
    @document_request(NodeSelection)
    @document_example({"architecture": "aarch64", "labels": {"room": "1"}})
    @document_response(OrderedNodes)
    @document_problems(400, 422, 503)
    async def drain_nodes() -> Response:
        """Have many nodes stop their containers and stay registered, until `resume`."""
        return await _order(await read_message(request, NodeSelection), "drain")

    @api.post("/nodes/resume")
    @tag(["nodes"])
    @document_request(NodeSelection)
    @document_example({"all": True})
    @document_response(OrderedNodes)
    @document_problems(400, 422, 503)
    async def resume_nodes() -> Response:
        """Take back the drain of many nodes, and stops that they have not been told of."""
        return await _order(await read_message(request, NodeSelection), "resume")

    async def _order(wanted: NodeSelection, order: ManyOrder) -> Response:
        read_query(request, NoQuery)
        nodes = await store.nodes()
        node_ids = await asyncio.to_thread(node_operations.select, nodes, wanted)
        done = await order_all(store, node_ids, order, wanted, actor(request))
        log.info(f"{order} ordered", **name_nodes(list(done.changed)))
        skipped = [{"id": node_id, "why": why} for node_id, why in done.skipped.items()]
        changed = list(done.changed)
        return answer(
            {"nodes": changed, "count": len(changed), "unchanged": done.unchanged, "skipped": skipped}
        )

    @api.delete("/nodes/<node_id>")
    @tag(["nodes"])
    @document_response(NoBody, 204)
    @document_problems(400, 404, 409, 422, 503)
    async def forget_node(node_id: str) -> Response:
        """Forget a node that is Offline; its own tokens end with it."""
        await read_nothing(request)
        own = token_operations.bound_to([node_id], await store.tokens())
        node = await store.run(node_operations.forget_node(node_id, own), actor(request))
        log.info("node forgotten", node=node_id, hostname=node.record.hostname)
        return no_content(204)

    @api.get("/nodes/<node_id>")
    @tag(["nodes"])
    @document_response(NodeView)
    @document_problems(404)
    async def show_node(node_id: str) -> Response:
        """One node."""
        node, tasks = await store.node(node_id), await store.tasks()
        return answer(node_view(node, tasks, hiding(tasks)))

    @api.post("/nodes/<node_id>/stop")
    @tag(["nodes"])
    @document_response(NodeOrders)
    @document_problems(404, 503)
    async def stop_node(node_id: str) -> Response:
        """Ask a node to stop all its containers and exit."""
        node = await store.run(operations.order_stop(node_id), actor(request))
        log.info("stop ordered", node=node.record.id, hostname=node.record.hostname)
        return answer({"node_id": node.record.id, "stop_requested": node.stop_requested})

    @api.post("/nodes/<node_id>/drain")
    @tag(["nodes"])
    @document_response(NodeOrders)
    @document_problems(404, 409, 503)
    async def drain_node(node_id: str) -> Response:
        """Have a node stop its containers and stay registered, until `resume`."""
        node = await store.run(operations.order_drain(node_id), actor(request))
        log.info("drain ordered", node=node.record.id, hostname=node.record.hostname)
        return answer(_orders(node))

    @api.post("/nodes/<node_id>/resume")
    @tag(["nodes"])
    @document_response(NodeOrders)
    @document_problems(404, 503)
    async def resume_node(node_id: str) -> Response:
        """Take back a drain, and a stop that the node has not been told of."""
        node = await store.run(operations.order_resume(node_id), actor(request))
        log.info("resume ordered", node=node.record.id, hostname=node.record.hostname)
        return answer(_orders(node))

    @api.get("/nodes/<node_id>/logs")
    @tag(["nodes"])
    @document_querystring(LogQuery)
    @document_text("text/plain", "The lines.")
    @document_problems(404, 409, 422, 429, 503, 504)
    async def show_node_log(node_id: str) -> Response:
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
        return Response(text, headers=LOG_HEADERS, content_type="text/plain; charset=utf-8")

    @api.get("/problems")
    @tag(["nodes"])
    @document_response(CauseList)
    @document_problems(422)
    async def list_problems() -> Response:
        """What goes wrong now on the nodes that are Online, grouped by cause, the most frequent first."""
        read_query(request, NoQuery)
        tasks, nodes = await store.tasks(), await store.nodes()
        now = time.time()
        since = recent_since(now, tasks.current.started_at if tasks.current else None)
        running = {task.name for task in tasks.tried_or_current}
        causes = await asyncio.to_thread(find_causes, nodes, since, now, hiding(tasks), running)
        return answer([cause_view(cause) for cause in causes])

    return api


async def order_all(
    store: Store, node_ids: list[str], order: ManyOrder, wanted: NodeSelection, by: Actor
) -> Ordered:
    """Order all of these nodes, in parts; one event tells of them, in the first part's transaction.

    Raises:
        StoreUnavailable: nothing has changed.
        PartlyDone: the state was lost after the first part.
    """
    done = Ordered()
    selection = wanted.model_dump(exclude_none=True, exclude={"nodes"}, exclude_defaults=True)
    told: dict[str, Any] | None = {"selection": selection, **name_nodes(node_ids)}
    for start in range(0, len(node_ids), CHUNK):
        part = tuple(node_ids[start : start + CHUNK])
        try:
            done += await store.run(node_operations.order_many(part, order, told), by)
        except StoreUnavailable:
            if start == 0:
                raise
            raise PartlyDone(start, len(node_ids)) from None
        told = None
    return done


def _orders(node: Node) -> dict[str, Any]:
    return {
        "node_id": node.record.id,
        "draining": node.draining,
        "stop_requested": node.stop_requested,
    }


class _Filter:
    """Which nodes the query of this request asks for.

    Raises InvalidFields: a misspelt filter would answer with nodes that nobody asked for.
    """

    def __init__(self) -> None:
        refuse_broken_text(request)
        known = ", ".join(NODE_FILTERS)
        errors = [
            {"field": name[:80], "message": f"unknown filter; known are {known}"}
            for name in request.args
            if name not in NODE_FILTERS
        ]
        self._statuses = frozenset(request.args.getlist("status"))
        if not self._statuses <= frozenset(NODE_STATUSES):
            errors.append({"field": "status", "message": f"expected {' or '.join(NODE_STATUSES)}"})
        labels = [label.partition("=") for label in request.args.getlist("label")]
        if not all(name and sign for name, sign, _ in labels):
            errors.append({"field": "label", "message": "expected NAME=VALUE"})
        if errors:
            raise InvalidFields(errors)
        self._labels = [(name, value) for name, _, value in labels]
        self._architectures = frozenset(request.args.getlist("architecture"))
        self._platforms = frozenset(map(canonical_platform, request.args.getlist("platform")))

    def __call__(self, node: Node) -> bool:
        record = node.record
        return (
            (not self._statuses or ("Online" if node.is_online else "Offline") in self._statuses)
            and (not self._architectures or record.architecture in self._architectures)
            and (not self._platforms or record.platform in self._platforms)
            and all(record.labels.get(name) == value for name, value in self._labels)
        )
