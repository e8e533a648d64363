"""What the agent costs and how fast it replaces a container, beside bare Docker in the same run.

    python -m tests.load.bench_agent [--quick] [--strict]

A real engine, real containers, agent processes of their own against a hub that speaks the fixed protocol.
Everything that it made is removed at the end, after Ctrl-C too. Exit code 0 also when a goal is missed,
unless `--strict`.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any
from urllib.parse import quote

from tests.integration.agent.conftest import Agent, docker, image_archive
from tests.integration.agent.fixed_hub import FixedHub, task
from tests.load.figures import Figure, table
from tests.load.processes import MIB, Sample, Sampler, engine_pid, stat

STANDING_MOST, PEAK_MOST, ALIKE_MOST = 60.0, 100.0, 1.10
CPU_MOST = 1.0
BARE_TIMES, BARE_PLUS = 1.5, 0.5
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
MEMORY = 16
"""MB a container: 64 of them are no burden."""
LIVES = 6
"""Seconds: exit 0 after 5 s or more restarts at once; sooner waits, by design."""
LOG = (
    "i=0; while [ $i -lt 1500 ]; do "
    'echo "line $i of a log that has to be kept when its container ends...."; i=$((i+1)); done'
)
"""Over 64 KiB, so that winding a container up keeps as much log as it ever does."""


@dataclass(frozen=True)
class Size:
    """How much is measured."""

    slots: int = 64
    idle: float = 60.0
    settle: float = 12.0
    replacements: int = 10


QUICK = Size(slots=2, idle=3.0, settle=1.0, replacements=1)


@dataclass
class Measured:
    """What one agent took; memory in MiB, CPU in percent of a core."""

    slots: int
    standing: list[Sample]
    peaks: dict[str, list[Sample]]
    cpu: float
    engine_cpu: float | None

    @property
    def standing_mib(self) -> float:
        """The median of the moments without a child."""
        return statistics.median(s.leader for s in self.standing if s.children == 0) / MIB

    def peak(self, samples: list[Sample] | None = None) -> Sample:
        """The greatest of one phase, or of all."""
        every = samples if samples is not None else [s for some in self.peaks.values() for s in some]
        return max(every, key=lambda sample: sample.resident)


class Bench:
    """One image, one hub, one agent at a time."""

    def __init__(self, directory: Path, size: Size) -> None:
        self._directory = directory
        self._size = size
        self._mark = uuid.uuid4().hex[:8]
        self._image = f"gridcore-bench:{self._mark}"
        self._agents: list[Agent] = []
        self._began = time.monotonic()
        self.hub = FixedHub()

    def say(self, text: str) -> None:
        """A line of progress."""
        print(f"[{time.monotonic() - self._began:5.0f} s] {text}", file=sys.stderr, flush=True)

    def prepare(self) -> None:
        """Make the image."""
        archive = image_archive(self._image, MACHINES.get(platform.machine(), "arm"))
        subprocess.run(["docker", "load", "--quiet"], input=archive, check=True, stdout=subprocess.DEVNULL)

    def clean_up(self) -> None:
        """Remove everything that this run made."""
        self.say("cleaning up")
        for agent in self._agents:
            if agent.process is not None and agent.process.poll() is None:
                agent.process.kill()
                agent.process.wait()
        self.hub.close()
        for filters in ([f"ancestor={self._image}"], [f"label=gridcore.bench={self._mark}"]):
            wanted = [word for one in filters for word in ("--filter", one)]
            if found := docker("ps", "--all", "--quiet", *wanted, check=False).split():
                docker("rm", "--force", "--volumes", *found, check=False)
        for name in ("rest", "next", "exits"):
            names = docker("volume", "ls", "--quiet", "--filter", f"label=gridcore.task={self._task(name)}")
            if names:
                docker("volume", "rm", "--force", *names.split(), check=False)
        docker("rmi", "--force", self._image, check=False)

    def measure(self, slots: int) -> Measured:
        """Memory and CPU of an agent with so many slots: starting, idle, at a switch, winding up."""
        agent = self._agent(slots)
        assert agent.process is not None
        with self._sampling(agent) as sampler:
            self.say(f"{_slots(slots)}: starting containers")
            peaks = {"start": self._phase(sampler, lambda: self._want("rest", agent, slots))}
            time.sleep(self._size.settle)
            self.say(f"{_slots(slots)}: idle for {self._size.idle:.0f} s")
            began, spent, engine = time.monotonic(), cpu_of(agent.process.pid), cpu_of(engine_pid())
            peaks["tick"] = self._phase(sampler, lambda: time.sleep(self._size.idle))
            seconds = time.monotonic() - began
            cpu = percent(spent, cpu_of(agent.process.pid), seconds)
            engine_cpu = percent(engine, cpu_of(engine_pid()), seconds)
            self.say(f"{_slots(slots)}: another task")
            peaks["switch"] = self._phase(sampler, lambda: self._want("next", agent, slots))
            self.say(f"{_slots(slots)}: containers end, and are wound up and replaced")
            peaks["wind-up"] = self._phase(sampler, lambda: self._kill_and_wait(agent, slots))
        self._stop(agent)
        assert cpu is not None
        return Measured(slots, peaks["tick"], peaks, cpu, engine_cpu)

    def replacements(self) -> tuple[list[float], list[float]]:
        """Seconds from an end to the next container's start, and of bare runs between them."""
        wanted = self._size.replacements
        self.say(
            f"replacements: {wanted} containers that exit with 0 after {LIVES} s, bare runs between them"
        )
        self.hub.task = self._made("exits", f"sleep {LIVES}")
        agent = self._agent(1)
        replaced: list[float] = []
        bare: list[float] = []
        ended: float | None = None
        for kind, moment in container_events(self._task("exits"), seconds=(LIVES + 15.0) * (wanted + 2)):
            if kind == "die":
                ended = moment
            elif kind == "start":
                if ended is not None:
                    replaced.append(moment - ended)
                if len(replaced) == wanted:
                    break
                ended = None
                bare.append(self._run_bare())
        self._stop(agent)
        return replaced, bare

    def _agent(self, slots: int) -> Agent:
        directory = self._directory / f"agent{len(self._agents)}"
        directory.mkdir()
        settings = {"parallelism": slots, "container_memory": MEMORY, "heartbeat_interval": 30}
        agent = Agent(directory, self.hub.url, fresh=True, **settings)
        self._agents.append(agent)
        return agent.start()

    def _task(self, name: str) -> str:
        return f"bench-{self._mark}-{name}"

    def _made(self, name: str, then: str) -> dict[str, Any]:
        return task(self._task(name), self._image, command=["sh", "-c", f"{LOG}; exec {then}"])

    def _want(self, name: str, agent: Agent, slots: int) -> None:
        self.hub.task = self._made(name, "sleep 100000")
        started = time.monotonic()
        self._until(lambda: len(self._running(name)) == slots, f"{slots} containers of {name} run", agent)
        took = time.monotonic() - started
        self.say(f"{_slots(slots)}: there after {took:.1f} s, up to 10 of them until the agent asks")
        time.sleep(1)  # the listing after it

    def _kill_and_wait(self, agent: Agent, slots: int) -> None:
        before = set(self._running("next"))
        victims = sorted(before)[: max(1, slots // 4)]
        subprocess.run(["docker", "kill", *victims], check=True, stdout=subprocess.DEVNULL)
        self._until(
            lambda: len(now := set(self._running("next"))) == slots and not now & set(victims),
            "the killed containers are replaced",
            agent,
        )
        time.sleep(1)

    def _running(self, name: str) -> list[str]:
        query = quote(json.dumps({"label": [f"gridcore.task={self._task(name)}"], "status": ["running"]}))
        return [str(one["Id"]) for one in ask_engine(f"/containers/json?filters={query}")]

    def _until(self, check: Callable[[], bool], what: str, agent: Agent, seconds: float = 150.0) -> None:
        deadline = time.monotonic() + seconds
        while not check():
            assert agent.process is not None
            if agent.process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"bench: not within {seconds:.0f} s: {what}\n{agent.output()[-3000:]}")
            time.sleep(0.25)

    @contextmanager
    def _sampling(self, agent: Agent) -> Iterator[Sampler]:
        assert agent.process is not None
        sampler = Sampler(agent.process.pid).start()
        try:
            yield sampler
        finally:
            sampler.close()

    @staticmethod
    def _phase(sampler: Sampler, work: Callable[[], None]) -> list[Sample]:
        began = time.monotonic()
        work()
        return sampler.since(began)

    def _stop(self, agent: Agent) -> None:
        self.say("stopping the agent and its containers")
        agent.stop(120)
        self.hub.task = None

    def _run_bare(self) -> float:
        limits = ["--init", "--cpuset-cpus", str(min(os.sched_getaffinity(0))), "--cpu-shares", "2"]
        limits += ["--memory", f"{MEMORY}m", "--memory-swap", f"{MEMORY}m", "--pids-limit", "1024"]
        limits += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--oom-score-adj", "500"]
        limits += ["--log-driver", "json-file", "--log-opt", "max-size=10m", "--log-opt", "max-file=2"]
        label = f"gridcore.bench={self._mark}"
        started = time.monotonic()
        made = docker("run", "--detach", "--label", label, *limits, self._image, "sleep", "100")
        took = time.monotonic() - started
        docker("rm", "--force", made)
        return took


def cpu_of(pid: int | None) -> float | None:
    """Seconds of CPU so far, reaped children included."""
    seen = stat(pid) if pid is not None else None
    return seen.cpu if seen is not None else None


def percent(before: float | None, after: float | None, seconds: float) -> float | None:
    """Of a core; None where that cannot be told."""
    return None if before is None or after is None else 100 * (after - before) / seconds


class _Engine(http.client.HTTPConnection):
    """The engine's socket. No docker client: its pages would be shared with those of the agent's."""

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect("/var/run/docker.sock")


def ask_engine(path: str) -> Any:
    """One answer."""
    connection = _Engine("engine", timeout=60)
    try:
        connection.request("GET", path)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()


def container_events(task_name: str, seconds: float) -> Iterator[tuple[str, float]]:
    """`die` with the container's FinishedAt and `start` with its StartedAt (epoch seconds), as they come."""
    wanted = {"label": [f"gridcore.task={task_name}"], "type": ["container"], "event": ["die", "start"]}
    connection = _Engine("engine", timeout=seconds)
    try:
        connection.request("GET", f"/events?filters={quote(json.dumps(wanted))}")
        answer = connection.getresponse()
        while line := answer.readline():
            event = json.loads(line)
            state = ask_engine(f"/containers/{event['id']}/json").get("State", {})
            key = "FinishedAt" if event["Action"] == "die" else "StartedAt"
            # One that the agent has removed already: the event's own time, which is a little later.
            told = _epoch(state[key]) if state.get(key, "0001").startswith("2") else event["timeNano"] / 1e9
            yield event["Action"], told
    finally:
        connection.close()


def _epoch(text: str) -> float:
    return datetime.fromisoformat(f"{text[:26].rstrip('Z')}+00:00").timestamp()


def figures_of(
    small: Measured, large: Measured, replaced: list[float], bare: list[float]
) -> Iterator[Figure]:
    """The figures of a whole run beside their goals."""
    for one in (small, large):
        yield Figure(f"resident, idle, {_slots(one.slots)}", one.standing_mib, "MiB", STANDING_MOST)
    yield Figure(f"  {large.slots} slots : 1", large.standing_mib / small.standing_mib, "x", ALIKE_MOST)
    for one in (small, large):
        top = one.peak()
        note = f"RSS added up {top.rss_sum / MIB:.0f} MiB, {top.children} children"
        yield Figure(f"resident, peak, {_slots(one.slots)}", top.resident / MIB, "MiB", PEAK_MOST, note)
    top_ratio = large.peak().resident / small.peak().resident
    yield Figure(f"  {large.slots} slots : 1", top_ratio, "x", ALIKE_MOST)
    for phase in small.peaks:
        for one in (small, large):
            top = one.peak(one.peaks[phase])
            note = f"RSS added up {top.rss_sum / MIB:.0f} MiB, agent alone {top.leader / MIB:.0f}"
            yield Figure(f"  at {phase}, {_slots(one.slots)}", top.resident / MIB, "MiB", None, note)
    for one in (small, large):
        note = "" if one.engine_cpu is None else f"the engine meanwhile {one.engine_cpu:.1f} %"
        yield Figure(f"CPU, idle, {_slots(one.slots)}", one.cpu, "%", CPU_MOST, note)
    yield Figure("bare docker run -d, median", statistics.median(bare), "s", None, f"{len(bare)} runs")
    goal = BARE_TIMES * statistics.median(bare) + BARE_PLUS
    for name, value in (("median", statistics.median(replaced)), ("max", max(replaced))):
        note = f"{value / statistics.median(bare):.2f} x bare, {len(replaced)} times"
        yield Figure(f"replacement, {name}", value, "s", goal if name == "median" else None, note)


def main() -> int:
    """Run it all."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    parser.add_argument("--quick", action="store_true", help="a small form that shows that it runs")
    options = parser.parse_args()
    size = QUICK if options.quick else Size()
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="gridcore-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        bench = Bench(directory, size)
        stack.callback(bench.clean_up)
        bench.prepare()
        small = bench.measure(1)
        replaced, bare = bench.replacements()
        large = bench.measure(size.slots)
    figures = list(figures_of(small, large, replaced, bare))
    print(f"\n{_conditions()}\n")
    print("\n".join(table(figures)))
    missed = [figure.name.strip() for figure in figures if figure.missed]
    print(f"\nmissed: {'; '.join(missed)}" if missed else "\nevery goal is met")
    return 1 if missed and options.strict else 0


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _slots(count: int) -> str:
    return "1 slot" if count == 1 else f"{count} slots"


def _conditions() -> str:
    engine = ask_engine("/version")["Version"]
    return (
        f"{os.cpu_count()} CPUs, load {os.getloadavg()[1]:.1f} over the last 5 min, "
        f"engine {engine}, Python {platform.python_version()}.\n"
        "Resident: the agent's RSS and its children's PSS (text that docker clients share counts once).\n"
        f"Replacement: exit 0 after {LIVES} s, from FinishedAt to the next StartedAt. "
        "A failure waits 0.5 to 1 s more, by design."
    )


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
