"""Thousands of nodes in one process: real HTTP, held requests, heartbeats, kept connections.

    python -m tests.load.fleet TOKEN-FILE FIRST COUNT KEEP PORT[,PORT…]

Each line on standard input is an order (a JSON list: name, arguments…), each line on standard output its
answer. The nodes live on while no order is under way. A node behaves like our agent: it registers, keeps one
request for the task held, and sends heartbeats over another connection, which its HTTP client closes after
KEEP idle seconds (aiohttp: 15). It comes back by itself when a hub was away. One thing is kinder than a real
fleet: after a switch the nodes' next waits differ, so that the questions that follow are spread evenly.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from tests.load.links import Link, Loop
from tests.load.wire import Answer, Requests

WAIT = 25
RETRY = 1.0
"""Seconds, with as much again by chance, until a node tries a hub that is away again."""


class Node:
    """What the simulator keeps of one node."""

    __slots__ = (
        "beat",
        "due",
        "etag",
        "held",
        "id",
        "interval",
        "is_asking",
        "is_gone",
        "requests",
        "spread",
        "wait",
    )

    def __init__(self, number: int, requests: Requests) -> None:
        self.id = f"bench-{number:06d}"
        self.requests = requests
        self.etag: bytes | None = None
        self.held: Link | None = None
        self.beat: Link | None = None
        self.interval = 30.0
        self.due = 0.0
        self.is_asking = self.is_gone = False
        self.wait = WAIT
        # The golden ratio spreads any number of nodes evenly.
        self.spread = 1 + int(number * 0.618033988749895 % 1 * WAIT)


class Fleet:
    """The nodes of this process, and what was seen of them."""

    def __init__(self, token: str, first: int, count: int, keep: float, ports: list[int]) -> None:
        kinds = [Requests(port, token) for port in ports]
        self._nodes = [Node(number, kinds[number % len(kinds)]) for number in range(first, first + count)]
        self._keep = keep
        self._random = Random(first)
        self._began = time.monotonic()
        self._told: list[float] = []
        self._counts = dict.fromkeys(("registered", "beats", "asked", "told", "unknown", "refused"), 0)
        self._is_live = False
        self._is_done = False
        self.loop = Loop()

    def register(self, connections: int) -> dict[str, Any]:
        """All nodes, over so many connections at once."""
        return self._work_off(connections, lambda node: node.requests.register(node.id), "registered")

    def beat_for(self, seconds: float, connections: int) -> dict[str, Any]:
        """Heartbeats of all nodes in turn as fast as they are answered, for so many seconds."""
        return self._work_off(connections, self._heartbeat, "beats", seconds)

    def hold(self, wait: int) -> dict[str, Any]:
        """Every node asks for the task, and again with the ETag, for at most `wait` seconds this time."""
        began, waiting = time.monotonic(), deque(self._nodes)
        done: list[Node] = []

        def ask_first(node: Node) -> None:
            link = node.held = self.loop.connect(node.requests.port)

            def first(answer: Answer) -> None:
                self._take(node, answer)
                link.on_answer = lambda later: self._on_task(node, later)
                link.on_lost = lambda: self._retry(node)
                self._ask(node, wait)
                done.append(node)
                if waiting:
                    ask_first(waiting.popleft())

            link.on_answer = first
            link.on_lost = self._never
            link.send(node.requests.ask(node.id, None, 0))

        for _ in range(min(100, len(waiting))):
            ask_first(waiting.popleft())
        self.loop.run(lambda: len(done) == len(self._nodes))
        return {"seconds": time.monotonic() - began, "count": len(done)}

    def live(self, interval: float) -> dict[str, Any]:
        """From now on every node sends its heartbeats, evenly spread over the interval (seconds)."""
        self._is_live = True
        for index, node in enumerate(self._nodes):
            node.interval = interval
            self.loop.later(interval * (index + 0.5) / len(self._nodes), lambda node=node: self._beat(node))  # type: ignore[misc] # a default argument binds it
        return {}

    def rest(self) -> dict[str, Any]:
        """No more heartbeats."""
        self._is_live = False
        return {}

    def told(self) -> dict[str, Any]:
        """When nodes heard of a new task since this was last asked: moments of the monotonic clock."""
        told, self._told = self._told, []
        return {"told": told}

    def counts(self) -> dict[str, Any]:
        """What was counted since the start; `cpu` in seconds."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        return {**self._counts, "lost": self.loop.lost, "cpu": used.ru_utime + used.ru_stime}

    def lose_half(self) -> dict[str, Any]:
        """Every second node is gone, as if its power were."""
        lost = self._nodes[::2]
        for node in lost:
            node.is_gone = True
            for link in (node.held, node.beat):
                if link is not None:
                    link.close()
        return {"count": len(lost)}

    def release(self) -> dict[str, Any]:
        """Close every node's connections."""
        for node in self._nodes:
            for link in (node.held, node.beat):
                if link is not None:
                    link.close()
            node.held = node.beat = None
        return {}

    def obey(self) -> None:
        """Read one order and carry it out; no more orders end the process."""
        line = sys.stdin.readline()
        if not line:
            self._is_done = True
            return
        name, *arguments = json.loads(line)
        answer = getattr(self, name)(*arguments)
        print(json.dumps(answer), flush=True)

    def run(self) -> None:
        """Live until standard input ends."""
        self.loop.listen(sys.stdin.fileno(), self.obey)
        self.loop.run(lambda: self._is_done)

    def _work_off(
        self, connections: int, request: Callable[[Node], bytes], what: str, seconds: float | None = None
    ) -> dict[str, Any]:
        """Each node's request in turn over a few connections: once, or round and round for some seconds."""
        began = time.monotonic()
        waiting = deque(self._nodes)
        links = []
        count = under_way = 0

        def next_request(link: Link) -> None:
            nonlocal under_way
            if not waiting or (seconds is not None and time.monotonic() - began >= seconds):
                return
            node = waiting.popleft()
            if seconds is not None:
                waiting.append(node)
            under_way += 1
            link.send(request(node))

        def answered(link: Link, answer: Answer) -> None:
            nonlocal count, under_way
            under_way -= 1
            count += 1
            self._counts[what] += 1
            if answer.status != 200:
                self._counts["refused"] += 1
            next_request(link)

        for number in range(connections):
            link = self.loop.connect(self._nodes[number % len(self._nodes)].requests.port)
            link.on_answer = lambda answer, link=link: answered(link, answer)  # type: ignore[misc] # a default argument binds it
            link.on_lost = self._never
            links.append(link)
            next_request(link)
        self.loop.run(lambda: under_way == 0)
        took = time.monotonic() - began
        for link in links:
            link.close()
        return {"seconds": took, "count": count}

    def _ask(self, node: Node, wait: int) -> None:
        assert node.held is not None
        self._counts["asked"] += 1
        node.held.send(node.requests.ask(node.id, node.etag, wait))

    def _on_task(self, node: Node, answer: Answer) -> None:
        wait = WAIT
        if self._take(node, answer):
            self._told.append(time.monotonic())
            self._counts["told"] += 1
            wait = node.spread
        if answer.header(b"gridcore-heartbeat") == b"now":
            self._beat(node)
        self._ask(node, wait)

    def _take(self, node: Node, answer: Answer) -> bool:
        """Whether the answer brings something new."""
        if answer.status not in (200, 304):
            self._counts["refused"] += 1
            return False
        etag = answer.header(b"etag")
        if etag is None or etag == node.etag:
            return False
        node.etag = etag
        return True

    def _retry(self, node: Node) -> None:
        """The held request was cut off: ask again, a little later."""

        def again() -> None:
            if node.is_gone:
                return
            try:
                link = self.loop.connect(node.requests.port)
            except OSError:
                self._retry(node)
                return
            node.held = link
            link.on_answer = lambda answer: self._on_task(node, answer)
            link.on_lost = lambda: self._retry(node)
            self._ask(node, WAIT)

        self.loop.later(RETRY * (1 + self._random.random()), again)

    def _heartbeat(self, node: Node) -> bytes:
        return node.requests.beat(node.id, node.etag or b"", time.monotonic() - self._began)

    def _beat(self, node: Node) -> None:
        if not self._is_live or node.is_gone:
            return
        link = node.beat
        if link is None or not link.is_open:
            try:
                link = node.beat = self.loop.connect(node.requests.port)
            except OSError:
                self.loop.later(RETRY, lambda: self._beat(node))
                return
            link.on_answer = lambda answer: self._on_beat(node, answer)
            link.on_lost = lambda: self._on_beat_lost(node)
        node.is_asking = True
        link.send(self._heartbeat(node))

    def _on_beat(self, node: Node, answer: Answer) -> None:
        link = node.beat
        assert link is not None
        node.is_asking = False
        said: dict[str, Any] = json.loads(answer.body) if answer.status == 200 else {}
        if answer.status != 200:
            self._counts["refused"] += 1
        elif "node_id" not in said:  # else it answers a registration
            self._counts["beats"] += 1
        if said.get("known") is False:
            self._counts["unknown"] += 1
            node.is_asking = True
            link.send(node.requests.register(node.id))
            return
        serial = link.serial
        self.loop.later(node_interval(said, node.interval), lambda: self._beat(node))
        if self._keep < node.interval:
            self.loop.later(self._keep, lambda: link.close() if link.serial == serial else None)

    def _on_beat_lost(self, node: Node) -> None:
        node.beat = None
        if node.is_asking:
            self.loop.later(RETRY * (1 + self._random.random()), lambda: self._beat(node))

    def _never(self) -> None:
        raise RuntimeError("the hub closed a connection that it was to answer on")


def node_interval(said: dict[str, Any], own: float) -> float:
    """Seconds until the next heartbeat: what the hub's answer says, else the node's own."""
    return float(said.get("heartbeat_interval") or own)


def main() -> None:
    """Obey orders."""
    token_file, first, count, keep, ports = sys.argv[1:]
    # Nothing here is garbage in cycles, and looking for it among thousands of nodes would cost much.
    gc.disable()
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    token = Path(token_file).read_text().strip()
    Fleet(token, int(first), int(count), float(keep), [int(port) for port in ports.split(",")]).run()
    os._exit(0)  # thousands of sockets need no farewell


if __name__ == "__main__":
    main()
