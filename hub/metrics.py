"""What Prometheus reads of a hub. Everything is worked out when it asks, from what was counted meanwhile.

Figures of the hub itself (requests, held requests, memory) are of this process. Those of the fleet (tasks,
nodes, queues) are of the state that several hubs share: each shows the same ones, so they are not added up.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, PlatformCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from gridcore import __version__
from hub.errors import StateLost, StoreUnavailable
from hub.fleet import Fleet, FleetCounter
from hub.store import Store
from hub.tallies import HEARTBEAT, REGISTER, CanaryResults, Requests, SwitchTimes
from hub.tasklist import TaskList, TaskStatus
from hub.waiters import Waiters
from hub.watch import Watch

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""What Prometheus has understood at all times."""

CANARY_STATES = ("starting", "up", "healthy")


@dataclass
class Counts:
    """What the hub's loops count."""

    store_failures: int = 0
    """Steps that a loop could not do, as the state could not be written or read."""
    swept: Counter[str] = field(default_factory=Counter)
    """Nodes that sweeps called `offline` or `forgotten`."""
    last_sweep: dict[str, int] = field(default_factory=lambda: {"offline": 0, "forgotten": 0})
    notifications: Counter[str] = field(default_factory=lambda: Counter(delivered=0, dropped=0))
    """Notifications that were `delivered` or `dropped`."""

    def sweep(self, silent: int, forgotten: int) -> None:
        """A sweep found so many nodes."""
        self.last_sweep = {"offline": silent, "forgotten": forgotten}
        self.swept.update(self.last_sweep)


@dataclass(frozen=True)
class _Moment:
    """The state at a scrape; `tasks` is None where it could not be read."""

    tasks: TaskList | None = None
    fleet: Fleet = field(default_factory=Fleet)
    held_requests: int = 0
    is_lost: bool = False


class Metrics:
    """A registry of its own, and its text."""

    def __init__(
        self,
        store: Store,
        fleet: FleetCounter,
        watch: Watch,
        waiters: Waiters,
        *,
        certificate_ends: Callable[[], float] | None = None,
    ) -> None:
        """`certificate_ends` says when the hub's certificate does, in seconds since the epoch."""
        self.requests = Requests()
        self.switches = SwitchTimes(store.latest_tasks)
        self.canaries = CanaryResults()
        self.counts = Counts()
        self._store = store
        self._fleet = fleet
        self._watch = watch
        self._waiters = waiters
        self._certificate_ends = certificate_ends
        self._turn = asyncio.Lock()
        self._moment = _Moment()
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)
        self._registry.register(_Families(self._families))

    async def text(self) -> bytes:
        """All metrics in Prometheus' text format; those of the state are missing where it cannot be read."""
        async with self._turn:
            held = len(self._waiters)
            try:
                moment = _Moment(await self._store.tasks(), await self._fleet.count(), held)
            except StoreUnavailable as error:
                moment = _Moment(held_requests=held, is_lost=isinstance(error, StateLost))
            self._moment = moment
            return await asyncio.to_thread(generate_latest, self._registry)

    def _families(self) -> Iterator[Metric]:
        yield InfoMetricFamily("gridcore_build", "The hub's version.", {"version": __version__})
        yield from self._of_this_hub()
        yield from self._of_switches()
        tasks, fleet = self._moment.tasks, self._moment.fleet
        yield _gauge("gridcore_store_up", "Whether the state could be read.", float(tasks is not None))
        yield _gauge(
            "gridcore_state_lost",
            "Whether what keeps the state holds another one than the hub knows.",
            float(self._moment.is_lost),
        )
        if tasks is not None:
            yield from _of_tasks(tasks)
            yield from _of_nodes(fleet)
            yield from self._of_queues(tasks)

    def _of_this_hub(self) -> Iterator[Metric]:
        spans = HistogramMetricFamily(
            "gridcore_request_seconds",
            "From a request's arrival to the beginning of its answer, less what it was held on purpose.",
            labels=["route", "status"],
        )
        for route, status, found in self.requests.all():
            spans.add_metric([route, status], found.buckets(), found.total)
        yield spans
        ways = CounterMetricFamily(
            "gridcore_requests",
            "Answers, by route and way: fast is beside the web server, full is by it.",
            labels=["route", "way"],
        )
        for route, way, count in self.requests.by_way():
            ways.add_metric([route, way], count)
        yield ways
        yield _counter("gridcore_heartbeats", "Heartbeats answered.", self.requests.count(HEARTBEAT))
        yield _counter("gridcore_registrations", "Registrations answered.", self.requests.count(REGISTER))
        yield _gauge("gridcore_held_requests", "Requests that are held now.", self._moment.held_requests)
        yield _counters(
            "gridcore_problems", "Answers that are problems, by type.", "type", dict(self.requests.problems)
        )
        counts = self.counts
        yield _counter(
            "gridcore_store_failures",
            "Steps of the hub's own loops that failed since the state could not be read or written.",
            counts.store_failures,
        )
        yield _counters("gridcore_swept_nodes", "Nodes that sweeps found, by what.", "what", counts.swept)
        yield _gauges("gridcore_last_sweep_nodes", "Nodes of the last sweep.", "what", counts.last_sweep)
        yield _counters(
            "gridcore_notifications", "Notifications, by outcome.", "outcome", counts.notifications
        )
        yield _counter("gridcore_auto_finished", "Tasks that this hub finished itself.", self._watch.finished)
        if self._certificate_ends is not None:
            yield _gauge(
                "gridcore_certificate_expiry_timestamp_seconds",
                "When the hub's certificate ends.",
                self._certificate_ends(),
            )

    def _of_switches(self) -> Iterator[Metric]:
        results = self.canaries.counts
        yield _counters("gridcore_canaries", "What became of canaries, by result.", "result", results)
        spans = self.switches.spans
        yield HistogramMetricFamily(
            "gridcore_switch_seconds",
            "From a switch to a node's report that it works on what is current then.",
            buckets=spans.buckets(),
            sum_value=spans.total,
        )

    def _of_queues(self, tasks: TaskList) -> Iterator[Metric]:
        current = tasks.current
        sample = self._watch.latest(current) if current else None
        lengths = GaugeMetricFamily(
            "gridcore_queue_length", "Items in the current task's queues, where known.", labels=["queue"]
        )
        known = GaugeMetricFamily(
            "gridcore_queue_known", "Whether the queue's length is known.", labels=["queue"]
        )
        if sample is not None:
            for name, seen in (("input", sample.queues.input), ("output", sample.queues.output)):
                known.add_metric([name], float(seen.items is not None))
                if seen.items is not None:
                    lengths.add_metric([name], seen.items)
        yield lengths
        yield known
        quiet = self._watch.quiet
        yield _gauge(
            "gridcore_quiet_seconds",
            "How long the current task's queues have stood still, where it has auto_finish.",
            quiet.lasted if quiet else 0.0,
        )


