"""Where the engine is looked for, and how its versions are met."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agent import engine_api
from agent.engine_api import DEFAULT_ADDRESS, EngineApi, engine_address
from agent.errors import EngineError


def a_context(home: Path, name: str, host: str) -> None:
    folder = home / ".docker" / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"Name": name, "Endpoints": {"docker": {"Host": host}}}))


def test_the_variable_wins(tmp_path: Path) -> None:
    a_context(tmp_path, "laptop", "unix:///run/user/1000/docker.sock")
    env = {"HOME": str(tmp_path), "DOCKER_CONTEXT": "laptop", "DOCKER_HOST": "tcp://10.0.0.1:2375"}
    assert engine_address(env) == "tcp://10.0.0.1:2375"


def test_the_current_context_is_followed(tmp_path: Path) -> None:
    a_context(tmp_path, "rootless", "unix:///run/user/1000/docker.sock")
    (tmp_path / ".docker" / "config.json").write_text('{"currentContext": "rootless"}')
    assert engine_address({"HOME": str(tmp_path)}) == "unix:///run/user/1000/docker.sock"


@pytest.mark.parametrize("config", [None, "{}", '{"currentContext": "default"}', "nonsense", "[]"])
def test_without_a_context_it_is_the_usual_socket(tmp_path: Path, config: str | None) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    assert engine_address({"DOCKER_CONFIG": str(tmp_path)}) == DEFAULT_ADDRESS


@pytest.mark.parametrize(
    ("env", "reachable"),
    [
        ({"DOCKER_HOST": "unix:///x"}, True),
        ({"DOCKER_HOST": "tcp://x:2375"}, True),
        ({"DOCKER_HOST": "tcp://x:2376", "DOCKER_TLS_VERIFY": "1"}, False),
        ({"DOCKER_HOST": "ssh://me@x"}, False),
    ],
)
def test_only_what_needs_no_helper_is_reachable(env: dict[str, str], reachable: bool) -> None:
    assert EngineApi(engine_address(env)).reachable is reachable


class FakeEngine:
    """Says which version it speaks, refuses older ones, and keeps the paths it was asked for."""

    def __init__(self) -> None:
        self.version, self.oldest = "1.41", "v1.12"
        self.paths: list[str] = []
        self.body = b"[]"

    async def answer(self, request: web.Request) -> web.Response:
        if request.path == "/_ping":
            return web.Response(headers={"Api-Version": self.version} if self.version else {})
        self.paths.append(request.path)
        if request.path.split("/")[1] < self.oldest:
            return web.json_response({"message": "client version is too old"}, status=400)
        return web.Response(body=self.body)


@pytest.fixture
async def engine() -> AsyncIterator[tuple[FakeEngine, EngineApi]]:
    """An engine on loopback and what reads from it."""
    fake = FakeEngine()
    app = web.Application()
    app.router.add_get("/{path:.*}", fake.answer)
    async with TestServer(app) as server:
        api = EngineApi(f"tcp://{server.host}:{server.port}")
        yield fake, api
        await api.close()


@pytest.mark.parametrize(
    ("version", "prefix"), [("1.41", "/v1.41"), ("1.9", "/v1.9"), ("1.99", "/v1.51"), ("", "")]
)
async def test_a_version_is_spoken_that_both_know(
    engine: tuple[FakeEngine, EngineApi], version: str, prefix: str
) -> None:
    fake, api = engine
    fake.version, fake.oldest = version, ""
    assert await api.sizes("x") == {}
    assert fake.paths == [f"{prefix}/containers/json"]


async def test_an_engine_that_was_upgraded_is_asked_for_its_version_again(
    engine: tuple[FakeEngine, EngineApi],
) -> None:
    fake, api = engine
    await api.sizes("x")
    fake.version, fake.oldest = "1.50", "v1.44"
    with pytest.raises(EngineError, match="too old"):
        await api.sizes("x")
    assert await api.sizes("x") == {}


async def test_an_answer_that_is_nonsense_or_endless_is_an_engine_error(
    engine: tuple[FakeEngine, EngineApi], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, api = engine
    for body in (b"<html>", b"{}", b"[1]", b"null"):
        fake.body = body
        with pytest.raises(EngineError, match="not what was expected"):
            await api.volume_sizes("x")
    fake.body = b" " * 5000
    monkeypatch.setattr(engine_api, "BODY_MOST", 1000)
    with pytest.raises(EngineError, match="the answer is over"):
        await api.sizes("x")
