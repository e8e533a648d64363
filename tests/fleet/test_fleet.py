"""A real fleet: systemd hosts over SSH, rolled out by Ansible, then stopped in every way there is.

The fleet comes up once. Tests run in the order of this file; each brings the nodes back first.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import redis
from PIL import Image

from tests.fleet import demo, hosts, work
from tests.fleet.engine import FleetError, labelled
from tests.fleet.grid import Container, Grid, wait_until
from tests.fleet.hosts import Host
from tests.fleet.meanwhile import Feeder, in_no_command_line

pytestmark = pytest.mark.slow

PREFIX = "test"
ITEMS = 20_000
CONFIG = "/etc/idm-gridcore/gridnode.toml"


@pytest.fixture(scope="session")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the demo of this session writes its picture."""
    return tmp_path_factory.mktemp("demo") / "mandelbrot.png"


@pytest.fixture(scope="session")
def shown(picture: Path) -> Iterator[tuple[Grid, demo.Outcome]]:
    """The demo's fleet, as the demo leaves it, and what the demo has seen."""
    try:
        yield demo.everything(PREFIX, nodes=2, items=ITEMS, path=picture)
    finally:
        hosts.down(PREFIX)


@pytest.fixture
def grid(shown: tuple[Grid, demo.Outcome]) -> Grid:
    """The fleet with every agent running."""
    grid, _ = shown
    grid.everywhere(lambda host: host.ssh("systemctl start gridnode"))
    for host in grid.nodes:
        wait_until(lambda host=host: grid.node(host)["status"] == "Online", f"{host.name} Online", 30)  # type: ignore[misc]
    return grid


def add_task(grid: Grid, name: str, queues: str, item_seconds: float = 0) -> None:
    grid.playbook(
        "task_add",
        task_name=name,
        task_image=f"{grid.control.address}:5000/squares:1",
        task_input_queue=f"{queues}:input",
        task_output_queue=f"{queues}:output",
        task_env={"ITEM_SECONDS": str(item_seconds)},
    )


def agent_process(host: Host) -> str:
    """The main process of a running agent; empty while there is none."""
    shown = host.ssh("systemctl show -p ActiveState -p MainPID gridnode")
    state = dict(line.split("=", 1) for line in shown.splitlines())
    return state["MainPID"] if state["ActiveState"] == "active" and state["MainPID"] != "0" else ""


def running(grid: Grid) -> dict[str, str]:
    """The processes of Redis, the hub and the agents."""
    units = ("redis-server", "computehub")
    found = {unit: grid.control.ssh(f"systemctl show -P MainPID {unit}") for unit in units}
    return found | grid.everywhere(agent_process)


def last_ends(host: Host) -> set[str]:
    """How the last container of each slot ended, as the agent has written it down."""
    newest = 'for slot in /var/lib/gridnode/runs/*; do head -n 1 "$(ls $slot/*.run | tail -n 1)"; done'
    return {json.loads(line)["kind"] for line in host.ssh(newest).splitlines()}


def replace_agent(grid: Grid, host: Host, signal: str) -> None:
    """End the agent by a signal; the one that systemd starts next must adopt every container as it is."""
    containers = grid.containers(host)
    assert containers
    old = agent_process(host)
    assert old
    with grid.never_offline(host):
        host.ssh(f"systemctl kill --kill-whom=main --signal={signal} gridnode")
        wait_until(lambda: agent_process(host) not in ("", old), "the next agent runs", 30)
        new = agent_process(host)
        heard = grid.node(host)["last_seen"]
        wait_until(lambda: grid.node(host)["last_seen"] > heard, "the next agent reports", 60)
        assert grid.containers(host) == containers, "the same containers since the same time"
    assert agent_process(host) == new
    assert grid.containers(host) == containers


