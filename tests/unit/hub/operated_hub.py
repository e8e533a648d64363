"""A hub in memory with a clock that can be moved, and short words for what operators and nodes say to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from quart import Quart, Response

from hub.app import create_app
from hub.events import EventQuery
from hub.news import News
from hub.serve import look_at_canary
from hub.settings import HubSettings
from hub.store_local import LocalStore, open_memory
from hub.waiters import Waiters
from tests.contract.store_kinds import Clock

TOKEN = "an-example-secret-of-some-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
RETENTION = 30 * 86_400.0


class OperatedHub:
    """The application over a store in memory."""

    def __init__(self, *, news: News | None = None, **settings: Any) -> None:
        self.clock = Clock()
        self.store: LocalStore = open_memory(clock=self.clock.read)
        self.clock.watch = self.store.observe
        self.waiters = Waiters()
        configured = HubSettings(token=TOKEN, state="memory:", **settings)
        self.app: Quart = create_app(configured, self.store, self.waiters, news=news)

    async def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Response:
        data = b"" if body is None else json.dumps(body).encode()
        call = getattr(self.app.test_client(), method.lower())
        response: Response = await call(path, data=data, headers={**AUTH, **(headers or {})})
        return response

    async def do(self, method: str, path: str, body: object = None, **headers: str) -> Any:
        """The answer to what must succeed; in `headers` a `_` stands for a `-`."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.ask(method, path, body, named)
        assert response.status_code in (200, 201, 204), await response.get_data()
        return await response.get_json() if response.status_code != 204 else None

    async def refused(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """The status and the problem that answer what must be refused."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        response = await self.ask(method, path, body, named)
        assert response.content_type == "application/problem+json"
        problem = await response.get_json()
        return response.status_code, problem["type"].rpartition(":")[2] if "errors" not in problem else {
            error["field"]: error["message"] for error in problem["errors"]
        }

    async def add(self, *names: str, **fields: Any) -> None:
        for name in names:
            await self.do("POST", "/api/tasks", {"name": name, "image": f"{name}:1", **fields})

    async def join(
        self, *node_ids: str, architecture: str = "aarch64", version: str | None = "1", **more: Any
    ) -> None:
        for node_id in node_ids:
            facts = {"hostname": f"host-{node_id}", "architecture": architecture, "cpu_count": 4}
            await self.do(
                "POST", "/gridnode/register", {"node_id": node_id, **facts, "agent_version": version, **more}
            )

    async def beat(self, node_id: str, status: str = "Idle", **fields: Any) -> Any:
        body = {"node_id": node_id, "status": status, "active_containers": 0, **fields}
        return await self.do("POST", "/gridnode/heartbeat", body)

    async def given(self, node_id: str | None = None) -> tuple[str, str | None]:
        """The revision and the task that a node is told."""
        query = f"&node_id={node_id}" if node_id else ""
        response = await self.ask("GET", f"/gridnode/task?platform=linux/arm64{query}")
        task = await response.get_json()
        return response.headers["ETag"].strip('"'), task and task["task_name"]

    async def run_it(self, *node_ids: str) -> None:
        """Nodes report that they run what they are given."""
        for node_id in node_ids:
            revision, task = await self.given(node_id)
            await self.beat(node_id, "Running", task=task, generation=revision)

    async def tasks(self) -> Any:
        return await self.do("GET", "/api/tasks")

    async def node(self, node_id: str) -> Any:
        return await self.do("GET", f"/api/nodes/{node_id}")

    async def sweep(self, seconds: float = 0) -> None:
        """What the hub does by itself, some time later."""
        self.clock.advance(seconds)
        await self.store.sweep(RETENTION)
        await look_at_canary(self.store)

    async def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Those of these kinds, the oldest first: kind, task and node beside the detail."""
        found = await self.store.events(EventQuery(kinds=frozenset(kinds), limit=1000))
        return [
            {"kind": item.event.kind, "task": item.event.task, "node": item.event.node, **item.event.detail}
            for item in reversed(found)
        ]
