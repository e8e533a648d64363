"""kill -9 of a real hub at random moments while clients work on it: what was acknowledged is there after.

100 rounds, on four hubs side by side. GRIDCORE_KILL_ROUNDS and GRIDCORE_SEED say how many, and which.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import HubProcess
from tests.integration.storm import Ledger, Storm

HUBS = 4
ROUNDS = int(os.environ.get("GRIDCORE_KILL_ROUNDS", "100"))
SEED = int(os.environ.get("GRIDCORE_SEED", "0")) or random.SystemRandom().getrandbits(32)

LONGEST = 0.6
"""Seconds that a storm lasts at most."""

KILLED_AT_START = 0.1
"""How many of the hubs are killed once more while they start."""


class Life:
    """One hub that is killed and started again and again."""

    def __init__(self, directory: Path, seed: str) -> None:
        directory.mkdir()
        self.hub = HubProcess(directory)
        self.ledger = Ledger()
        self.done = 0
        self._chance = random.Random(seed)

    def run(self, rounds: int) -> None:
        self.hub.start()
        for number in range(rounds):
            storm = Storm(self.hub.port, self.ledger, f"r{number}-", self._chance)
            time.sleep(self._chance.uniform(0.02, LONGEST))
            self.hub.kill()
            storm.wait()
            self.done += storm.done
            if self._chance.random() < KILLED_AT_START:
                self.hub.spawn()
                time.sleep(self._chance.uniform(0, 0.1))
                self.hub.kill()
            self.hub.start()
            self._check()
        self.hub.kill()

    def _check(self) -> None:
        """What was acknowledged is there, each with its event, and beyond it only what was not answered."""
        ledger = self.ledger
        listed, events = self.hub.get("/api/tasks").json, self._events()
        tasks = {task["name"]: task["status"] for task in listed["tasks"]}
        assert ledger.tasks <= set(tasks) <= ledger.tasks | ledger.open_tasks
        assert Counter(events["task-added"]) == Counter(list(tasks)), "one event for each task"

        nodes = {node["id"]: node for node in self.hub.get("/api/nodes").json}
        assert ledger.nodes <= set(nodes) <= ledger.nodes | ledger.open_nodes
        assert Counter(events["node-joined"]) == Counter(list(nodes))
        for node_id, node in nodes.items():
            possible = {ledger.draining.get(node_id, False), ledger.open_drains.get(node_id)}
            assert node["draining"] in possible, node_id
        orders = len(events["drain-ordered"]) + len(events["resume-ordered"])
        assert ledger.orders <= orders <= ledger.orders + len(ledger.open_drains)

        switched = [(event["detail"]["previous"], event["detail"]["current"]) for event in events["switched"]]
        assert not Counter(ledger.switches) - Counter(switched), "every switch that was acknowledged is told"
        assert len(switched) <= len(ledger.switches) + ledger.open_switches
        self._check_chain(switched, tasks, listed["current"])

        tokens = {token["id"] for token in self.hub.get("/api/tokens").json}
        assert ledger.tokens <= tokens
        assert len(tokens) <= len(ledger.tokens) + ledger.open_tokens
        self._settle(tasks, nodes, switched, tokens, orders)

    def _check_chain(
        self, switched: list[tuple[str | None, str | None]], tasks: dict[str, str], current: str | None
    ) -> None:
        """Each switch began where the one before had ended, and the list is what they made of it."""
        before: str | None = None
        for previous, after in switched:
            assert previous == before
            before = after
        assert before == current
        completed = {previous for previous, _ in switched if previous is not None}
        assert completed == {name for name, status in tasks.items() if status == "Completed"}

    def _settle(self, tasks: Any, nodes: Any, switched: Any, tokens: set[str], orders: int) -> None:
        """What was not answered is known by now."""
        ledger = self.ledger
        ledger.tasks, ledger.nodes, ledger.tokens = set(tasks), set(nodes), tokens
        ledger.switches, ledger.orders = list(switched), orders
        ledger.draining = {node_id: node["draining"] for node_id, node in nodes.items()}
        ledger.open_tasks.clear()
        ledger.open_nodes.clear()
        ledger.open_drains.clear()
        ledger.open_switches = ledger.open_tokens = 0

    def _events(self) -> Any:
        """The whole trail, oldest first, by kind: the tasks, nodes or events themselves."""
        found: dict[str, list[Any]] = {
            kind: [] for kind in ("task-added", "node-joined", "drain-ordered", "resume-ordered", "switched")
        }
        place = "0"
        while place is not None:
            page = self.hub.get(f"/api/events?after={place}&limit=1000").json
            for event in page["events"]:
                if event["kind"] in found:
                    short = {"task-added": event["task"], "node-joined": event["node"]}
                    found[event["kind"]].append(short.get(event["kind"], event))
            place = page["next"]
        return found


@pytest.mark.slow
def test_what_a_hub_acknowledged_survives_kill_9_at_any_moment(tmp_path: Path) -> None:
    print(f"seed {SEED}, {ROUNDS} rounds")
    failures: list[BaseException] = []
    lives = [Life(tmp_path / f"hub{number}", f"{SEED}-{number}") for number in range(HUBS)]

    def run(life: Life) -> None:
        try:
            life.run(max(1, ROUNDS // HUBS))
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=run, args=(life,)) for life in lives]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise AssertionError(f"with seed {SEED}") from failures[0]
    done = sum(life.done for life in lives)
    print(f"{done} operations acknowledged over {ROUNDS} kills")
    assert done > ROUNDS, "the storm was no storm"
