"""Images: when registries are asked, what happens when they refuse or are away, and what is cleaned up."""

from __future__ import annotations

import base64
import json
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest

from tests.integration.agent.conftest import (
    Agent,
    Registry,
    docker,
    eventually,
    remove_images,
    running_hub,
)
from tests.integration.agent.fixed_hub import TalkingHub, task
from tests.servers.authority import Authority

MakeAgent = Callable[..., Agent]
MakeHub = Callable[[], TalkingHub]

ACCOUNT = "node:$2b$04$pO8FJL6g9SXBbwUTOtKvXeilr3zauCckerwwj69PvsCYIGWq7V3ZW\n"
"""What `htpasswd -nbB node pull-me` prints."""


def is_here(image: str) -> bool:
    """Whether the engine has the image."""
    return bool(docker("images", "-q", image))


def runs(agent: Agent, name: str) -> Any:
    """The node's containers, if exactly those of this task are there."""
    found = agent.containers(running=False)
    return found if list(found.values()) == [f"idm-{name}-{agent.node_id}-0"] else None


def shows(hub: TalkingHub, status: str) -> bool:
    """Whether the last heartbeat said this status."""
    return bool(hub.beats()[-1]["status"] == status)


def login(directory: Path, registry: str, account: str) -> Path:
    """A directory for DOCKER_CONFIG that logs in to a registry."""
    directory.mkdir()
    auths = {registry: {"auth": base64.b64encode(account.encode()).decode()}}
    (directory / "config.json").write_text(json.dumps({"auths": auths}))
    return directory


@pytest.fixture
def locked_registry(tmp_path: Path) -> Iterator[Registry]:
    """A registry that wants a login."""
    root = tmp_path / "locked"
    root.mkdir()
    (root / "accounts").write_text(ACCOUNT)
    locked = Registry(root, root / "accounts")
    locked.start()
    yield locked
    locked.stop()
    remove_images(locked.address)


def test_always_asks_the_registry_once_a_task_and_missing_never_for_an_image_that_is_here(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent, own_registry: Registry
) -> None:
    hub = make_hub()
    image = own_registry.offer("always:1", images["worker"])
    hub.task = task("first", image, pull_policy="always", generation="1-a", stop_timeout=1)
    agent = make_agent(hub.url, parallelism=1).start()
    eventually(lambda: runs(agent, "first"), "the first task runs")
    asked = own_registry.pulls(image)
    assert asked >= 1
    docker("kill", *eventually(agent.containers, "its container runs"))
    eventually(lambda: agent.output().count("] started") == 2, "a container is replaced")
    assert own_registry.pulls(image) == asked  # once a task, not once a container
    hub.task = task("second", image, pull_policy="always", generation="2-b", stop_timeout=1)
    eventually(lambda: runs(agent, "second"), "the second task runs", 25)
    assert own_registry.pulls(image) > asked
    assert agent.output().count("] pulling") == 2

    own_registry.stop()
    hub.task = task("third", image, generation="3-c", stop_timeout=1)
    eventually(lambda: runs(agent, "third"), "the third task runs without its registry", 25)
    assert agent.output().count("] pulling") == 2
    assert [error["kind"] for error in hub.errors()] == ["sigkill"]  # the kill above
    assert agent.stop() == 0


def test_a_registry_that_wants_a_login_refuses_nodes_that_have_none(
    make_hub: MakeHub,
    images: dict[str, str],
    make_agent: MakeAgent,
    locked_registry: Registry,
    tmp_path: Path,
) -> None:
    good = login(tmp_path / "good", locked_registry.address, "node:pull-me")
    image = f"{locked_registry.address}/private:1"
    docker("tag", images["worker"], image)
    docker("--config", str(good), "push", image)
    docker("rmi", image)
    bad = login(tmp_path / "bad", locked_registry.address, "node:a-guess")
    for config, kind in ((tmp_path / "none", "image-denied"), (bad, "image-denied"), (good, None)):
        hub = make_hub()
        hub.task = task("private", image)
        agent = make_agent(hub.url, parallelism=1).start(DOCKER_CONFIG=str(config))
        if kind is None:
            eventually(partial(runs, agent, "private"), "it runs with the login")
            assert hub.errors() == []
        else:
            (error,) = eventually(hub.errors, "the refusal is told")
            assert error["kind"] == kind
            assert "log this node's docker in to the registry" in error["message"]
            eventually(partial(shows, hub, "Error"), "the node shows it")
        assert agent.stop() == 0
        assert "pull-me" not in agent.output()