def test_the_demo_is_seen_whole(shown: tuple[Grid, demo.Outcome], picture: Path) -> None:
    grid, outcome = shown
    assert outcome.squares == work.Squares(missing=0, wrong=0, duplicates=0)
    assert outcome.switch_seconds < 30
    assert (outcome.tiles, outcome.proved) == (256, 13)
    assert len(outcome.offline) == 2
    with Image.open(picture) as image:
        assert image.size == (1024, 1024)
        assert len(image.getcolors() or []) > 50
    assert all(not grid.containers(host) for host in grid.nodes)


def test_no_way_to_stop_loses_an_item_in_hand(grid: Grid) -> None:
    """Switch away and on again, hand over, kill, stop: slow items, and the queue never empty meanwhile."""
    count = 0

    def feed() -> None:
        """Work for the next step, however long the machine takes for it."""
        nonlocal count
        assert count == 0 or grid.length("slow:input") > 0, "the queue was empty too early to prove anything"
        fresh = range(count, count + 400 - grid.length("slow:input"))
        grid.redis.rpush("slow:input", *fresh)
        count = fresh.stop

    for name in ("slow_1", "slow_2", "slow_3"):
        add_task(grid, name, "slow", item_seconds=0.4)
    first, second = grid.nodes

    feed()
    demo.switch(grid, "mandelbrot", "slow_1")
    wait_until(lambda: grid.length("slow:output") > 5, "the first slow results", 60)
    feed()
    demo.switch(grid, "slow_1", "slow_2")
    feed()
    replace_agent(grid, first, "USR1")
    feed()
    replace_agent(grid, second, "KILL")
    feed()
    demo.switch(grid, "slow_2", "slow_3")
    feed()
    grid.playbook("node_stop", node=first.container)
    assert grid.gone(first)
    assert first.ssh("systemctl is-active gridnode || true") == "inactive"
    assert grid.length("slow:input") > 0, "the queue was empty too early to prove anything"

    wait_until(lambda: grid.length("slow:output") >= count, "all slow results", 180)
    found = work.verify_squares(work.read_all(grid.redis, "slow:output"), count)
    assert found == work.Squares(missing=0, wrong=0, duplicates=0)


def test_redis_gets_another_password_while_workers_compute(grid: Grid) -> None:
    """The two steps of docs/ansible.md: no item is lost, no container killed, the old one opens nothing."""
    grid.wait_computing("slow_3")
    assert grid.ask_hub("/api/tasks/slow_3")["input_redis"] == "fleet"
    containers, services, redis_of_before = grid.everywhere(grid.containers), running(grid), grid.redis
    named = len(grid.ask_hub("/api/events?kind=fleet-redis-changed")["events"])
    with Feeder(grid.redis, "slow", begin=grid.length("slow:output")) as feeder:
        passwords = grid.renew_redis_password()
        with in_no_command_line(*passwords):
            # 1. The old one into gridcore_redis_previous_password, a new one into gridcore_redis_password.
            previous = grid.looked_up("redis_previous_password")
            grid.playbook("site", gridcore_redis_previous_password=previous)
            assert redis_of_before.ping()
            feeder.client = grid.redis
            for host in grid.nodes:
                wait_until(partial(_has_none_of, grid, host, containers[host.name]), "all are replaced", 60)
            grid.wait_computing("slow_3")
            assert "still ends" not in grid.playbook("status")
            assert grid.everywhere(last_ends) == {host.name: {"stopped"} for host in grid.nodes}
            containers = grid.everywhere(grid.containers)
            feeder.go_on()

            # 2. When status shows them at work: the old one out again.
            grid.playbook("site")
            feeder.go_on()
        assert grid.everywhere(grid.containers) == containers
    redis_of_before.connection_pool.disconnect()
    with pytest.raises(redis.AuthenticationError):
        redis_of_before.ping()
    wait_until(lambda: grid.length("slow:output") >= feeder.pushed, "all results", 60)
    found = work.verify_squares(work.read_all(grid.redis, "slow:output"), feeder.pushed)
    assert found == work.Squares(missing=0, wrong=0, duplicates=0)
    assert feeder.longest_pause < 15
    changed = {name for name, process in running(grid).items() if process != services[name]}
    assert changed == {"computehub"}, "Redis and the agents are the same processes"
    paths = ("/api/events", "/api/nodes", "/api/problems", "/api/tasks/slow_3", "/api/tasks/slow_3/progress")
    said = {path: json.dumps(grid.ask_hub(path)) for path in paths}
    assert said["/api/problems"] == "[]"
    assert len(grid.ask_hub("/api/events?kind=fleet-redis-changed")["events"]) == named + 1
    assert [path for path in said for password in passwords if password in said[path]] == []


