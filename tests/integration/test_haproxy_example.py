"""The example that operators are given, docs/haproxy.cfg, before a hub whose machine is suddenly gone."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.servers.haproxy import Haproxy

REQUESTS, SPREAD = 20, 2.0
"""Requests, and the seconds over which they come: as long as one that is being connected waits."""


class _Slow(BaseHTTPRequestHandler):
    """Holds each order, as hubs hold requests, so that the balancer has a reason to use the other hub."""

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        time.sleep(3)
        self._answer()

    def _answer(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def alive() -> Iterator[int]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Slow) as server:
        serving = threading.Thread(target=server.serve_forever)
        serving.start()
        yield server.server_address[1]
        server.shutdown()
        serving.join()


@pytest.fixture
def vanished() -> Iterator[int]:
    """A port that answers no SYN, as a machine without power: its queue of connections is full."""
    with ExitStack() as stack:
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        port: int = listener.getsockname()[1]
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(("127.0.0.1", port))
        yield port


def test_a_request_that_is_being_connected_to_a_lost_hub_goes_to_another(
    tmp_path: Path, alive: int, vanished: int
) -> None:
    balancer = Haproxy.of_example(tmp_path, {"hub1": f"127.0.0.1:{alive}", "hub2": f"127.0.0.1:{vanished}"})

    def order(number: int) -> int:
        time.sleep(SPREAD * number / REQUESTS)
        connection = http.client.HTTPConnection("127.0.0.1", balancer.port, timeout=30)
        try:
            connection.request("POST", "/api/tasks/next")
            return connection.getresponse().status
        finally:
            connection.close()

    with balancer:
        with ThreadPoolExecutor(REQUESTS) as pool:
            assert list(pool.map(order, range(REQUESTS))) == [200] * REQUESTS
        assert balancer.up == {"hub1"}
