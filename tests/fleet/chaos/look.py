"""What a node shows, and what is wrong with it. The judging is pure; only `sight` looks."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from tests.fleet.engine import FleetError
from tests.fleet.hosts import Host

OWNER, TASK, GENERATION = "gridcore.owner", "gridcore.task", "gridcore.generation"

AgentRule = Literal["same", "new", "any"]
"""Whether a fault may, must not, or has to end the agent's process on the host that it hits."""

# An engine that hangs must not hang the look; one that goes between list and inspect is gone, and no error.
LOOK = """\
systemctl show -p ActiveState -p MainPID gridnode
echo ---
ids=$(timeout 10 docker ps -aq --no-trunc) || exit 9
[ -z "$ids" ] || timeout 10 docker inspect $ids 2>/dev/null || true
"""


@dataclass(frozen=True)
class Box:
    """One container on a host."""

    id: str
    name: str
    image: str
    ours: bool
    task: str
    generation: str
    cpu: str
    status: str
    started: str


@dataclass(frozen=True)
class Sight:
    """A host at one moment; `trouble` instead of the rest when it could not be looked at."""

    boxes: tuple[Box, ...] = ()
    agent: str = ""  # the agent's main process; empty while none runs
    trouble: str = ""

    @property
    def ours(self) -> dict[str, Box]:
        """The containers that carry an owner, by id."""
        return {box.id: box for box in self.boxes if box.ours}


@dataclass(frozen=True)
class Want:
    """What every node should run now: `count` containers, one a CPU."""

    task: str
    image: str
    generation: str
    count: int


@dataclass
class Judgement:
    """What is not as it should be: still to come right, said wrongly by the hub, or never to be made good."""

    unmet: list[str] = field(default_factory=list)
    unsaid: list[str] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)


def sight(host: Host) -> Sight:
    """Look at a host, as cheaply as it gets: one SSH call."""
    try:
        shown = host.ssh("sh -s", stdin=LOOK.encode(), timeout=30)
    except FleetError as problem:
        return Sight(trouble=str(problem)[-200:])
    unit, _, listed = shown.partition("---")
    state = dict(line.split("=", 1) for line in unit.split())
    active = state.get("ActiveState") == "active" and state.get("MainPID", "0") != "0"
    found: list[dict[str, Any]] = json.loads(listed.strip() or "[]")
    return Sight(tuple(_box(one) for one in found), state["MainPID"] if active else "")


def judge_containers(want: Want, seen: Sight) -> list[str]:
    """What keeps this host from running exactly what is wanted, each on its own CPU."""
    if seen.trouble:
        return [f"cannot be looked at: {seen.trouble}"]
    wrong = [] if seen.agent else ["no agent runs"]
    ours = list(seen.ours.values())
    for box in ours:
        if box.status != "running":
            wrong.append(f"{box.name} is {box.status}")
        elif (box.task, box.image, box.generation) != (want.task, want.image, want.generation):
            wrong.append(f"{box.name} is not of {want.task} as it is now")
    if len(ours) != want.count:
        wrong.append(f"{len(ours)} containers, not {want.count}")
    cpus = [box.cpu for box in ours]
    if len(set(cpus)) != len(cpus) or not all(cpu.isdecimal() for cpu in cpus):
        wrong.append(f"the CPUs are {cpus}")
    return wrong


def judge_word(want: Want, node: Mapping[str, Any], since: float = 0.0) -> list[str]:
    """What the hub says of a node that is not so; it must have heard the node after `since` (epoch)."""
    expected = {
        "status": "Online",
        "runtime_status": "Running",
        "active_containers": want.count,
        "task": want.task,
    }
    wrong = [f"{key} is {node.get(key)!r}" for key, value in expected.items() if node.get(key) != value]
    if wrong:
        return [f"the hub says: {', '.join(wrong)} (reason {node.get('reason')!r})"]
    heard = datetime.fromisoformat(str(node["last_seen"])).timestamp()
    return [] if heard > since else [f"the hub has not heard the node since {node['last_seen']}"]


def judge_kept(before: Sight, after: Sight, hurt: Collection[str], agent: AgentRule) -> list[str]:
    """What the fault did not touch and is another one now: containers, also foreign ones, and the agent."""
    if after.trouble:
        return []
    now = {box.id: box for box in after.boxes}
    wrong = []
    for box in before.boxes:
        if box.id in hurt or box.status != "running":
            continue
        if box.id not in now:
            wrong.append(f"{box.name} was healthy and is gone")
        elif now[box.id].started != box.started:
            wrong.append(f"{box.name} was healthy and was restarted")
    if after.agent and before.agent:
        if agent == "same" and after.agent != before.agent:
            wrong.append("the agent is another process")
        if agent == "new" and after.agent == before.agent:
            wrong.append("the agent is still the same process: the fault did not hit it")
    return wrong


def _box(one: dict[str, Any]) -> Box:
    labels = one["Config"].get("Labels") or {}
    return Box(
        id=one["Id"],
        name=one["Name"].lstrip("/"),
        image=one["Config"]["Image"],
        ours=OWNER in labels,
        task=labels.get(TASK, ""),
        generation=labels.get(GENERATION, ""),
        cpu=one["HostConfig"]["CpusetCpus"],
        status=one["State"]["Status"],
        started=one["State"]["StartedAt"],
    )
