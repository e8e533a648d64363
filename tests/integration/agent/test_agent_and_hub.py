"""Hub and agent together, as the processes that users run, on a real engine."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import Any

from tests.integration.agent.conftest import Agent, Hub, eventually, has_a_deaf_one

MakeAgent = Callable[..., Agent]


def names(agent: Agent) -> list[str]:
    return sorted(agent.containers(running=False).values())


def test_a_switch_and_a_stop_arrive_at_once(
    computehub: Hub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    agent = make_agent(computehub.url, heartbeat_interval=45).start()
    eventually(lambda: computehub.node(agent.node_id)["status"] == "Online", "the node is Online")
    time.sleep(1)
    computehub.run_task("one", images["worker"])
    switched = time.monotonic()
    eventually(lambda: computehub.node(agent.node_id)["active_containers"] == 2, "two containers are shown")
    assert time.monotonic() - switched < 8  # far below a poll or a heartbeat interval

    computehub.call("POST", f"/api/nodes/{agent.node_id}/stop")
    stopped = time.monotonic()
    eventually(lambda: "the hub asks this node to stop" in agent.output(), "the stop arrives", 5)
    assert time.monotonic() - stopped < 1
    assert agent.wait() == 0
    assert names(agent) == []
    assert computehub.node(agent.node_id)["status"] == "Offline"
    # Started again, the node is back: the stop was told, and the registration cleared it.
    agent.start()
    eventually(lambda: len(agent.containers()) == 2, "it computes again")
    assert agent.stop() == 0


def test_errors_of_containers_and_images_show_in_the_list_of_nodes(
    computehub: Hub, images: dict[str, str], registry: str, make_agent: MakeAgent
) -> None:
    computehub.run_task("absent", f"{registry}/absent:1")
    agent = make_agent(computehub.url).start()
    eventually(lambda: computehub.node(agent.node_id).get("runtime_status") == "Error", "Error is shown")
    node = computehub.node(agent.node_id)
    assert "manifest unknown" in node["reason"]
    assert node["errors"][-1]["kind"] == node["reason_kind"] == "image-not-found"
    computehub.run_task("failing", images["worker"], env={"MODE": "fail"})
    eventually(
        lambda: any("exit code 3" in e["message"] for e in computehub.node(agent.node_id)["errors"]),
        "the exit code is shown",
    )
    eventually(lambda: computehub.node(agent.node_id)["reason_kind"] == "failed", "its kind goes with it")
    (problem,) = computehub.call("GET", "/api/problems")
    assert (problem["kind"], problem["cause"]) == ("failed", "exit code 3")
    assert agent.stop() == 0


def test_an_image_for_each_platform(computehub: Hub, images: dict[str, str], make_agent: MakeAgent) -> None:
    computehub.call("POST", "/api/tasks", {"name": "arm", "images": {"linux/arm64": images["foreign"]}})
    computehub.call("POST", "/api/tasks/next")
    agent = make_agent(computehub.url).start()
    reason = "task arm has no image for linux/amd64"
    eventually(lambda: computehub.node(agent.node_id).get("reason") == reason, "the reason is shown")
    assert computehub.node(agent.node_id)["runtime_status"] == "Idle"
    assert agent.stop() == 0


def test_a_container_that_is_killed_at_a_switch_is_no_problem_of_the_next_task(
    computehub: Hub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    computehub.run_task("one", images["worker"], env={"MODE": "deaf"})
    agent = make_agent(computehub.url, stop_timeout=1).start()
    eventually(lambda: has_a_deaf_one(agent), "a container ignores SIGTERM")
    computehub.run_task("two", images["worker"])

    def killed() -> list[Any]:
        return [error for error in computehub.node(agent.node_id)["errors"] if error["kind"] == "killed"]

    assert {error["task"] for error in eventually(killed, "the hub is told of the kill")} == {"one"}
    assert computehub.call("GET", "/api/problems") == []
    assert agent.stop() == 0


def test_a_restarted_hub_interrupts_nothing(
    computehub: Hub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    computehub.run_task("one", images["worker"])
    agent = make_agent(computehub.url).start()
    before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    computehub.stop()
    time.sleep(2)
    computehub.start()
    assert computehub.node(agent.node_id)["status"] == "Online"
    seen = computehub.node(agent.node_id)["last_seen"]
    eventually(lambda: computehub.node(agent.node_id)["last_seen"] != seen, "it is heard again", 40)
    assert agent.containers() == before
    assert agent.stop() == 0


def test_a_fresh_hub_on_the_old_address_stops_nothing_until_somebody_decides(
    computehub: Hub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    computehub.run_task("one", images["worker"])
    agent = make_agent(computehub.url).start()
    eventually(lambda: len(agent.containers()) == 2, "two containers run")
    computehub.stop()
    for file in computehub.database.parent.glob("hub.db*"):
        file.unlink()
    before = agent.containers()
    computehub.start()
    eventually(lambda: computehub.node(agent.node_id)["status"] == "Online", "it is registered again", 45)
    eventually(lambda: "This list of tasks is new" in agent.output(), "the hub gives it nothing", 45)
    assert agent.containers() == before
    # A task of the same name is another task, too; and with that the new list counts.
    computehub.run_task("one", images["worker"])
    eventually(
        lambda: len(now := agent.containers()) == 2 and now.keys().isdisjoint(before),
        "the new hub's task runs, and the old one does not",
        45,
    )
    assert agent.stop() == 0


def test_a_hub_restored_from_a_backup_gets_its_own_task_back(
    computehub: Hub, images: dict[str, str], make_agent: MakeAgent
) -> None:
    computehub.run_task("one", images["worker"])
    computehub.stop()
    backup = computehub.database.with_name("backup")
    shutil.copy(computehub.database, backup)
    computehub.start()
    agent = make_agent(computehub.url).start()
    computehub.run_task("two", images["worker"])
    eventually(lambda: names(agent) == [f"idm-two-{agent.node_id}-{i}" for i in (0, 1)], "two runs")
    computehub.stop()
    for file in computehub.database.parent.glob("hub.db*"):
        file.unlink()
    shutil.copy(backup, computehub.database)
    computehub.start()
    eventually(lambda: names(agent) == [f"idm-one-{agent.node_id}-{i}" for i in (0, 1)], "one runs again", 45)
    # The next revision must differ from the one that was lost, though its counter is the same.
    computehub.run_task("two", images["worker"])
    eventually(lambda: names(agent) == [f"idm-two-{agent.node_id}-{i}" for i in (0, 1)], "two runs again")
    assert agent.stop() == 0
