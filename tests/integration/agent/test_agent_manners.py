"""How the agent behaves towards systemd, a hub that is not well, and GPUs that this machine does not have."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest

from tests.integration.agent.conftest import Agent, eventually
from tests.integration.agent.fixed_hub import TalkingHub, task

MakeAgent = Callable[..., Agent]
MakeHub = Callable[[], TalkingHub]


def is_running(hub: TalkingHub) -> bool:
    """Whether a heartbeat says so."""
    return bool(hub.beats() and hub.beats()[-1]["status"] == "Running")


class Manager:
    """The end of systemd's notify socket."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.channel = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.channel.bind(str(path))
        self.channel.setblocking(False)
        self._told: list[str] = []

    def told(self) -> list[str]:
        """Every assignment so far."""
        with suppress(BlockingIOError):
            while True:
                self._told += self.channel.recv(65_536).decode().splitlines()
        return self._told


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """A service manager that listens."""
    listening = Manager(tmp_path / "notify")
    yield listening
    listening.channel.close()


def test_systemd_hears_that_it_is_ready_how_it_does_that_it_lives_and_that_it_stops(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent, manager: Manager
) -> None:
    hub = make_hub()
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start(NOTIFY_SOCKET=str(manager.path), WATCHDOG_USEC="180000000")
    eventually(lambda: "STATUS=Running: 2 containers of squares" in manager.told(), "its status is told")
    assert manager.told()[0] == "READY=1"
    time.sleep(1)  # what the starts still stirred up
    alive, said = manager.told().count("WATCHDOG=1"), agent.output()
    assert alive >= 1
    eventually(lambda: manager.told().count("WATCHDOG=1") > alive, "it says that it lives", 13)
    assert agent.output() == said, "a tick that changes nothing is not worth a line"
    assert "STOPPING=1" not in manager.told()
    assert agent.stop() == 0
    assert "STOPPING=1" in manager.told()


def test_a_revoked_token_is_told_once_and_tried_again_slowly_while_computing_goes_on(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start()
    before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    hub.status = 401
    eventually(lambda: "token" in agent.output(), "it is said")
    hub.seen.clear()
    time.sleep(5)
    assert len(hub.seen) <= 2  # not once a second any more
    assert len([line for line in agent.output().splitlines() if "token" in line]) == 1
    assert agent.containers() == before
    assert "token" in agent.ask("status")
    assert agent.stop() == 0


def test_a_hub_that_is_not_well_interrupts_nothing_and_is_found_again(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hubs = {manner: make_hub() for manner in ("500", "nonsense", "slow", "reset")}
    agents: dict[str, Agent] = {}
    for manner, hub in hubs.items():
        hub.task = task("squares", images["worker"])
        agents[manner] = make_agent(hub.url, parallelism=1).start()
    before = {manner: eventually(agent.containers, "a container runs") for manner, agent in agents.items()}
    for manner, hub in hubs.items():
        hub.status, hub.manner = (500, "") if manner == "500" else (200, manner)
    time.sleep(5)
    for hub in hubs.values():
        hub.status, hub.manner = 200, ""
        hub.seen.clear()
    for manner, hub in hubs.items():
        eventually(partial(is_running, hub), f"the hub that was {manner} is found again", 30)
        assert agents[manner].containers() == before[manner], manner
        assert agents[manner].output().count("] started") == 1, manner
        assert hub.errors() == []
    for agent in agents.values():
        agent.signal(signal.SIGTERM)
    assert [agent.wait() for agent in agents.values()] == [0] * len(agents)


def test_a_closed_terminal_stops_the_agent_like_any_stop_but_not_under_nohup(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    hub = make_hub()
    hub.task = task("squares", images["worker"])
    agent, kept = make_agent(hub.url, parallelism=1).start(), make_agent(hub.url, parallelism=1, fresh=True)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which is all that nohup does about it
    try:
        kept.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    eventually(lambda: agent.containers() and kept.containers(), "both run a container")
    for one in (agent, kept):
        one.signal(signal.SIGHUP)
    assert agent.wait() == 0
    assert agent.containers(running=False) == {}
    time.sleep(1)
    assert kept.containers()
    assert kept.stop() == 0


def test_gpus_are_given_out_to_containers_and_where_docker_refuses_that_is_told(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent, tmp_path: Path
) -> None:
    record = tmp_path / "calls"
    docker = tmp_path / "bin" / "docker"
    docker.parent.mkdir()
    docker.write_text(f'#!/bin/sh\necho "$*" >>{record}\nexec {shutil.which("docker")} "$@"\n')
    docker.chmod(0o755)
    hub, none = make_hub(), make_hub()
    hub.task = none.task = task("cuda", images["worker"], gpus=2)
    agent = make_agent(hub.url, gpu_count=4, parallelism=4)
    path = f"{docker.parent}:{os.environ['PATH']}"
    agent.start(PATH=path)
    without = make_agent(none.url, gpu_count=1).start()
    eventually(lambda: len(hub.errors()) >= 2, "both slots tell what docker says")
    runs = [line for line in record.read_text().splitlines() if "--gpus" in line]
    asked = {line.split("--gpus ")[1].split(" ")[0] for line in runs}
    assert asked == {'"device=0,1"', '"device=2,3"'}  # two containers, though four would fit the CPUs
    assert {error["instance"] for error in hub.errors()} == {0, 1}
    assert {error["kind"] for error in hub.errors()} == {"no-gpu"}
    assert all("install the NVIDIA container toolkit" in error["message"] for error in hub.errors())
    eventually(lambda: hub.beats()[-1]["status"] == "Error", "the node shows it")
    reason = "needs 2 GPU a container, the node has 1"
    eventually(
        lambda: none.beats() and none.beats()[-1].get("reason") == reason, "the other says why it is idle"
    )
    assert agent.stop() == without.stop() == 0
