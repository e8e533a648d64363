"""One injection while it happens: where, how hard, and what the fault's author says may change."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from tests.fleet.chaos import look
from tests.fleet.chaos.ground import Ground
from tests.fleet.chaos.schedule import Injection, Seconds
from tests.fleet.engine import FleetError
from tests.fleet.grid import wait_until
from tests.fleet.hosts import Host

UNIT = "gridnode"
WITHIN = 15.0
"""Seconds after a fault's end in which the containers must be as they should, and mostly all else."""
SEEN_WITHIN = 15.0
"""Seconds until the hub must say why a slot does not compute."""


@dataclass
class Scene:
    """What a fault's code works with."""

    ground: Ground
    injection: Injection
    before: dict[str, look.Sight]
    hurt: set[str] = field(default_factory=set)
    """Containers that the fault hits: they may end. All others must stay as they are."""
    wrong: list[str] = field(default_factory=list)
    """What was not as it should be while the fault lasted."""
    notes: list[str] = field(default_factory=list)
    begin: float = field(default_factory=time.time)
    """Since the epoch; the hub's host has this machine's clock."""
    aftermath: list[Callable[[], object]] = field(default_factory=list)
    """What puts the host in order once everything was looked at."""

    @property
    def host(self) -> Host:
        """The host that the fault hits."""
        return self.ground.nodes[self.injection.host]

    @property
    def seconds(self) -> float:
        """How long the fault lasts."""
        return self.injection.seconds

    @property
    def mine(self) -> list[look.Box]:
        """Our containers on that host, as they were before, in order of their names."""
        return sorted(self.before[self.host.name].ours.values(), key=lambda box: box.name)

    def chosen(self) -> list[look.Box]:
        """Some of them, at least one."""
        return self.mine[: 1 + int(self.injection.fraction * len(self.mine))]

    def last(self) -> None:
        """Let the fault last."""
        time.sleep(self.seconds)

    def hurt_all(self, boxes: list[look.Box]) -> None:
        """These may end."""
        self.hurt |= {box.id for box in boxes}

    def hurt_everywhere(self) -> None:
        """The whole fleet's may: the task changes."""
        self.hurt_all([box for seen in self.before.values() for box in seen.ours.values()])

    def shell(self, script: str, timeout: float = 60) -> str:
        """Run a bash script on the host; its environment has no secrets, so it may be logged."""
        return self.host.ssh("bash -s", stdin=f"set -eu\n{script}".encode(), timeout=timeout)

    def agent_pid(self) -> str:
        """The agent's main process; 0 while there is none."""
        return self.host.ssh(f"systemctl show -p MainPID --value {UNIT}")

    def wait_new_agent(self, old: str, seconds: float = 30) -> None:
        """Until systemd says that another agent runs."""
        ask = f"systemctl show -p ActiveState -p MainPID {UNIT}"

        def there() -> bool:
            state = dict(line.split("=", 1) for line in self.host.ssh(ask).split())
            return state["ActiveState"] == "active" and state["MainPID"] not in ("0", old)

        wait_until(there, f"another agent runs on {self.host.container}", seconds)

    def must_be_said(self, kind: str) -> None:
        """The hub must tell of this trouble: status Error, and an error of this kind since it began."""

        def said() -> bool:
            node = self.ground.grid.node(self.host)
            return node["runtime_status"] == "Error" and any(
                error["kind"] == kind and datetime.fromisoformat(error["time"]).timestamp() > self.begin
                for error in node["errors"]
            )

        try:
            wait_until(said, f"the node says Error with {kind}", SEEN_WITHIN, pause=0.5)
        except FleetError as problem:
            node = self.ground.grid.node(self.host)
            self.wrong.append(f"{problem}; it said {node['runtime_status']}: {node['reason']}")

    def must_blame_hub(self, kind: str) -> None:
        """Its owner must be told why the hub does not answer: `gridnode status` gives the kind."""
        hub = json.loads(self.host.ssh("gridnode status --json"))["hub"]
        if hub["kind"] != kind:
            self.wrong.append(f"gridnode status says {hub['kind']} of the hub, not {kind}: {hub['away']}")


Act = Callable[[Scene], None]


@dataclass(frozen=True)
class Fault:
    """A way to break something. `act` makes it happen and ends it again; it returns at the fault's end."""

    name: str
    about: str
    act: Act
    seconds: Seconds
    agent: look.AgentRule
    word_within: float
    """Seconds after its end in which the hub must know better."""
    fills_disk: bool = False
    """It needs hosts whose disks may be filled."""


class Catalogue(dict[str, Fault]):
    """Faults by name."""

    def add(
        self,
        name: str,
        about: str,
        *,
        seconds: Seconds = (0.0, 0.0),
        agent: look.AgentRule = "same",
        word_within: float = WITHIN,
        fills_disk: bool = False,
    ) -> Callable[[Act], Act]:
        """Decorate the function that makes it happen."""

        def keep(act: Act) -> Act:
            self[name] = Fault(name, about, act, seconds, agent, word_within, fills_disk)
            return act

        return keep
