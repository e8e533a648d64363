"""The runner: inject, watch until everything holds again, judge, and go on until the time is over."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from tests.fleet import work
from tests.fleet.chaos import ground as grounds
from tests.fleet.chaos import look, machine_faults, network_faults
from tests.fleet.chaos.ground import IN_HAND, OUTPUT, Ground
from tests.fleet.chaos.record import Record, Seen
from tests.fleet.chaos.scene import UNIT, WITHIN, Fault, Scene
from tests.fleet.chaos.schedule import Injection, choose, schedule
from tests.fleet.engine import PROJECT, FleetError
from tests.fleet.show import console

FAULTS: dict[str, Fault] = {**machine_faults.FAULTS, **network_faults.FAULTS}

PATIENCE = 90.0
"""Seconds that a recovery is waited for, to tell how long it really took."""
LOOK_EVERY = 0.5
LEISURE = 90.0
"""Seconds for what may be tidied up later."""
DEFECTS = (
    "Traceback (most recent call last)",
    "a defect in gridnode",
    "failed unexpectedly",
    "Exception ignored",
)
EVIDENCE = PROJECT / ".cache" / "chaos"


@dataclass
class Watch:
    """Looks at the fleet from a fault's end until all holds, or patience ends."""

    scene: Scene
    fault: Fault
    begin: float = field(default_factory=time.monotonic)
    end_of_fault: float = field(default_factory=time.time)  # the hosts have this machine's clock
    contained: float | None = None  # seconds until the containers were right
    said: float | None = None  # seconds until the hub said so, too
    broken: list[str] = field(default_factory=list)
    last: list[str] = field(default_factory=list)
    results: int = -1

    def until_well(self) -> None:
        """Poll; afterwards `contained` and `said` tell, and `last` what was still missing."""
        self.results = self.scene.ground.results()
        while self.said is None and time.monotonic() - self.begin < PATIENCE:
            self._look()
            if self.said is None:
                time.sleep(LOOK_EVERY)

    def violations(self) -> list[str]:
        """What the rules forbid of what was seen."""
        wrong = [*self.scene.wrong, *self.broken]
        if self.contained is None or self.contained > WITHIN:
            wrong.append(f"containers not right within {WITHIN:.0f} s: {_took(self.contained)}")
        if self.said is None or self.said > self.fault.word_within:
            wrong.append(f"not all well within {self.fault.word_within:.0f} s: {_took(self.said)}")
        if self.said is None:
            wrong += self.last
        return wrong

    def _look(self) -> None:
        scene, ground = self.scene, self.scene.ground
        seen = ground.sights()
        unmet = [
            f"{host.container}: {text}"
            for host in ground.nodes
            for text in look.judge_containers(ground.want, seen[host.name])
        ]
        for host in ground.nodes:
            rule = self.fault.agent if host == scene.host else "same"
            for text in look.judge_kept(scene.before[host.name], seen[host.name], scene.hurt, rule):
                if (line := f"{host.container}: {text}") not in self.broken:
                    self.broken.append(line)
        if unmet:
            self.contained = None  # it must stay right
            self.last = unmet
            return
        if self.contained is None:
            self.contained = time.monotonic() - self.begin
        unsaid = [
            f"{host.container}: {text}"
            for host in ground.nodes
            for text in ground.word(host, self.end_of_fault)
        ]
        if ground.results() <= self.results:
            unsaid.append("no new result since the fault's end")
        self.last = unsaid
        if not unsaid:
            self.said = time.monotonic() - self.begin


