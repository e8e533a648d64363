"""A real `computehub` in a process of its own, and raw HTTP to it; nothing here knows the project's code.

It is forked off one that has imported everything (`nursery.py`), unless the test asks for a fresh one."""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.integration.nursery import Process, environment, the_nursery
from tests.servers.children import ServerError, free_port, wait_until

TOKEN = "an-example-secret-of-some-length"


class Answer(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class HubProcess:
    """Starts, asks, stops and kills a hub, whose state is one SQLite file unless it is told another.

    A `fresh` one, or one in a `wrapper` (a command that runs it), is started as a person's shell would.
    """

    def __init__(
        self, directory: Path, wrapper: tuple[str, ...] = (), state: str | None = None, *, fresh: bool = False
    ) -> None:
        self.port = free_port()
        self.database = directory / "hub.db"
        self.config = directory / "computehub.toml"
        state = state or f"sqlite:///{self.database}"
        self.config.write_text(f'token = "{TOKEN}"\nbind = "127.0.0.1:{self.port}"\nstate = "{state}"\n')
        self.config.chmod(0o600)
        self._log = directory / "hub.log"
        self._wrapper = wrapper
        self._is_fresh = fresh or bool(wrapper)
        self.process: Process | None = None

    def start(self) -> HubProcess:
        self.spawn()
        try:
            wait_until(lambda: self._answers() or self._ended(), "the hub answers")
        except ServerError:
            self.kill()
            raise AssertionError(f"the hub does not answer:\n{self.log}") from None
        if self._ended():
            raise AssertionError(f"the hub ended at once:\n{self.log}")
        return self

    def spawn(self) -> None:
        """Start it, and wait for nothing."""
        self.process = self._begin()

    def _begin(self) -> Process:
        if not self._is_fresh:
            return the_nursery("computehub").start(["--config", str(self.config)], self._log, self._log)
        command = [*self._wrapper, sys.executable, "-m", "hub.cli", "--config", str(self.config)]
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment())

    def _answers(self) -> bool:
        try:
            return self.request("GET", "/health", token=None).status == 200
        except OSError:
            return False

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    @property
    def log(self) -> str:
        return self._log.read_text()

    def connect(self, timeout: float = 30) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        token: str | None = TOKEN,
    ) -> Answer:
        """Send one request; `body` is sent as it is if it is bytes, else as JSON."""
        sent = {**(headers or {})}
        if token is not None:
            sent["Authorization"] = f"Bearer {token}"
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = self.connect()
        try:
            connection.request(method, path, body=body, headers=sent)
            response = connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        finally:
            connection.close()

    def get(self, path: str, **options: Any) -> Answer:
        return self.request("GET", path, **options)

    def post(self, path: str, body: object = None, **options: Any) -> Answer:
        return self.request("POST", path, body, **options)

    def command(self, *words: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """What `computehub` did with these words and this hub's configuration. Raises TimeoutError."""
        return the_nursery("computehub").run(["--config", str(self.config), *words], timeout)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self, timeout: float = 10) -> int:
        """SIGTERM, and the exit code."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout)

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.kill()
