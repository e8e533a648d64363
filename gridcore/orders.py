"""What operators ask of tasks and nodes beyond adding and switching, and what makes it valid.

Source: the hub's API (docs/api.md). As everywhere on the operators' side, unknown fields are refused.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from gridcore.protocol import NodeId, TaskGuard, TaskName

MAX_CANARY = 200
"""Nodes that try a task at most: a part of the fleet, not the fleet."""


class CanaryRequest(BaseModel):
    """The body of `next` that tries the first pending task on `canary` nodes; with a guard or without."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    canary: int = Field(ge=1, le=MAX_CANARY)
    healthy_after: float = Field(default=60, ge=1, le=86_400)
    """Seconds that they must stay up to be called healthy."""
    start_within: float = Field(default=900, ge=1, le=86_400)
    """Seconds in which they must be up; they may have to fetch an image."""
    task: TaskName | None = None
    """What must be current: None if given as null means nothing; left out, no guard."""
    generation: str | None = None

    @model_validator(mode="after")
    def _has_a_whole_guard(self) -> CanaryRequest:
        if self.generation is not None and "task" not in self.model_fields_set:
            raise ValueError("`generation` needs `task`")
        return self

    @property
    def guard(self) -> TaskGuard | None:
        """What must be current, if that was given."""
        given = "task" in self.model_fields_set
        return TaskGuard(task=self.task, generation=self.generation) if given else None


class TriedTask(BaseModel):
    """The optional body of `promote` and `abort`: act only if it is this task that is tried."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: TaskName | None = None


class MoveRequest(BaseModel):
    """The body of `POST /api/tasks/{name}/move`: one of the three."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    before: TaskName | None = None
    after: TaskName | None = None
    to: Literal["first", "last"] | None = None

    @model_validator(mode="after")
    def _says_one_place(self) -> MoveRequest:
        if sum(place is not None for place in (self.before, self.after, self.to)) != 1:
            raise ValueError("give one of `before`, `after` and `to`")
        return self


class NodeSelection(BaseModel):
    """Which nodes: those that are all that is given, or `all`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    all: bool = False
    architecture: str | None = Field(default=None, max_length=64)
    """As the node reports it."""
    platform: str | None = Field(default=None, max_length=64)
    labels: dict[str, str] | None = Field(default=None, min_length=1, max_length=64)
    nodes: list[NodeId] | None = Field(default=None, min_length=1, max_length=10_000)

    @model_validator(mode="after")
    def _selects_something(self) -> NodeSelection:
        is_narrowed = any(
            wanted is not None for wanted in (self.architecture, self.platform, self.labels, self.nodes)
        )
        if self.all and is_narrowed:
            raise ValueError("give `all`, or what the nodes must be, not both")
        if not self.all and not is_narrowed:
            raise ValueError('select by `architecture`, `platform`, `labels`, `nodes`, or {"all": true}')
        return self