def test_a_further_rollout_changes_nothing(grid: Grid) -> None:
    recap = grid.playbook("site").split("PLAY RECAP")[1]
    assert recap.count("changed=0 ") == len(grid.fleet.hosts), recap


def test_a_changed_configuration_rolled_out_stops_no_container(grid: Grid) -> None:
    grid.wait_computing("slow_3")
    containers = grid.everywhere(grid.containers)
    agents = grid.everywhere(agent_process)
    grid.playbook("agents", gridcore_agent_stop_timeout=41)
    assert all(
        "stop_timeout = 41" in text for text in grid.everywhere(lambda h: h.ssh(f"cat {CONFIG}")).values()
    )
    after = grid.everywhere(agent_process)
    assert all(after[name] not in ("", agents[name]) for name in agents), "every agent is a new one"
    grid.wait_computing("slow_3")
    assert grid.everywhere(grid.containers) == containers


def test_the_owner_pauses_the_machine_on_the_spot_and_the_operator_sees_it(grid: Grid) -> None:
    grid.wait_computing("slow_3")
    host = grid.nodes[0]
    containers = grid.containers(host)
    assert "frozen" in host.ssh("gridnode pause")
    wait_until(lambda: grid.node(host)["paused"], "the hub shows the pause", 30)
    wait_until(
        lambda: {c["state"] for c in grid.node(host)["containers"]} == {"paused"}, "all are frozen", 30
    )
    assert grid.node(host)["reason"] == "paused by its owner"
    assert "paused" in host.ssh("gridnode status")
    host.ssh("gridnode resume")
    grid.wait_computing("slow_3", [host])
    assert grid.containers(host) == containers


def test_a_hung_agent_is_replaced_by_the_watchdog_and_its_containers_go_on(grid: Grid) -> None:
    grid.wait_computing("slow_3")
    host = grid.nodes[1]
    drop_in = "/etc/systemd/system/gridnode.service.d"
    host.ssh(f"mkdir -p {drop_in} && printf '[Service]\\nWatchdogSec=20\\n' >{drop_in}/test.conf")
    host.ssh("systemctl daemon-reload && systemctl kill --kill-whom=main --signal=USR1 gridnode")
    wait_until(lambda: agent_process(host), "the agent with a short watchdog", 30)
    containers, hung = grid.containers(host), agent_process(host)
    host.ssh(f"kill -STOP {hung}")
    wait_until(lambda: agent_process(host) not in ("", hung), "systemd starts another agent", 90)
    assert "watchdog" in host.ssh("journalctl --no-pager -o cat -u gridnode | tail -n 200").lower()
    grid.wait_computing("slow_3", [host])
    assert grid.containers(host) == containers
    host.ssh(f"rm -r {drop_in} && systemctl daemon-reload")


def test_a_rebooted_host_is_the_same_node_and_computes_again(grid: Grid) -> None:
    host = grid.nodes[0]
    grid.wait_computing("slow_3")
    before = grid.node(host)["id"]
    host.reboot()
    grid.wait_computing("slow_3", [host])
    assert grid.node(host)["id"] == before


