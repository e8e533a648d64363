"""What a fleet is let loose on: the table of hub setups, each with processes of its own on loopback."""

from __future__ import annotations

import http.client
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.load.processes import memory, stat
from tests.servers.haproxy import example

TOKEN = "a-token-of-the-benchmark-and-of-nothing-else"
STARTS_WITHIN = 20.0
"""Seconds."""
ROOT = Path(__file__).parents[2]


class CannotStart(Exception):
    """A setup that this hub, or this machine, does not have; the text says why."""


@dataclass
class Service:
    """A server process with its port; its output goes to a file."""

    process: subprocess.Popen[bytes]
    port: int
    output: Path
    command: Sequence[str] = ()

    @property
    def cpu(self) -> float:
        """Seconds of CPU, user and system, since it started."""
        seen = stat(self.process.pid)
        return seen.cpu if seen else 0.0

    @property
    def resident(self) -> int:
        """Bytes."""
        return (memory(self.process.pid) or {"Rss": 0})["Rss"]

    @property
    def descriptors(self) -> int:
        """Open files and connections."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def crash(self) -> None:
        """kill -9, and start it again on the same port and state; returns once it listens."""
        self.process.kill()
        self.process.wait()
        self.process = _spawn(self.command, self.output)
        _wait_for(self)

    def close(self) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@dataclass
class Running:
    """The processes of a setup: `hubs` are what nodes talk to, `others` what those need."""

    hubs: list[Service]
    others: list[Service] = field(default_factory=list)
    front: Service | None = None
    """What nodes talk to instead of the hubs: a load balancer, one of the others."""

    @property
    def ports(self) -> list[int]:
        """That nodes talk to."""
        return [service.port for service in ([self.front] if self.front else self.hubs)]

    @property
    def cpu(self) -> float:
        """Seconds, of all hubs."""
        return sum(hub.cpu for hub in self.hubs)

    @property
    def others_cpu(self) -> float:
        """Seconds, of what the hubs need."""
        return sum(other.cpu for other in self.others)

    @property
    def resident(self) -> int:
        """Bytes, of all hubs."""
        return sum(hub.resident for hub in self.hubs)

    @property
    def descriptors(self) -> int:
        """Open files and connections of all hubs."""
        return sum(hub.descriptors for hub in self.hubs)

    def settle(self, cores: float = 0.05) -> None:
        """Return once the hubs take no more than that; 20 s at most."""
        for _ in range(40):
            spent = self.cpu
            time.sleep(0.5)
            if self.cpu - spent <= cores * 0.5:
                return

    def line_up(self, tasks: int) -> None:
        """So many tasks, the first of them current."""
        for number in range(tasks + 1):
            self._post("/api/tasks", {"name": f"bench-{number}", "image": "bench:1", "input_queue": "in"})
        self._post("/api/tasks/next")

    def finish(self) -> float:
        """Switch to the next task; the moment before it was asked for, by the monotonic clock."""
        asked = time.monotonic()
        self._post("/api/tasks/finish")
        return asked

    def get(self, path: str) -> Any:
        """What the first hub answers."""
        return json.loads(self._call("GET", path, self.hubs[0]))

    def counted(self, name: str) -> float:
        """A metric of all hubs, added up; `name` with its labels."""
        texts = [self._call("GET", "/metrics", hub) for hub in self.hubs]
        lines = [line.rpartition(" ") for text in texts for line in text.splitlines()]
        return sum(float(value) for known, _, value in lines if known == name)

    def _post(self, path: str, body: Any = None) -> None:
        self._call("POST", path, self.hubs[0], body)

    def _call(self, method: str, path: str, hub: Service, body: Any = None) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", hub.port, timeout=60)
        wire = None if body is None else json.dumps(body)
        connection.request(method, path, wire, {"Authorization": f"Bearer {TOKEN}"})
        answer = connection.getresponse()
        text = answer.read()
        connection.close()
        if answer.status not in (200, 201):
            raise RuntimeError(f"{path}: {answer.status} {text[:200]!r}")
        return text.decode()


@dataclass(frozen=True)
class Setup:
    """One row of the table; `start` may raise CannotStart."""

    name: str
    title: str
    hubs: int
    start: Callable[[ExitStack, Path], Running]
    is_behind_proxy: bool = False


def free_port() -> int:
    """A port of this machine that nobody has now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def start(stack: ExitStack, command: Sequence[str], port: int, output: Path) -> Service:
    """A process that soon listens on its port; CannotStart with its last words if it ends before."""
    service = Service(_spawn(command, output), port, output, command)
    stack.callback(service.close)
    _wait_for(service)
    return service


