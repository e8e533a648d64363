"""What is counted while requests are answered: as cheap as it can be, since it is done for each of them.

The event loop is the only one that counts, so there is nothing to lock; and what is counted by is fixed from
the start, so there is nothing to look up by name. `metrics.py` makes of it what Prometheus reads.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter, OrderedDict
from collections.abc import Iterator, Sequence
from itertools import accumulate

from hub.problems import TYPE_PREFIX
from hub.tasklist import Canary, TaskList

REQUEST_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Seconds: the upper ends of the ranges in which requests are counted."""

SWITCH_BOUNDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
"""Seconds likewise, between a switch and a node's word that it works on what is current then."""

HEARTBEAT, TASK, REGISTER = "gridnode-heartbeat", "gridnode-task", "gridnode-register"

ROUTES = (
    (HEARTBEAT, "/gridnode/heartbeat"),
    (TASK, "/gridnode/task"),
    (REGISTER, "/gridnode/register"),
    ("gridnode-other", "/gridnode/"),
    ("tasks", "/api/tasks"),
    ("nodes", "/api/nodes"),
    ("events", "/api/events"),
    ("problems", "/api/problems"),
    ("api-other", "/api/"),
    ("metrics", "/metrics"),
    ("health", "/health"),
)
"""Classes of routes, and how their paths begin; the first that fits. A path that fits none is `other`."""

LOGS, OTHER = "node-logs", "other"

WAYS = ("fast", "full")
"""How requests are answered: beside the web server, or by it."""

STATUSES = ("1xx", "2xx", "3xx", "4xx", "5xx")

MOST_KINDS = 64
"""Kinds of problems that are told apart."""

MOST_REVISIONS = 8
"""Revisions whose beginning is remembered."""


class Spans:
    """How many spans of time fell into which range, and their sum in seconds."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(self._bounds, seconds)] += 1
        self.total += seconds

    @property
    def count(self) -> int:
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """As Prometheus has them: each counts what the smaller ones count, too."""
        ends = [*map(str, self._bounds), "+Inf"]
        return list(zip(ends, map(float, accumulate(self.counts)), strict=True))


class Requests:
    """How long requests took to be answered, by class of route and of status; and what problems were told."""

    def __init__(self) -> None:
        names = [name for name, _ in ROUTES] + [LOGS, OTHER]
        self._spans = {name: [Spans(REQUEST_BOUNDS) for _ in STATUSES] for name in names}
        # What comes most often is found at once.
        self._exact = {path: self._spans[name] for name, path in ROUTES}
        self._fast = {HEARTBEAT: 0, TASK: 0}
        # What alerts look at is there from the start: what appears with a 1 has not grown for Prometheus.
        self.problems: Counter[str] = Counter({"internal": 0, "store-unavailable": 0})

    def add(self, path: str, status: int, seconds: float) -> None:
        """One more answer."""
        spans = self._exact.get(path) or self._spans[route_of(path)]
        spans[status // 100 - 1].add(seconds)

    def add_fast(self, route: str, status: int, seconds: float) -> None:
        """One more answer that was given on the fast way: to HEARTBEAT or TASK."""
        self._fast[route] += 1
        self._spans[route][status // 100 - 1].add(seconds)

    def add_problem(self, body: bytes) -> None:
        """One more answer that is a problem; `body` is its JSON."""
        kind = str(json.loads(body).get("type", "")).removeprefix(TYPE_PREFIX)
        if kind in self.problems or len(self.problems) < MOST_KINDS:
            self.problems[kind] += 1

    def count(self, route: str, status: str = "2xx") -> int:
        """How many answers of a class of route had this class of status."""
        return self._spans[route][STATUSES.index(status)].count

    def by_way(self) -> Iterator[tuple[str, str, int]]:
        """Route, way and number of all answers; of what nodes ask most there is a number from the start."""
        for route, by_status in self._spans.items():
            count, fast = sum(spans.count for spans in by_status), self._fast.get(route)
            if fast is not None:
                yield route, WAYS[0], fast
            if count or fast is not None:
                yield route, WAYS[1], count - (fast or 0)

    def all(self) -> Iterator[tuple[str, str, Spans]]:
        """Route, status and spans of all that occurred."""
        for route, by_status in self._spans.items():
            for status, spans in zip(STATUSES, by_status, strict=True):
                if spans.count:
                    yield route, status, spans


def route_of(path: str) -> str:
    """The class of a path."""
    if path.startswith("/api/nodes/") and path.endswith("/logs"):
        return LOGS
    return next((name for name, start in ROUTES if path.startswith(start)), OTHER)


class SwitchTimes:
    """How long nodes take to say that they work on what is current: of switches that this hub saw."""

    def __init__(self, tasks: TaskList) -> None:
        self.spans = Spans(SWITCH_BOUNDS)
        self._current = tasks.revision
        self._began: OrderedDict[str, float] = OrderedDict()

    def see(self, tasks: TaskList, now: float) -> None:
        """Something may have changed; what is new begins now, by the monotonic clock."""
        if tasks.revision != self._current:
            self._current = tasks.revision
            self._begin(tasks.revision, now)  # also what was tried before: for the others it begins now
        if tasks.canary is not None and tasks.canary.revision not in self._began:
            self._begin(tasks.canary.revision, now)

    def took_up(self, revision: str, now: float) -> None:
        """A node reports a revision that it did not report before."""
        began = self._began.get(revision)
        # Who was away longer than that did not take long, but came late.
        if began is not None and now - began <= SWITCH_BOUNDS[-1]:
            self.spans.add(now - began)

    def _begin(self, revision: str, now: float) -> None:
        self._began[revision] = now
        while len(self._began) > MOST_REVISIONS:
            self._began.popitem(last=False)


class CanaryResults:
    """What became of the tasks that were tried, by looks at the list."""

    def __init__(self) -> None:
        self.counts = {"healthy": 0, "promoted": 0, "aborted": 0}
        self._before: Canary | None = None

    def see(self, tasks: TaskList) -> None:
        """The list as it is now."""
        before, self._before = self._before, tasks.canary
        if before is None:
            return
        now, current = tasks.canary, tasks.current
        if now is not None and now.task == before.task:
            self.counts["healthy"] += now.is_healthy and not before.is_healthy
        else:
            is_current = current is not None and current.name == before.task
            self.counts["promoted" if is_current else "aborted"] += 1
