"""What the agent does next, decided without doing it.

`plan` compares what is wanted with what the engine listed and answers with actions. It is level-triggered:
interrupted at any step and asked again, it goes on from what it sees. Rules:

- Unknown desired state (no word from a hub yet) is not zero desired state: nothing is started or ended.
- A container that fits its slot and runs stays, frozen where the owner says so. Every other one of ours gets
  SIGTERM once, SIGKILL when its time is over, and is removed when it has ended. One that is frozen hears
  nothing: it is thawed first.
- Frozen means that nothing is started or fetched either.
- The image is fetched at once, while the old task's containers still end.
- A slot starts only when its image is here, no container holds its name, instance or CPU, and it does not
  wait after a failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass, field
from typing import Literal

from agent.reasons import Reason
from agent.slots import SlotMemory
from agent.spec import SlotSpec, Wanted


@dataclass(frozen=True)
class Container:
    """A container of ours as the engine shows it; times in seconds since the epoch, by the engine's clock."""

    id: str
    name: str
    status: str
    spec: str = ""
    instance: int | None = None
    cpu: int | None = None
    task: str = ""
    generation: str = ""
    exit_code: int = 0
    oom: bool = False
    error: str | None = None
    memory_mb: int = 0
    stop_timeout: float = 30.0
    stop_signal: str = "TERM"
    """What its image wants to be stopped by."""
    started: float = 0.0
    finished: float = 0.0
    image: str = ""
    scratch: str | None = None
    """Its volume at /scratch."""
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """The values of its task's own variables, and passwords in its URLs."""

    @property
    def ended(self) -> bool:
        """It will not run again by itself: `created` too, which is a start that did not succeed."""
        return self.status in ("exited", "dead", "created")


@dataclass(frozen=True)
class Image:
    """What is known of the wanted image; `not_before` is on the planner's clock."""

    name: str
    state: Literal["unknown", "fetching", "ready", "failed"] = "unknown"
    failures: int = 0
    not_before: float = 0.0
    error: Reason | None = None


@dataclass(frozen=True)
class Fetch:
    """See that the image is here: once a node and task, not once a slot."""

    image: str


@dataclass(frozen=True)
class Start:
    """Start a slot's container."""

    slot: SlotSpec


@dataclass(frozen=True)
class Freeze:
    """Freeze containers that stay."""

    containers: tuple[Container, ...]


@dataclass(frozen=True)
class Thaw:
    """Let frozen containers go on."""

    containers: tuple[Container, ...]


@dataclass(frozen=True)
class Terminate:
    """SIGTERM, or what the image names in its place; each container then has its own time until SIGKILL."""

    containers: tuple[Container, ...]


@dataclass(frozen=True)
class Kill:
    """SIGKILL, for those whose time is over."""

    containers: tuple[Container, ...]


@dataclass(frozen=True)
class Remove:
    """Account for what ended, and remove it."""

    containers: tuple[Container, ...]


Action = Fetch | Start | Freeze | Thaw | Terminate | Kill | Remove


@dataclass(frozen=True)
class State:
    """All that a decision is made from; `now` and every deadline on one monotonic clock, in seconds."""

    wanted: Wanted | None
    containers: tuple[Container, ...]
    now: float
    memory: Mapping[int, SlotMemory] = field(default_factory=dict)
    deadlines: Mapping[str, float] = field(default_factory=dict)
    """Container id → when its SIGKILL is due; it has had its SIGTERM."""
    busy_containers: Set[str] = frozenset()
    """Ids with an action under way."""
    busy_instances: Set[int] = frozenset()
    """Slots whose start is under way."""
    image: Image | None = None
    frozen: bool = False
    """The owner lets containers stay, but not run."""
    condemned: Set[str] = frozenset()
    """Ids of containers that broke a limit: they must go, whatever fits."""