class _Families(Collector):
    def __init__(self, families: Callable[[], Iterator[Metric]]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        return self._families()

    def describe(self) -> list[Metric]:
        return []  # nothing needs to be collected to register this


def _of_tasks(tasks: TaskList) -> Iterator[Metric]:
    counts = Counter(task.status for task in tasks.tasks)
    by_status = {status.value: counts[status] for status in TaskStatus}
    yield _gauges("gridcore_tasks", "Tasks, by status.", "status", by_status)
    current = tasks.current
    running = GaugeMetricFamily("gridcore_current_task", "1 for the task that is current.", labels=["task"])
    if current is not None:
        running.add_metric([current.name], 1)
        since = current.started_at or time.time()
        yield _gauge("gridcore_current_task_started_timestamp_seconds", "When it was started.", since)
    yield running
    # The counter in front of a revision: it only grows, whichever hub switched, and over restarts.
    switches = int(tasks.revision.partition("-")[0])
    yield _counter("gridcore_switches", "Changes of what the fleet is given, ever.", switches)
    yield _gauge("gridcore_held", "Whether the fleet is held.", float(tasks.is_held))
    state = tasks.canary.state if tasks.canary else None
    states = {name: int(name == state) for name in CANARY_STATES}
    yield _gauges("gridcore_canary", "1 for the state of the canary that is under way.", "state", states)
    wanted = current.definition.auto_finish if current else None
    yield _gauge(
        "gridcore_auto_finish_seconds",
        "The current task's auto_finish, 0 where it has none.",
        wanted.idle if wanted else 0.0,
    )


def _of_nodes(fleet: Fleet) -> Iterator[Metric]:
    nodes = GaugeMetricFamily(
        "gridcore_nodes",
        "Nodes, by status, architecture and what they say of themselves.",
        labels=["status", "architecture", "runtime_status"],
    )
    for kind, count in fleet.kinds.items():
        nodes.add_metric(list(kind), count)
    yield nodes
    yield _gauge("gridcore_nodes_online", "Nodes that are Online.", fleet.online)
    yield _gauge("gridcore_nodes_failing", "Nodes that are Online and in Error.", fleet.failing)
    yield _gauge("gridcore_nodes_draining", "Nodes that are drained.", fleet.draining)
    yield _gauge("gridcore_containers", "Containers that run on nodes that are Online.", fleet.containers)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family
