"""What this node should run: from the hub's task and the node's own facts to one exact spec a slot.

Pure. A container *fits* a slot when the digest in its label equals the slot's: so an agent that was killed
and started again knows its containers without a database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase

from agent.reasons import FEW_GPUS, LITTLE_MEMORY, NOT_ALLOWED, Reason
from agent.settings import Settings
from gridcore.masking import url_password
from gridcore.protocol import CONTRACT_NAMES, TaskConfig

FORMAT = 2
"""Part of every digest: a release that starts containers differently raises it."""

PREFIX = "gridcore."
OWNER = PREFIX + "owner"
SPEC = PREFIX + "spec"
TASK = PREFIX + "task"
GENERATION = PREFIX + "generation"
INSTANCE = PREFIX + "instance"
STOP_TIMEOUT = PREFIX + "stop-timeout"
SECRET_ENV = PREFIX + "secret-env"
"""The names of the variables whose values are the task's own, for masking its log."""
SCRATCH_PATH = "/scratch"


@dataclass(frozen=True)
class NodeFacts:
    """The machine as far as it decides what runs: CPU numbers in order, memory in MB."""

    cpus: tuple[int, ...]
    memory_mb: int
    owner: str
    """A hash of machine-id and the configuration file's real path; the label of every container of ours."""
    gpus: int = 0
    warnings: tuple[str, ...] = ()
    """What the machine does not do as configured, such as a limit that its kernel does not enforce."""


@dataclass(frozen=True)
class Allowance:
    """What a container may do and take, by the owner's terms alone; sizes in MB."""

    cpu_shares: int
    oom_score: int
    pids_limit: int
    capabilities: tuple[str, ...]
    new_privileges: bool
    mounts: tuple[str, ...]
    network: str
    disk_mb: int
    scratch_mb: int

    @classmethod
    def of(cls, settings: Settings) -> Allowance:
        return cls(
            cpu_shares=settings.cpu_shares,
            oom_score=settings.oom_score,
            pids_limit=settings.pids_limit,
            capabilities=settings.capabilities,
            new_privileges=settings.new_privileges,
            mounts=settings.mounts,
            network=settings.network,
            disk_mb=settings.container_disk,
            scratch_mb=settings.scratch_size,
        )


@dataclass(frozen=True)
class SlotSpec:
    """One container, exactly. `stop_timeout` in seconds, `memory_mb` in MB."""

    instance: int
    cpu: int
    name: str
    image: str
    command: tuple[str, ...] | None
    memory_mb: int
    stop_timeout: float
    env: Mapping[str, str] = field(repr=False)
    task: str
    generation: str
    allowance: Allowance
    gpus: tuple[int, ...] = ()
    scratch: str | None = None
    """The volume at /scratch: one a slot and generation."""
    digest: str = field(default="", compare=False)

    def labels(self, owner: str) -> dict[str, str]:
        """The container's labels: identity for us, information for a person; no secrets."""
        return {
            OWNER: owner,
            SPEC: self.digest,
            TASK: self.task,
            GENERATION: self.generation,
            INSTANCE: str(self.instance),
            STOP_TIMEOUT: f"{self.stop_timeout:g}",
            SECRET_ENV: ",".join(sorted(name for name in self.env if name not in CONTRACT_NAMES)),
        }

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be seen in texts: the task's own values, and passwords in its URLs."""
        return secrets_in(self.env, [name for name in self.env if name not in CONTRACT_NAMES])

    def scratch_labels(self, owner: str) -> dict[str, str]:
        """The volume's labels."""
        return {
            OWNER: owner,
            TASK: self.task,
            GENERATION: self.generation,
            INSTANCE: str(self.instance),
        }


@dataclass(frozen=True)
class Wanted:
    """The desired state: these slots and no other container; `reason` says why there are none."""

    slots: tuple[SlotSpec, ...] = ()
    reason: Reason | None = None
    task: str | None = None
    generation: str | None = None
    """As the hub sent it."""
    warning: str | None = None
    key: str | None = None
    """Differs between two tasks, also at a hub that sends no generation."""
    is_word: bool = False
    """Whether this is the hub's word on what is current: other tasks, and their scratch, are over then."""
    always_pull: bool = False


