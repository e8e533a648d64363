"""The wire messages between operators, hub and nodes, and what makes each of them valid.

Source: the project's wire protocol (docs/api.md). Operators' messages forbid unknown fields, since a
misspelt one must not pass in silence; nodes' messages ignore them, since versions differ. Everything beyond
the protocol's *fixed* fields is optional on the wire.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    model_validator,
)

from gridcore.json_values import mend
from gridcore.platforms import PLATFORMS

MASK = "***"
NODE_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
TASK_NAME_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
MAX_ENV = 100
MAX_ERRORS = 20
MAX_ERROR_BYTES = 1024
MAX_WARNINGS = 20
MAX_LOG_BYTES = 1024 * 1024
"""Of one `POST /gridnode/logs`, the one exception to the hub's limit for bodies."""
MAX_LOG_LINES = 10_000
CONTRACT_NAMES = (
    "TASK_NAME",
    "NODE_ID",
    "INSTANCE_ID",
    "INPUT_REDIS_URL",
    "OUTPUT_REDIS_URL",
    "INPUT_QUEUE",
    "OUTPUT_QUEUE",
)
"""The variables that every container gets from us; a task's own `env` may not name them."""

NodeRuntimeStatus = Literal["Running", "Idle", "Error"]
NO_TASK = "no-task"
"""The kind of reason of a node that its hub gives nothing."""
OTHER_KIND = "other"

_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Never a leading dash: an image stands on docker's command line, where "-v…" would be an option.
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}")
_BREAKS = re.compile(r"[\x00\r\n]")
_KIND = re.compile(r"[a-z][a-z0-9-]{0,63}")


def _one_line(value: str) -> str:
    if _BREAKS.search(value):
        raise ValueError("must not hold NUL, CR or LF")
    return value


def _unset_when_empty(value: Any) -> Any:
    return None if value == "" else value


def _kind_of_reason(value: str) -> str:
    return value if _KIND.fullmatch(value) else OTHER_KIND


def _image_reference(value: str) -> str:
    if not _IMAGE.fullmatch(value):
        raise ValueError("expected an image reference such as registry:5000/name:tag")
    return value


def check_env(env: dict[str, str]) -> dict[str, str]:
    """The task's own environment, or ValueError that names the variable and what is wrong with it."""
    if len(env) > MAX_ENV:
        raise ValueError(f"at most {MAX_ENV} variables, got {len(env)}")
    for name, value in env.items():
        if not _ENV_NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is not a variable name ([A-Za-z_][A-Za-z0-9_]*)")
        if name in CONTRACT_NAMES:
            raise ValueError(f"{name} is set by GridCore itself; choose another name")
        if _BREAKS.search(value):
            raise ValueError(f"the value of {name} must not hold NUL, CR or LF")
    return env


WholeText = Annotated[str, BeforeValidator(mend)]  # half a character is no reason to lose the rest of a log
Line = Annotated[str, AfterValidator(_one_line), Field(max_length=4096)]
OptionalLine = Annotated[Line | None, BeforeValidator(_unset_when_empty)]
Image = Annotated[str, AfterValidator(_image_reference)]
ReasonKind = Annotated[str, AfterValidator(_kind_of_reason)]
"""A short stable word. Any other text counts as `other`: no node is lost for the form of a word."""
OptionalImage = Annotated[Image | None, BeforeValidator(_unset_when_empty)]
Env = Annotated[dict[str, str], AfterValidator(check_env)]
NodeId = Annotated[str, StringConstraints(pattern=NODE_ID_PATTERN)]
Token = Annotated[str, StringConstraints(pattern=r"^[!-~]{1,4096}$")]
"""A bearer token: printable ASCII without blanks."""
Instance = Annotated[int, Field(ge=0, le=65_536)]
"""A slot, 0…N-1."""
TaskName = Annotated[str, StringConstraints(pattern=TASK_NAME_PATTERN)]


class _RunFields(BaseModel):
    """The optional part of a task that decides how its containers run; shared by both views of it."""

    input_redis: OptionalLine = None
    output_redis: OptionalLine = None
    input_queue: OptionalLine = None
    output_queue: OptionalLine = None
    env: Env | None = None
    """The task's own variables, values as they are."""
    command: list[Line] | None = Field(default=None, max_length=256)
    """Arguments in place of the image's own command."""
    memory: int | None = Field(default=None, ge=6, le=16_777_216)
    """MB for each container."""
    parallelism: int | None = Field(default=None, ge=1, le=4096)
    """Containers a node, at most."""
    gpus: int | None = Field(default=None, ge=0, le=64)
    """GPUs for each container."""
    stop_timeout: float | None = Field(default=None, ge=0, le=86_400)
    """Seconds between SIGTERM and SIGKILL."""
    pull_policy: Literal["missing", "always"] | None = None
    """`missing` (the default): an image on the node never needs its registry; `always`: asked once a task."""


