"""Thousands of nodes in one process: real HTTP, held requests, heartbeats, kept connections.

    python -m tests.load.fleet TOKEN-FILE FIRST COUNT KEEP PORT[,PORT…]

Each line on standard input is an order (a JSON list: name, arguments…), each line on standard output its
answer. The nodes live on while no order is under way. A node behaves like our agent: it registers, keeps one
request for the task held, and sends heartbeats. All that goes over connections which it keeps as the agent's
HTTP client does (`pool.py`), for KEEP idle seconds (aiohttp: 15), and it comes back as the agent does when a
hub was away.
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

from agent.contact import RETRY_FIRST, RETRY_MOST
from agent.slots import doubled, jittered
from tests.load.links import Link, Loop
from tests.load.pool import Pool
from tests.load.wire import Answer, Requests

WAIT = 25

Asked = Callable[[Answer], None]


class Node:
    """What the simulator keeps of one node."""

    __slots__ = ("etag", "failures", "id", "interval", "is_gone", "pool", "requests", "under_way")

    def __init__(self, number: int, requests: Requests, pool: Pool) -> None:
        self.id = f"bench-{number:06d}"
        self.requests = requests
        self.pool = pool
        self.etag: bytes | None = None
        self.interval = 30.0
        self.failures = dict.fromkeys(("beat", "ask"), 0)
        """In a row, by what it tried."""
        self.under_way: set[Link] = set()
        self.is_gone = False


class Fleet:
    """The nodes of this process, and what was seen of them."""

    def __init__(self, token: str, first: int, count: int, keep: float, ports: list[int]) -> None:
        self.loop = Loop()
        kinds = [Requests(port, token) for port in ports]
        self._nodes = [
            Node(number, kinds[number % len(kinds)], Pool(self.loop, ports[number % len(ports)], keep))
            for number in range(first, first + count)
        ]
        self._random = Random(first)
        self._began = time.monotonic()
        self._told: list[float] = []
        self._counts = dict.fromkeys(("joined", "beats", "asked", "told", "unknown", "refused"), 0)
        self._is_live = False
        self._is_done = False

    def join(self, connections: int, wait: int = WAIT) -> dict[str, Any]:
        """All nodes, so many at once: each registers, says how it does, and asks for the task until that is
        held, for `wait` seconds at most this time."""
        began, waiting = time.monotonic(), deque(self._nodes)

        def next_one() -> None:
            if waiting:
                join_one(waiting.popleft())

        def join_one(node: Node) -> None:
            def registered(answer: Answer) -> None:
                self._check(answer)
                self._exchange(node, self._heartbeat(node), self._check, self._never)
                self._exchange(node, node.requests.ask(node.id, None, 0), asked, self._never)

            def asked(answer: Answer) -> None:
                self._take(node, answer)
                self._counts["joined"] += 1
                self._ask(node, wait)
                next_one()

            self._exchange(node, node.requests.register(node.id), registered, self._never)

        before = self._counts["joined"]
        for _ in range(connections):
            next_one()
        self.loop.run(lambda: self._counts["joined"] - before == len(self._nodes))
        return {"seconds": time.monotonic() - began, "count": len(self._nodes)}

    def beat_for(self, seconds: float, connections: int, is_fresh: bool) -> dict[str, Any]:
        """Heartbeats of all nodes in turn as fast as they are answered, for so many seconds.

        Over so many connections that are kept; `is_fresh`: or over a new one each, as nodes send them that
        have closed theirs meanwhile.
        """
        began, waiting = time.monotonic(), deque(self._nodes)
        links: list[Link] = []
        count = under_way = 0

        def next_beat(link: Link) -> None:
            nonlocal under_way
            if time.monotonic() - began >= seconds:
                return
            node = waiting.popleft()
            waiting.append(node)
            under_way += 1
            link.send(self._heartbeat(node))

        def answered(link: Link, answer: Answer) -> None:
            nonlocal count, under_way
            under_way -= 1
            count += 1
            self._counts["beats"] += 1
            self._check(answer)
            if is_fresh:
                link.close()
                links.remove(link)
                begin(len(links))
            else:
                next_beat(link)

        def begin(number: int) -> None:
            link = self.loop.connect(self._nodes[number % len(self._nodes)].requests.port)
            link.on_answer = lambda answer: answered(link, answer)
            link.on_lost = self._never
            links.append(link)
            next_beat(link)

        for number in range(connections):
            begin(number)
        self.loop.run(lambda: under_way == 0)
        took = time.monotonic() - began
        for link in links:
            link.close()
        return {"seconds": took, "count": count}

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
            self._close(node)
        return {"count": len(lost)}

    def release(self) -> dict[str, Any]:
        """Close every node's connections."""
        for node in self._nodes:
            self._close(node)
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

    def _exchange(self, node: Node, request: bytes, answered: Asked, failed: Callable[[], None]) -> None:
        """One request of a node over a connection of its pool. Raises OSError where it cannot make one."""
        link = node.pool.take()
        node.under_way.add(link)

        def on_answer(answer: Answer) -> None:
            node.under_way.discard(link)
            node.pool.give_back(link, is_last=answer.header(b"connection") == b"close")
            answered(answer)

        def on_lost() -> None:
            node.under_way.discard(link)
            failed()

        link.on_answer, link.on_lost = on_answer, on_lost
        link.send(request)

    def _try(self, node: Node, what: str, make: Callable[[], bytes], answered: Asked) -> None:
        """An exchange as the agent's client has it: once more at once, and then again after a while."""
        if node.is_gone:
            return

        def taken(answer: Answer) -> None:
            node.failures[what] = 0
            answered(answer)

        def again() -> None:
            node.failures[what] += 1
            pause = jittered(doubled(RETRY_FIRST, RETRY_MOST, node.failures[what]), self._random)
            self.loop.later(pause, lambda: self._try(node, what, make, answered))

        def attempt(failed: Callable[[], None]) -> None:
            try:
                self._exchange(node, make(), taken, failed)
            except OSError:
                failed()

        attempt(lambda: None if node.is_gone else attempt(again))

    def _close(self, node: Node) -> None:
        for link in node.under_way:
            link.close()
        node.under_way.clear()
        node.pool.close()

    def _check(self, answer: Answer) -> None:
        if answer.status not in (200, 304):
            self._counts["refused"] += 1

    def _ask(self, node: Node, wait: int) -> None:
        self._counts["asked"] += 1
        make = lambda: node.requests.ask(node.id, node.etag, wait)  # noqa: E731  as it is when it is sent
        self._try(node, "ask", make, lambda answer: self._on_task(node, answer))

    def _on_task(self, node: Node, answer: Answer) -> None:
        if self._take(node, answer):
            self._told.append(time.monotonic())
            self._counts["told"] += 1
        if answer.header(b"gridcore-heartbeat") == b"now":
            self._beat(node, is_extra=True)
        if answer.status in (200, 304):
            self._ask(node, WAIT)
        else:
            self.loop.later(RETRY_FIRST, lambda: self._ask(node, WAIT))

    def _take(self, node: Node, answer: Answer) -> bool:
        """Whether the answer brings something new."""
        self._check(answer)
        etag = answer.header(b"etag")
        if answer.status not in (200, 304) or etag is None or etag == node.etag:
            return False
        node.etag = etag
        return True

    def _heartbeat(self, node: Node) -> bytes:
        return node.requests.beat(node.id, node.etag or b"", time.monotonic() - self._began)

    def _beat(self, node: Node, *, is_extra: bool = False) -> None:
        """A heartbeat, and the next one an interval after its answer, unless this is one between."""
        if not self._is_live or node.is_gone:
            return

        def answered(answer: Answer) -> None:
            self._check(answer)
            said: dict[str, Any] = json.loads(answer.body) if answer.status == 200 else {}
            if "node_id" in said:  # it has registered again
                self._try(node, "beat", lambda: self._heartbeat(node), answered)
                return
            self._counts["beats"] += answer.status == 200
            if said.get("known") is False:
                self._counts["unknown"] += 1
                self._try(node, "beat", lambda: node.requests.register(node.id), answered)
            elif not is_extra:
                self.loop.later(node_interval(said, node.interval), lambda: self._beat(node))

        self._try(node, "beat", lambda: self._heartbeat(node), answered)

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
