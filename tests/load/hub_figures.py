"""What the benchmark of hubs measures of a setup, and the rows of its table, with the goals."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tests.load.figures import Figure, percentile
from tests.load.hub_setups import Setup

CORES_MOST, HELD_KIB_MOST, BEAT_MS_MOST = 0.5, 32.0, 0.25
TOLD_MOST = {1_000: 0.12, 10_000: 1.0}
"""Seconds, p99, for so many nodes."""


@dataclass(frozen=True)
class Trouble:
    """What became of a fleet whose hub was killed, and then of one that lost half of its nodes."""

    back_within: float
    """Seconds after which all nodes had been heard by the hub that was started again."""
    offline_after_restart: int
    lost: int
    offline: int
    events: int


@dataclass(frozen=True)
class Measured:
    """One setup under one fleet; CPU in ms of the hubs' together, memory in KiB, times in seconds."""

    joins: float
    join_ms: float
    held_kib: float
    beats: float
    beat_ms: float
    beat_ms_fresh: float
    beat_ms_later: float
    full_way: float
    """Per cent of the heartbeats and questions that did not take the fast way."""
    left: int
    """File descriptors that the hubs had open then."""
    told: list[list[float]]
    cores: float
    others_cores: float
    load: str
    resident_mib: float
    trouble: Trouble | None

    @property
    def switch(self) -> list[float]:
        """The switch that was neither the quickest nor the slowest, by its p99."""
        return sorted(self.told, key=lambda run: percentile(run, 99))[len(self.told) // 2]


def figures_of(setup: Setup, by_nodes: dict[int, Measured], bare: dict[int, Measured]) -> Iterator[Figure]:
    """The figures of a setup beside their goals, each also as a multiple of bare ASGI's."""
    is_hub = setup.name != "bare"

    def rows(name: str, unit: str, value: Callable[[Measured], float], **more: Any) -> Iterator[Figure]:
        goal, note = more.get("goal", lambda _nodes: None), more.get("note", lambda _one: "")
        for nodes, one in by_nodes.items():
            notes = [note(one)] if note(one) else []
            if is_hub and nodes in bare and value(bare[nodes]) > 0:
                notes.insert(0, f"{value(one) / value(bare[nodes]):.2f} x bare")
            most = goal(nodes) if is_hub else None
            yield Figure(f"{name}, {nodes:,} nodes", value(one), unit, most, "; ".join(notes))

    yield from rows("nodes that join", "/s", lambda one: one.joins)
    yield from rows("CPU a node that joins", "ms", lambda one: one.join_ms)
    yield from rows("heartbeats, closed loop", "/s", lambda one: one.beats)
    yield from rows("CPU a heartbeat", "ms", lambda one: one.beat_ms, goal=lambda _nodes: BEAT_MS_MOST)
    yield from rows("  over a new connection each", "ms", lambda one: one.beat_ms_fresh)
    yield from rows(
        "  once all nodes have closed theirs",
        "ms",
        lambda one: one.beat_ms_later,
        note=lambda one: f"{one.left:,} descriptors still open",
    )
    yield from rows(
        "CPU at default settings",
        "cores",
        lambda one: one.cores,
        goal=lambda nodes: CORES_MOST if 9_000 <= nodes <= 10_000 else None,
        note=lambda one: one.load + (f", others {one.others_cores:.2f} cores" if one.others_cores else ""),
    )
    if is_hub:
        yield from rows(
            "heartbeats and questions on the full way", "%", lambda one: one.full_way, goal=lambda _nodes: 0.0
        )
    yield from rows(
        "memory a node that holds its question",
        "KiB",
        lambda one: one.held_kib,
        goal=lambda nodes: HELD_KIB_MOST if nodes >= 1_000 else None,
    )
    yield from rows("resident, all of it", "MiB", lambda one: one.resident_mib)
    yield from trouble_of(by_nodes)
    for name, which in (("p50", 50), ("p99", 99), ("last", 100)):
        yield from rows(
            f"told of a switch, {name}",
            "s",
            lambda one, which=which: percentile(one.switch, which),  # type: ignore[misc] # a default argument binds it
            goal=lambda nodes, name=name: told_most(nodes) if name == "p99" else None,
            note=lambda one, which=which: (
                "all " + ", ".join(f"{percentile(run, which):.3f}" for run in one.told)
            ),
        )


def trouble_of(by_nodes: dict[int, Measured]) -> Iterator[Figure]:
    """The figures of what went wrong on purpose."""
    for nodes, one in by_nodes.items():
        if one.trouble is None:
            continue
        yield Figure(f"hub killed: all heard again, {nodes:,} nodes", one.trouble.back_within, "s", None, "")
        yield Figure("  called Offline by it, wrongly", one.trouble.offline_after_restart, "nodes", 0, "")
        missing = one.trouble.lost - one.trouble.offline
        note = f"{one.trouble.lost:,} lost, {one.trouble.offline:,} Offline"
        yield Figure("half lost: not called Offline", max(missing, 0), "nodes", 0, note)
        yield Figure("  events that tell of it", one.trouble.events, "events", 1, "")


def told_most(nodes: int) -> float | None:
    """The goal for a fleet of this size; what the machine's limits cost of 10,000 changes none."""
    return next((most for count, most in TOLD_MOST.items() if 0.9 * count <= nodes <= count), None)
