"""What a hub costs and how fast it tells a fleet of a switch, beside bare ASGI on the same server.

    python -m tests.load.bench_hub [--quick] [--strict] [--nodes N,…] [--setups sqlite,redis,bare]

Real hub processes, and a fleet simulator that speaks real HTTP with them. Costs are the hub's CPU (user and
system, from /proc), since a simulator on the same cores makes seconds longer. Exit code 0 also when a goal
is missed, unless `--strict`.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import resource
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any

from tests.load.figures import table
from tests.load.hub_figures import Measured, Trouble, figures_of
from tests.load.hub_setups import SETUPS, CannotStart, Running, Setup, Simulator, running

INTERVAL, HELD_FOR = 30.0, 25.0
"""Seconds between a node's heartbeats, and that its question is held: the defaults."""
AGENT_KEEPS = 15.0
"""Seconds that our agent's HTTP client (aiohttp) keeps an idle connection."""
LONGEST_WAIT = 50
CONNECTIONS = 32
"""In closed loops."""
BUSY = 0.85
"""Cores: a hub that takes more has not caught up yet."""
SPARE = 300
"""File descriptors of a process that are no node's."""


@dataclass(frozen=True)
class Size:
    """How much is measured; seconds."""

    nodes: tuple[int, ...] = (100, 1_000, 5_000, 10_000)
    switches: int = 3
    beats: float = 6.0
    # As long as a question is held: after a switch all nodes ask again in step.
    window: float = 25.0


QUICK = Size(nodes=(100, 1_000), switches=2, beats=2.0, window=25.0)


