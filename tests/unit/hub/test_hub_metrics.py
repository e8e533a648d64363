"""What Prometheus reads: by the application on a store in memory, and by the parts that count."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from quart import Quart, Response

from gridcore.protocol import (
    ContainerReport,
    ExitReport,
    HeartbeatRequest,
    RegisterRequest,
    TaskDefinition,
)
from hub.app import create_app
from hub.errors import StoreUnavailable
from hub.fleet import FleetCounter, count_fleet
from hub.insight import Insight
from hub.operations import add_task, heartbeat, register, start_next
from hub.registry import Node
from hub.settings import HubSettings
from hub.store_local import LocalStore, open_memory
from hub.tallies import SWITCH_BOUNDS, CanaryResults, Requests, SwitchTimes, route_of
from hub.tasklist import Canary, TaskList
from hub.waiters import Waiters

TOKEN = "an-example-secret-of-some-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


class Hub:
    def __init__(self, **options: Any) -> None:
        self.store: LocalStore = open_memory()
        self.waiters = Waiters()
        self.insight = Insight(self.store, self.waiters, **options)
        settings = HubSettings(token=TOKEN, state="memory:")
        self.app: Quart = create_app(settings, self.store, self.waiters, insight=self.insight)

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> Response:
        data = b"" if body is None else json.dumps(body).encode()
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        client = self.app.test_client()
        asked = {"GET": client.get, "POST": client.post}[method]
        response: Response = await asked(path, data=data, headers={**AUTH, **given})
        return response

    async def figures(self) -> dict[str, float]:
        response = await self.ask("GET", "/metrics")
        assert response.status_code == 200
        text = (await response.get_data(as_text=False)).decode()
        return dict(_samples(text))

    async def join(self, node_id: str, architecture: str = "x86_64") -> None:
        request = RegisterRequest(node_id=node_id, hostname="h", architecture=architecture, cpu_count=1)
        await self.store.run(register(request))

    async def beat(self, node_id: str, **fields: Any) -> None:
        body = {"node_id": node_id, "status": "Running", "active_containers": 2, **fields}
        assert (await self.ask("POST", "/gridnode/heartbeat", body)).status_code == 200

    async def switch(self, name: str) -> str:
        await self.store.run(add_task(TaskDefinition(name=name, image="x:1")))
        await self.store.run(start_next(None))
        return (await self.store.tasks()).revision


def _samples(text: str) -> Iterator[tuple[str, float]]:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            yield (f"{sample.name}{{{labels}}}" if labels else sample.name), sample.value


@pytest.fixture
def hub() -> Hub:
    return Hub()


async def test_tasks_nodes_and_heartbeats_are_counted(hub: Hub) -> None:
    await hub.switch("t")
    await hub.join("a")
    await hub.join("b", "aarch64")
    await hub.beat("a")
    figures = await hub.figures()
    assert figures["gridcore_tasks{status=Running}"] == 1
    assert figures["gridcore_current_task{task=t}"] == 1
    assert figures["gridcore_nodes{architecture=x86_64,runtime_status=Running,status=Online}"] == 1
    assert figures["gridcore_nodes{architecture=aarch64,runtime_status=unknown,status=Online}"] == 1
    assert figures["gridcore_containers"] == 2
    assert figures["gridcore_heartbeats_total"] == 1
    assert figures["gridcore_switches_total"] == 1


async def test_made_up_architectures_are_one(hub: Hub) -> None:
    for number in range(50):
        await hub.join(f"n{number}", f"made-up-{number}")
    figures = await hub.figures()
    assert [name for name in figures if name.startswith("gridcore_nodes{")] == [
        "gridcore_nodes{architecture=other,runtime_status=unknown,status=Online}"
    ]


async def test_a_held_request_is_no_slow_one(hub: Hub) -> None:
    asking = asyncio.create_task(
        hub.ask("GET", "/gridnode/task?node_id=a", If_None_Match="*", Prefer="wait=1")
    )
    await asyncio.sleep(0.1)
    assert (await hub.figures())["gridcore_held_requests"] == 1
    assert (await asking).status_code == 304
    figures = await hub.figures()
    assert figures["gridcore_request_seconds_count{route=gridnode-task,status=3xx}"] == 1
    assert figures["gridcore_request_seconds_sum{route=gridnode-task,status=3xx}"] < 0.9


async def test_problems_are_counted_by_type_whoever_tells_them(hub: Hub) -> None:
    await hub.ask("GET", "/api/tasks/nothing")
    await hub.ask("POST", "/api/tasks", {})
    await hub.ask("GET", "/api/tasks", Authorization="Bearer wrong")
    figures = await hub.figures()
    assert figures["gridcore_problems_total{type=unknown-task}"] == 1
    assert figures["gridcore_problems_total{type=invalid-fields}"] == 1
    assert figures["gridcore_problems_total{type=unauthorized}"] == 1


async def test_a_switch_is_timed_by_the_nodes_that_take_it_up(hub: Hub) -> None:
    await hub.join("a")
    revision = await hub.switch("t")
    for _ in range(3):  # only the first of them is news
        await hub.beat("a", generation=revision)
    await hub.beat("a", generation="of-another-hub")
    assert (await hub.figures())["gridcore_switch_seconds_count"] == 1


async def test_a_store_that_is_away_leaves_the_hubs_own_figures(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> TaskList:
        raise StoreUnavailable("it is away")

    monkeypatch.setattr(hub.store, "tasks", away)
    figures = await hub.figures()
    assert figures["gridcore_store_up"] == 0
    assert "gridcore_held_requests" in figures
    assert not [name for name in figures if name.startswith("gridcore_nodes")]


async def test_the_end_of_the_certificate_is_there_where_there_is_one(hub: Hub) -> None:
    assert "gridcore_certificate_expiry_timestamp_seconds" not in await hub.figures()
    figures = await Hub(certificate_ends=lambda: 1e9).figures()
    assert figures["gridcore_certificate_expiry_timestamp_seconds"] == 1e9


async def test_metrics_need_a_token(hub: Hub) -> None:
    assert (await hub.ask("GET", "/metrics", Authorization="Bearer wrong")).status_code == 401


async def test_the_fleet_is_not_counted_for_each_who_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    store, looks = open_memory(), 0
    nodes = store.nodes

    async def counted() -> Any:
        nonlocal looks
        looks += 1
        return await nodes()

    monkeypatch.setattr(store, "nodes", counted)
    counter = FleetCounter(store)
    await asyncio.gather(*(counter.count() for _ in range(20)))
    assert looks == 1


async def test_who_works_on_a_task_is_counted_among_those_online() -> None:
    store = open_memory()
    for node_id, containers in (("a", 3), ("b", 2), ("c", 0)):
        await store.run(
            register(RegisterRequest(node_id=node_id, hostname="h", architecture="x86_64", cpu_count=1))
        )
        report = HeartbeatRequest(
            node_id=node_id, status="Running", active_containers=containers, task="t", generation="1"
        )
        await store.run(heartbeat(report))
    nodes: list[Node] = list(await store.nodes())
    working = count_fleet(nodes).working["t"]
    assert (working.nodes, working.containers) == (2, 5)


async def test_containers_that_were_killed_or_failed_are_counted_by_task() -> None:
    store = open_memory()
    ends = ["failed", "sigkill", "sigkill-unexplained", "removed", "finished", "stopped", "not-started", None]
    for number, kind in enumerate(ends):
        node_id = f"n{number}"
        await store.run(
            register(RegisterRequest(node_id=node_id, hostname="h", architecture="x86_64", cpu_count=1))
        )
        slot = ContainerReport(
            instance=0, state="waiting", restarts=2, last_exit=ExitReport(kind=kind) if kind else None
        )
        await store.run(
            heartbeat(
                HeartbeatRequest(
                    node_id=node_id, status="Error", active_containers=0, task="t", containers=[slot]
                )
            )
        )
    working = count_fleet(list(await store.nodes())).working["t"]
    assert (working.nodes, working.restarts, working.cut_off) == (0, 16, 4)


# --- The parts --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/gridnode/heartbeat", "gridnode-heartbeat"),
        ("/api/tasks/x/progress", "tasks"),
        ("/api/nodes/x/logs", "node-logs"),
        ("/api/tokens", "api-other"),
        ("/made/up", "other"),
        ("*", "other"),
    ],
)
def test_every_path_has_one_of_a_few_classes(path: str, route: str) -> None:
    assert route_of(path) == route


def test_buckets_count_what_the_smaller_ones_count_too() -> None:
    requests = Requests()
    for seconds in (0.001, 0.002, 0.3, 99.0):
        requests.add("/health", 200, seconds)
    ((_, _, spans),) = requests.all()
    buckets = dict(spans.buckets())
    assert (buckets["0.001"], buckets["0.0025"], buckets["0.5"], buckets["10.0"]) == (1, 2, 3, 3)
    assert buckets["+Inf"] == spans.count == 4


@pytest.mark.parametrize(("current", "result"), [("new", "promoted"), ("old", "aborted")])
def test_what_became_of_a_canary_shows_in_the_list(current: str, result: str) -> None:
    tried, _, _ = TaskList.empty(1).add(TaskDefinition(name=current, image="x:1"), 1.0, 0)
    after, _ = tried.start_next(None, 2, 1.0)
    canary = Canary("new", "2-0000000000000002", ("a",), started_at=1.0, healthy_after=60)
    results = CanaryResults()
    for tasks in (after, replace(after, canary=canary), after, after):
        results.see(tasks)
    assert results.counts == {"healthy": 0, "promoted": 0, "aborted": 0, result: 1}


def test_a_node_that_comes_late_did_not_take_long() -> None:
    before, after = TaskList.empty(1), TaskList.empty(2)
    times = SwitchTimes(before)
    times.see(after, 100.0)
    times.see(after, 105.0)  # nothing new
    times.took_up(after.revision, 101.0)
    times.took_up(after.revision, 100.0 + SWITCH_BOUNDS[-1] + 1)
    times.took_up(before.revision, 101.0)
    assert (times.spans.count, times.spans.total) == (1, 1.0)
