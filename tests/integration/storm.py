"""Clients that work on a hub until it is killed, and know what it acknowledged and what it may have done."""

from __future__ import annotations

import http.client
import json
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from tests.integration.hub_process import TOKEN

HEADERS = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}


class Gone(Exception):
    """The hub did not answer."""


class Link:
    """One kept connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, Any]:
        """Status and body. Raises Gone."""
        data = None if body is None else json.dumps(body).encode()
        try:
            self._connection.request(method, path, body=data, headers=HEADERS)
            answer = self._connection.getresponse()
            text = answer.read()
        except (OSError, http.client.HTTPException):
            raise Gone from None
        return answer.status, json.loads(text) if text else None

    def close(self) -> None:
        self._connection.close()


@dataclass
class Ledger:
    """What the hub said it has done, and what it was asked and did not answer; over all its lives."""

    tasks: set[str] = field(default_factory=set)
    switches: list[tuple[str | None, str | None]] = field(default_factory=list)
    """What was current before, and what was after."""
    nodes: set[str] = field(default_factory=set)
    draining: dict[str, bool] = field(default_factory=dict)
    orders: int = 0
    """Drains and resumes that were acknowledged."""
    tokens: set[str] = field(default_factory=set)
    open_tasks: set[str] = field(default_factory=set)
    open_switches: int = 0
    open_nodes: set[str] = field(default_factory=set)
    open_drains: dict[str, bool] = field(default_factory=dict)
    open_tokens: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


Client = Callable[[Link, Ledger, str, random.Random], Iterator[None]]
"""Does one thing each time that it is asked to go on, until the hub is gone."""


def add_tasks(link: Link, ledger: Ledger, name: str, _chance: random.Random) -> Iterator[None]:
    for number in range(100_000):
        task = f"{name}-{number}"
        ledger.open_tasks.add(task)
        status, _ = link.ask("POST", "/api/tasks", {"name": task, "image": "x:1"})
        assert status == 201
        ledger.tasks.add(task)
        ledger.open_tasks.discard(task)
        yield


def switch(link: Link, ledger: Ledger, name: str, chance: random.Random) -> Iterator[None]:
    """Press `next` or `finish` with the guard; who was not first looks again."""
    while True:
        _, listed = link.ask("GET", "/api/tasks")
        how = "finish" if listed["current"] and chance.random() < 0.5 else "next"
        guard = {"task": listed["current"], "generation": listed["generation"]}
        with ledger.lock:
            ledger.open_switches += 1
        status, said = link.ask("POST", f"/api/tasks/{how}", guard if listed["current"] else None)
        with ledger.lock:
            ledger.open_switches -= 1
            if status == 200:
                names = ("previous", "current") if how == "next" else ("completed", "started")
                ledger.switches.append((said[names[0]], said[names[1]]))
            else:
                assert status in (400, 409), said
        yield


def run_nodes(link: Link, ledger: Ledger, name: str, chance: random.Random) -> Iterator[None]:
    """Register nodes, and drain and resume those that this client registered."""
    mine: list[str] = []
    for number in range(100_000):
        node = f"{name}-{number}"
        if len(mine) < 3 or chance.random() < 0.3:
            ledger.open_nodes.add(node)
            body = {"node_id": node, "hostname": "h", "architecture": "x86_64", "cpu_count": 1}
            status, _ = link.ask("POST", "/gridnode/register", {**body, "agent_version": "1"})
            assert status == 200
            ledger.nodes.add(node)
            ledger.open_nodes.discard(node)
            mine.append(node)
        else:
            known = chance.choice(mine)
            drains = not ledger.draining.get(known, False)
            ledger.open_drains[known] = drains
            status, _ = link.ask("POST", f"/api/nodes/{known}/{'drain' if drains else 'resume'}")
            assert status == 200
            ledger.draining[known] = drains
            del ledger.open_drains[known]
            with ledger.lock:
                ledger.orders += 1
        yield


def make_tokens(link: Link, ledger: Ledger, name: str, _chance: random.Random) -> Iterator[None]:
    for _ in range(100_000):
        ledger.open_tokens += 1
        status, made = link.ask("POST", "/api/tokens", {"role": "viewer", "ttl": 3600})
        assert status == 201
        ledger.tokens.add(made["id"])
        ledger.open_tokens -= 1
        yield


CLIENTS: tuple[Client, ...] = (add_tasks, add_tasks, switch, switch, run_nodes, run_nodes, make_tokens)


class Storm:
    """All clients at once, on one hub, until it is gone."""

    def __init__(self, port: int, ledger: Ledger, name: str, chance: random.Random) -> None:
        self.failures: list[BaseException] = []
        self.done = 0
        seeds = [chance.getrandbits(64) for _ in CLIENTS]
        self._threads = [
            threading.Thread(target=self._work, args=(client, port, ledger, f"{name}{number}", seeds[number]))
            for number, client in enumerate(CLIENTS)
        ]
        for thread in self._threads:
            thread.start()

    def wait(self) -> None:
        """Return once every client knows that the hub is gone. Raises what a client fell over."""
        for thread in self._threads:
            thread.join(30)
        if self.failures:
            raise self.failures[0]

    def _work(self, client: Client, port: int, ledger: Ledger, name: str, seed: int) -> None:
        link = Link(port)
        try:
            with suppress(Gone):
                for _ in client(link, ledger, name, random.Random(seed)):
                    self.done += 1
        except BaseException as failure:  # told by `wait`
            self.failures.append(failure)
        finally:
            link.close()
