"""The owner's terms, as the real engine enforces them and as `gridnode` tells them."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from tests.integration.agent.conftest import Agent, docker, eventually
from tests.integration.agent.fixed_hub import TalkingHub, task

MakeAgent = Callable[..., Agent]
MakeHub = Callable[[], TalkingHub]

SHOWS_WHAT_IT_MAY = (
    "cat /proc/self/status /proc/self/oom_score_adj /proc/mounts; echo shown; exec busybox sleep 1000"
)


def inspect(container: str) -> Any:
    """What the engine says of a container."""
    return json.loads(docker("inspect", container))[0]


def start_times(containers: dict[str, str]) -> dict[str, str]:
    """When each container was started, by the engine."""
    return {c: docker("inspect", "--format", "{{.State.StartedAt}}", c) for c in containers}


def states(agent: Agent) -> set[str]:
    """The engine's states of the node's containers."""
    all_of_them = agent.containers(running=False)
    return (
        set(docker("inspect", "--format", "{{.State.Status}}", *all_of_them).split())
        if all_of_them
        else set()
    )


def running(agent: Agent, count: int = 2) -> dict[str, str]:
    """So many containers, once they run."""
    found: dict[str, str] = eventually(
        lambda: len(c := agent.containers()) == count and states(agent) == {"running"} and c,
        f"{count} containers run",
        30,
    )
    return found


def test_a_pause_freezes_and_a_resume_thaws_the_same_containers(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start()
    times = start_times(running(agent))
    assert "containers are frozen for up to 600 s" in agent.ask("pause")
    eventually(lambda: states(agent) == {"paused"}, "both are frozen", 5)
    eventually(lambda: hub.beats()[-1]["paused"], "the hub is told")
    eventually(lambda: hub.beats()[-1]["active_containers"] == 0, "none is at work")
    beat = hub.beats()[-1]
    assert (beat["status"], beat["reason"]) == ("Idle", "paused by its owner")
    assert [c["state"] for c in beat["containers"]] == ["paused", "paused"]
    text = agent.ask("status")
    assert "paused by its owner" in text
    assert "`gridnode resume` goes on" in text
    status = json.loads(agent.ask("status", "--json"))
    assert status["permit"] == {"refuse": None, "freeze": "paused by its owner", "paused": True}
    assert status["paused_for"] > 0
    assert "already paused" in agent.ask("pause")

    agent.kill()  # the pause outlasts the agent, and so do the frozen containers
    hub.seen.clear()
    agent.start()
    eventually(lambda: hub.beats() and hub.beats()[-1]["paused"], "the next agent is paused, too")
    time.sleep(1)
    assert states(agent) == {"paused"}
    assert start_times(agent.containers(running=False)) == times

    assert "containers may run" in agent.ask("resume")
    assert start_times(running(agent)) == times
    eventually(lambda: hub.beats()[-1]["active_containers"] == 2, "both are at work")
    assert (hub.beats()[-1]["status"], hub.beats()[-1]["paused"]) == ("Running", False)
    assert "containers may run" in agent.ask("status")
    assert hub.errors() == []
    assert agent.stop() == 0


def test_a_pause_longer_than_freeze_max_stops_gracefully_and_a_stop_ends_frozen_containers_too(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url, freeze_max=1).start()
    running(agent)
    agent.ask("pause")
    eventually(lambda: not agent.containers(running=False), "both are stopped")
    assert hub.log(previous=1)["text"] == "stopping\n"  # they heard SIGTERM
    eventually(lambda: hub.beats()[-1]["reason"] == "paused by its owner", "the hub is told why")
    assert hub.last_exit() is None or hub.last_exit()["kind"] == "stopped"
    assert "no containers: paused by its owner" in agent.ask("status")
    agent.ask("resume")
    running(agent)
    agent.set(freeze_max=600)
    agent.signal(signal.SIGUSR1)
    assert agent.wait() == 75
    agent.start()
    eventually(lambda: agent.output().count("registered") == 2, "the next agent is there")
    running(agent)
    agent.ask("pause")
    eventually(lambda: states(agent) == {"paused"}, "both are frozen", 5)
    assert agent.stop() == 0
    assert agent.containers(running=False) == {}
    assert hub.errors() == []


def test_a_task_that_comes_during_a_pause_starts_only_after_it(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task("one", images["worker"])
    agent = make_agent(hub.url).start()
    running(agent)
    agent.ask("pause")
    eventually(lambda: states(agent) == {"paused"}, "both are frozen", 5)
    hub.task = task("two", images["worker"])
    eventually(lambda: not agent.containers(running=False), "the old ones are ended", 25)
    assert hub.log(previous=1)["text"] == "stopping\n"
    time.sleep(1)
    assert agent.containers(running=False) == {}
    agent.ask("resume")
    names = running(agent).values()
    assert sorted(names) == [f"idm-two-{agent.node_id}-{i}" for i in (0, 1)]
    assert agent.stop() == 0


def test_images_and_hours_that_the_owner_does_not_allow_show_as_the_reason(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    now = datetime.now().astimezone()
    span = [f"{now + timedelta(hours=hours):%H:%M}" for hours in (2, 3)]
    later, picky, ordinary = make_hub(), make_hub(), make_hub()
    later.task = ordinary.task = task("squares", images["worker"])
    picky.task = task("squares", "registry.invalid/never/pulled:1")
    night = make_agent(later.url).start()
    choosy = make_agent(picky.url, allowed_images=["*/squares/*", "127.0.0.1:1/*"]).start()
    reason = "image registry.invalid/never/pulled:1 is not in this node's allowed_images"
    eventually(lambda: picky.beats() and picky.beats()[-1].get("reason") == reason, "the reason is told")
    picky.additions = {"prefetch": "registry.invalid/another:1"}
    assert picky.beats()[-1]["status"] == "Idle"
    assert reason in choosy.ask("status")

    running(night)
    night.kill()
    night.set(hours="-".join(span))
    night.start()
    eventually(lambda: not night.containers(running=False), "what runs is stopped")
    reason = f"outside of the owner's hours {span[0]}-{span[1]}"
    eventually(lambda: later.beats()[-1]["status"] == "Idle", "the node is idle")
    assert later.beats()[-1]["reason"] == reason
    assert f"no containers: {reason}" in night.ask("status")
    night.ask("pause")
    assert "no containers run yet" in night.ask("resume")
    eventually(lambda: len(picky.beats()) > 3, "it has heard what to prefetch")
    assert "] pulling" not in choosy.output()
    assert picky.errors() == []
    assert night.stop() == choosy.stop() == 0


def test_a_container_may_do_nothing_but_compute(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task("shows", images["worker"], command=["sh", "-c", SHOWS_WHAT_IT_MAY])
    agent = make_agent(hub.url, parallelism=None, cpus="1").start()
    (container,) = running(agent, 1)  # one CPU, one container
    seen = inspect(container)
    host = seen["HostConfig"]
    assert host["CpusetCpus"] == "1"
    assert host["CpuShares"] == 2
    assert host["OomScoreAdj"] == 500
    assert host["PidsLimit"] == 1024
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["SecurityOpt"] == ["no-new-privileges"]
    assert host["NetworkMode"] == "bridge"
    assert host["PidMode"] == host["IpcMode"].replace("private", "") == host["UTSMode"] == ""
    assert not host["Privileged"]
    assert not host["Devices"]
    assert not host["Binds"]
    assert host["MemorySwap"] == host["Memory"] == 32 * 2**20
    assert host["LogConfig"] == {"Type": "json-file", "Config": {"max-file": "2", "max-size": "10m"}}
    assert [(m["Type"], m["Destination"]) for m in seen["Mounts"]] == [("volume", "/scratch")]
    eventually(lambda: "shown" in docker("logs", container), "it shows what it may")
    inside = docker("logs", container)
    fields = dict(line.split(":\t", 1) for line in inside.splitlines() if ":\t" in line)
    assert {fields[f"Cap{which}"] for which in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {"0" * 16}
    assert fields["NoNewPrivs"] == "1"
    assert fields["Cpus_allowed_list"] == "1"
    assert "\n500\n" in inside
    assert " /scratch " in inside
    assert agent.stop() == 0


def test_the_owner_and_only_the_owner_loosens_what_a_container_may_do(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent, tmp_path: Path
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "word").write_text("hello from the owner\n")
    loose, shut = make_hub(), make_hub()
    command = ["sh", "-c", SHOWS_WHAT_IT_MAY]
    # What a hub says beside the task's own fields loosens nothing.
    wishes = {"capabilities": ["SYS_ADMIN"], "mounts": ["/:/host"], "network": "host", "privileged": True}
    shut.task = task("shows", images["worker"], command=command, **wishes)
    loose.task = task("shows", images["worker"], command=["sh", "-c", f"cat /shared/word; {command[-1]}"])
    strict = make_agent(shut.url, parallelism=1).start()
    generous = make_agent(
        loose.url,
        parallelism=1,
        capabilities=["NET_RAW"],
        new_privileges=True,
        mounts=[f"{shared}:/shared:ro"],
        network="host",
        pids_limit=64,
        cpu_shares=100,
        oom_score=700,
        scratch_size=0,
    ).start()
    (container,) = running(generous, 1)
    seen = inspect(container)
    host = seen["HostConfig"]
    assert [cap.removeprefix("CAP_") for cap in host["CapAdd"]] == ["NET_RAW"]
    assert not host["SecurityOpt"]
    assert (host["NetworkMode"], host["PidsLimit"]) == ("host", 64)
    assert (host["CpuShares"], host["OomScoreAdj"]) == (100, 700)
    (mount,) = seen["Mounts"]  # scratch_size = 0: no /scratch
    assert (mount["Source"], mount["Destination"], mount["RW"]) == (str(shared), "/shared", False)
    eventually(lambda: "shown" in docker("logs", container), "it shows what it may")
    inside = docker("logs", container)
    fields = dict(line.split(":\t", 1) for line in inside.splitlines() if ":\t" in line)
    assert inside.startswith("hello from the owner\n")
    assert int(fields["CapEff"], 16) == 1 << 13  # CAP_NET_RAW
    assert fields["NoNewPrivs"] == "0"
    assert "/scratch" not in inside
    text = generous.ask("status")
    for term in (
        "capabilities: NET_RAW",
        "new_privileges: True",
        f"mounts: {shared}:/shared:ro",
        "network: host",
    ):
        assert term in text

    (other,) = running(strict, 1)
    assert not inspect(other)["HostConfig"]["CapAdd"]
    assert inspect(other)["HostConfig"]["NetworkMode"] == "bridge"
    assert [m["Destination"] for m in inspect(other)["Mounts"]] == ["/scratch"]
    assert "loosened" not in strict.ask("status")
    generous.kill()
    generous.set(network="none")
    generous.start()
    again = eventually(lambda: [c for c in generous.containers() if c != container], "it is replaced")
    assert inspect(again[0])["HostConfig"]["NetworkMode"] == "none"
    assert generous.stop() == strict.stop() == 0


def test_scratch_lasts_as_long_as_its_task(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    counts = "echo $INSTANCE_ID >>/scratch/count; cat /scratch/count; exec busybox sleep 1000"
    counting = task(
        "counts", images["worker"], command=["sh", "-c", counts], stop_timeout=0, generation="1-a"
    )
    hub.task = counting
    agent = make_agent(hub.url).start()

    def said(times: int) -> dict[str, str]:
        """The containers, once each has found what the runs before it left."""

        def seen() -> Any:
            found = agent.containers()
            right = all(docker("logs", c).split() == [name[-1]] * times for c, name in found.items())
            return found if len(found) == 2 and right else None

        found: dict[str, str] = eventually(seen, f"each is the {times}. on its /scratch", 30)
        return found

    volumes = [inspect(c)["Mounts"][0]["Name"] for c in said(1)]
    assert len(set(volumes)) == 2  # slots do not see each other's
    docker("kill", *agent.containers())
    said(2)
    agent.kill()
    agent.start()
    eventually(lambda: agent.output().count("registered") == 2, "the next agent is there")
    said(2)
    assert agent.stop() == 0  # a stop, an update, a reboot
    agent.start()
    said(3)
    hub.additions = {"drain": True, "known": True}
    eventually(lambda: not agent.containers(running=False), "drained")
    hub.additions = {"drain": False, "known": True}
    said(4)
    assert all(name in docker("volume", "ls", "-q") for name in volumes)
    hub.task = counting | {"generation": "2-b"}
    said(1)
    eventually(lambda: not set(volumes) & set(docker("volume", "ls", "-q").split()), "the old ones are gone")
    assert agent.stop() == 0
