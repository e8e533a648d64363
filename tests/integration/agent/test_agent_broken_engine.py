"""An engine that starts no container is told as that, keeps the node in Error, and is found well again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.integration.agent.conftest import Agent, eventually
from tests.integration.agent.fixed_hub import TalkingHub, task
from tests.servers.engine import OwnEngine, own_engine


@pytest.fixture(scope="module")
def own() -> Iterator[OwnEngine]:
    with own_engine() as engine:
        yield engine


def on_it(
    own: OwnEngine, hub: TalkingHub, images: dict[str, str], make_agent: Callable[..., Agent]
) -> tuple[TalkingHub, Agent]:
    """A hub with a task, and an agent of it that uses this engine."""
    own.load(images["worker"])
    hub.task = task("squares", images["worker"])
    return hub, make_agent(hub.url, parallelism=1, network="none").start(**own.env)


@pytest.mark.slow
def test_an_engine_that_starts_nothing_is_told_as_its_own_failure_until_one_has_run_for_a_while(
    make_hub: Callable[[], TalkingHub],
    make_agent: Callable[..., Agent],
    images: dict[str, str],
    own: OwnEngine,
) -> None:
    own.set_broken(True)
    hub, agent = on_it(own, make_hub(), images, make_agent)

    def slot() -> dict[str, object]:
        return next((slot for beat in hub.beats()[-1:] for slot in beat["containers"]), {"restarts": 0})

    eventually(lambda: slot()["restarts"] == 4, "four tries are counted", 60)
    assert {error["kind"] for error in hub.errors()} == {"not-started"}
    message = hub.errors()[-1]["message"]
    assert "OCI runtime create failed" in message
    assert "`gridnode check` on the node" in message
    assert "the image" not in message.partition("(the image's command was not reached")[0]
    statuses = [beat["status"] for beat in hub.beats()]
    assert set(statuses[statuses.index("Error") :]) == {"Error"}, "never Idle in between"
    own.set_broken(False)
    beats = len(hub.beats())
    eventually(lambda: slot().get("state") == "running", "it runs", 60)
    assert hub.beats()[-1]["status"] == "Error", "not at once"
    eventually(lambda: hub.beats()[-1]["status"] == "Running", "after a while all is well", 40)
    assert "Idle" not in {beat["status"] for beat in hub.beats()[beats:]}
    assert agent.stop() == 0


@pytest.mark.slow
def test_an_engine_that_hangs_is_told_within_seconds_and_once(
    make_hub: Callable[[], TalkingHub],
    make_agent: Callable[..., Agent],
    images: dict[str, str],
    own: OwnEngine,
) -> None:
    hub, agent = on_it(own, make_hub(), images, make_agent)

    def status() -> str | None:
        return next((beat["status"] for beat in reversed(hub.beats())), None)

    eventually(lambda: status() == "Running", "it runs", 60)
    own.signal(signal.SIGSTOP)
    try:
        eventually(lambda: status() == "Error", "the node says so", 40)
        assert "has not answered for 15 s" in hub.beats()[-1]["reason"]
    finally:
        own.signal(signal.SIGCONT)
    eventually(lambda: status() == "Running", "all is well again", 40)
    assert [error["kind"] for error in hub.errors()] == ["engine"]
    assert agent.stop() == 0


@pytest.mark.slow
def test_a_check_finds_an_engine_that_starts_nothing(
    make_agent: Callable[..., Agent], own: OwnEngine
) -> None:
    agent = make_agent("http://127.0.0.1:9", network="none")
    command = [sys.executable, "-m", "agent.cli", "check", "--config", str(agent.config)]
    for broken, code in ((True, 1), (False, 0)):
        own.set_broken(broken)
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=os.environ | own.env, timeout=120
        )
        assert done.returncode == code, done.stderr
        assert ("does not run containers" in done.stderr) is broken
        assert ("journalctl -u docker" in done.stderr) is broken
        assert "`gridnode check`" not in done.stderr, "that is what runs"
        lists = (("ps", "-a", "--format", "{{.Names}}"), ("volume", "ls"), ("images",))
        assert not any("idm-check" in own.docker(*words) for words in lists)