def want(task: TaskConfig, node: NodeFacts, node_id: str, settings: Settings) -> Wanted:
    """The slots that this node runs of a task, or none with the reason."""
    key = task.generation or _digest(task.to_wire())
    nothing = Wanted(task=task.task_name, generation=task.generation, key=key, is_word=True)
    if settings.allowed_images is not None and not is_allowed(task.image, settings.allowed_images):
        text = f"image {task.image} is not in this node's allowed_images"
        return replace(nothing, reason=Reason(NOT_ALLOWED, text))
    own = settings.parallelism or len(node.cpus)
    ceiling = settings.max_container_memory or node.memory_mb // own
    memory = task.memory or settings.container_memory
    if task.memory and task.memory > ceiling:
        text = f"needs {task.memory} MB a container, the node allows {ceiling} MB"
        return replace(nothing, reason=Reason(LITTLE_MEMORY, text))
    gpus = task.gpus or 0
    count = min(own, task.parallelism or own, node.memory_mb // memory)
    if count == 0:
        text = f"needs {memory} MB a container, the node has {node.memory_mb} MB"
        return replace(nothing, reason=Reason(LITTLE_MEMORY, text))
    if gpus:
        count = min(count, node.gpus // gpus)
        if count == 0:
            text = f"needs {gpus} GPU a container, the node has {node.gpus}"
            return replace(nothing, reason=Reason(FEW_GPUS, text))
    warning = None
    if count > len(node.cpus):
        warning = f"{count} containers share {len(node.cpus)} CPUs"
    slots = tuple(_slot(task, node, node_id, key, instance, memory, settings) for instance in range(count))
    return replace(nothing, slots=slots, warning=warning, always_pull=task.pull_policy == "always")


def secrets_in(env: Mapping[str, str], own: Iterable[str]) -> tuple[str, ...]:
    """The values of a task's `own` variables, and the passwords in the addresses that a container gets."""
    passwords = (url_password(env.get(name, "")) for name in ("INPUT_REDIS_URL", "OUTPUT_REDIS_URL"))
    return tuple(value for value in (*(env.get(name) for name in own), *passwords) if value)


def is_named(name: str, task: str, instance: str) -> bool:
    """Whether a container's name is the one that an agent gives by these labels, whatever its node's id.

    Labels alone tell nothing: whoever commits a container of ours to an image hands them on to every
    container of that image.
    """
    return bool(task and instance) and node_in(name, task, instance) is not None


def node_in(name: str, task: str, instance: str) -> str | None:
    """The node's id in a container's name; None where the labels do not agree with that."""
    before, after = f"idm-{task}-", f"-{instance}"
    if not (name.startswith(before) and name.endswith(after)):
        return None
    return name[len(before) : len(name) - len(after)] or None


def is_scratch(name: str, owner: str, generation: str, instance: str) -> bool:
    """Whether a volume's name is the one that the agent of this owner gives by these labels."""
    return name == _scratch(owner, generation, instance)


def is_allowed(image: str, patterns: tuple[str, ...] | None) -> bool:
    """Whether the owner lets this image run here."""
    return patterns is None or any(fnmatchcase(image, pattern) for pattern in patterns)


def _stop_timeout(task: TaskConfig, settings: Settings) -> float:
    if task.stop_timeout is None:
        return settings.stop_timeout
    return min(task.stop_timeout, settings.max_stop_timeout)


def _slot(
    task: TaskConfig,
    node: NodeFacts,
    node_id: str,
    key: str,
    instance: int,
    memory_mb: int,
    settings: Settings,
) -> SlotSpec:
    env = dict(task.env or {})
    env |= {"TASK_NAME": task.task_name, "NODE_ID": node_id, "INSTANCE_ID": str(instance)}
    contract = {
        "INPUT_REDIS_URL": task.input_redis,
        "OUTPUT_REDIS_URL": task.output_redis,
        "INPUT_QUEUE": task.input_queue,
        "OUTPUT_QUEUE": task.output_queue,
    }
    env |= {name: value for name, value in contract.items() if value}
    gpus = task.gpus or 0
    spec = SlotSpec(
        instance=instance,
        cpu=node.cpus[instance % len(node.cpus)],
        name=f"idm-{task.task_name}-{node_id}-{instance}",
        image=task.image,
        command=tuple(task.command) if task.command is not None else None,
        memory_mb=memory_mb,
        stop_timeout=_stop_timeout(task, settings),
        env=env,
        task=task.task_name,
        generation=key,
        allowance=Allowance.of(settings),
        gpus=tuple(range(instance * gpus, (instance + 1) * gpus)),
        scratch=_scratch(node.owner, key, instance) if settings.scratch_size else None,
    )
    values = asdict(spec)
    # How long a container may take to stop does not decide how it runs: changing it must restart nothing.
    decisive = {name: value for name, value in values.items() if name not in ("digest", "stop_timeout")}
    return replace(spec, digest=_digest({"format": FORMAT, **decisive}))


def _scratch(owner: str, key: str, instance: int | str) -> str:
    return f"idm-scratch-{_digest({'owner': owner, 'key': key})[:16]}-{instance}"


def _digest(values: Mapping[str, object]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
