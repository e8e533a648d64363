"""A task that is tried on one of two agents, on a real engine: the other one's containers go on untouched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.integration.agent.conftest import Agent, Hub, eventually

MakeAgent = Callable[..., Agent]


def test_one_of_two_agents_tries_a_task_that_fails_and_then_one_that_does_not(
    computehub: Hub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    agents = [make_agent(computehub.url, parallelism=1).start() for _ in range(2)]
    computehub.run_task("old", images["worker"])
    eventually(lambda: all(agent.containers() for agent in agents), "both compute")

    def canary() -> Any:
        return computehub.call("GET", "/api/tasks")["canary"]

    computehub.call("POST", "/api/tasks", {"name": "new", "image": images["worker"], "env": {"MODE": "fail"}})
    trying, other = try_it(computehub, agents)
    untouched = other.containers()
    eventually(lambda: canary() is None, "the failing task is given up")
    eventually(lambda: computes(trying, "old"), "the old task is back")
    assert other.containers() == untouched

    computehub.call("PATCH", "/api/tasks/new", {"env": {"MODE": None}})
    trying, other = try_it(computehub, agents)
    untouched = other.containers()
    eventually(lambda: computes(trying, "new"), "the mended task runs")
    tried = trying.containers()
    assert other.containers() == untouched
    computehub.call("POST", "/api/tasks/promote", {"task": "new"})
    eventually(lambda: computes(other, "new"), "both have the new task")
    assert trying.containers() == tried
    for agent in agents:
        assert agent.stop() == 0


def try_it(hub: Hub, agents: list[Agent]) -> list[Agent]:
    """Start a canary on one node; the agent that tries it, and the other one."""
    canary = hub.call("POST", "/api/tasks/next", {"canary": 1, "healthy_after": 60})["canary"]
    return sorted(agents, key=lambda agent: [agent.node_id] != canary["nodes"])


def computes(agent: Agent, task: str) -> bool:
    return any(f"-{task}-" in name for name in agent.containers().values())
