"""Roles on a real host: a bad value breaks nothing, umask decides nothing, and green is a service that works.

One host is hub, Redis and node. Tests run in the order of this file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
import redis

from tests.fleet import hosts
from tests.fleet.engine import FleetError
from tests.fleet.grid import Grid
from tests.fleet.hosts import Host

pytestmark = pytest.mark.slow

PREFIX = "rolestest"
REDIS_CONFIG = "/etc/redis/gridcore.conf"
CONFIGS = (REDIS_CONFIG, "/etc/idm-gridcore/computehub.toml", "/etc/idm-gridcore/gridnode.toml")


@pytest.fixture(scope="module")
def grid() -> Iterator[Grid]:
    """A host of one, rolled out with the umask of a locked-down machine."""
    try:
        grid = Grid(hosts.up(PREFIX, ["control"]))
        # Ansible's modules start in a Python that root's shell starts, and inherit this.
        host(grid).ssh(
            "sed -i 's/^UsePAM no/UsePAM yes/' /etc/ssh/sshd_config; "
            "echo 'session optional pam_umask.so umask=077' >>/etc/pam.d/sshd; systemctl restart ssh"
        )
        assert host(grid).ssh("umask") == "0077"
        grid.playbook("site")
        yield grid
    finally:
        hosts.down(PREFIX)


def host(grid: Grid) -> Host:
    return grid.control


def state(grid: Grid) -> dict[str, str]:
    """The services' processes, and their configuration."""
    units = ("redis-server", "computehub", "gridnode", "docker")
    found = {unit: host(grid).ssh(f"systemctl show -P MainPID {unit}") for unit in units}
    return found | {path: host(grid).ssh(f"sha256sum {path}") for path in CONFIGS}


def redis_with(grid: Grid, password: str) -> redis.Redis:
    """Redis as somebody sees it who has this password."""
    return redis.Redis(host=host(grid).address, password=password)


def fails(grid: Grid, playbook: str, words: str, **variables: object) -> None:
    """The playbook fails, and says these words."""
    with pytest.raises(FleetError):
        grid.playbook(playbook, **variables)
    assert re.search(words, grid.log.read_text().split("\n$ ")[-1], re.DOTALL)


def refused(grid: Grid, playbook: str, words: str, **variables: object) -> None:
    """The playbook fails with these words, and nothing that ran or stood there is another."""
    before = state(grid)
    fails(grid, playbook, words, **variables)
    assert state(grid) == before
    assert host(grid).ssh("redis-cli ping") == "NOAUTH Authentication required."


def test_with_a_strict_umask_the_first_rollout_works_and_the_second_changes_nothing(grid: Grid) -> None:
    assert grid.node(host(grid))["status"] == "Online"
    assert "changed=0 " in grid.playbook("site").split("PLAY RECAP")[1]


def test_a_value_that_is_bent_nowhere_changes_no_host(grid: Grid) -> None:
    """One run tells of all that is there."""
    told = (
        "gridcore_agent_stop_timeout is '30s'",
        "gridcore_redis_maxmemory is '2 gigabytes'",
        "did you mean gridcore_hub_bind",
    )
    refused(
        grid, "site", "".join(f"(?=.*{words})" for words in told), gridcore_agent_stop_timeout="30s",
        gridcore_redis_maxmemory="2 gigabytes", gridcore_hub_bnd="0.0.0.0:8080",
    )  # fmt: skip
    refused(grid, "site", "gridcore_token", gridcore_token="")


def test_what_a_program_does_not_take_leaves_the_good_configuration_where_it_is(grid: Grid) -> None:
    refused(grid, "agents", "no_such_key", gridcore_agent_settings={"no_such_key": 1})
    refused(grid, "hub", "node_retention_days", gridcore_hub_settings={"node_retention_days": -1})
    # Redis takes at most 16.
    addresses = " ".join(f"127.0.0.{number}" for number in range(1, 19))
    refused(grid, "site", "Redis does not take the settings.*Too many bind", gridcore_redis_bind=addresses)


def test_a_redis_that_does_not_start_on_this_host_runs_again_with_the_settings_of_before(grid: Grid) -> None:
    settings = host(grid).ssh(f"cat {REDIS_CONFIG}")
    fails(grid, "site", "has those of before again", gridcore_redis_bind="192.0.2.1")
    assert host(grid).ssh(f"cat {REDIS_CONFIG}") == settings
    assert grid.redis.ping()
    assert host(grid).ssh("ls /etc/redis") == "gridcore.conf\nredis.conf"


