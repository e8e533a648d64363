"""How containers end, told apart in what the operator sees, and how long their slots wait."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from agent.memory_kills import machine_kills
from tests.integration.agent.conftest import Agent, docker, eventually, has_a_deaf_one
from tests.integration.agent.fixed_hub import TalkingHub, task

MakeAgent = Callable[..., Agent]
MakeHub = Callable[[], TalkingHub]

GREEDY = "busybox head -c 100m /dev/zero | busybox tail"
"""More than the limit."""
ENDS: dict[str, tuple[list[str] | None, str, int | None, str]] = {
    "well": (["sh", "-c", "exit 0"], "finished", 0, "finished"),
    "badly": (["sh", "-c", "echo no luck >&2; exit 3"], "failed", 3, "exit code 3"),
    "by-a-signal": (["sh", "-c", "kill -SEGV $$"], "failed", 139, "exit code 139 (killed by signal 11)"),
    "for-memory": (["sh", "-c", GREEDY], "as the engine says", 137, ""),
    "as-an-alien": (
        None,
        "wrong-platform",
        1,
        "could not start: /worker is for another architecture (exec format error)",
    ),
    "unfound": (["/no/such/command"], "no-command", 127, "could not start: /no/such/command: No such file"),
}
"""Name → command (None: an image for another machine), and what the operator sees: kind, exit code, words.

