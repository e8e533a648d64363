"""Several real hubs over one state, and what calls them: nodes and operators, each a thread with raw HTTP."""

from __future__ import annotations

import http.client
import json
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.integration.hub_process import TOKEN, Answer, HubProcess
from tests.servers.children import wait_until

LOST = (OSError, http.client.HTTPException)
"""What a client sees of a hub that dies."""


class Hubs:
    """So many hubs over one state; with `with` they start, and are gone at the end."""

    def __init__(self, directory: Path, state: str, count: int) -> None:
        self.hubs: list[HubProcess] = []
        for number in range(1, count + 1):
            own = directory / f"hub{number}"
            own.mkdir()
            self.hubs.append(HubProcess(own, state=state))
        self._resources = ExitStack()

    def __enter__(self) -> list[HubProcess]:
        with ExitStack() as started:
            for hub in self.hubs:
                started.callback(hub.end)
                hub.start()
            self._resources = started.pop_all()
        return self.hubs

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._resources.close()


class Caller:
    """One kept connection to a hub, or to what stands before several."""

    def __init__(self, port: int, timeout: float = 30) -> None:
        self._port, self._timeout = port, timeout
        self._connection: http.client.HTTPConnection | None = None

    def ask(
        self, method: str, path: str, body: object = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """Raises what LOST lists."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=self._timeout)
        sent = {"Authorization": f"Bearer {TOKEN}", **(headers or {})}
        try:
            text = None if body is None else json.dumps(body)
            self._connection.request(method, path, text, sent)
            response = self._connection.getresponse()
            return Answer(response.status, response.headers, response.read())
        except LOST:
            self.close()
            raise

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def hang_up(self) -> None:
        """End what another thread waits for."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with suppress(OSError):
                connection.sock.shutdown(socket.SHUT_RDWR)


class Node:
    """A node as an agent would be it, on one connection for the task and one for the rest."""

    def __init__(self, port: int, node_id: str, wait: int = 5) -> None:
        self.id = node_id
        self.generations: list[str] = []
        self.orders: list[Mapping[str, Any]] = []
        self.refused: list[int] = []
        self._wait = wait
        self._task, self._other = Caller(port), Caller(port)
        self._ending = threading.Event()
        self._watching = threading.Thread(target=self._watch, daemon=True)

    def start(self) -> Node:
        facts = {"hostname": self.id, "architecture": "x86_64", "cpu_count": 1, "agent_version": "1"}
        assert self._other.ask("POST", "/gridnode/register", {"node_id": self.id, **facts}).status == 200
        self._watching.start()
        wait_until(lambda: bool(self.generations), f"{self.id} has heard what is current")
        return self

    def stop(self) -> None:
        self._ending.set()
        self._task.hang_up()
        self._watching.join(self._wait + 10)
        assert not self._watching.is_alive()
        self._task.close()
        self._other.close()

    @property
    def generation(self) -> str:
        """What is current, as far as this node was told."""
        return self.generations[-1]

    def beat(self) -> None:
        """A heartbeat, and what it asks for."""
        message = {"node_id": self.id, "status": "Idle", "active_containers": 0}
        beat = self._other.ask("POST", "/gridnode/heartbeat", message)
        if beat.status != 200:
            self.refused.append(beat.status)
            return
        self.orders.append(beat.json)
        for order in beat.json.get("logs", []):
            log = {"node_id": self.id, "id": order["id"], "text": f"log of {self.id}\n"}
            self._other.ask("POST", "/gridnode/logs", log)

    def _watch(self) -> None:
        while not self._ending.is_set():
            try:
                self._look()
            except LOST:
                time.sleep(0.1)

    def _look(self) -> None:
        headers = {"Prefer": f"wait={self._wait}"}
        if self.generations:
            headers["If-None-Match"] = f'"{self.generation}"'
        held = self._task.ask("GET", f"/gridnode/task?node_id={self.id}", headers=headers)
        if held.status not in (200, 304):
            self.refused.append(held.status)
            time.sleep(0.2)
            return
        if held.status == 200:
            self.generations.append(held.headers["ETag"].strip('"'))
        if held.headers["GridCore-Heartbeat"] == "now":
            self.beat()


class Operator(threading.Thread):
    """Adds one task after the other, and remembers what it was told."""

    def __init__(self, port: int, name: str) -> None:
        super().__init__(daemon=True)
        self.added: list[str] = []
        """Acknowledged."""
        self.unsure: list[str] = []
        """No answer, or one that says that nobody knows."""
        self.refused: list[str] = []
        """Known not to be done."""
        self._name = name
        self._caller = Caller(port)
        self._ending = threading.Event()

    def stop(self) -> None:
        self._ending.set()
        self.join(30)
        assert not self.is_alive()
        self._caller.close()

    def run(self) -> None:
        number = 0
        while not self._ending.is_set():
            number += 1
            name = f"{self._name}-{number}"
            self._outcome(name).append(name)
            time.sleep(0.005)

    def _outcome(self, name: str) -> list[str]:
        try:
            answer = self._caller.ask("POST", "/api/tasks", {"name": name, "image": "x:1"})
        except LOST:
            return self.unsure
        if answer.status == 201:
            return self.added
        if answer.status == 503 and answer.json["type"].endswith("store-unavailable"):
            time.sleep(0.05)
            return self.refused
        return self.unsure


def wait_for_more(operators: list[Operator], count: int = 10) -> None:
    """Wait until each of them has been told of so many more."""
    before = [len(operator.added) for operator in operators]
    eventually(
        lambda: all(
            len(operator.added) >= had + count for operator, had in zip(operators, before, strict=True)
        ),
        "operators get something done",
        20,
    )


def task_names(answer: Answer) -> list[str]:
    """All tasks of `GET /api/tasks`, in order."""
    return [task["name"] for task in answer.json["tasks"]]


def eventually(look: Callable[[], bool], what: str, patience: float = 10) -> None:
    """As `wait_until`, also where looking fails for a while."""

    def holds() -> bool:
        try:
            return look()
        except LOST:
            return False

    wait_until(holds, what, patience)
