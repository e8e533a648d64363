"""What a browser may do with the hub's answers: headers, and other origins' pages."""

from __future__ import annotations

from typing import Any

import pytest
from quart import Quart, Response

from hub.app import create_app
from hub.settings import HubSettings
from hub.store_local import open_memory

TOKEN = "an-example-secret-of-some-length"
AUTH = {"Authorization": f"Bearer {TOKEN}"}
PAGE = "https://grid.example"
PREFLIGHT = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}


def hub(*origins: str) -> Quart:
    return create_app(HubSettings(token=TOKEN, state="memory:", cors_origins=origins), open_memory())


async def ask(app: Quart, path: str, method: str = "GET", **headers: str) -> Response:
    client: Any = app.test_client()
    response: Response = await client.open(path, method=method, headers=headers)
    return response


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/health", {}), ("/openapi.json", AUTH), ("/api/tasks", AUTH), ("/api/tasks", {}), ("/nowhere", AUTH),
     ("/api/tasks/none", AUTH), ("/", {})],
)  # fmt: skip
async def test_no_browser_takes_an_answer_for_a_page_of_ours(path: str, headers: dict[str, str]) -> None:
    given = (await ask(hub(), path, **headers)).headers
    assert given["X-Content-Type-Options"] == "nosniff"
    assert given["Content-Security-Policy"] == "default-src 'none'; frame-ancestors 'none'"
    assert given["X-Frame-Options"] == "DENY"
    assert given["Referrer-Policy"] == "no-referrer"
    assert given["Cache-Control"] == "no-store"
    assert [name for name, _ in given.items() if name.lower().startswith("access-control")] == []


async def test_each_header_is_there_once() -> None:
    app = hub(PAGE)
    made = await app.test_client().post(
        "/api/tokens", data=b'{"role": "viewer", "ttl": 60}', headers={**AUTH, "Origin": PAGE}
    )
    assert made.status_code == 201
    assert len(made.headers.getlist("Cache-Control")) == 1


async def test_answers_to_nodes_that_are_frequent_carry_none_of_it() -> None:
    app = hub(PAGE)
    task = await ask(app, "/gridnode/task", **AUTH, Origin=PAGE)
    assert {name.lower() for name, _ in task.headers.items()} == {"content-type", "content-length", "etag"}
    registered = await app.test_client().post("/gridnode/register", data=b"{}", headers=AUTH)
    assert registered.headers["Cache-Control"] == "no-store"


async def test_without_configuration_no_other_origin_is_let_in() -> None:
    response = await ask(hub(), "/api/tasks", "OPTIONS", Origin=PAGE, **PREFLIGHT)
    assert response.status_code == 401
    assert "Access-Control-Allow-Origin" not in (await ask(hub(), "/api/tasks", Origin=PAGE, **AUTH)).headers


async def test_a_configured_origin_may_ask_and_its_preflight_needs_no_token() -> None:
    app = hub(PAGE, "http://localhost:3000")
    preflight = await ask(app, "/api/tasks", "OPTIONS", Origin=PAGE, **PREFLIGHT)
    assert preflight.status_code == 204
    assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
    assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
    assert "DELETE" in preflight.headers["Access-Control-Allow-Methods"]
    answer = await ask(app, "/api/tasks", Origin=PAGE, **AUTH)
    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
    assert answer.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Credentials" not in answer.headers
    refused = await ask(app, "/api/tasks", Origin=PAGE)
    assert (refused.status_code, refused.headers["Access-Control-Allow-Origin"]) == (401, PAGE)


@pytest.mark.parametrize(
    "origin",
    ["https://grid.example.evil", "http://grid.example", "https://grid.example:444", "null", "https://GRID.example"],
)  # fmt: skip
async def test_another_origin_is_not_let_in(origin: str) -> None:
    app = hub(PAGE)
    assert (await ask(app, "/api/tasks", "OPTIONS", Origin=origin, **PREFLIGHT)).status_code == 401
    answer = await ask(app, "/api/tasks", Origin=origin, **AUTH)
    assert "Access-Control-Allow-Origin" not in answer.headers
    assert answer.headers["Vary"] == "Origin"  # a cache must not give one origin's answer to another


async def test_pages_never_speak_for_nodes() -> None:
    app = hub(PAGE)
    assert (await ask(app, "/gridnode/register", "OPTIONS", Origin=PAGE, **PREFLIGHT)).status_code == 401


@pytest.mark.parametrize(
    "origin", ["*", "https://grid.example/", "grid.example", "https://", "https://a b", "null"]
)
def test_an_origin_that_is_none_is_refused_in_the_configuration(origin: str) -> None:
    with pytest.raises(ValueError, match="exact origins"):
        HubSettings(token=TOKEN, cors_origins=(origin,))
