"""Two hubs with one state, rolled out by Ansible on real hosts behind a load balancer; each loses its power.

The fleet comes up once. Tests run in the order of this file.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.fleet import hosts, work
from tests.fleet.engine import FleetError
from tests.fleet.grid import wait_until
from tests.fleet.hosts import Host
from tests.fleet.hubs import HubsGrid

pytestmark = pytest.mark.slow

PREFIX = "hubstest"
ITEMS = 400
TASKS = ("first", "second", "third")


def changes(said: str) -> dict[str, int]:
    """What a playbook's recap says of each host."""
    lines = said.split("PLAY RECAP")[1].splitlines()[1:]
    return {
        line.split()[0].removeprefix(f"{PREFIX}-"): int(line.split("changed=")[1].split()[0])
        for line in lines
        if "changed=" in line
    }


def served(grid: HubsGrid, host: Host) -> str:
    """The certificate that a hub shows now, PEM."""
    return ssl.get_server_certificate((host.address, 8080), ca_certs=str(grid.authority.certificate)).strip()


@pytest.fixture(scope="module")
def grid() -> Iterator[HubsGrid]:
    """Hubs, Redis twice, and the load balancer; no agent yet."""
    try:
        grid = HubsGrid.start(PREFIX, nodes=1)
        with grid.balancer:
            grid.playbook("site", "--limit", "gridcore_hub:gridcore_redis")
            grid.balancer.wait_until_up(len(grid.hubs))
            yield grid
    finally:
        hosts.down(PREFIX)


def test_a_node_joins_with_a_token_of_its_own_and_a_renewed_certificate_needs_no_restart(
    grid: HubsGrid,
) -> None:
    """The second rollout: tokens that one hub makes are good at all of them, and nothing else is changed."""
    first, second = grid.hubs
    grid.fleet.keep("join", first.ssh("computehub token create --role join --ttl 1h"))
    grid.fleet.keep("operator", second.ssh("computehub token create --role operator --ttl 1h --name ansible"))
    before, old = grid.hub_processes(), {served(grid, host) for host in grid.hubs}
    new = grid.renew().certificate.read_text().strip()
    changed = changes(grid.playbook("site"))
    (node,) = grid.nodes
    assert {name for name, count in changed.items() if count} == {node.name, *before}, changed
    assert grid.hub_processes() == before
    assert len(old) == 1
    assert {served(grid, host) for host in grid.hubs} == {new} != old

    wait_until(lambda: grid.node(node)["status"] == "Online", "the node is Online", 30)
    config = node.ssh("cat /etc/idm-gridcore/gridnode.toml")
    assert grid.fleet.secret("token") not in config
    assert "\ntoken = " in config, "a token of its own"
    (joined,) = grid.ask_hub(f"/api/events?kind=node-joined&node={grid.node(node)['id']}")["events"]
    assert joined["source"] == node.address, "the balancer tells whom it asks for, and is believed"


def test_a_hub_without_power_loses_nothing_and_a_switch_reaches_every_node(grid: HubsGrid) -> None:
    """Each hub in turn, so one of them held the node's question."""
    (node,) = grid.nodes
    grid.start_registry()
    image = grid.publish("squares")
    for name in TASKS:
        grid.playbook(
            "task_add", task_name=name, task_image=image, task_input_queue="squares:input",
            task_output_queue="squares:output", task_env={"ITEM_SECONDS": "0.3"},
        )  # fmt: skip
    grid.redis.rpush("squares:input", *range(ITEMS))
    grid.playbook("task_next")
    grid.wait_computing(TASKS[0])
    for lost, (before, after) in zip(grid.hubs, pairwise(TASKS), strict=True):
        with grid.never_offline(node, lost=1):
            lost.kill()
            grid.playbook("task_next", task=before)
            grid.wait_computing(after, seconds=30)
            assert lost.name not in grid.balancer.up
        lost.start()
        grid.balancer.wait_until_up(len(grid.hubs))
    assert grid.length("squares:input") > 0, "the queue was empty too early to prove anything"
    assert grid.ask_hub("/api/tasks")["completed"] == list(TASKS[:-1])
    wait_until(lambda: grid.length("squares:output") >= ITEMS, "all results", 120)
    assert work.verify_squares(work.read_all(grid.redis, "squares:output"), ITEMS).exact


def test_a_dead_hub_host_blocks_no_rollout(grid: HubsGrid) -> None:
    """Its name and nothing else is in the way: the other hub is changed, and nobody who needs no change."""
    dead, alive = grid.hubs
    before = grid.hub_processes()
    dead.kill()
    with pytest.raises(FleetError, match=f"{dead.container}.*UNREACHABLE"):
        grid.playbook("site", gridcore_hub_event_retention_days=30)
    changed = changes(grid.log.read_text().split("\n$ ")[-1])
    assert {name for name, count in changed.items() if count} == {alive.name}, changed
    assert set(changed) == set(grid.fleet.hosts)
    dead.start()
    grid.balancer.wait_until_up(len(grid.hubs))
    assert grid.hub_processes()[alive.name] != before[alive.name]


def test_hubs_are_changed_one_after_the_other_and_one_always_answers(grid: HubsGrid) -> None:
    before = grid.hub_processes()
    with grid.never_offline(grid.nodes[0]):
        changed = changes(grid.playbook("hub", gridcore_hub_event_retention_days=31))
    assert set(changed) == set(before)
    assert all(changed.values()), changed
    after = grid.hub_processes()
    assert all(after[name] != before[name] for name in before)
    grid.wait_computing(TASKS[-1])


def test_no_secret_stands_in_what_was_said_or_logged(grid: HubsGrid) -> None:
    secrets = [
        (grid.fleet.state / name).read_text()
        for name in ("token", "redis_password", "state_password", "join", "operator")
    ]
    assert all(len(secret) > 20 for secret in secrets)
    logs = {host.name: host.ssh("journalctl --no-pager -o cat") for host in grid.fleet.hosts.values()}
    logs["ansible"] = grid.log.read_text()
    assert [name for name, text in logs.items() for secret in secrets if secret in text] == []