def test_two_hosts_made_from_one_image_become_two_nodes(grid: Grid) -> None:
    """A cloned disk brings the machine-id, and a gridnode.toml with the other's node_id."""
    original, clone = grid.nodes
    machine_id, config = (original.ssh(f"cat {path}") for path in ("/etc/machine-id", CONFIG))
    taken = grid.node(original)["id"]
    assert taken in config
    clone.ssh("systemctl stop gridnode")
    clone.put("/etc/machine-id", f"{machine_id}\n".encode(), 0o444)
    clone.ssh(f"cat >{CONFIG}", stdin=f"{config}\n".encode())  # owner and mode stay
    clone.ssh("systemctl start gridnode")

    wait_until(lambda: grid.node(clone)["status"] == "Online", "the clone is Online", 60)
    grid.wait_computing("slow_3")
    assert grid.node(original)["id"] == taken
    own = grid.node(clone)["id"]
    assert own != taken
    assert own in clone.ssh(f"cat {CONFIG}")
    assert taken in original.ssh(f"cat {CONFIG}")


def test_a_fresh_hub_on_the_old_address_stops_nothing_until_somebody_decides(grid: Grid) -> None:
    grid.wait_computing("slow_3")
    before = {host.name: grid.containers(host) for host in grid.nodes}
    grid.control.ssh("systemctl stop computehub && rm /var/lib/idm-gridcore/* && systemctl start computehub")
    wait_until(partial(_answers, grid), "the fresh hub answers", 30)
    assert grid.current() is None

    for host in grid.nodes:
        wait_until(partial(_is_known, grid, host), f"{host.name} registers there", 90)
    time.sleep(5)
    assert {host.name: grid.containers(host) for host in grid.nodes} == before
    # A task of the same name on the fresh hub is another task, too; with that the new list counts.
    grid.redis.rpush("fresh:input", *range(1000))
    add_task(grid, "slow_3", "fresh")
    grid.playbook("task_next")
    for host in grid.nodes:
        wait_until(partial(_has_none_of, grid, host, before[host.name]), f"{host.name} lets the old go", 90)
    grid.wait_computing("slow_3")
    wait_until(lambda: grid.length("fresh:output") >= 1000, "the fresh hub's results", 60)
    assert work.verify_squares(work.read_all(grid.redis, "fresh:output"), 1000).exact


def test_playbooks_repeat_without_harm_and_fail_in_the_hubs_own_words(grid: Grid) -> None:
    assert "changed=1 " in grid.playbook("task_finish", task="slow_3")
    assert grid.current() is None
    assert "changed=0 " in grid.playbook("task_finish", task="slow_3")
    with pytest.raises(FleetError, match="No task is pending"):
        grid.playbook("task_next")
    with pytest.raises(FleetError, match="another definition"):
        add_task(grid, "slow_3", "other")
    host = grid.nodes[0]
    grid.playbook("node_stop", node=grid.node(host)["id"])
    assert "changed=0 " in grid.playbook("node_stop", node=host.container)
    shown = grid.playbook("status")
    assert "slow_3" in shown
    assert host.container in shown


def test_no_secret_stands_in_what_was_said_or_logged(grid: Grid) -> None:
    names = ("token", "redis_password", "redis_previous_password")
    secrets = [grid.fleet.secret(name) for name in names]
    logs = grid.everywhere(lambda host: host.ssh("journalctl --no-pager -o cat"))
    logs |= {
        "hub": grid.control.ssh("journalctl --no-pager -o cat"),
        "ansible": grid.log.read_text(),
        "nodes": json.dumps(grid.ask_hub("/api/nodes")),
        "tasks": json.dumps(grid.ask_hub("/api/tasks")),
    }
    assert [name for name, text in logs.items() for secret in secrets if secret in text] == []


def test_down_leaves_nothing(grid: Grid) -> None:
    hosts.down(PREFIX)
    assert not any(labelled(kind, PREFIX) for kind in ("container", "volume", "network"))
    assert not grid.fleet.state.exists()


def _has_none_of(grid: Grid, host: Host, containers: list[Container]) -> bool:
    return not set(containers) & set(grid.containers(host))


def _is_known(grid: Grid, host: Host) -> bool:
    try:
        return bool(grid.node(host)["status"] == "Online")
    except FleetError:
        return False


def _answers(grid: Grid) -> bool:
    try:
        grid.current()
    except FleetError:
        return False
    return True
