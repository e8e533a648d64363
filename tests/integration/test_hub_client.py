"""A client that a generator makes of /openapi.json, at work at a real hub: nothing is lost on the way."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.integration.hub_process import TOKEN, HubProcess

PACKAGE = "generated_hub_client"
TASK = {
    "name": "primes",
    "image": "primes:1",
    "input_queue": "in",
    "output_redis": "redis://:hunter2@redis:6379/0",
    "env": {"KEY": "secret"},
    "command": ["work", "--all"],
    "memory": 512,
    "stop_timeout": 2.5,
}
BEAT = {
    "node_id": "n",
    "status": "Error",
    "active_containers": 1,
    "containers": [
        {"instance": 0, "cpu": 1, "state": "running", "restarts": 2, "age": 5,
         "last_exit": {"kind": "failed", "exit_code": 3, "message": "m", "ago": 9, "ran": 4}}
    ],
    "errors": [{"instance": 0, "kind": "failed", "message": "exit code 3"}],
    "warnings": ["hot"],
}  # fmt: skip


class GeneratedClient:
    """Its calls by the names that they have in the document."""

    def __init__(self, hub: HubProcess, directory: Path) -> None:
        document = hub.get("/openapi.json").body
        (directory / "openapi.json").write_bytes(document)
        (directory / "config.yml").write_text("post_hooks: []\n")
        made = subprocess.run(
            [str(Path(sys.executable).with_name("openapi-python-client")), "generate", "--fail-on-warning",
             "--path", "openapi.json", "--config", "config.yml", "--meta", "none", "--output-path", PACKAGE],
            cwd=directory, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert made.returncode == 0, made.stdout + made.stderr
        self.operations = {
            operation["operationId"]: operation["tags"][0]
            for methods in json.loads(document)["paths"].values()
            for operation in methods.values()
        }
        self.models = importlib.import_module(f"{PACKAGE}.models")
        self._base = f"http://127.0.0.1:{hub.port}"

    def module(self, operation: str) -> ModuleType:
        name = "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in operation)
        return importlib.import_module(f"{PACKAGE}.api.{self.operations[operation]}.{name}")

    def answer(self, operation: str, *path: str, token: str = TOKEN, **values: Any) -> tuple[int, Any]:
        """The status and the answer as an object of its class."""
        client = importlib.import_module(PACKAGE).AuthenticatedClient(base_url=self._base, token=token)
        with client as connected:
            answer = self.module(operation).sync_detailed(*path, client=connected, **values)
        return int(answer.status_code), answer.parsed

    def call(self, operation: str, *path: str, **values: Any) -> Any:
        status, parsed = self.answer(operation, *path, **values)
        assert 200 <= status < 300, parsed
        return parsed

    def made(self, model: str, values: dict[str, Any]) -> Any:
        return getattr(self.models, model).from_dict(values)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path_factory.mktemp("hub")).start()
    yield process
    process.end()


@pytest.fixture(scope="module")
def client(hub: HubProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GeneratedClient]:
    directory = tmp_path_factory.mktemp("client")
    sys.path.insert(0, str(directory))
    yield GeneratedClient(hub, directory)
    sys.path.remove(str(directory))


def test_each_operation_is_a_call_of_its_own(client: GeneratedClient) -> None:
    for operation in client.operations:
        assert callable(client.module(operation).sync_detailed)


def test_the_life_of_a_task_and_a_node(client: GeneratedClient) -> None:
    status, task = client.answer("addTask", body=client.made("TaskDefinition", TASK))
    assert (status, type(task).__name__, task.additional_properties) == (201, "TaskView", {})
    again, same = client.answer("addTask", body=client.made("TaskDefinition", TASK))
    assert (again, same.to_dict()) == (200, task.to_dict())
    assert (task.memory, task.command, task.stop_timeout) == (512, ["work", "--all"], 2.5)
    assert task.env.additional_properties == {"KEY": "***"}
    client.call("addTask", body=client.made("TaskDefinition", {"name": "b", "image": "b:1"}))

    listed = client.call("listTasks")
    assert (listed.current, listed.pending, listed.canary) == (None, ["primes", "b"], None)
    assert [type(task).__name__ for task in listed.tasks] == ["TaskView", "TaskView"]

    facts = {"node_id": "n", "hostname": "h", "architecture": "aarch64", "cpu_count": 4,
             "platform": "linux/arm64", "agent_version": "1", "labels": {"room": "1"}}  # fmt: skip
    joined = client.call("registerNode", body=client.made("RegisterRequest", facts))
    assert (joined.node_id, joined.current_task) == ("n", None)
    assert client.answer("showAssignedTask", platform="linux/arm64") == (200, None)
    started = client.call("startNextTask", body=client.made("TaskGuard", {"task": None}))
    assert (started.previous, started.current) == (None, "primes")
    given = client.call("showAssignedTask", platform="linux/arm64", node_id="n")
    assert (type(given).__name__, given.task_name) == ("TaskConfig", "primes")
    assert given.env.additional_properties == {"KEY": "secret"}

    beat = client.call("sendHeartbeat", body=client.made("HeartbeatRequest", BEAT))
    assert (beat.stop_requested, beat.known) == (False, True)
    (node,) = client.call("listNodes", status=[client.models.ListNodesStatusItem("Online")])
    assert (type(node).__name__, node.additional_properties) == ("NodeView", {})
    assert (node.hostname, node.labels.additional_properties, node.warnings) == ("h", {"room": "1"}, ["hot"])
    (container,), (error,) = node.containers, node.errors
    assert (container.restarts, container.last_exit.exit_code, error.message) == (2, 3, "exit code 3")
    assert client.call("showNode", "n").to_dict() == node.to_dict()
    assert client.call("drainNode", "n").draining
    selection = client.made("NodeSelection", {"labels": {"room": "1"}})
    assert client.call("resumeNodes", body=selection).nodes == ["n"]
    (problem,) = client.call("listProblems")
    assert (problem.kind, problem.node_ids) == ("failed", ["n"])

    patched = client.call("editTask", "b", body=client.made("TaskPatch", {"memory": 64, "image": "b:2"}))
    assert (patched.image, patched.memory, patched.earlier) == ("b:2", 64, 1)
    assert client.call("revertTask", "b", if_match=f'"{patched.revision}"').image == "b:1"
    assert client.call("moveTask", "b", body=client.made("MoveRequest", {"to": "first"})).pending == ["b"]
    assert client.call("showTaskProgress", "b").input_.reason
    finished = client.call("finishTask")
    assert (finished.completed, finished.started) == ("primes", "b")
    events = client.call("listEvents", kind=["task-added"]).events
    assert {event.task for event in events} == {"primes", "b"}


def test_tokens_and_texts(client: GeneratedClient) -> None:
    wanted = client.made("TokenRequest", {"role": "viewer", "ttl": 3600, "name": "board"})
    made = client.call("createToken", body=wanted)
    (shown,) = client.call("listTokens", name="board")
    assert (shown.id, shown.role.value, hasattr(shown, "token")) == (made.id, "viewer", False)
    assert client.answer("listTasks", token=made.token)[0] == 200
    assert client.answer("revokeToken", made.id) == (204, None)
    assert client.answer("listTasks", token=made.token)[0] == 401
    assert client.call("listKeys")
    assert client.call("showHealth") == "OK"
    assert "gridcore_" in client.call("showMetrics")


@pytest.mark.parametrize(
    ("operation", "path", "values", "status", "kind"),
    [
        ("showTask", ["none"], {}, 404, "unknown-task"),
        ("showNode", ["none"], {}, 404, "unknown-node"),
        ("startNextTask", [], {"body": ("TaskGuard", {"task": "none"})}, 409, "not-current"),
        ("addTask", [], {"body": ("TaskDefinition", {"name": "x", "memory": 64})}, 422, "invalid-fields"),
        ("editTask", ["none"], {"body": ("TaskPatch", {"memory": 1})}, 404, "unknown-task"),
        ("listTasks", [], {"token": "wrong"}, 401, "unauthorized"),
    ],
)
def test_a_refusal_arrives_as_a_problem(
    client: GeneratedClient,
    operation: str,
    path: list[str],
    values: dict[str, Any],
    status: int,
    kind: str,
) -> None:
    if "body" in values:
        values = {"body": client.made(*values["body"])}
    got, problem = client.answer(operation, *path, **values)
    assert (got, type(problem).__name__) == (status, "Problem")
    assert problem.type_ == f"urn:idm-gridcore:problem:{kind}"
    assert problem.detail
    if status == 422:
        assert [error.message for error in problem.errors]
