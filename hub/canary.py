"""Trying the next task on a few nodes: which ones, whether they do well, and when to give up. Pure.

While a task is tried, all other nodes go on with the current one under its unchanged revision. A canary ends
when somebody promotes it (`TaskList.promote`) or it is aborted; its task stays the first pending one until
then. Times are those of the wall clock, since a canary outlives the hub that started it. Spans count only as
far as a hub has been there to see them, so one that was away, or whose clock was set, begins them anew.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from gridcore.platforms import PLATFORMS
from gridcore.protocol import TaskDefinition, TaskGuard
from hub.errors import CanaryRunning, NoCanaryNodes, NothingPending
from hub.observed import Instant
from hub.registry import Node
from hub.tasklist import Aborted, Canary, Task, TaskList

SPARES = 20
"""Nodes that are chosen beyond those wanted, since some may be gone a moment later."""

HARMLESS = frozenset({"finished", "stopped", "killed", "interrupted"})
"""Ends of a container that do not speak against its task. Any other kind does, also one not known here."""


def can_try(node: Node, definition: TaskDefinition) -> bool:
    """Whether a node may be one of those that try a task."""
    return (
        node.is_online
        and node.record.agent_version is not None
        and not (node.stop_requested or node.draining or node.live.paused)
        and definition.image_for(node.record.platform) is not None
    )


def choose(nodes: Iterable[Node], definition: TaskDefinition, wanted: int) -> tuple[str, ...]:
    """The ids of the nodes that should try a task, the first ones first, with some to spare.

    One of each platform before a second of any, the most frequent platform first; on a platform those that
    do well now before those in Error, and by their ids, so that the same nodes give the same choice.
    """
    fit = sorted(
        (node for node in nodes if can_try(node, definition)),
        key=lambda node: (node.live.runtime_status == "Error", node.record.id),
    )
    count = Counter(node.record.platform for node in fit)
    taken: defaultdict[str, int] = defaultdict(int)
    turns: list[tuple[tuple[int, int, int, str], str]] = []
    for node in fit:
        platform = node.record.platform
        known = PLATFORMS.index(platform) if platform in PLATFORMS else len(PLATFORMS)
        turns.append(((taken[platform], -count[platform], known, platform), node.record.id))
        taken[platform] += 1
    turns.sort(key=lambda turn: turn[0])
    return tuple(node_id for _, node_id in turns[: wanted + SPARES])


def begin(
    tasks: TaskList, guard: TaskGuard | None, nodes: Sequence[Node], canary: Canary, entropy: int
) -> TaskList:
    """The list with its first pending task tried on as many of these nodes as are wanted and can.

    `canary` says how many are wanted, when, and for how long; what it is named and by whom it is tried is
    put in here. What is current keeps its revision.

    Raises:
        NotCurrent: the guard names something else.
        CanaryRunning: a task is tried already.
        NothingPending: there is no task to try.
        NoCanaryNodes: none of the nodes can.
    """
    tasks.check(guard)
    if tasks.canary is not None:
        raise CanaryRunning(tasks.canary.task)
    task = tasks.first_pending
    if task is None:
        raise NothingPending
    able = [node.record.id for node in nodes if can_try(node, task.definition)]
    if not able:
        raise NoCanaryNodes(task.name)
    tried_on = tuple(able[: canary.wanted])
    revision = tasks.fresh_revision(entropy)
    if task.aborted is not None:
        tasks = _noted(tasks, task.revised(entropy, aborted=None))
    return replace(tasks, canary=replace(canary, task=task.name, revision=revision, nodes=tried_on))


def abort(tasks: TaskList, reason: str, now: float, entropy: int) -> TaskList:
    """The list whose nodes all work on what is current again; the task that was tried says why. Raises
    NoCanary."""
    canary = tasks.canary_of()
    aborted = Aborted(now, reason, len(canary.nodes))
    ended = _noted(tasks, tasks.get(canary.task).revised(entropy, aborted=aborted))
    # Where nothing was ever current, that it is nothing is decided now, for the nodes that had the task.
    revision = tasks.fresh_revision(entropy) if tasks.is_new else tasks.revision
    return replace(ended, revision=revision, canary=None)


def _noted(tasks: TaskList, task: Task) -> TaskList:
    return replace(tasks, tasks=tuple(task if other.name == task.name else other for other in tasks.tasks))


def judge(canary: Canary, nodes: Mapping[str, Node | None], now: Instant) -> Canary | str:
    """The canary as it stands `now`, the very same if nothing is new, or the reason
    why it must be given up, in nodes' own words: mask it before anybody sees it.

    Once it is healthy it waits for somebody's decision, whatever becomes of its nodes.
    """
    if canary.is_healthy:
        return canary
    found = [(node_id, nodes.get(node_id)) for node_id in canary.nodes]
    for node_id, node in found:
        failure = _failure(canary, node)
        if failure is not None:
            return f"node {node_id} {failure}"
    waited_for = [node_id for node_id, node in found if node is None or not _is_up(canary, node)]
    if not waited_for:
        up_since = now.wall if canary.up_since is None else canary.up_since
        is_healthy = now.wall - now.unbroken(up_since) >= canary.healthy_after
        after = replace(canary, up_since=up_since, is_healthy=is_healthy)
        return canary if after == canary else after
    if canary.up_since is not None:
        return replace(canary, up_since=None, waits_since=now.wall)
    if now.wall - now.unbroken(canary.clock) >= canary.start_within:
        return f"node {waited_for[0]} was not running it after {canary.start_within:g} s"
    return canary


def _failure(canary: Canary, node: Node | None) -> str | None:
    """What speaks against the task on this node, if anything does."""
    if node is None:
        return "was forgotten"
    if not node.is_online:
        return "is Offline"
    if node.stop_requested:
        return "was told to stop"
    if node.draining:
        return "was drained"
    if node.live.generation != canary.revision:  # its report is still about something else
        return None
    if node.live.runtime_status == "Error":
        return f"reports an error: {node.live.reason or 'without a reason'}"
    for container in node.live.containers:
        ended = container.last_exit
        # One that was started before belongs to what the node did before.
        if ended and ended.kind not in HARMLESS and ended.time - ended.ran >= canary.clock:
            return f"had a container that failed: {ended.message or ended.kind}"
    return None


def _is_up(canary: Canary, node: Node) -> bool:
    return node.live.runtime_status == "Running" and node.live.generation == canary.revision