def plan(state: State) -> list[Action]:
    """The next steps, none of which waits for another of them."""
    free = [c for c in state.containers if c.id not in state.busy_containers and c.status != "removing"]
    if state.wanted is None:
        return _freezes(state, free)
    kept = keepers(state)
    unwanted = [c for c in free if c.id not in kept]
    # What a start under way has created already is not a failed start.
    ended = [c for c in unwanted if c.ended and not _being_started(c, state)]
    live = [c for c in unwanted if not c.ended and c.status != "paused"]
    actions: list[Action] = []
    if ended:
        actions.append(Remove(tuple(ended)))
    actions += _freezes(state, [c for c in free if c.id in kept])
    if deaf := [c for c in unwanted if c.status == "paused"]:
        actions.append(Thaw(tuple(deaf)))
    if fresh := [c for c in live if c.id not in state.deadlines]:
        actions.append(Terminate(tuple(fresh)))
    if late := [c for c in live if state.deadlines.get(c.id, state.now + 1) <= state.now]:
        actions.append(Kill(tuple(late)))
    if state.frozen:
        return actions
    return [*actions, *_fetches(state), *_starts(state, kept)]


def keepers(state: State) -> dict[str, int]:
    """The containers that stay, by id, with their instance: the oldest that fits each slot and runs."""
    kept: dict[str, int] = {}
    if state.wanted is None:
        return kept
    open_slots = {slot.digest: slot.instance for slot in state.wanted.slots}
    for container in sorted(state.containers, key=lambda c: (c.started, c.id)):
        stays = container.status in ("running", "paused") and container.id not in state.deadlines
        if stays and container.id not in state.condemned and container.spec in open_slots:
            kept[container.id] = open_slots.pop(container.spec)
    return kept


def next_deadline(state: State) -> float | None:
    """When a decision will change by time alone, or None if it will not."""
    times = list(state.deadlines.values())
    if state.wanted and (waiting := idle_instances(state)):
        times += [state.memory[i].not_before for i in waiting if i in state.memory]
        if state.image is not None and state.image.state == "failed":
            times.append(state.image.not_before)
    return min((t for t in times if t > state.now), default=None)


def idle_instances(state: State) -> list[int]:
    """Wanted slots without a container that stays and without a start under way."""
    if state.wanted is None:
        return []
    taken = set(keepers(state).values()) | set(state.busy_instances)
    return [slot.instance for slot in state.wanted.slots if slot.instance not in taken]


def _freezes(state: State, staying: Iterable[Container]) -> list[Action]:
    """What brings the containers that stay to a halt, or back."""
    if state.frozen:
        running = tuple(c for c in staying if c.status == "running")
        return [Freeze(running)] if running else []
    paused = tuple(c for c in staying if c.status == "paused")
    return [Thaw(paused)] if paused else []


def _being_started(container: Container, state: State) -> bool:
    return container.status == "created" and container.instance in state.busy_instances


def _fetches(state: State) -> list[Action]:
    """At most one: as soon as the image is wanted, while containers of another task still end."""
    idle = idle_instances(state)
    if state.wanted is None or not idle:
        return []
    name, image = state.wanted.slots[0].image, state.image
    if image is None or image.name != name or image.state == "unknown":
        return [Fetch(name)]
    return [Fetch(name)] if image.state == "failed" and image.not_before <= state.now else []


def _starts(state: State, kept: Iterable[str]) -> list[Action]:
    if state.wanted is None or state.image is None or state.image.state != "ready":
        return []
    stay = set(kept)
    others = [c for c in state.containers if c.id not in stay]
    names = {c.name for c in others}
    instances = {c.instance for c in others}
    cpus = {c.cpu for c in others if not c.ended}
    idle = set(idle_instances(state))
    return [
        Start(slot)
        for slot in state.wanted.slots
        if slot.image == state.image.name
        and slot.instance in idle
        and slot.name not in names
        and slot.instance not in instances
        and slot.cpu not in cpus
        and state.memory.get(slot.instance, SlotMemory()).not_before <= state.now
    ]