class Bench:
    """One directory; one setup and one fleet at a time."""

    def __init__(self, directory: Path, size: Size, keep: float) -> None:
        self._directory = directory
        self._size = size
        self._keep = keep
        self._began = time.monotonic()

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def measure(self, setup: Setup, nodes: int) -> Measured:
        """All figures. Raises CannotStart."""
        directory = self._directory / f"{setup.name}-{nodes}"
        directory.mkdir()
        with running(setup, directory) as (hubs, stack):
            hubs.line_up(self._size.switches + 1)
            fleet = _Fleet(stack, directory, hubs, nodes, self._keep)
            title = f"{setup.title}, {nodes:,} nodes"
            empty = hubs.resident
            self.say(f"{title}: registering, and every node asks for its task")
            spent = hubs.cpu
            seconds, count = fleet.do("join", CONNECTIONS, LONGEST_WAIT)
            join_ms = (hubs.cpu - spent) / count * 1000
            hubs.settle()
            held = hubs.resident
            self.say(
                f"{title}: {count / seconds:,.0f} nodes/s joined; heartbeats as fast as they are answered"
            )
            beats, beat_ms = self._closed_loop(hubs, fleet)
            _beats, beat_ms_fresh = self._closed_loop(hubs, fleet, is_fresh=True)
            self.say(
                f"{title}: {beats:,.0f} heartbeats/s; now as nodes send them, and {INTERVAL:.0f} s apart"
            )
            fleet.do("live", INTERVAL)
            told = [self._switch(hubs, fleet, nodes) for _ in range(self._size.switches)]
            self.say(
                f"{title}: told of a switch within {_shown(told)}; now {self._size.window:.0f} s of that"
            )
            cores, others_cores, load = self._window(hubs, fleet)
            resident = hubs.resident
            trouble = self._trouble(hubs, fleet, nodes) if setup.name == "sqlite" else None
            full_way = 0.0 if setup.name == "bare" else _full_way(hubs)
            fleet.do("rest")
            fleet.do("release")
            hubs.settle()
            left = hubs.descriptors
            _beats, beat_ms_later = self._closed_loop(hubs, fleet)
        shutil.rmtree(directory, ignore_errors=True)
        return Measured(
            joins=count / seconds,
            join_ms=join_ms,
            held_kib=(held - empty) / nodes / 1024,
            beats=beats,
            beat_ms=beat_ms,
            beat_ms_fresh=beat_ms_fresh,
            beat_ms_later=beat_ms_later,
            full_way=full_way,
            left=left,
            told=told,
            cores=cores,
            others_cores=others_cores,
            load=load,
            resident_mib=resident / 2**20,
            trouble=trouble,
        )

    def _trouble(self, hubs: Running, fleet: _Fleet, nodes: int) -> Trouble | None:
        """Kill the hub and start it again; then lose half of the nodes."""
        if nodes < 0.9 * max(self._size.nodes):  # of the largest fleet, less what the machine's limits cost
            return None
        self.say("kill -9 of the hub, which is started again")
        hubs.hubs[0].crash()
        began = time.monotonic()
        while hubs.counted("gridcore_held_requests") < nodes and time.monotonic() - began < 60:
            time.sleep(0.5)
        back_within = time.monotonic() - began
        self.say(f"all have asked again within {back_within:.1f} s; is anybody called Offline?")
        time.sleep(max(0.0, 75 - back_within))
        offline = len(hubs.get("/api/nodes?status=Offline"))
        _seconds, lost = fleet.do("lose_half")
        self.say(f"{offline} are; now {lost:,} nodes are gone at once")
        time.sleep(105)  # a minute until they are silent, and what it takes until no more follow
        events = hubs.get("/api/events?kind=nodes-offline&limit=1000")["events"]
        found = len(hubs.get("/api/nodes?status=Offline"))
        self.say(f"{found:,} are Offline, told in {len(events)} events")
        return Trouble(back_within, offline, lost, found, len(events))

    def _closed_loop(self, hubs: Running, fleet: _Fleet, *, is_fresh: bool = False) -> tuple[float, float]:
        """Heartbeats a second, and ms of CPU each, with nothing else going on."""
        spent = hubs.cpu
        seconds, count = fleet.do("beat_for", self._size.beats, CONNECTIONS, is_fresh)
        return count / seconds, (hubs.cpu - spent) / count * 1000

    def _switch(self, hubs: Running, fleet: _Fleet, nodes: int) -> list[float]:
        """Seconds until each node was told, in order."""
        fleet.told()
        asked = hubs.finish()
        told: list[float] = []
        deadline = time.monotonic() + 30
        while len(told) < nodes and time.monotonic() < deadline:
            time.sleep(0.3 + nodes / 5_000)  # to ask the simulator costs it time that it should listen
            told += fleet.told()
        hubs.settle(BUSY)  # it has all the next questions to take in, and a switch is a rare thing
        if len(told) < nodes:
            self.say(f"only {len(told):,} of {nodes:,} nodes were told within 30 s")
            told += [math.inf] * (nodes - len(told))
        return sorted(moment - asked for moment in told)

    def _window(self, hubs: Running, fleet: _Fleet) -> tuple[float, float, str]:
        """Cores that hubs and what they need take, and what they did for it."""
        before, spent, others, began = fleet.counts(), hubs.cpu, hubs.others_cpu, time.monotonic()
        time.sleep(self._size.window)
        seconds = time.monotonic() - began
        cores, others = (hubs.cpu - spent) / seconds, (hubs.others_cpu - others) / seconds
        after = fleet.counts()
        rates = {name: (after[name] - before[name]) / seconds for name in after}
        load = (
            f"{rates['beats']:.0f} heartbeats/s, {rates['asked']:.0f} questions/s; "
            f"simulator {rates['cpu']:.2f} cores"
        )
        for name in ("lost", "unknown", "refused"):
            if after[name]:
                load += f", {name} {after[name]:.0f}"
        return cores, others, load