_ADDITIONS = ("env", "command", "memory", "parallelism", "gpus", "stop_timeout", "pull_policy")
_QUEUES = ("input_redis", "input_queue", "output_redis", "output_queue")


class AutoFinish(BaseModel):
    """When the hub finishes a task by itself: a guess, made from its queues. Operators' side only."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    idle: float = Field(ge=10, le=2_592_000)
    """Seconds that the input must have been empty and the output unchanged."""


class TaskDefinition(_RunFields):
    """What an operator posts to `/api/tasks`: `name`, `image` and/or `images`, the rest optional."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: TaskName
    image: OptionalImage = None
    images: dict[Literal["linux/amd64", "linux/arm64", "linux/arm/v7"], Image] | None = None
    """An image for each platform; one that is missing falls back to `image`."""
    auto_finish: AutoFinish | None = None
    """Finish when the queues stand still; off unless it is there."""

    @model_validator(mode="after")
    def _has_queues_to_look_at(self) -> TaskDefinition:
        missing = [name for name in _QUEUES if getattr(self, name) is None]
        if self.auto_finish is not None and missing:
            raise ValueError(f"`auto_finish` looks at the queues: set {', '.join(missing)}")
        return self

    @model_validator(mode="after")
    def _has_an_image(self) -> TaskDefinition:
        if not self.image and not self.images:
            raise ValueError(f"set `image`, or `images` for some of {', '.join(PLATFORMS)}")
        return self

    def image_for(self, platform: str) -> str | None:
        """The image that a node of this platform runs, or None if the task has none for it."""
        for known, image in (self.images or {}).items():
            if known == platform:
                return image
        return self.image

    def to_stored(self) -> dict[str, Any]:
        """The definition as JSON values, unset fields left out: what "the same definition" compares."""
        return self.model_dump(mode="json", exclude_none=True)


class TaskConfig(_RunFields):
    """What a node is told to run: the answer of `GET /gridnode/task`, `null` where there is nothing."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    task_name: TaskName
    image: Image
    redis_url: str | None = None
    """Always null; nodes that speak the fixed protocol expect the key."""
    generation: str | None = None
    """The revision of what is current; None from a hub that does not know generations."""

    @classmethod
    def of(cls, task: TaskDefinition, platform: str, generation: str) -> TaskConfig | None:
        """The task as one platform's node gets it, or None if it has no image for that platform."""
        image = task.image_for(platform)
        if image is None:
            return None
        shared = {name: getattr(task, name) for name in _RunFields.model_fields}
        return cls(task_name=task.name, image=image, generation=generation, **shared)

    def to_wire(self) -> dict[str, Any]:
        """JSON values: the fixed fields always, `null` when unset; of the additions what is set."""
        wire = self.model_dump(mode="json")
        for name in (*_ADDITIONS, "generation"):
            if wire[name] is None:
                del wire[name]
        return wire


class TaskGuard(BaseModel):
    """The optional body of `next` and `finish`: act only if this is still what is current."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    task: TaskName | None
    """None: only if nothing is current."""
    generation: str | None = None


class RegisterRequest(BaseModel):
    """The body of `POST /gridnode/register`; the first four are fixed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    node_id: Annotated[NodeId | None, BeforeValidator(_unset_when_empty)] = None
    hostname: str = Field(max_length=255)
    architecture: str = Field(max_length=64)
    cpu_count: int = Field(ge=0, le=65_536)
    platform: str | None = Field(default=None, max_length=64)
    agent_version: str | None = Field(default=None, max_length=64)
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    gpu_count: int | None = Field(default=None, ge=0, le=1024)
    machine: str | None = Field(default=None, max_length=128)
    """A hash of machine-id and board serial (or MAC): tells two machines with one node id apart."""


