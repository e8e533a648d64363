"""The stream of events over a real connection, as curl and any other client see it."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import TOKEN, HubProcess
from tests.servers.children import find, wait_until


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path, fresh=True)  # how soon it ends is measured
    yield process
    process.end()


class Curl:
    """A client that follows the trail, and what it was sent."""

    def __init__(self, *arguments: str, token: str = TOKEN) -> None:
        command = [find("curl"), "-sN", "-H", "Accept: text/event-stream", *arguments]
        self.process = subprocess.Popen(
            [*command, "-H", f"Authorization: Bearer {token}"], stdout=subprocess.PIPE, text=True
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip("\n"))

    @property
    def kinds(self) -> list[str]:
        return [line.removeprefix("event: ") for line in self.lines if line.startswith("event: ")]

    def has_begun(self) -> bool:
        return bool(self.lines)

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()


@contextmanager
def following(*arguments: str, token: str = TOKEN) -> Iterator[Curl]:
    curl = Curl(*arguments, token=token)
    try:
        wait_until(curl.has_begun, "the stream begins")
        yield curl
    finally:
        curl.end()


def add(hub: HubProcess, name: str) -> None:
    assert hub.post("/api/tasks", {"name": name, "image": "x:1"}).status == 201


def address(hub: HubProcess, query: str = "") -> str:
    return f"http://127.0.0.1:{hub.port}/api/events{query}"


def test_curl_sees_what_happens_when_it_happens(hub: HubProcess) -> None:
    hub.start()
    add(hub, "a")
    with following(address(hub)) as curl:
        add(hub, "b")
        hub.post("/api/tasks/next")
        wait_until(lambda: len(curl.kinds) == 2, "both events are there")
        assert curl.kinds == ["task-added", "switched"]
        data: Any = json.loads(next(line for line in curl.lines if line.startswith("data: "))[6:])
        assert data["task"] == "b"
        place = data["id"]
    with following(address(hub), "-H", f"Last-Event-ID: {place}") as curl:
        wait_until(lambda: curl.kinds == ["switched"], "what was missed is told")
    with following(address(hub, "?kind=task-added&since=2020-01-01T00:00:00Z")) as curl:
        wait_until(lambda: curl.kinds == ["task-added"] * 2, "the past is told")


def test_a_stream_ends_at_once_when_its_token_is_revoked(hub: HubProcess) -> None:
    hub.start()
    made = hub.post("/api/tokens", {"role": "viewer", "ttl": 3600}).json
    with following(address(hub), token=made["token"]) as curl:
        assert hub.request("DELETE", f"/api/tokens/{made['id']}").status in (200, 204)
        assert curl.process.wait(5) == 0
        add(hub, "a")
    assert "task-added" not in curl.kinds


@pytest.mark.shutdown
def test_streams_end_with_the_hub_within_2_s(hub: HubProcess) -> None:
    hub.start()
    with following(address(hub)) as first, following(address(hub)) as second:
        begun_at = time.monotonic()
        assert hub.stop() == 0
        assert time.monotonic() - begun_at < 2
        assert [first.process.wait(5), second.process.wait(5)] == [0, 0]
    assert "Traceback" not in hub.log


def test_a_client_that_reads_nothing_holds_up_nobody(hub: HubProcess) -> None:
    hub.start()
    for number in range(60):
        body = {"name": f"a{number}", "image": "x:1", "command": ["x" * 900] * 50}
        assert hub.post("/api/tasks", body).status == 201
    before = _resident(hub)
    with following(address(hub, "?after=0"), "--limit-rate", "1k") as curl:
        for number in range(400):
            hub.post(f"/api/nodes/{'n' * 100}{number}/stop")  # refusals are events, too
            if number % 4 == 0:
                add(hub, f"b{number}")
        assert curl.process.poll() is None
    assert _resident(hub) - before < 20_000, "KiB"
    with following(address(hub)) as curl:
        add(hub, "c")
        wait_until(lambda: curl.kinds == ["task-added"], "others are served")


def _resident(hub: HubProcess) -> int:
    """KiB."""
    assert hub.process is not None
    status = Path(f"/proc/{hub.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])
