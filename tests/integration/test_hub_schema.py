"""What /openapi.json promises, held against a real hub by schemathesis, as each role.

GRIDCORE_SCHEMA_EXAMPLES and GRIDCORE_SEED say how many requests of a kind, and which.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from hub.access import Role
from hub.roles import RIGHTS
from tests.integration.hub_process import HubProcess
from tests.integration.nursery import environment

SEED = int(os.environ.get("GRIDCORE_SEED", "0")) or 20261124
EXAMPLES = max(1, int(os.environ.get("GRIDCORE_SCHEMA_EXAMPLES", "8")))
"""Of each route and phase; the phase "coverage" makes as many as the description has corners."""

LONGEST = 300
"""Seconds after which a run is called hanging."""

ROLES = ("operator", "node", "viewer")

CHECKS = """\
# All checks are on but where it says so here. `--checks all` would not listen to that.

[generation]
with-security-parameters = false  # ignored_auth tries bad tokens, and each answer to one takes its time

[auth.openapi.token]
bearer = "${HUB_TOKEN}"

[phases.coverage]
unexpected-methods = ["TRACE", "PUT"]  # the others are answered in the same place

[dictionaries.names]
values = ["done", "current", "a", "b", "c", "d", "e", "f"]

[dictionaries.nodes]
values = ["old", "new", "away"]

[dictionaries.tags]
values = ["*"]

[parameters]
"path.name" = { dictionary = "names", probability = 0.7 }
"path.node_id" = { dictionary = "nodes", probability = 0.7 }
"header.if-none-match" = { dictionary = "tags", probability = 0.5 }

# What is valid may still be refused for what the state is: 400 where nothing is pending or running, 412.
[checks.positive_data_acceptance]
expected-statuses = ["2xx", "304", "400", "401", "403", "404", "409", "412", "413", "429", "504"]

# Rules that join several fields, or look into texts, are told in words and by 422.
[[operations]]
include-name = [
  "GET /api/events", "POST /api/tasks", "PATCH /api/tasks/{name}", "POST /api/tasks/{name}/move",
  "POST /api/tasks/next", "POST /api/nodes/drain", "POST /api/nodes/resume",
]
checks.positive_data_acceptance.enabled = false

[checks.negative_data_rejection]
expected-statuses = ["400", "401", "403", "404", "405", "409", "412", "413", "422", "429"]

# A node that does not bring its log in time is no fault of the hub.
[[operations]]
include-path = "/api/nodes/{node_id}/logs"
checks.not_a_server_error.expected-statuses = ["2xx", "4xx", "504"]

# Nodes' versions differ: what they send is read as far as it makes sense.
[[operations]]
include-path-regex = "^/gridnode/"
checks.negative_data_rejection.enabled = false

# A task may be called "next": what /api/tasks/{name} takes, /api/tasks/next takes too, and says so in Allow.
[[operations]]
include-path-regex = "^/api/(tasks|nodes)/[a-z]+$"
checks.allow_header_conformance.enabled = false
"""

BEYOND = {
    "viewer": """
[[operations]]
exclude-method = ["GET"]
phases.coverage.enabled = false
phases.fuzzing.generation.max-examples = 2

[[operations]]
include-path-regex = "^/gridnode/|^/api/(tokens|keys)|logs$"
phases.coverage.enabled = false
phases.fuzzing.generation.max-examples = 2
""",
    "operator": """
[[operations]]
include-path-regex = "^/gridnode/|^/api/(tokens|keys)"
phases.coverage.enabled = false
phases.fuzzing.generation.max-examples = 2

[[operations]]
include-path = "/api/nodes/resume"  # takes what /api/nodes/drain takes
phases.coverage.enabled = false
""",
    "node": """