`as the engine says`: where it hears of kills for memory, they are told as such.
"""


def is_error(hub: TalkingHub) -> bool:
    """Whether the node says that something is wrong."""
    return bool(hub.beats()[-1]["status"] == "Error")


def started(agent: Agent) -> int:
    """How many containers the agent started so far."""
    return agent.output().count("] started")


def events(name: str, since: float) -> list[tuple[str, float]]:
    """What the engine says happened to containers of this name: (start or die, seconds)."""
    rows = docker(
        "events",
        *("--since", f"{since:.3f}", "--until", f"{time.time():.3f}", "--filter", f"container={name}"),
        *("--filter", "event=start", "--filter", "event=die", "--format", "{{.Action}} {{.TimeNano}}"),
    )
    split = [row.split() for row in rows.splitlines()]
    return [(action, int(nanoseconds) / 1e9) for action, nanoseconds in split]


@pytest.fixture(scope="module")
def hears_kills(images: dict[str, str]) -> bool:
    """Whether this engine says of a container that it was killed for memory: not each does."""
    name = f"greedy-{uuid.uuid4().hex[:12]}"
    began = time.time()
    docker("run", "--name", name, "--memory", "16m", images["worker"], "sh", "-c", GREEDY, check=False)
    inspected = docker("inspect", "--format", "{{.State.OOMKilled}}", name) == "true"
    time.sleep(2.5)
    window = ("--since", f"{began:.3f}", "--until", f"{time.time():.3f}")
    heard = docker("events", *window, "--filter", f"container={name}", "--filter", "event=oom")
    docker("rm", name)
    return inspected or bool(heard)


def test_each_end_of_a_container_is_told_apart(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent, hears_kills: bool
) -> None:
    hubs = {name: make_hub() for name in ENDS}
    agents: dict[str, Agent] = {}
    for name, (command, *_) in ENDS.items():
        image = images["worker" if command else "alien"]
        hubs[name].task = task(name, image, command=command, memory=16)
        agents[name] = make_agent(hubs[name].url, parallelism=1).start()
    memory = ("sigkill-unexplained", "of this machine for want of memory at about that time")
    if hears_kills:
        memory = ("out-of-memory", "out of memory (limit 16 MB)")
    for name, (_, told, code, text) in ENDS.items():
        kind, words = memory if name == "for-memory" else (told, text)
        hub = hubs[name]
        last: dict[str, Any] = eventually(hub.last_exit, f"an end {name} is told")
        assert (last["kind"], last["exit_code"]) == (kind, code), name
        assert words in last["message"], name
        assert last["ago"] >= 0
        assert 0 <= last["ran"] < 10
        slot = hub.beats()[-1]["containers"][0]
        assert slot["restarts"] >= 1
        if kind == "finished":
            assert hub.errors() == []
        else:
            assert {error["kind"] for error in hub.errors()} == {kind}, name
            assert words in hub.errors()[0]["message"], name
            eventually(partial(is_error, hub), f"an end {name} is an error")
    assert [agent.stop() for agent in agents.values()] == [0] * len(ENDS)


def one_at_work(
    hub: TalkingHub, images: dict[str, str], make_agent: MakeAgent
) -> tuple[TalkingHub, Agent, str]:
    """A hub with a task, an agent of it, and its only container."""
    hub.task = task("killed", images["worker"])
    agent = make_agent(hub.url, parallelism=1).start()
    [container] = eventually(agent.containers, "a container runs")
    return hub, agent, container


def test_a_kill_that_is_not_the_kernels_is_not_told_as_one_for_memory(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    # Not beside the one above: where nothing says whom the kernel killed, only the moment does.
    hub, agent, victim = one_at_work(make_hub(), images, make_agent)
    docker("kill", victim)
    last = eventually(hub.last_exit, "its end is told")
    assert (last["kind"], last["exit_code"]) == ("sigkill", 137)
    assert last["message"].startswith("killed (SIGKILL) by something else")
    assert [error["kind"] for error in hub.errors()] == ["sigkill"]
    assert agent.stop() == 0


def test_a_kill_by_hand_just_after_one_for_memory_elsewhere_is_not_told_as_one_for_memory(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub, agent, victim = one_at_work(make_hub(), images, make_agent)
    eventually(lambda: hub.beats() and hub.beats()[-1]["status"] == "Running", "the agent looks after it")
    began = machine_kills()
    docker("run", "--rm", "--memory", "16m", images["worker"], "sh", "-c", GREEDY, check=False)
    assert machine_kills() != began, "the kernel killed for memory, in no container of the agent"
    docker("kill", victim)
    last = eventually(hub.last_exit, "its end is told")
    assert (last["kind"], last["exit_code"]) == ("sigkill-unexplained", 137)
    assert "whether in this container cannot be told" in last["message"]
    assert [error["kind"] for error in hub.errors()] == ["sigkill-unexplained"]
    assert agent.stop() == 0


def test_a_kill_by_hand_while_the_agent_was_away_is_not_told_as_the_engines_or_the_machines_end(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub, agent, victim = one_at_work(make_hub(), images, make_agent)
    agent.kill()
    docker("kill", victim)
    agent.start()
    last = eventually(hub.last_exit, "its end is told")
    assert (last["kind"], last["exit_code"]) == ("interrupted", 137)
    assert last["message"] == "ended while the agent, the engine or the machine was away (exit code 137)"
    assert agent.stop() == 0


def test_an_image_that_ends_well_at_once_does_not_spin_but_after_five_seconds_goes_on_at_once(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    quick, steady = make_hub(), make_hub()
    quick.task = task("quick", images["worker"], command=["sh", "-c", "exit 0"])
    steady.task = task("steady", images["worker"], command=["sh", "-c", "sleep 5.1"])
    began = time.time()
    hasty = make_agent(quick.url, parallelism=1).start()
    patient = make_agent(steady.url, parallelism=1).start()
    eventually(lambda: started(hasty), "a first container starts")
    time.sleep(10)
    assert 3 <= started(hasty) <= 5  # at 0, 1, 3, 7 … seconds
    eventually(lambda: started(patient) >= 3, "the steady one starts again and again")
    name = f"idm-steady-{patient.node_id}-0"
    seen = events(name, began)
    died = next(at for action, at in seen if action == "die")
    again = next(at for action, at in seen if action == "start" and at > died)
    assert again - died < 4  # with a busy machine's two seconds for a start
    assert quick.errors() == steady.errors() == []
    assert {beat["status"] for beat in steady.beats()} <= {"Idle", "Running"}
    assert hasty.stop() == patient.stop() == 0


def test_a_deaf_container_is_killed_after_its_time_and_that_is_told_once(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task("deaf", images["worker"], env={"MODE": "deaf"}, stop_timeout=1)
    agent = make_agent(hub.url, parallelism=1).start()
    eventually(lambda: has_a_deaf_one(agent), "a deaf container runs")
    hub.task = task("polite", images["worker"])
    eventually(hub.errors, "the end is told", 25)
    eventually(
        lambda: (b := hub.beats()[-1])["status"] == "Running" and b["task"] == "polite", "the next task runs"
    )
    [error] = hub.errors()
    assert error["kind"] == "killed"
    assert error["message"].endswith("did not stop within 1 s")
    assert hub.last_exit() is None, "the next task's slot shows no end of another task's container"
    assert agent.stop() == 0


def test_a_container_removed_by_hand_is_replaced_and_told_of(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start()
    before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    # One that is gone before the agent has listed it even once was never there for it.
    eventually(lambda: hub.beats() and hub.beats()[-1]["active_containers"] == 2, "the agent has seen them")
    victim, other = before
    docker("rm", "-f", victim)
    after = eventually(lambda: len(c := agent.containers()) == 2 and c, "another takes its place", 10)
    assert victim not in after
    assert other in after
    assert sorted(after.values()) == sorted(before.values())
    eventually(lambda: hub.beats()[-1]["active_containers"] == 2, "both are shown")
    slot = int(before[victim].rpartition("-")[2])
    last = eventually(partial(hub.last_exit, slot), "its end is told")
    # Where the engine shows its end before it is gone, that is told.
    assert last["kind"] in ("removed", "sigkill")
    [error] = hub.errors()
    assert (error["kind"], error["instance"]) == (last["kind"], slot)
    assert hub.last_exit(1 - slot) is None
    assert agent.stop() == 0
    assert [error["kind"] for error in hub.errors()] == [last["kind"]], "what the agent removes is no news"
