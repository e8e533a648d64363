"""Several hubs on hosts of their own: the inventory for them, and the load balancer of docs/haproxy.cfg.

The hosts: `data` (the tasks' Redis, and the registry), `state` (the hubs' Redis), `hub1`, `hub2`, and nodes.
"""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

from tests.fleet import hosts
from tests.fleet.engine import inspect
from tests.fleet.grid import Grid
from tests.fleet.hosts import Fleet
from tests.servers.authority import Authority, Pair
from tests.servers.haproxy import EXAMPLE, Haproxy

HUBS = ("hub1", "hub2")


class HubsGrid(Grid):
    """A grid that is reached through its load balancer only."""

    def __init__(self, fleet: Fleet) -> None:
        super().__init__(fleet)
        self.state_host, *self.hubs = (fleet.hosts[name] for name in ("state", *HUBS))
        self.nodes = [host for name, host in fleet.hosts.items() if name.startswith("node")]
        self.gateway = str(inspect("network", fleet.prefix)[0]["IPAM"]["Config"][0]["Gateway"])
        self.authority = Authority(fleet.state)
        self.pair = self.renew()
        self.balancer = _balancer(self)
        self.hub_url = f"https://{self.gateway}:{self.balancer.port}"
        self.trust = ssl.create_default_context(cafile=str(self.authority.certificate))
        path = fleet.state / "hubs.json"
        path.write_text(json.dumps(_inventory(self), indent=2))
        self.inventory = str(path)

    @classmethod
    def start(cls, prefix: str, nodes: int, options: Sequence[str] = ()) -> HubsGrid:
        """Fresh hosts; nothing is installed on them yet, and the load balancer is not started."""
        names = ["data", "state", *HUBS, *(f"node{number + 1}" for number in range(nodes))]
        return cls(hosts.up(prefix, names, options))

    def renew(self) -> Pair:
        """Another certificate, in the files that the inventory names; the load balancer has the first one."""
        return self.authority.issue("hub", f"IP:{self.gateway}")

    def hub_processes(self) -> dict[str, str]:
        """The main process of each hub, by the host's name."""
        return {host.name: host.ssh("systemctl show -P MainPID computehub") for host in self.hubs}


def _balancer(grid: HubsGrid) -> Haproxy:
    """HAProxy with the example that operators are given, in the form for hubs that speak TLS themselves."""
    directory = grid.fleet.state / "haproxy"
    directory.mkdir(mode=0o700)
    pem = directory / "hub.pem"
    pem.touch(mode=0o600)  # certificate and key in one file
    pem.write_text(grid.pair.certificate.read_text() + grid.pair.key.read_text())
    tls = re.search(r"^# +server hub-01 192\.168\.1\.11:8080 (ssl .+)$", EXAMPLE.read_text(), re.MULTILINE)
    assert tls, f"{EXAMPLE} does not show hubs with TLS any more"
    options = tls[1].replace("/etc/haproxy/ca.pem", str(grid.authority.certificate))
    assert options != tls[1], f"{EXAMPLE} has its authority in another place now"
    hubs = {host.name: f"{host.address}:8080 {options}" for host in grid.hubs}
    return Haproxy.of_example(directory, hubs, grid.gateway, pem)


def _inventory(grid: HubsGrid) -> dict[str, Any]:
    """The form of inventory/example-hubs: nodes know the load balancer only, and come with a join token."""
    fleet = grid.fleet

    def lookup(name: str) -> str:
        return "{{ lookup('ansible.builtin.file', '" + str(fleet.state / name) + "') }}"

    def group(names: Sequence[str], **variables: object) -> Mapping[str, object]:
        return {"hosts": {fleet.hosts[name].container: {} for name in names}, "vars": variables}

    fleet.secret("state_password")  # made here, of letters that URLs take as they are
    everywhere = {
        "ansible_user": "root",
        "ansible_ssh_common_args": f"-F {fleet.state / 'ssh_config'}",
        "gridcore_hub_url": grid.hub_url,
        "gridcore_ca_file": str(grid.authority.certificate),
        "gridcore_redis_password": lookup("redis_password"),
        "gridcore_docker_insecure_registries": [f"{grid.control.address}:5000"],
        # The playbooks for tasks and nodes ask the load balancer, from here: no hub's host need be there.
        "gridcore_operator_token": lookup("operator"),
        "gridcore_api_host": "localhost",
        "gridcore_api_url": grid.hub_url,
        "gridcore_api_ca_path": str(grid.authority.certificate),
    }
    hubs = group(
        HUBS,
        gridcore_token=lookup("token"),
        gridcore_hub_store=f"redis://:{lookup('state_password')}@{grid.state_host.address}:6379/0",
        gridcore_hub_tls_certificate=str(grid.pair.certificate),
        gridcore_hub_tls_key=str(grid.pair.key),
        gridcore_hub_trusted_proxies=[grid.gateway],
    )
    state = group(
        ["state"],
        gridcore_redis_for_hub_state=True,
        gridcore_redis_password=lookup("state_password"),
        gridcore_redis_bind="0.0.0.0",
    )
    data = group(["data"], gridcore_redis_bind="0.0.0.0")
    agents = group([], gridcore_join_token=lookup("join"))
    computing = group([host.name for host in grid.nodes])
    return {
        "all": {
            "vars": everywhere,
            "hosts": {host.container: {"ansible_host": host.address} for host in fleet.hosts.values()},
            "children": {
                "gridcore_hub": hubs,
                "gridcore_redis": {**data, "children": {"gridcore_hub_redis": state}},
                "gridcore_agents": {**agents, "children": {"x86_64": computing}},
            },
        }
    }