def _spawn(command: Sequence[str], output: Path) -> subprocess.Popen[bytes]:
    with output.open("ab") as file:
        return subprocess.Popen(
            command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )


def _wait_for(service: Service) -> None:
    """Raises CannotStart."""
    deadline = time.monotonic() + STARTS_WITHIN
    while time.monotonic() < deadline:
        if service.process.poll() is not None:
            words = service.output.read_text(errors="replace").strip()
            ended = f"it ended with {service.process.returncode}"
            raise CannotStart(" ".join(words.split())[-300:] or ended)
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", service.port)) == 0:
                return
        time.sleep(0.05)
    raise CannotStart(
        f"nothing listens on port {service.port} after {STARTS_WITHIN:.0f} s; see {service.output}"
    )


def start_hub(stack: ExitStack, directory: Path, state: str, name: str = "hub") -> Service:
    """A real `computehub` with everything at its default but port and state."""
    port = free_port()
    config = directory / f"{name}.toml"
    config.write_text(f'token = "{TOKEN}"\nbind = "127.0.0.1:{port}"\nstate = "{state}"\n')
    config.chmod(0o600)
    code = os.environ.get("BENCH_HUB_ROOT")  # another tree's hub, to compare before and after
    run = [sys.executable, "-m", "hub.cli", "--config", str(config)]
    command = ["env", "-C", code, f"PYTHONPATH={code}", *run] if code else run
    return start(stack, command, port, directory / f"{name}.log")


def _one_with_sqlite(stack: ExitStack, directory: Path) -> Running:
    return Running([start_hub(stack, directory, f"sqlite:///{directory}/hub.db")])


def _two_with_redis(stack: ExitStack, directory: Path) -> Running:
    port = free_port()
    options = {
        "bind": "127.0.0.1",
        "port": str(port),
        "dir": str(directory),
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory-policy": "noeviction",
        "maxclients": "1000",
        "save": "",
    }
    words = [word for key, value in options.items() for word in (f"--{key}", value)]
    try:
        redis = start(stack, ["redis-server", *words], port, directory / "redis.log")
    except FileNotFoundError:
        raise CannotStart("there is no redis-server on this machine (apt-get install redis-server)") from None
    state = f"redis://127.0.0.1:{port}/0"
    return Running([start_hub(stack, directory, state, f"hub-{name}") for name in "ab"], [redis])


def _one_behind_haproxy(stack: ExitStack, directory: Path) -> Running:
    hub = start_hub(stack, directory, f"sqlite:///{directory}/hub.db")
    port = free_port()
    config = directory / "haproxy.cfg"
    most = (resource.getrlimit(resource.RLIMIT_NOFILE)[1] - 100) // 2
    config.write_text(example(directory, {"hub1": f"127.0.0.1:{hub.port}"}, port, connections=most))
    try:
        proxy = start(stack, ["haproxy", "-db", "-q", "-f", str(config)], port, directory / "haproxy.log")
    except FileNotFoundError:
        raise CannotStart("there is no haproxy on this machine (apt-get install haproxy)") from None
    return Running([hub], [proxy], proxy)


def _bare(stack: ExitStack, directory: Path) -> Running:
    port = free_port()
    command = [sys.executable, "-m", "tests.load.bare_hub", str(port)]
    return Running([start(stack, command, port, directory / "bare.log")])


SETUPS = (
    Setup("bare", "bare ASGI on the same server", 1, _bare),
    Setup("sqlite", "one hub, SQLite", 1, _one_with_sqlite),
    Setup("redis", "two hubs, one Redis", 2, _two_with_redis),
    Setup("haproxy", "one hub, SQLite, behind HAProxy", 1, _one_behind_haproxy, is_behind_proxy=True),
)


class Simulator:
    """One process of nodes, by its orders."""

    def __init__(
        self,
        stack: ExitStack,
        directory: Path,
        first: int,
        count: int,
        keep: float,
        ports: list[int],
        token: str = TOKEN,
    ):
        file = directory / "token"
        file.write_text(token)
        words = [str(file), str(first), str(count), str(keep), ",".join(map(str, ports))]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.load.fleet", *words],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.count = count
        stack.callback(self._close)

    def order(self, name: str, *arguments: Any) -> None:
        """Begin something; `answer` waits for its end."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([name, *arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What came of the order."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the simulator ended with {self._process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _close(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def running(setup: Setup, directory: Path) -> Iterator[tuple[Running, ExitStack]]:
    """A setup that runs, with a stack for what else is to end with it."""
    with ExitStack() as stack:
        yield setup.start(stack, directory), stack
