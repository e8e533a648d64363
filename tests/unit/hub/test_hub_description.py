"""/openapi.json is an OpenAPI document, and says of each route what it always may answer."""

from __future__ import annotations

import re
from typing import Any

import openapi_spec_validator
import pytest
import schemathesis

from gridcore.protocol import TaskDefinition
from hub.description import PARTS, Description
from hub.roles import OPEN_PATHS, RIGHTS
from tests.unit.hub.operated_hub import OperatedHub

PROBLEM = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}


@pytest.fixture
async def document() -> dict[str, Any]:
    found: dict[str, Any] = await OperatedHub().do("GET", "/openapi.json")
    return found


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {
        (method.upper(), path): operation
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    }


async def test_it_describes_each_route_that_has_rights(document: dict[str, Any]) -> None:
    described = {(method, re.sub(r"{\w+}", "{}", path)) for method, path in operations(document)}
    assert described == {*RIGHTS, ("GET", "/health")} - {("GET", "/openapi.json")}


async def test_each_route_says_how_it_succeeds_and_how_it_refuses(document: dict[str, Any]) -> None:
    for (method, path), operation in operations(document).items():
        responses = operation["responses"]
        assert any(status.startswith("2") for status in responses), (method, path)
        always = {"408", "413"} if path in OPEN_PATHS else {"401", "403", "408", "413", "429", "503"}
        assert always <= set(responses), (method, path)
        assert ("404" in responses) >= ("{" in path), (method, path)
        assert {"400", "422"} <= set(responses) or "requestBody" not in operation, (method, path)


async def test_answers_have_the_types_that_they_are_sent_with(document: dict[str, Any]) -> None:
    for where, operation in operations(document).items():
        for status, response in operation["responses"].items():
            if int(status) >= 400:
                assert response["content"] == PROBLEM, (where, status)
            else:
                assert bool(response.get("content")) == (status not in ("204", "304")), (where, status)
    events = operations(document)["GET", "/api/events"]["responses"]["200"]["content"]
    assert set(events) == {"application/json", "text/event-stream"}
    assert set(operations(document)["GET", "/metrics"]["responses"]["200"]["content"]) == {"text/plain"}


async def test_parts_of_paths_have_patterns_and_no_query_is_null(document: dict[str, Any]) -> None:
    for where, operation in operations(document).items():
        for parameter in operation["parameters"]:
            if parameter["in"] == "path":
                assert parameter["schema"]["pattern"] == PARTS[parameter["name"]], where
            assert {"type": "null"} not in parameter["schema"].get("anyOf", []), where


async def test_it_is_an_openapi_document(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.")
    schemathesis.openapi.from_dict(document).validate()
    openapi_spec_validator.validate(document)


async def test_no_two_operations_have_one_name(document: dict[str, Any]) -> None:
    names = [operation["operationId"] for operation in operations(document).values()]
    assert len(names) == len(set(names))
    assert all(re.fullmatch(r"[a-z]+([A-Z][a-z]+)+", name) for name in names), names


async def test_each_body_and_each_answer_is_a_shape_with_a_name(document: dict[str, Any]) -> None:
    for where, operation in operations(document).items():
        for said in [*operation["responses"].values(), operation.get("requestBody", {})]:
            for media_type, media in said.get("content", {}).items():
                expected = {"type": "string"} if media_type.startswith("text/") else None
                assert media["schema"] == expected or list(media["schema"]) == ["$ref"], where


async def test_a_shape_that_several_routes_share_is_the_same_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    hub, seen = OperatedHub(), dict[str, Any]()

    def keep(self: Description, rule: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        paths, shapes = build_paths(self, rule)
        for name, shape in shapes.items():
            assert seen.setdefault(name, shape) == shape, name
        return paths, shapes

    build_paths = Description.build_paths
    monkeypatch.setattr(Description, "build_paths", keep)
    await hub.do("GET", "/openapi.json")
    assert seen


async def test_tasks_and_nodes_are_described_with_all_that_answers_show(document: dict[str, Any]) -> None:
    hub = OperatedHub()
    await hub.add("a", auto_finish={"idle": 60}, input_redis="redis://r", output_redis="redis://r",
                  input_queue="i", output_queue="o")  # fmt: skip
    await hub.join("n")
    ended = {"kind": "failed", "exit_code": 1, "message": "m", "ago": 1, "ran": 1}
    await hub.beat(
        "n",
        containers=[{"instance": 0, "state": "running", "last_exit": ended}],
        errors=[{"instance": 0, "kind": "failed", "message": "m"}],
    )
    node, shapes = await hub.node("n"), document["components"]["schemas"]
    shown = {
        "TaskView": await hub.do("GET", "/api/tasks/a"),
        "TaskListView": await hub.tasks(),
        "NodeView": node,
        "ContainerView": node["containers"][0],
        "LastExitView": node["containers"][0]["last_exit"],
        "NodeErrorView": node["errors"][0],
        "ProgressView": await hub.do("GET", "/api/tasks/a/progress"),
        "EventView": (await hub.do("GET", "/api/events"))["events"][0],
        "KeyView": await hub.do("POST", "/api/keys"),
    }
    for name, answer in shown.items():
        assert set(answer) == set(shapes[name]["properties"]) == set(shapes[name]["required"]), name
    assert set(shapes["TaskPatch"]["properties"]) == set(TaskDefinition.model_fields) - {"name"}


async def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    text = str(document)
    names = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert text.count("$ref") == len(re.findall(r"'\$ref': '#/components/schemas/\w+'", text))
    assert names <= set(document["components"]["schemas"])


async def test_the_examples_are_taken(document: dict[str, Any]) -> None:
    hub = OperatedHub()
    bodies = {
        where: operation["requestBody"]["content"]["application/json"]["example"]
        for where, operation in operations(document).items()
        if "requestBody" in operation
    }
    for (method, path), body in bodies.items():
        response = await hub.ask(method, path.replace("{name}", "primes-2"), body)
        assert response.status_code in (200, 201, 204, 400, 404, 409), (method, path)
        problem = await response.get_json() if response.status_code == 400 else {}
        assert not problem.get("type", "").endswith("malformed-body"), (method, path)
