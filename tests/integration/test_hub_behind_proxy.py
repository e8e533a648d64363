"""A real HAProxy that ends TLS before a real hub, with the configuration that the documentation shows."""

from __future__ import annotations

import http.client
import re
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.hub_process import TOKEN, HubProcess
from tests.integration.test_hub_stream import add, following
from tests.servers.authority import Authority
from tests.servers.children import Child, accepts, find, free_port, wait_until

DOCUMENTATION = Path(__file__).parents[2] / "docs" / "configuration-hub.md"
AUTH = {"Authorization": f"Bearer {TOKEN}"}


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path)
    with process.config.open("a") as config:
        config.write('trusted_proxies = ["127.0.0.1"]\n')
    yield process.start()
    process.end()


@pytest.fixture
def port(hub: HubProcess, authority: Authority, tmp_path: Path) -> Iterator[int]:
    """Where the proxy listens."""
    shown, port = authority.issue("proxy"), free_port()
    both = tmp_path / "both.pem"
    both.write_text(shown.certificate.read_text() + shown.key.read_text())
    block = re.search(r"```haproxy\n(.*?)```", DOCUMENTATION.read_text(), re.DOTALL)
    assert block
    text = block[1].replace(":443", f"127.0.0.1:{port}").replace("/etc/haproxy/hub.pem", str(both))
    path = tmp_path / "haproxy.cfg"
    path.write_text(text.replace("127.0.0.1:8080", f"127.0.0.1:{hub.port}"))
    child = Child("haproxy", [find("haproxy"), "-db", "-q", "-f", str(path)], tmp_path / "haproxy.log")
    child.start(lambda: accepts(port))
    yield port
    child.kill()


def connect(port: int, authority: Authority) -> http.client.HTTPSConnection:
    context = ssl.create_default_context(cafile=authority.certificate)
    return http.client.HTTPSConnection("127.0.0.1", port, timeout=30, context=context)


def test_a_held_request_hears_of_a_switch_through_the_proxy(
    hub: HubProcess, port: int, authority: Authority
) -> None:
    connection, answers = connect(port, authority), list[tuple[int, bytes]]()
    wait_until(lambda: _asks(connection, "/health") == 200, "the proxy sees the hub")
    etag = hub.get("/gridnode/task").headers["ETag"]

    def hold() -> None:
        headers = {**AUTH, "If-None-Match": etag, "Prefer": "wait=25"}
        connection.request("GET", "/gridnode/task", headers=headers)
        answer = connection.getresponse()
        answers.append((answer.status, answer.read()))

    held = threading.Thread(target=hold)
    held.start()
    time.sleep(0.5)
    add(hub, "a")
    hub.post("/api/tasks/next")
    held.join(10)
    connection.close()
    ((status, body),) = answers
    assert (status, b'"task_name": "a"' in body) == (200, True)


def test_events_come_through_the_proxy_one_by_one_with_the_address_that_asked(
    hub: HubProcess, port: int, authority: Authority
) -> None:
    url = f"https://127.0.0.1:{port}/api/events"
    with following(url, "--cacert", str(authority.certificate)) as curl:
        connection = connect(port, authority)
        headers = {**AUTH, "X-Forwarded-For": "203.0.113.9"}  # what a client claims does not count
        connection.request("POST", "/api/tasks", body='{"name": "a", "image": "x:1"}', headers=headers)
        assert connection.getresponse().status == 201
        connection.close()
        wait_until(lambda: curl.kinds == ["task-added"], "the event is there")
    (event,) = hub.get("/api/events").json["events"]
    assert event["source"] == "127.0.0.1"


def _asks(connection: http.client.HTTPSConnection, path: str) -> int:
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status
