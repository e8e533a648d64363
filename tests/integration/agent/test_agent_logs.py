"""Ends of containers' logs, of those that run and of those before them, and what the hub shows of a fleet."""

from __future__ import annotations

import time
import urllib.error
from collections.abc import Callable
from typing import Any

import pytest

from tests.integration.agent.conftest import Agent, Hub, docker, eventually
from tests.integration.agent.fixed_hub import TalkingHub, task

MakeAgent = Callable[..., Agent]
MakeHub = Callable[[], TalkingHub]

SAYS_WHO_IT_IS = (
    "trap 'echo told to stop; exit 0' TERM; echo the key is $API_KEY, the queue is at $INPUT_REDIS_URL; "
    "echo run of $(cat /etc/hostname); while :; do sleep 0.1; done"
)
CHATTERS = (
    "busybox yes 'a long line of a story that goes on' | busybox head -n 5000 | cat -n; exec sleep 1000"
)


def only_container(agent: Agent) -> str:
    """The id of the one container that runs, short as its own hostname is."""
    (container,) = eventually(lambda: len(c := agent.containers()) == 1 and c, "a container runs")
    return str(container)


def test_the_last_three_runs_of_a_slot_are_kept_with_their_secrets_masked(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task(
        "story",
        images["worker"],
        command=["sh", "-c", SAYS_WHO_IT_IS],
        env={"API_KEY": "k3y-of-the-kingdom"},
        input_redis="redis://:pass-phrase@10.0.0.1:6379/0",
    )
    agent = make_agent(hub.url, parallelism=1).start()
    ids = []
    for end in ("first", "second", "third"):
        ids.append(only_container(agent))
        eventually(lambda: "run of" in docker("logs", ids[-1]), "it has said who it is")
        docker("kill", "--signal", "TERM", ids[-1])
        eventually(lambda: ids[-1] not in agent.containers(running=False), f"the {end} run is removed", 15)
    ids.append(only_container(agent))
    eventually(lambda: "run of" in docker("logs", ids[-1]), "it has said who it is")

    for restart in (False, True):
        if restart:
            agent.kill()
            agent.start()
        live = hub.log(previous=0)
        assert live["text"].endswith(f"run of {ids[-1][:12]}\n")
        for previous in (1, 2, 3):
            text = hub.log(previous=previous)["text"]
            assert text.startswith("the key is ***, the queue is at redis://:***@10.0.0.1:6379/0\n")
            assert text.endswith(f"run of {ids[-1 - previous][:12]}\ntold to stop\n")
        assert live["text"].startswith("the key is ***, the queue")
        assert hub.log(previous=1, lines=1)["text"] == "told to stop\n"
    absent = hub.log(instance=7)
    assert absent["error"] == "slot 7 has no container now; previous=1 shows its last run"
    assert not absent.get("text")
    assert hub.log(instance=7, previous=1)["error"] == "slot 7 has no run 1 before this one"
    assert agent.stop() == 0
    everything = "".join(str(seen.body) for seen in hub.seen) + agent.output()
    assert "k3y-of-the-kingdom" not in everything
    assert "pass-phrase" not in everything
    assert not [f for f in agent.config.parent.rglob("*.run") if b"k3y-of-the-kingdom" in f.read_bytes()]


def test_the_end_of_a_long_log_is_brought_as_far_as_it_was_kept(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task("chatter", images["worker"], command=["sh", "-c", CHATTERS])
    agent = make_agent(hub.url, parallelism=1).start()
    container = only_container(agent)
    eventually(lambda: "5000\t" in docker("logs", "--tail", "1", container), "all is said")
    whole = hub.log(lines=10_000)["text"]
    assert [int(line.split()[0]) for line in whole.splitlines()] == list(range(1, 5001))
    assert [line.split()[0] for line in hub.log(lines=2)["text"].splitlines()] == ["4999", "5000"]
    docker("kill", container)
    eventually(lambda: container not in agent.containers(running=False), "it is removed")
    kept = hub.log(lines=10_000, previous=1)["text"]
    assert 48 * 1024 < len(kept.encode()) <= 64 * 1024
    numbers = [int(line.split()[0]) for line in kept.splitlines()]  # from the start of a line
    assert numbers == list(range(5001 - len(numbers), 5001))
    assert agent.stop() == 0


def test_the_hub_shows_logs_containers_and_the_cause_that_a_fleet_has_in_common(
    computehub: Hub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    agents = [make_agent(computehub.url, parallelism=1, heartbeat_interval=45).start() for _ in range(2)]
    one = agents[0]
    computehub.run_task("story", images["worker"], command=["sh", "-c", SAYS_WHO_IT_IS])
    first = only_container(one)
    eventually(lambda: computehub.node(one.node_id)["active_containers"] == 1, "the hub shows it")
    began = time.monotonic()
    path = f"/api/nodes/{one.node_id}/logs?instance=0&lines=5"
    assert computehub.call("GET", path).endswith(f"run of {first[:12]}\n")
    assert time.monotonic() - began < 4  # far below a heartbeat's interval
    (slot,) = computehub.node(one.node_id)["containers"]
    assert slot["state"] == "running"
    assert slot["started"]
    assert slot["last_exit"] is None

    docker("kill", first)
    second = eventually(lambda: [c for c in one.containers() if c != first], "another takes its place")[0]
    eventually(lambda: "run of" in docker("logs", second), "it has said who it is")
    assert computehub.call("GET", path).endswith(f"run of {second[:12]}\n")
    assert computehub.call("GET", path + "&previous=1").endswith(f"run of {first[:12]}\n")
    with pytest.raises(urllib.error.HTTPError, match="404"):
        computehub.call("GET", path + "&previous=3")

    def restarted() -> Any:
        (slot,) = computehub.node(one.node_id)["containers"]
        return slot if slot["restarts"] == 1 and slot["state"] == "running" else None

    slot = eventually(restarted, "the hub shows the restart")
    assert slot["last_exit"]["kind"] == "sigkill"
    assert slot["last_exit"]["exit_code"] == 137
    assert slot["last_exit"]["time"] < slot["started"]

    computehub.run_task("failing", images["worker"], command=["/no/such/command"])

    def common() -> Any:
        found = computehub.call("GET", "/api/problems")
        return found if found and found[0]["nodes"] == 2 else None

    (problem,) = eventually(common, "both nodes have the problem")
    assert problem["kind"] == "no-command"
    assert problem["summary"].startswith("2 of 2 nodes: ")
    assert "/no/such/command" in problem["cause"]
    assert set(problem["node_ids"]) == {agent.node_id for agent in agents}
    assert [agent.stop() for agent in agents] == [0, 0]


def test_a_drained_node_stays_online_and_idle_over_a_restart_until_it_is_resumed(
    computehub: Hub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    computehub.run_task("squares", images["worker"])
    agent = make_agent(computehub.url, heartbeat_interval=45).start()
    before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    began = time.monotonic()
    assert computehub.call("POST", f"/api/nodes/{agent.node_id}/drain")["draining"] is True
    eventually(lambda: not agent.containers(running=False), "its containers are stopped")
    eventually(lambda: computehub.node(agent.node_id)["active_containers"] == 0, "the hub shows it")
    assert time.monotonic() - began < 8

    def is_drained() -> bool:
        node = computehub.node(agent.node_id)
        idle = (node["status"], node["runtime_status"]) == ("Online", "Idle")
        return idle and node["draining"] and (node["reason"] or "").startswith("drained")

    eventually(is_drained, "the hub says why")
    agent.kill()
    agent.start()
    time.sleep(3)
    assert agent.containers(running=False) == {}
    eventually(is_drained, "it is drained still")
    computehub.call("POST", f"/api/nodes/{agent.node_id}/resume")
    after = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run again", 8)
    assert sorted(after.values()) == sorted(before.values())
    eventually(lambda: computehub.node(agent.node_id)["runtime_status"] == "Running", "the hub shows it")
    assert agent.stop() == 0
