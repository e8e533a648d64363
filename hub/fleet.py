"""Counting the fleet: how many nodes are what. For metrics, progress and what people are told of.

Looking at thousands of nodes takes milliseconds, so it is done beside the event loop, and not each time that
somebody asks.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from hub.registry import Node
from hub.store import Store

KEPT_FOR = 5.0
"""Seconds that a count is as good as a new one."""

ARCHITECTURES = frozenset(
    ("x86_64", "amd64", "aarch64", "arm64", "armv7l", "armv6l", "i386", "i686", "riscv64", "ppc64le", "s390x")
)
"""Those that are counted by name; whatever else nodes say is `other`, so that they cannot make names up."""

CUT_OFF = frozenset(
    ("killed", "sigkill", "sigkill-unexplained", "removed", "out-of-memory", "disk", "failed", "interrupted")
)
"""Ends of containers that had no time to put away what they had in hand, or did not use it."""

RUNTIME_STATUSES = frozenset({"Running", "Idle", "Error"})


class Kind(NamedTuple):
    """What nodes are counted by."""

    status: str
    architecture: str
    runtime_status: str


@dataclass(frozen=True, slots=True)
class Working:
    """How many nodes, with how many containers, work on a task."""

    nodes: int = 0
    containers: int = 0
    restarts: int = 0
    """Containers that were started again, or tried to be."""
    cut_off: int = 0
    """Slots whose last container did not end by itself or when told to: what it had in hand is lost."""


@dataclass(frozen=True, slots=True)
class Fleet:
    """How many nodes there are of each kind, and what those that are Online do."""

    kinds: Mapping[Kind, int] = field(default_factory=dict)
    online: int = 0
    failing: int = 0
    """Online, and in Error."""
    containers: int = 0
    draining: int = 0
    working: Mapping[str, Working] = field(default_factory=dict)
    """By task."""


def count_fleet(nodes: Sequence[Node]) -> Fleet:
    """Count these nodes."""
    kinds: Counter[Kind] = Counter()
    working_nodes: Counter[str] = Counter()
    working_containers: Counter[str] = Counter()
    restarts: Counter[str] = Counter()
    cut_off: Counter[str] = Counter()
    online = failing = containers = draining = 0
    for node in nodes:
        live, architecture = node.live, node.record.architecture
        is_online = node.is_online
        runtime = live.runtime_status if is_online else None
        kinds[
            Kind(
                "Online" if is_online else "Offline",
                architecture if architecture in ARCHITECTURES else "other",
                runtime if runtime in RUNTIME_STATUSES else "unknown",
            )
        ] += 1
        draining += node.draining
        if not is_online:
            continue
        online += 1
        failing += runtime == "Error"
        containers += live.active_containers
        if live.task is not None and live.active_containers:
            working_nodes[live.task] += 1
            working_containers[live.task] += live.active_containers
        if live.task is not None:
            for slot in live.containers:
                restarts[live.task] += slot.restarts
                cut_off[live.task] += slot.last_exit is not None and slot.last_exit.kind in CUT_OFF
    working = {
        task: Working(working_nodes[task], working_containers[task], restarts[task], cut_off[task])
        for task in working_nodes.keys() | restarts.keys()
    }
    return Fleet(kinds, online, failing, containers, draining, working)


class FleetCounter:
    """Counts a store's nodes, at most once in KEPT_FOR seconds."""

    def __init__(self, store: Store, kept_for: float = KEPT_FOR) -> None:
        self._store = store
        self._kept_for = kept_for
        self._turn = asyncio.Lock()
        self._counted_at = float("-inf")
        self._fleet = Fleet()

    async def count(self) -> Fleet:
        """The fleet as it was a few seconds ago at most. Raises StoreUnavailable."""
        async with self._turn:
            if time.monotonic() - self._counted_at >= self._kept_for:
                nodes = await self._store.nodes()
                self._fleet = await asyncio.to_thread(count_fleet, nodes)
                self._counted_at = time.monotonic()
            return self._fleet