def test_a_host_that_a_bad_value_broke_is_mended_by_the_next_rollout(grid: Grid) -> None:
    host(grid).ssh(
        f"sed -i 's/^maxmemory .*/maxmemory 2 gigabytes/' {REDIS_CONFIG}; "
        "systemctl restart redis-server || true"
    )
    assert host(grid).ssh("systemctl is-active redis-server || true") != "active"
    grid.playbook("site")
    assert grid.redis.ping()


def test_a_release_that_its_service_cannot_read_is_mended_although_nothing_else_changed(grid: Grid) -> None:
    host(grid).ssh("chmod -R go= /opt/idm-gridcore/agent-*; systemctl restart --no-block gridnode")
    grid.playbook("agents")
    assert grid.node(host(grid))["status"] == "Online"


def test_green_means_that_each_service_does_its_work(grid: Grid) -> None:
    """Nothing changes in these rollouts: what is wrong is not in the files that the roles write."""
    drop_in = "/run/systemd/system/{0}.service.d"
    cases = [
        (
            "gridnode",
            "Environment=IDM_GRIDCORE_SERVER_URL=http://127.0.0.1:9",
            "agents",
            "does not call it Online",
        ),
        ("gridnode", "ExecStartPre=/bin/false", "agents", "gridnode.service"),
        (
            "computehub",
            "Environment=IDM_GRIDCORE_TOKEN=another-token-of-some-length",
            "hub",
            "not to its own token",
        ),
        ("computehub", "ExecStartPre=/bin/false", "hub", "computehub.service"),
    ]
    for unit, line, playbook, words in cases:
        where = drop_in.format(unit)
        host(grid).ssh(
            f"mkdir -p {where} && printf '[Service]\\n{line}\\n' >{where}/x.conf && "
            f"systemctl daemon-reload && systemctl restart --no-block {unit}; sleep 1"
        )
        fails(grid, playbook, words, agent_online_wait=8)
        host(grid).ssh(f"rm -r {where} && systemctl daemon-reload && systemctl restart {unit}")
    words = r"http://127\.0\.0\.1:9 does not call it Online"
    fails(grid, "agents", words, gridcore_hub_url="http://127.0.0.1:9", agent_online_wait=8)
    # Of a run that was broken off before it had taken the old password from the Redis that runs.
    password = grid.fleet.secret("redis_password")
    host(grid).ssh("redis-cli", stdin=f"AUTH {password}\nACL SETUSER default >of-before\n".encode())
    assert redis_with(grid, "of-before").ping()
    grid.playbook("site")
    assert grid.node(host(grid))["status"] == "Online"
    with pytest.raises(redis.AuthenticationError):
        redis_with(grid, "of-before").ping()


def test_a_redis_with_another_password_than_the_inventorys_is_seen(grid: Grid) -> None:
    """A run that was broken off after it had written the settings."""
    grid.redis.config_set("requirepass", "other")
    assert redis_with(grid, "other").ping()
    grid.playbook("site")
    assert grid.redis.ping()
    with pytest.raises(redis.AuthenticationError):
        redis_with(grid, "other").ping()


def test_a_stopped_node_is_started_again_and_one_is_forgotten_for_good(grid: Grid) -> None:
    name = host(grid).container
    grid.playbook("node_stop", node=name)
    assert grid.node(host(grid))["status"] == "Offline"
    grid.playbook("node_start", node=name)
    assert grid.node(host(grid))["status"] == "Online"
    assert "changed=0 " in grid.playbook("node_start", node="all").split("PLAY RECAP")[1]
    fails(grid, "node_start", "No host of gridcore_agents is called nobody", node="nobody")

    grid.playbook("node_forget", node=name)
    assert grid.ask_hub("/api/nodes") == []
    left = host(grid).ssh("ls /etc/idm-gridcore /opt/idm-gridcore; systemctl cat gridnode 2>&1 || true")
    assert "gridnode.toml" not in left
    assert "agent" not in left
    assert "No files found" in left
    assert "changed=0 " in grid.playbook("node_forget", node=name).split("PLAY RECAP")[1]
    grid.playbook("agents")
    assert grid.node(host(grid))["status"] == "Online"


def test_no_secret_stands_in_what_was_said(grid: Grid) -> None:
    said = grid.log.read_text()
    for name in ("token", "redis_password"):
        assert grid.fleet.secret(name) not in said