class RegisterAnswer(BaseModel):
    """The answer of `POST /gridnode/register`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    node_id: NodeId
    current_task: TaskConfig | None = None
    stop_requested: bool = False
    drain: bool = False
    token: Token | None = None
    """What the node is to use from now on, in place of the join token that it came with."""


class NodeErrorReport(BaseModel):
    """One thing that went wrong on a node. The hub stamps the time, since nodes' clocks are not trusted."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    instance: Instance | None = None
    """None when it concerns the whole node."""
    kind: str = Field(max_length=64)
    message: str = Field(max_length=MAX_ERROR_BYTES)
    task: str | None = Field(default=None, max_length=128)
    """Whose container it is about."""


class ExitReport(BaseModel):
    """How a slot's last container ended. Spans, not times: nodes' clocks are not trusted."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    kind: str = Field(max_length=64)
    """`finished`, `stopped`, `killed`, `failed`, `out-of-memory`, `disk`, `wrong-platform`, `no-command`…"""
    exit_code: int | None = Field(default=None, ge=-(2**31), lt=2**32)
    message: str | None = Field(default=None, max_length=MAX_ERROR_BYTES)
    ago: float = Field(default=0, ge=0)
    """Seconds before this message."""
    ran: float = Field(default=0, ge=0)
    """Seconds that it ran."""


class ContainerReport(BaseModel):
    """One slot of a node as its heartbeat shows it; `age` is seconds since the container started."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    instance: Instance
    cpu: int | None = Field(default=None, ge=0, le=65_536)
    state: str = Field(max_length=32)
    """`running`, `paused`, `stopping`, `exited`, `waiting` (after a failure) …"""
    restarts: int = Field(default=0, ge=0, lt=2**53)
    age: float | None = Field(default=None, ge=0)
    last_exit: ExitReport | None = None


class HeartbeatRequest(BaseModel):
    """The body of `POST /gridnode/heartbeat`; the first three are fixed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    node_id: NodeId
    status: NodeRuntimeStatus
    active_containers: int = Field(ge=0, le=65_536)
    task: str | None = Field(default=None, max_length=128)
    generation: str | None = Field(default=None, max_length=128)
    reason: str | None = Field(default=None, max_length=MAX_ERROR_BYTES)
    """For people."""
    reason_kind: ReasonKind | None = None
    """The same for programs: the kind of the error or exit that put it in Error, or of doing nothing."""
    containers: list[ContainerReport] | None = Field(default=None, max_length=4096)
    errors: list[NodeErrorReport] = Field(default_factory=list, max_length=MAX_ERRORS)
    warnings: list[Annotated[str, Field(max_length=MAX_ERROR_BYTES)]] = Field(
        default_factory=list, max_length=MAX_WARNINGS
    )
    """What is not as it should be and stays so: a limit that the kernel does not enforce, shared CPUs."""
    paused: bool = False
    """The node's owner has paused it."""


class LogOrder(BaseModel):
    """An operator waits for the end of a container's log; the node answers with `POST /gridnode/logs`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    id: str = Field(min_length=1, max_length=64)
    instance: Instance
    lines: int = Field(default=200, ge=1, le=MAX_LOG_LINES)
    previous: int = Field(default=0, ge=0, le=3)
    """0: the container that is there; 1, 2, 3: the slot's last run, the one before, the one before that."""


class LogsMessage(BaseModel):
    """The body of `POST /gridnode/logs`: the text asked for, or in `error` why there is none."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    node_id: NodeId
    id: str = Field(min_length=1, max_length=64)
    text: WholeText = ""
    error: Annotated[WholeText, Field(max_length=MAX_ERROR_BYTES)] | None = None


class HeartbeatAnswer(BaseModel):
    """The answer of `POST /gridnode/heartbeat`; only `stop_requested` is fixed."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    stop_requested: bool = False
    known: bool | None = None
    """None: this hub never says; False: it does not know the node, which then registers again."""
    drain: bool = False
    heartbeat_interval: float | None = Field(default=None, ge=1, le=45)
    logs: list[LogOrder] = Field(default_factory=list, max_length=16)
    nothing: Annotated[Line, Field(max_length=512)] | None = None
    """Why the hub gives this node nothing to run, where it has a reason beyond that nothing is current."""
    prefetch: Image | None = None
    """An image that this node will need soon, to be fetched when it has nothing better to fetch."""
    token: Token | None = None
    """What the node is to use from now on, as its own is about to expire."""


class DeregisterRequest(BaseModel):
    """The body of `POST /gridnode/deregister`."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    node_id: NodeId
