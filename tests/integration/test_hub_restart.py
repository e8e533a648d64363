"""A hub with a thousand nodes that is stopped, killed, or was long away: none is lost or wrongly Offline."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import HubProcess
from tests.integration.storm import Link

NODES = 1_000
CLIENTS = 16
SWEPT = 6.5
"""Seconds after which the hub has looked for silent nodes once (it does each five)."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path)
    yield process
    process.end()


def ask_all(hub: HubProcess, ask: Callable[[Link, int], None]) -> None:
    """Do this for each node, over a few connections."""
    failures: list[BaseException] = []

    def work(first: int) -> None:
        link = Link(hub.port)
        try:
            for number in range(first, NODES, CLIENTS):
                ask(link, number)
        except BaseException as failure:
            failures.append(failure)
        finally:
            link.close()

    threads = [threading.Thread(target=work, args=(first,)) for first in range(CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []


def register(link: Link, number: int) -> None:
    body = {"node_id": f"n{number}", "hostname": f"pi-{number}", "architecture": "aarch64", "cpu_count": 4}
    status, answer = link.ask("POST", "/gridnode/register", {**body, "agent_version": "1"})
    assert (status, answer["node_id"]) == (200, f"n{number}")


def report(link: Link, number: int) -> None:
    body = {
        "node_id": f"n{number}",
        "status": "Idle",
        "active_containers": number,
        "reason": f"says {number}",
    }
    status, answer = link.ask("POST", "/gridnode/heartbeat", body)
    assert (status, answer["known"]) == (200, True)


def shown(hub: HubProcess) -> dict[str, Any]:
    return {node["id"]: node for node in hub.get("/api/nodes").json}


def none_is_lost_or_offline(hub: HubProcess) -> dict[str, Any]:
    """All are there and Online, also once the hub has looked for silent ones."""
    assert {node["status"] for node in shown(hub).values()} == {"Online"}
    time.sleep(SWEPT)
    nodes = shown(hub)
    assert len(nodes) == NODES
    assert {node["status"] for node in nodes.values()} == {"Online"}
    assert hub.get("/api/events?kind=nodes-offline").json["events"] == []
    return nodes


@pytest.mark.slow
def test_a_restart_loses_none_of_a_thousand_nodes_and_nothing_that_they_said(hub: HubProcess) -> None:
    hub.start()
    ask_all(hub, register)
    ask_all(hub, report)
    before = shown(hub)
    assert len(before) == NODES
    assert hub.stop() == 0
    hub.start()
    after = none_is_lost_or_offline(hub)
    assert after == before
    assert after["n7"]["reason"] == "says 7"


@pytest.mark.slow
def test_kill_9_and_a_long_time_away_lose_none_of_a_thousand_nodes(hub: HubProcess) -> None:
    hub.start()
    ask_all(hub, register)
    hub.kill()
    # As if the hub had been away for an hour: by the wall clock nobody was heard since.
    with closing(sqlite3.connect(hub.database)) as database, database:
        for node_id, live in database.execute("SELECT id, live FROM nodes").fetchall():
            earlier = {**json.loads(live), "last_seen": time.time() - 3_600}
            database.execute("UPDATE nodes SET live = ? WHERE id = ?", (json.dumps(earlier), node_id))
    hub.start()
    none_is_lost_or_offline(hub)
    ask_all(hub, report)  # and all are still known: nobody has to register again
    assert shown(hub)["n7"]["active_containers"] == 7
    assert len(hub.get("/api/events?kind=node-joined&limit=1000").json["events"]) == NODES
