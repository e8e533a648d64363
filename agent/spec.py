"""What this node should run: from the hub's task and the node's own facts to one exact spec a slot.

Pure. A container *fits* a slot when the digest in its label equals the slot's: so an agent that was killed
and started again knows its containers without a database.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

from agent.settings import Settings
from gridcore.protocol import TaskConfig

FORMAT = 1
"""Part of every digest: a release that starts containers differently raises it."""

PREFIX = "gridcore."
OWNER = PREFIX + "owner"
SPEC = PREFIX + "spec"
TASK = PREFIX + "task"
GENERATION = PREFIX + "generation"
INSTANCE = PREFIX + "instance"
STOP_TIMEOUT = PREFIX + "stop-timeout"


@dataclass(frozen=True)
class NodeFacts:
    """The machine as far as it decides what runs: CPU numbers in order, memory in MB."""

    cpus: tuple[int, ...]
    memory_mb: int
    owner: str
    """A hash of machine-id and the configuration file's real path; the label of every container of ours."""


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
    env: Mapping[str, str]
    task: str
    generation: str
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
        }


@dataclass(frozen=True)
class Wanted:
    """The desired state: these slots and no other container; `reason` says why there are none."""

    slots: tuple[SlotSpec, ...] = ()
    reason: str | None = None
    task: str | None = None
    generation: str | None = None
    warning: str | None = None

    @property
    def key(self) -> str | None:
        """Differs between two tasks, also at a hub that sends no generation."""
        return self.slots[0].generation if self.slots else self.generation


def want(task: TaskConfig, node: NodeFacts, node_id: str, settings: Settings) -> Wanted:
    """The slots that this node runs of a task, or none with the reason."""
    generation = task.generation or _digest(task.to_wire())
    nothing = Wanted(task=task.task_name, generation=task.generation)
    own = settings.parallelism or len(node.cpus)
    ceiling = settings.max_container_memory or node.memory_mb // own
    memory = task.memory or settings.container_memory
    if task.memory and task.memory > ceiling:
        return _because(nothing, f"needs {task.memory} MB a container, the node allows {ceiling} MB")
    if task.gpus:
        return _because(nothing, f"needs {task.gpus} GPU a container, this agent offers none")
    count = min(own, task.parallelism or own, node.memory_mb // memory)
    if count == 0:
        return _because(nothing, f"needs {memory} MB a container, the node has {node.memory_mb} MB")
    warning = None
    if count > len(node.cpus):
        warning = f"{count} containers share {len(node.cpus)} CPUs"
    slots = tuple(
        _slot(task, node, node_id, generation, instance, memory, _stop_timeout(task, settings))
        for instance in range(count)
    )
    return Wanted(slots, None, task.task_name, task.generation, warning)


def _because(nothing: Wanted, reason: str) -> Wanted:
    return Wanted(reason=reason, task=nothing.task, generation=nothing.generation)


def _stop_timeout(task: TaskConfig, settings: Settings) -> float:
    if task.stop_timeout is None:
        return settings.stop_timeout
    return min(task.stop_timeout, settings.max_stop_timeout)


def _slot(
    task: TaskConfig,
    node: NodeFacts,
    node_id: str,
    generation: str,
    instance: int,
    memory_mb: int,
    stop_timeout: float,
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
    spec = SlotSpec(
        instance=instance,
        cpu=node.cpus[instance % len(node.cpus)],
        name=f"idm-{task.task_name}-{node_id}-{instance}",
        image=task.image,
        command=tuple(task.command) if task.command is not None else None,
        memory_mb=memory_mb,
        stop_timeout=stop_timeout,
        env=env,
        task=task.task_name,
        generation=generation,
    )
    values = asdict(spec)
    # How long a container may take to stop does not decide how it runs: changing it must restart nothing.
    decisive = {name: value for name, value in values.items() if name not in ("digest", "stop_timeout")}
    return replace(spec, digest=_digest({"format": FORMAT, **decisive}))


def _digest(values: Mapping[str, object]) -> str:
    canonical = json.dumps(values, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()
