"""Which way real agents' requests take at a real hub: the fast one, but for what they send once."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.agent.conftest import Agent, Hub, eventually
from tests.integration.agent.fixed_hub import TOKEN
from tests.load.hub_setups import Simulator
from tests.servers.haproxy import Haproxy

MakeAgent = Callable[..., Agent]
SIMULATED = 20


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def ways(hub: Hub) -> dict[tuple[str, str], float]:
    text = str(hub.call("GET", "/metrics"))
    found = re.findall(r'gridcore_requests_total\{route="([^"]+)",way="([^"]+)"\} (\S+)', text)
    return {(route, way): float(count) for route, way, count in found}


@pytest.mark.parametrize("is_behind_proxy", [False, True], ids=["direct", "behind HAProxy"])
def test_agents_and_simulated_nodes_ride_the_fast_way_also_after_a_restart(
    computehub: Hub, make_agent: MakeAgent, tmp_path: Path, resources: ExitStack, is_behind_proxy: bool
) -> None:
    port = computehub.port
    if is_behind_proxy:
        proxy = Haproxy.of_example(tmp_path / "proxy", {"hub1": f"127.0.0.1:{port}"})
        resources.enter_context(proxy)
        port = proxy.port
    agents = [make_agent(f"http://127.0.0.1:{port}").start() for _ in range(2)]
    for name in ("one", "two"):
        computehub.call("POST", "/api/tasks", {"name": name, "images": {"linux/arm64": "x:1"}})
    fleet = Simulator(resources, tmp_path, 0, SIMULATED, 1.0, [port], TOKEN)
    fleet.order("join", 8)
    fleet.answer()
    fleet.order("live", 1.0)
    fleet.answer()
    eventually(lambda: len(computehub.call("GET", "/api/nodes")) == SIMULATED + len(agents), "all are known")

    for is_restarted in (False, True):
        if is_restarted:
            computehub.stop()
            computehub.start()
            time.sleep(4)  # all come back
        before = ways(computehub)
        computehub.call("POST", "/api/tasks/next")  # ends held requests
        time.sleep(5)
        counted = {key: count - before.get(key, 0) for key, count in ways(computehub).items()}
        assert counted[("gridnode-heartbeat", "fast")] > 4 * (SIMULATED + len(agents)) * 0.5
        assert counted[("gridnode-task", "fast")] >= SIMULATED + len(agents)
        assert counted[("gridnode-heartbeat", "full")] == counted[("gridnode-task", "full")] == 0
    for agent in agents:
        assert agent.stop() == 0
