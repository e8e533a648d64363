"""What the node routes take and answer, as /openapi.json describes it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, RootModel, StringConstraints

from gridcore.protocol import MAX_LOG_LINES, NodeRuntimeStatus


class LogQuery(BaseModel):
    """Which log of a node: its slot, how many lines of it, and how many runs ago (0: the present one)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    instance: int = Field(default=0, ge=0, le=65_535)
    lines: int = Field(default=200, ge=1, le=MAX_LOG_LINES)
    previous: int = Field(default=0, ge=0, le=3)


class NodeFilters(BaseModel):
    """Which nodes: each filter may be given more than once, `label` as NAME=VALUE."""

    status: list[Literal["Online", "Offline"]] = []
    architecture: list[str] = []
    platform: list[str] = []
    label: list[Annotated[str, StringConstraints(pattern="^[^=]+=")]] = []


class LastExitView(BaseModel):
    """How a slot's last container ended."""

    kind: str
    exit_code: int | None
    message: str | None
    time: str
    ran: float
    """Seconds."""


class ContainerView(BaseModel):
    """One slot of a node."""

    instance: int
    cpu: int | None
    state: str
    started: str | None
    restarts: int
    last_exit: LastExitView | None


class NodeErrorView(BaseModel):
    """One thing that went wrong on a node; without `instance` it concerns all of it."""

    instance: int | None
    kind: str
    message: str
    time: str
    task: str | None
    """Whose container it is about."""


class NodeView(BaseModel):
    """A node as answers show it; times in RFC 3339, texts of its own with every secret masked."""

    id: str
    hostname: str
    architecture: str
    cpu_count: int
    last_seen: str
    status: Literal["Online", "Offline"]
    runtime_status: NodeRuntimeStatus | None
    active_containers: int
    platform: str
    stop_requested: bool
    draining: bool
    paused: bool
    agent_version: str | None
    labels: dict[str, str]
    gpu_count: int | None
    task: str | None
    generation: str | None
    reason: str | None
    """Why it is idle, or has an error."""
    reason_kind: str | None
    """The same for programs; null where its agent gives none."""
    warnings: list[str]
    containers: list[ContainerView]
    errors: list[NodeErrorView]


class NodeList(RootModel[list[NodeView]]):
    """Nodes, in the order in which they first came."""


class CauseView(BaseModel):
    """One cause and the nodes that have it."""

    kind: str
    cause: str
    nodes: int
    of: int
    """Nodes that are Online."""
    summary: str
    node_ids: list[str]
    first: str
    last: str
    example: str


class CauseList(RootModel[list[CauseView]]):
    """What goes wrong, the most frequent first."""


class NodeOrders(BaseModel):
    """The orders that stand for a node."""

    node_id: str
    draining: bool | None = None
    stop_requested: bool


class Skipped(BaseModel):
    """A node that was left out, and why."""

    id: str
    why: str


class OrderedNodes(BaseModel):
    """What became of the nodes of a selection."""

    nodes: list[str]
    """The ids of those that have the order now and had not."""
    count: int
    unchanged: int
    skipped: list[Skipped]