class Runner:
    """One run over one fleet."""

    def __init__(self, ground: Ground, seed: int, faults: Sequence[str] = ()) -> None:
        self.ground = ground
        self.record = Record()
        self._faults = {name: FAULTS[name] for name in choose(list(faults), list(FAULTS))}
        self._seed = seed

    @cached_property
    def evidence(self) -> Path:
        """Where the journals of violations are kept."""
        directory = EVIDENCE / f"seed-{self._seed}-{time.strftime('%H%M%S')}"
        directory.mkdir(parents=True, exist_ok=True)
        return directory

    def run(self, seconds: float, most: int | None = None) -> Record:
        """Inject until the time is over (a fault that has begun is finished), or so many."""
        plan = schedule(self._seed, {n: f.seconds for n, f in self._faults.items()}, len(self.ground.nodes))
        console.print(
            f"chaos: seed {self._seed}, {len(self._faults)} faults, {len(self.ground.nodes)} nodes, "
            f"{seconds / 60:.1f} minutes"
        )
        begin = time.monotonic()
        for injection in plan:
            if time.monotonic() - begin > seconds or (most is not None and injection.number > most):
                break
            if not self._one(injection, time.monotonic() - begin):
                break
        self.record.afterwards += [*self._wrong_results(), *self._left_behind()]
        return self.record

    def _one(self, injection: Injection, at: float) -> bool:
        """One injection from beginning to end; False when the fleet cannot be used any more."""
        fault, since = self._faults[injection.fault], time.time()
        scene = Scene(self.ground, injection, self.ground.sights())
        watch = None
        try:
            fault.act(scene)
            watch = Watch(scene, fault)
            watch.until_well()
            violations = watch.violations()
        except FleetError as problem:
            violations = [f"the fault could not be made or ended as planned: {problem}", *scene.wrong]
        violations += self._defects(since)
        recovered = watch.said if watch else None
        seen = Seen(fault.name, recovered, tuple(violations), tuple(scene.notes), hurt=bool(scene.hurt))
        self._tell(injection, scene, seen, watch, at)
        if violations:
            self._keep_evidence(injection, scene, seen, since)
        for act in scene.aftermath:
            with suppress(FleetError):
                act()
        well = self._well_again(recovered is not None)
        self.record.seen.append(replace(seen, taken=self._taken()))
        return well

    def _taken(self) -> int:
        """Items taken by now; what is in hand becomes results before the next fault can hit it."""
        try:
            taken = self.ground.taken()
        except FleetError as problem:
            self.record.afterwards.append(f"items could not be counted: {problem}")
            return self.record.seen[-1].taken if self.record.seen else 0
        time.sleep(IN_HAND)
        return taken

    def _tell(self, injection: Injection, scene: Scene, seen: Seen, watch: Watch | None, at: float) -> None:
        lasted = f"{injection.seconds:4.0f} s" if injection.seconds else "      "
        mark = "[red]✗[/]" if seen.violations else "[green]✓[/]"
        result = "not recovered" if seen.recovered is None else f"recovered in {seen.recovered:.1f} s"
        if watch and watch.contained is not None:
            result += f" (containers {watch.contained:.1f} s)"
        console.print(
            f"{mark} {injection.number:3d} {at:5.0f} s  {seen.fault:26s} {lasted}  {scene.host.container}  "
            f"{result} {'; '.join(seen.notes)}".rstrip(),
            soft_wrap=True,
        )
        for text in seen.violations:
            console.print(f"        {text}", style="red", soft_wrap=True, markup=False)

    def _defects(self, since: float) -> list[str]:
        """What in the agents' journals looks like a defect of ours."""
        wrong = []
        for host in self.ground.nodes:
            with suppress(FleetError):
                said = host.ssh(f"journalctl --unit {UNIT} --since @{since:.0f} --no-pager --output cat")
                wrong += [f"{host.container}: the journal says {text!r}" for text in DEFECTS if text in said]
        return wrong

    def _keep_evidence(self, injection: Injection, scene: Scene, seen: Seen, since: float) -> None:
        path = self.evidence / f"{injection.number:03d}-{seen.fault}-{scene.host.name}.txt"
        parts = [f"{injection}", *seen.violations]
        for host in self.ground.nodes:
            for command in (
                f"journalctl --unit {UNIT} --since @{since - 2:.0f} --no-pager --output short-precise",
                "timeout 10 docker ps --all --no-trunc",
                f"journalctl --unit docker --since @{since - 2:.0f} --no-pager --lines 40",
            ):
                try:
                    said = host.ssh(command)
                except FleetError as problem:
                    said = str(problem)
                parts.append(f"\n== {host.container}: {command}\n{said}")
            with suppress(FleetError):
                parts.append(f"\n== the hub of {host.container}\n{self.ground.grid.node(host)}")
        path.write_text("\n".join(parts))
        console.print(f"        evidence: {path.relative_to(PROJECT)}", soft_wrap=True)

    def _well_again(self, recovered: bool) -> bool:
        """Bring the fleet to order for the next fault."""
        try:
            if not recovered:
                for host in self.ground.nodes:
                    host.ssh(f"systemctl reset-failed {UNIT}; systemctl restart {UNIT}", timeout=150)
            self.ground.wait_well(120)
        except FleetError as problem:
            self.record.afterwards.append(f"the fleet could not be brought to order: {problem}")
            console.print(f"chaos: ending early: {problem}", style="red", markup=False)
            return False
        return True

    def _left_behind(self) -> list[str]:
        """Volumes of earlier tasks, which are to be removed within a minute or so, at leisure."""
        count = f"docker volume ls --quiet --filter label={look.OWNER} | wc -l"
        deadline = time.monotonic() + LEISURE
        while True:
            try:
                counts = self.ground.grid.everywhere(lambda host: int(host.ssh(count)))
            except FleetError as problem:
                return [f"volumes could not be counted: {problem}"]
            left = {name: number for name, number in counts.items() if number > self.ground.want.count}
            if not left or time.monotonic() > deadline:
                return [f"{number} volumes are left on {name}" for name, number in left.items()]
            time.sleep(2)

    def _wrong_results(self) -> list[str]:
        """Containers that are killed lose what they have in hand; but what comes back must be right."""
        results = list(work.read_all(self.ground.grid.redis, OUTPUT))
        wrong = [result for result in results if not _is_square(result)]
        there = {int(result.partition(":")[0]) for result in results if _is_square(result)}
        taken = self.record.seen[-1].taken if self.record.seen else 0
        self.record.count_lost(item for item in range(taken) if item not in there)
        lost = sum(one.lost for one in self.record.seen)
        console.print(
            f"chaos: {len(results):,} results came back, {len(wrong)} of them wrong; {lost} items were lost"
        )
        return [f"{len(wrong)} results are wrong, such as {wrong[0]!r}"] if wrong else []


def everything(
    prefix: str, seed: int, minutes: float, nodes: int, faults: Sequence[str] = (), most: int | None = None
) -> Record:
    """Bring a fleet up, run, take it down whatever happens."""
    ground: Ground | None = None
    try:
        chosen = choose(list(faults), list(FAULTS))
        ground = grounds.prepare(prefix, nodes, bounded_disks=any(FAULTS[name].fills_disk for name in chosen))
        return Runner(ground, seed, faults).run(minutes * 60, most)
    finally:
        if ground is not None:
            ground.end()
        grounds.take_down(prefix)


def _is_square(result: str) -> bool:
    left, _, right = result.partition(":")
    return left.isdecimal() and right.isdecimal() and int(right) == int(left) ** 2


def _took(seconds: float | None) -> str:
    return "never while we waited" if seconds is None else f"{seconds:.1f} s"
