"""Alert rules and dashboard, held against a real Prometheus that scrapes a real hub."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import HubProcess
from tests.servers.children import wait_until
from tests.servers.prometheus import Prometheus, require
from tests.servers.redis_server import FORGETFUL, RedisServer

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "docs/monitoring/computehub-alerts.yml"
DASHBOARD = ROOT / "docs/monitoring/computehub-dashboard.json"
NODE = {"node_id": "a", "hostname": "h", "architecture": "x86_64", "cpu_count": 1}

ELSEWHERE = {"up", "gridcore_certificate_expiry_timestamp_seconds"}
"""Metrics that a hub without TLS does not have, or that Prometheus makes itself."""


def promtool(*arguments: str) -> str:
    done = subprocess.run([require("promtool"), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def expressions() -> dict[str, str]:
    """Every query of the dashboard, as Prometheus gets it."""
    dashboard = json.loads(DASHBOARD.read_text())
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$__rate_interval", "5m")
        .replace("$job", "computehub")
        for panel in dashboard["panels"]
        for target in panel["targets"]
    }


def test_the_alert_rules_load() -> None:
    assert "SUCCESS" in promtool("check", "rules", str(RULES))


def test_each_alert_fires_when_it_must_and_not_before() -> None:
    promtool("test", "rules", str(Path(__file__).with_name("computehub-alerts-test.yml")))


def test_the_dashboard_is_one_that_grafana_imports() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert dashboard["uid"]
    assert dashboard["title"]
    assert dashboard["schemaVersion"] >= 36
    assert "id" not in dashboard, "an id is another Grafana's own"
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables["datasource"] == "datasource"
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        assert panel["datasource"]["uid"] == "${datasource}"
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert taken.isdisjoint(cells), f"{panel['title']} lies over another panel"
        taken |= cells


def test_the_dashboards_queries_are_promql(tmp_path: Path) -> None:
    rules = [
        {"record": f"query:{number}", "expr": expression}
        for number, expression in enumerate(expressions().values())
    ]
    path = tmp_path / "queries.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    promtool("check", "rules", str(path))


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    with RedisServer(tmp_path / "redis", FORGETFUL) as redis:
        process = HubProcess(tmp_path).start()
        task: dict[str, Any] = {"name": "squares", "image": "x:1", "input_queue": "in", "output_queue": "out"}
        assert (
            process.post("/api/tasks", {**task, "input_redis": redis.url, "output_redis": redis.url}).status
            == 201
        )
        assert process.post("/gridnode/register", NODE).status == 200
        assert process.post("/api/tasks/next").status == 200
        generation = process.get("/api/tasks").json["generation"]
        beat = {"node_id": "a", "status": "Running", "active_containers": 1, "generation": generation}
        assert process.post("/gridnode/heartbeat", beat).status == 200
        yield process
        process.end()


def test_what_a_hub_says_is_what_rules_and_dashboard_ask_for(tmp_path: Path, hub: HubProcess) -> None:
    made = hub.post("/api/tokens", {"role": "viewer", "name": "prometheus", "ttl": 3600})
    assert made.status == 201
    with Prometheus(tmp_path / "prometheus", hub.port, made.json["token"], RULES) as prometheus:
        wait_until(
            lambda: bool(prometheus.query('gridcore_queue_known{queue="output"} == 1')), "it is scraped"
        )
        assert prometheus.query('up{job="computehub"}')[0][1] == 1, prometheus.ask("targets")
        names = set(prometheus.ask("label/__name__/values"))
        asked = {
            name
            for text in (RULES.read_text(), *expressions().values())
            for name in re.findall(r"\b(?:gridcore|process)_[a-z_]+|\bup\b", _without_prose(text))
        }
        assert asked - names - ELSEWHERE == set()
        assert asked >= {"gridcore_nodes_online", "gridcore_queue_length", "gridcore_switch_seconds_bucket"}
        loaded = prometheus.ask("rules")["groups"][0]["rules"]
        assert len(loaded) == RULES.read_text().count("- alert:")
        assert {rule["health"] for rule in loaded} <= {"ok", "unknown"}
        figures = {labels["queue"]: value for labels, value in prometheus.query("gridcore_queue_length")}
        assert figures == {"input": 0, "output": 0}


def _without_prose(text: str) -> str:
    return "\n".join(
        line for line in text.splitlines() if not line.lstrip().startswith(("summary:", "description:", "#"))
    )
