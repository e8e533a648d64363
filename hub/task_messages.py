"""What the task routes take and answer, as /openapi.json describes it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, RootModel

from gridcore.orders import CanaryRequest
from gridcore.protocol import AutoFinish, TaskGuard
from hub.tasklist import TaskStatus


class NextBody(RootModel[TaskGuard | CanaryRequest]):
    """What `next` takes: nothing, a guard, or on how many nodes to try the task first."""


class TaskPatch(BaseModel):
    """A JSON merge patch (RFC 7396) of a definition: any of its fields but `name`; null takes one away."""

    model_config = ConfigDict(extra="allow")

    image: str | None = None
    images: dict[str, str | None] | None = None
    input_redis: str | None = None
    output_redis: str | None = None
    input_queue: str | None = None
    output_queue: str | None = None
    env: dict[str, str | None] | None = None
    command: list[str] | None = None
    memory: int | None = None
    parallelism: int | None = None
    gpus: int | None = None
    stop_timeout: float | None = None
    pull_policy: Literal["missing", "always"] | None = None
    auto_finish: AutoFinish | None = None


class TaskHeaders(BaseModel):
    """What guards a change of a task."""

    if_match: str | None = None
    """The ETag of the task as it was looked at: 412 if it has changed since."""


class AbortedView(BaseModel):
    """How a try of a task ended."""

    at: str
    reason: str
    nodes: int


class TaskView(BaseModel):
    """A task as answers show it: its definition with secrets as `***`, and what became of it."""

    name: str
    image: str | None
    images: dict[str, str] | None
    input_redis: str | None
    output_redis: str | None
    input_queue: str | None
    output_queue: str | None
    env: dict[str, str] | None
    command: list[str] | None
    memory: int | None
    parallelism: int | None
    gpus: int | None
    stop_timeout: float | None
    pull_policy: Literal["missing", "always"] | None
    auto_finish: AutoFinish | None
    status: TaskStatus
    added_at: str
    started_at: str | None
    completed_at: str | None
    earlier: int
    """How many former definitions `revert` can go back to."""
    aborted: AbortedView | None
    """When and why the last try came to nothing, until the task is changed, tried again or started."""
    revision: str
    """Changes with every change of the task: what `If-Match` takes, and its ETag."""


class CanaryView(BaseModel):
    """A task that is tried."""

    task: str
    state: str
    nodes: list[str]
    wanted: int
    generation: str
    started_at: str
    up_since: str | None
    healthy_after: float
    start_within: float


class TaskListView(BaseModel):
    """The list."""

    current: str | None
    pending: list[str]
    completed: list[str]
    generation: str
    held: bool
    fleet_redis: bool
    """Whether tasks may name the fleet's Redis."""
    canary: CanaryView | None
    tasks: list[TaskView]


class Order(BaseModel):
    """The pending tasks, in their order."""

    pending: list[str]


class Held(BaseModel):
    """Whether the fleet is held, and what is current."""

    held: bool
    current: str | None


class Switched(BaseModel):
    """What was current, and what is."""

    previous: str | None
    current: str | None


class Started(Switched):
    """The same; where the next task is tried first, both are what is current, and `canary` is there."""

    canary: CanaryView | None = None
    message: str | None = None


class Finished(BaseModel):
    """What is completed, and what has started in its place."""

    completed: str
    started: str | None
    message: str


class Aborted(BaseModel):
    """What is not tried any more, on which nodes it was, and what is current."""

    aborted: str
    nodes: list[str]
    current: str | None
