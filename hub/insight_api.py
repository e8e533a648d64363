"""How things go, for people and for Prometheus: a task's progress, and `/metrics`."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from quart import Blueprint, Response, request
from quart_schema import document_response, tag

from gridcore.masking import mask_text
from hub.bodies import read_query
from hub.description import document_text
from hub.fleet import Working
from hub.insight import Insight
from hub.metrics import CONTENT_TYPE
from hub.operators import NoQuery, answer, document_problems
from hub.progress import Sample, seconds_left
from hub.queues import Length
from hub.store import Store
from hub.tasklist import Task
from hub.views import rfc3339


@dataclass(frozen=True)
class QueueView:
    """One of a task's queues: its length, or null and the reason why that is not known."""

    queue: str | None
    length: int | None
    reason: str | None


@dataclass(frozen=True)
class ProgressView:
    """How far a task has come: items a second, seconds left; null where that is not known."""

    task: str
    status: str
    input: QueueView
    output: QueueView
    rate: float | None
    left_seconds: float | None
    sampled_at: str
    nodes: int
    containers: int
    restarts: int
    cut_off: int
    may_be_lost: str | None
    """Whether containers were killed or failed, and what that may have cost."""


def insight_api(store: Store, insight: Insight) -> Blueprint:
    """The routes, over this store and what the hub knows besides."""
    api = Blueprint("insight", __name__)

    @api.get("/api/tasks/<name>/progress")
    @tag(["tasks"])
    @document_response(ProgressView)
    @document_problems(404, 422, 503)
    async def show_task_progress(name: str) -> Response:
        """How long a task's queues are now, how fast it goes, and when it is done; looks at its Redis."""
        read_query(request, NoQuery)
        task = (await store.tasks()).get(name)
        history = await insight.watch.look(task)
        working = (await insight.fleet.count()).working.get(name, Working())
        latest = history.latest
        assert latest is not None, "a look was made"  # noqa: S101  for mypy
        return answer(asdict(progress_view(task, latest, history.rate(), working)))

    @api.get("/metrics")
    @tag(["metrics"])
    @document_text("text/plain", "The figures.")
    @document_problems(422)
    async def show_metrics() -> Response:
        """All figures in Prometheus' text format."""
        read_query(request, NoQuery)
        return Response(await insight.metrics.text(), content_type=CONTENT_TYPE)

    return api


def progress_view(task: Task, sample: Sample, rate: float | None, working: Working) -> ProgressView:
    """A task's progress as operators see it."""
    definition, queues = task.definition, sample.queues
    left = seconds_left(queues.input.items, rate)
    return ProgressView(
        task=task.name,
        status=task.status.value,
        input=_queue_view(definition.input_queue, queues.input),
        output=_queue_view(definition.output_queue, queues.output),
        rate=None if rate is None else round(rate, 3),
        left_seconds=None if left is None else round(left, 1),
        sampled_at=rfc3339(sample.wall),
        nodes=working.nodes,
        containers=working.containers,
        restarts=working.restarts,
        cut_off=working.cut_off,
        may_be_lost=_what_may_be_lost(working),
    )


def _what_may_be_lost(working: Working) -> str | None:
    if not working.cut_off:
        return None
    return (
        f"{working.cut_off} or more containers were killed or failed (the last ones of as many slots; of "
        f"{working.restarts} restarts in all). A worker loses what it has in hand then: an item, or a batch"
    )


def _queue_view(name: str | None, seen: Length) -> QueueView:
    return QueueView(None if name is None else mask_text(name), seen.items, seen.reason)