class _Fleet:
    """As few simulator processes as file descriptors allow, as one."""

    def __init__(self, stack: ExitStack, directory: Path, hubs: Running, nodes: int, keep: float) -> None:
        processes = math.ceil(nodes / most_nodes(1))
        bounds = [nodes * number // processes for number in range(processes + 1)]
        self._parts = [
            Simulator(stack, directory, first, end - first, keep, hubs.ports)
            for first, end in pairwise(bounds)
        ]

    def do(self, name: str, *arguments: Any) -> tuple[float, int]:
        """Seconds and number of what was done."""
        answers = self._ask(name, *arguments)
        seconds = max(answer.get("seconds", 0.0) for answer in answers)
        return seconds, sum(answer.get("count", 0) for answer in answers)

    def told(self) -> list[float]:
        """Moments at which nodes were told, since this was last asked."""
        return [moment for answer in self._ask("told") for moment in answer["told"]]

    def counts(self) -> dict[str, float]:
        """Added up."""
        answers = self._ask("counts")
        return {name: sum(answer[name] for answer in answers) for name in answers[0]}

    def _ask(self, name: str, *arguments: Any) -> list[dict[str, Any]]:
        for part in self._parts:
            part.order(name, *arguments)
        return [part.answer() for part in self._parts]


def most_nodes(hubs: int, *, is_behind_proxy: bool = False) -> int:
    """How many nodes so many hub processes, or one proxy before them, can have connections with.

    Two each: a node that has just joined has a question on one, and keeps the other. A proxy has as many to
    the hub.
    """
    each = 4 if is_behind_proxy else 2
    return (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - SPARE) // each * (1 if is_behind_proxy else hubs)


def _full_way(hubs: Running) -> float:
    """Per cent of what nodes send most that the real server answered, since the hubs were started."""
    routes = ("gridnode-heartbeat", "gridnode-task")
    fast, full = (
        sum(hubs.counted(f'gridcore_requests_total{{route="{route}",way="{way}"}}') for route in routes)
        for way in ("fast", "full")
    )
    return 100 * full / (fast + full) if fast + full else math.nan  # another tree's hub does not count


def _shown(told: list[list[float]]) -> str:
    return ", ".join(f"{run[-1]:.2f}" for run in told) + " s"


def main() -> int:
    """Run it all."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--quick", action="store_true", help="a small form that shows that it runs")
    parser.add_argument(
        "--nodes", help="sizes of the fleet, such as 1000 or 100,most: as many as the machine's limits let"
    )
    parser.add_argument("--setups", help="some of " + ",".join(setup.name for setup in SETUPS))
    parser.add_argument(
        "--keep",
        type=float,
        default=AGENT_KEEPS,
        help="seconds that a node's idle heartbeat connection is kept (%(default)g, as the agent does)",
    )
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    if options.nodes:
        wanted = (sys.maxsize if word == "most" else int(word) for word in options.nodes.split(","))
        size = replace(size, nodes=tuple(wanted))
    setups = [setup for setup in SETUPS if not options.setups or setup.name in options.setups.split(",")]
    signal.signal(signal.SIGTERM, _interrupt)
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # the hubs and simulators inherit it
    found: dict[str, dict[int, Measured]] = {}
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="gridcore-bench-hub-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        bench = Bench(directory, size, options.keep)
        for setup in setups:
            most = most_nodes(setup.hubs, is_behind_proxy=setup.is_behind_proxy)
            bench.say(f"{setup.title}: {hard:,} file descriptors a process are enough for {most:,} nodes")
            try:
                for nodes in sorted({min(nodes, most) for nodes in size.nodes}):
                    found.setdefault(setup.name, {})[nodes] = bench.measure(setup, nodes)
            except CannotStart as reason:
                bench.say(f"{setup.title}: SKIPPED, it does not start: {reason}")
            except TimeoutError:
                bench.say(f"{setup.title}: ENDED, so many nodes are too much for it: it answers no more")
    return _report(setups, found, strict=options.strict, keep=options.keep)


def _report(setups: list[Setup], found: dict[str, dict[int, Measured]], *, strict: bool, keep: float) -> int:
    print(f"\n{_conditions(keep)}")
    missed = []
    for setup in setups:
        if setup.name not in found:
            print(f"\n{setup.title}: SKIPPED")
            continue
        figures = list(figures_of(setup, found[setup.name], found.get("bare", {})))
        print(f"\n{setup.title}\n")
        print("\n".join(table(figures)))
        missed += [f"{setup.name}: {figure.name.strip()}" for figure in figures if figure.missed]
    print(f"\nmissed: {'; '.join(missed)}" if missed else "\nevery goal is met")
    return 1 if missed and strict else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _conditions(keep: float) -> str:
    return (
        f"{os.cpu_count()} CPUs shared with the simulator, load {os.getloadavg()[1]:.1f} over the last 5 min,"
        f" Python {platform.python_version()}.\n"
        f"Default settings: a heartbeat each {INTERVAL:.0f} s with 4 containers, its connection kept for "
        f"{keep:g} s; a question held for {HELD_FOR:.0f} s.\n"
        "CPU: user and system of the hub processes; a heartbeat's while questions are held, no more.\n"
        "Told: from before `finish` is asked for to the node having the answer, while heartbeats go on."
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