def test_a_registry_that_is_away_is_asked_further_and_further_apart_until_it_is_back(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent, own_registry: Registry
) -> None:
    hub = make_hub()
    image = own_registry.offer("away:1", images["worker"])
    own_registry.stop()
    hub.task = task("patient", image)
    agent = make_agent(hub.url, parallelism=1).start()
    eventually(hub.errors, "the error is told")
    began = time.monotonic()
    eventually(lambda: len(hub.errors()) == 2, "a second attempt", 8)  # after 2.5 to 5 s
    assert time.monotonic() - began > 2
    assert {error["kind"] for error in hub.errors()} == {"registry-away"}
    assert agent.output().count("] pulling") == 2
    own_registry.start()
    eventually(lambda: runs(agent, "patient"), "it runs when the registry is back", 15)  # after 5 to 10 s
    eventually(lambda: hub.beats()[-1]["status"] == "Running", "the trouble is over")
    assert agent.stop() == 0


@pytest.mark.parametrize(
    ("tls", "advice"),
    [(False, "`insecure-registries`"), (True, "/etc/docker/certs.d/")],
    ids=["plain", "TLS"],
)
def test_a_registry_that_this_engine_does_not_trust_is_told_with_what_to_do(
    tmp_path: Path, make_hub: MakeHub, make_agent: MakeAgent, tls: bool, advice: str
) -> None:
    # On loopback the engine takes any; this address of its own is not reached from elsewhere either.
    subnet = ip_network(docker("network", "inspect", "bridge", "-f", "{{(index .IPAM.Config 0).Subnet}}"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as route:
        route.connect((str(subnet[2]), 9))  # nothing is sent
        here = route.getsockname()[0]
    pair = Authority(tmp_path).issue("registry", f"IP:{here}") if tls else None
    registry = Registry(tmp_path, host=here, pair=pair)
    registry.start()
    try:
        hub = make_hub()
        hub.task = task("strange", f"{registry.address}/x:1")
        agent = make_agent(hub.url, parallelism=1).start()
        (error,) = eventually(hub.errors, "it is told")
        assert error["kind"] == "registry-not-trusted"
        assert advice in error["message"]
        assert agent.stop() == 0
    finally:
        registry.stop()


def test_the_next_pending_tasks_image_is_fetched_ahead_so_that_a_switch_needs_no_registry(
    tmp_path: Path, images: dict[str, str], make_agent: MakeAgent, own_registry: Registry
) -> None:
    now, soon = (own_registry.offer(f"{name}:1", images["worker"]) for name in ("now", "soon"))
    with running_hub(tmp_path, prefetch=True) as hub:
        hub.run_task("now", now, stop_timeout=1)
        hub.call("POST", "/api/tasks", {"name": "soon", "image": soon, "stop_timeout": 1})
        agent = make_agent(hub.url, parallelism=1).start()
        eventually(lambda: is_here(soon), "the next image is here")
        (before,) = eventually(lambda: runs(agent, "now"), "the current task runs meanwhile")
        own_registry.stop()
        hub.call("POST", "/api/tasks/next")
        eventually(lambda: runs(agent, "soon"), "the next task runs", 25)
        assert before not in agent.containers(running=False)
        assert agent.output().count("] pulling") == 2
        assert hub.node(agent.node_id)["errors"] == []
        assert agent.stop() == 0


def test_above_the_watermark_only_images_go_that_the_agent_pulled_and_no_task_needs(
    make_hub: MakeHub, images: dict[str, str], make_agent: MakeAgent, own_registry: Registry
) -> None:
    hub = make_hub()
    old, new, soon, foreign = (
        own_registry.offer(f"{name}:1", images["worker"]) for name in ("old", "new", "soon", "foreign")
    )
    docker("pull", foreign)  # by a person
    hub.task = task("old", old, stop_timeout=1)
    agent = make_agent(hub.url, parallelism=1, image_watermark=0.1).start()
    eventually(lambda: runs(agent, "old"), "the old task runs")
    hub.task = task("foreign", foreign, stop_timeout=1)
    eventually(lambda: runs(agent, "foreign"), "a task with a person's image runs", 25)
    hub.task = task("new", new, stop_timeout=1)
    hub.additions = {"prefetch": soon}
    eventually(lambda: runs(agent, "new"), "the new task runs", 25)
    eventually(lambda: not is_here(old), "what no task needs any more is removed")
    eventually(lambda: is_here(soon), "the next image is here")
    assert is_here(foreign)
    # A new agent knows what the last one pulled, and waits for the hub's word on what is needed.
    assert agent.stop() == 0
    agent.start()
    eventually(lambda: runs(agent, "new"), "the new task runs again")
    assert agent.output().count(f"image={new}") == 2  # pulling and pulled, once
    assert is_here(foreign)
    assert agent.stop() == 0