[[operations]]
exclude-path-regex = "^/gridnode/"
phases.coverage.enabled = false
phases.fuzzing.generation.max-examples = 2
""",
}
"""What a role may not do at all is not tried in each of its corners."""


class Run:
    """One role at a hub of its own: what schemathesis found."""

    def __init__(self, role: str, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        hub = HubProcess(directory)
        with hub.config.open("a") as config:
            config.write('trusted_proxies = ["127.0.0.1"]\n')  # so that HOOKS can say where requests are from
        hub.start()
        ended = threading.Event()
        try:
            furnish(hub)
            node = threading.Thread(target=attend, args=(hub, ended))
            node.start()
            self.result = self._run(hub, role)
        finally:
            ended.set()
            hub.end()
        node.join()
        self.log = hub.log

    def _run(self, hub: HubProcess, role: str) -> subprocess.CompletedProcess[str]:
        token = hub.post("/api/tokens", {"role": role, "ttl": 3600}).json["token"]
        (self._directory / "openapi.json").write_bytes(hub.get("/openapi.json").body)  # nodes may not read it
        (self._directory / "hooks.py").write_text(HOOKS)
        (self._directory / "schemathesis.toml").write_text(CHECKS + BEYOND[role])
        command = [
            str(Path(sys.executable).with_name("st")), "run", "openapi.json", "--no-color",
            "--url", f"http://127.0.0.1:{hub.port}", "--request-timeout", "15", "--continue-on-failure",
            "--seed", str(SEED), "--max-examples", str(EXAMPLES), "--generation-database", "none",
            "--report", "ndjson", "--report-ndjson-path", "report.ndjson",
        ]  # fmt: skip
        told = {
            **environment(),
            "HUB_TOKEN": token,
            "SCHEMATHESIS_HOOKS": "hooks",
            "PYTHONPATH": str(self._directory),
        }
        return subprocess.run(
            command, cwd=self._directory, env=told, capture_output=True, text=True, timeout=LONGEST
        )

    @property
    def answers(self) -> dict[str, set[int]]:
        """Statuses that each operation of the description was answered with."""
        described = json.loads((self._directory / "openapi.json").read_bytes())["paths"]
        found: dict[str, set[int]] = defaultdict(set)
        for line in (self._directory / "report.ndjson").read_text().splitlines():
            recorder = json.loads(line).get("ScenarioFinished", {}).get("recorder", {})
            for case_id, interaction in recorder.get("interactions", {}).items():
                operation = recorder["cases"][case_id]["value"]
                if operation["method"].lower() in described[operation["path"]]:
                    label = f"{operation['method']} {operation['path']}"
                    found[label].add((interaction.get("response") or {}).get("status_code", 0))
        return found


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Run]]]:
    """All roles side by side."""
    directory = tmp_path_factory.mktemp("schema")
    with ThreadPoolExecutor(len(ROLES)) as pool:
        yield {role: pool.submit(Run, role, directory / role) for role in ROLES}


def attend(hub: HubProcess, ended: threading.Event) -> None:
    """Bring the logs that operators ask node `new` for."""
    report = {"node_id": "new", "status": "Idle", "active_containers": 0}
    while not ended.wait(0.1):
        try:
            for order in hub.post("/gridnode/heartbeat", report).json.get("logs", []):
                hub.post("/gridnode/logs", {"node_id": "new", "id": order["id"], "text": "a line"})
        except OSError:  # the hub has ended
            return


def furnish(hub: HubProcess) -> None:
    """Tasks of every status, nodes of every kind, and so an audit trail."""
    for name in ("done", "current", "a", "b", "c", "d", "e", "f"):
        hub.post("/api/tasks", {"name": name, "image": f"{name}:1", "env": {"KEY": "secret"}})
    hub.request("PATCH", "/api/tasks/a", {"memory": 512})
    hub.post("/api/tasks/next", {"task": None})
    hub.post("/api/tasks/next", {"task": "done"})
    facts = {"hostname": "h", "architecture": "aarch64", "cpu_count": 4, "labels": {"room": "1"}}
    for node_id, more in (("old", {}), ("new", {"agent_version": "1", "platform": "linux/arm64"})):
        hub.post("/gridnode/register", {"node_id": node_id, **facts, **more})
    failed = {"instance": 0, "kind": "failed", "message": "exit code 1"}
    report = {"node_id": "new", "status": "Error", "active_containers": 1, "errors": [failed]}
    hub.post("/gridnode/heartbeat", report)


@pytest.mark.parametrize("role", ROLES)
def test_no_answer_is_a_bug_or_undocumented(runs: dict[str, Future[Run]], role: str) -> None:
    run = runs[role].result()
    assert run.result.returncode == 0, run.result.stdout[-20_000:] + run.result.stderr[-5_000:]
    assert "a request failed" not in run.log
    answers = run.answers
    seen_at_work = {name for name in answers if any(200 <= status < 400 for status in answers[name])}
    allowed = {name for name in answers if is_allowed(role, name)}
    assert {name for name in answers if answers[name] == {403}} == set(answers) - allowed
    # Of a few the right moment may not have come, such as that of `abort`.
    assert len(allowed) - len(seen_at_work) <= 3, allowed - seen_at_work


def is_allowed(role: str, operation: str) -> bool:
    method, path = operation.split()
    return path == "/health" or Role(role) in RIGHTS[method, re.sub(r"{\w+}", "{}", path)]


HOOKS = '''
"""Every request says that it is from another address."""

import itertools

import schemathesis

numbers = itertools.count(1)


@schemathesis.hook
def before_call(context, case, kwargs):
    number = next(numbers)
    source = f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"
    case.headers = {**(case.headers or {}), "X-Forwarded-For": source}
'''
