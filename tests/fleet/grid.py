"""The operator's chair: playbooks, the hub's answers, Redis, the registry, and what really runs."""

from __future__ import annotations

import json
import os
import secrets
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, TypeVar

import redis

from tests.fleet import hosts, images
from tests.fleet.engine import PROJECT, FleetError, docker
from tests.fleet.hosts import Fleet, Host
from tests.servers.children import free_port

T = TypeVar("T")

REGISTRY_PORT = 5000
REGISTRY_CONFIG = b"""\
version: 0.1
storage:
  filesystem: {rootdirectory: /var/lib/docker-registry}
  delete: {enabled: true}
http: {addr: ":5000"}
"""


@dataclass(frozen=True)
class Container:
    """One of our containers on a host. Two are the same run only if all of it is equal."""

    name: str
    id: str
    started: str
    running: bool

    @property
    def task(self) -> str:
        """The task it belongs to, from `idm-<task>-<node id>-<instance>`; our tasks' names have no dash."""
        return self.name.split("-")[1]


def wait_until(ask: Callable[[], T], what: str, seconds: float, pause: float = 0.2) -> T:
    """Ask until the answer is true, and give it; a `FleetError` that says what did not happen in time."""
    deadline = time.monotonic() + seconds
    while not (answer := ask()):
        if time.monotonic() > deadline:
            raise FleetError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)
    return answer


class Grid:
    """A fleet whose first host is hub, Redis and registry, and whose other hosts compute."""

    inventory = "inventory/demo"
    trust: ssl.SSLContext | None = None  # what the hub's certificate is verified by

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.control, *self.nodes = fleet.hosts.values()
        self.hub_url = f"http://{self.control.address}:8080"
        self.log = fleet.state / "ansible.log"

    @classmethod
    def start(cls, prefix: str, nodes: int, options: Sequence[str] = ()) -> Grid:
        """Fresh hosts; nothing is installed on them yet. `options` as for `hosts.up`."""
        names = [f"node{number + 1}" for number in range(nodes)]
        return cls(hosts.up(prefix, ["control", *names], options))

    def playbook(self, name: str, *options: str, **variables: object) -> str:
        """Run one of our playbooks as an operator does; its output also goes to the fleet's `ansible.log`."""
        _link_collection()
        words = [str(Path(sys.executable).with_name("ansible-playbook")), "-i", self.inventory]
        words += [f"ansible/playbooks/{name}.yml", "-e", json.dumps(variables), *options]
        # Ansible looks for its helpers on PATH, also where the environment is not activated.
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {
            **os.environ,
            "PATH": path,
            "GRIDCORE_FLEET": self.fleet.prefix,
            "ANSIBLE_NOCOLOR": "1",
        }
        with self.log.open("a") as log:
            log.write(f"\n$ {' '.join([name, *options])} {json.dumps(variables)}\n")
            log.flush()
            begin = log.tell()
            done = subprocess.run(
                words, cwd=PROJECT, env=environment, stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, timeout=900, check=False,
            )  # fmt: skip
        said = self.log.read_bytes()[begin:].decode(errors="replace")
        if done.returncode:
            fatal = [line for line in said.splitlines() if line.startswith(("fatal", "[ERROR", "    msg"))]
            raise FleetError(f"playbook {name} failed, see {self.log}: {' / '.join(fatal or [said[-500:]])}")
        return said

    # The hub

    def ask_hub(self, path: str, order: dict[str, Any] | None = None) -> Any:
        """GET, or POST an order; the answer's JSON."""
        request = urllib.request.Request(
            f"{self.hub_url}{path}",
            data=None if order is None else json.dumps(order).encode(),
            headers={
                "Authorization": f"Bearer {self.fleet.secret('token')}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=10, context=self.trust) as answer:
                return json.load(answer)
        except OSError as problem:
            raise FleetError(f"the hub does not answer {path} as it should: {problem}") from None

    def node(self, host: Host) -> dict[str, Any]:
        """What the hub knows of a host. Of several entries with its name, the one heard last."""
        entries = [node for node in self.ask_hub("/api/nodes") if node["hostname"] == host.container]
        if not entries:
            raise FleetError(f"the hub does not know {host.container}")
        return max(entries, key=lambda node: str(node["last_seen"]))

    def complaints(self) -> str:
        """What the nodes say that keeps them from computing."""
        said = {node["hostname"]: node["reason"] for node in self.ask_hub("/api/nodes") if node["reason"]}
        return "; ".join(f"{name}: {reason}" for name, reason in said.items()) or "no node complains"

    def current(self) -> str | None:
        """The current task's name."""
        name: str | None = self.ask_hub("/api/tasks")["current"]
        return name

    # The hosts

    def containers(self, host: Host) -> list[Container]:
        """All of our containers on a host, those that have ended too."""
        shown = host.ssh(
            # One that goes between the two commands is gone, and no error.
            "docker ps -aq --filter name=^/idm- | xargs -r docker inspect --format "
            "'{{.Name}} {{.Id}} {{.State.StartedAt}} {{.State.Running}}' 2>/dev/null || true"
        )
        fields = (line.split() for line in sorted(shown.splitlines()))
        return [Container(name.lstrip("/"), id_, at, run == "true") for name, id_, at, run in fields]

    def everywhere(self, act: Callable[[Host], T]) -> dict[str, T]:
        """The same on all nodes at once."""
        with ThreadPoolExecutor(len(self.nodes)) as pool:
            answers = pool.map(act, self.nodes)
            return {host.name: answer for host, answer in zip(self.nodes, answers, strict=True)}

    def computes(self, host: Host, task: str, least: int = 1) -> bool:
        """Whether this host runs containers of this task, and of no other, and the hub says the same."""
        there = self.containers(host)
        if len(there) < max(1, least) or any(one.task != task or not one.running for one in there):
            return False
        node = self.node(host)
        return bool(node["task"] == task and node["active_containers"] == len(there))

    def wait_computing(self, task: str, nodes: list[Host] | None = None, seconds: float = 90) -> None:
        """Wait until every node computes this task and no other."""
        for host in nodes or self.nodes:
            wait_until(partial(self.computes, host, task), f"{host.container} computes {task}", seconds)

    def gone(self, host: Host) -> bool:
        """Whether a node is Offline and holds no container of ours."""
        return self.node(host)["status"] == "Offline" and not self.containers(host)

    @contextmanager
    def never_offline(self, host: Host, lost: int = 0) -> Iterator[None]:
        """All the while, and a moment longer, the hub answers and calls the node Online.

        So many questions may be `lost`: those that a hub has in hand when its power fails.
        """
        seen: set[str] = set()
        unanswered: list[str] = []
        over = threading.Event()

        def look() -> None:
            while not over.wait(0.2):
                try:
                    seen.add(self.node(host)["status"])
                except FleetError as problem:
                    unanswered.append(str(problem))

        watcher = threading.Thread(target=look)
        watcher.start()
        try:
            yield
            time.sleep(1)
        finally:
            over.set()
            watcher.join()
        assert seen == {"Online"}, seen
        assert len(unanswered) <= lost, unanswered

    # Redis

    def renew_redis_password(self) -> tuple[str, str]:
        """Another `gridcore_redis_password`, which nobody has yet; returns the old one and the new one."""
        old = self.fleet.secret("redis_password")
        self.fleet.keep("redis_previous_password", old)
        self.fleet.keep("redis_password", new := secrets.token_urlsafe(24))
        self.__dict__.pop("redis", None)
        return old, new

    def looked_up(self, secret: str) -> str:
        """A variable's value that is read out of the secret's file, so that no command line shows it."""
        return f"{{{{ lookup('ansible.builtin.file', '{self.fleet.state / secret}') }}}}"

    @cached_property
    def redis(self) -> redis.Redis:
        """The fleet's Redis, seen from here, with the password of the inventory."""
        return redis.Redis(
            host=self.control.address,
            password=self.fleet.secret("redis_password"),
            decode_responses=True,
            socket_timeout=30,
        )

    def length(self, queue: str) -> int:
        """How many items a queue holds."""
        return int(str(self.redis.llen(queue)))

    # The registry

    def start_registry(self) -> None:
        """Debian's docker-registry on the control host."""
        self.control.put("/etc/docker/registry/config.yml", REGISTRY_CONFIG)
        self.control.ssh("systemctl enable --quiet docker-registry && systemctl restart docker-registry")

    def publish(self, example: str) -> str:
        """Build an example image here and push it to the registry; returns the name for the nodes."""
        return self.push(images.example_image(example), example)

    def push(self, built: str, name: str) -> str:
        """Push an image of this machine's engine to the registry; returns its name for the nodes."""
        # An engine takes plain HTTP from its own loopback without being told; so the registry comes there.
        with self._tunnel() as port:
            pushed = f"127.0.0.1:{port}/{name}:1"
            docker("tag", built, pushed)
            docker("push", "--quiet", pushed, timeout=300)
            docker("rmi", "--no-prune", pushed)
        return f"{self.control.address}:{REGISTRY_PORT}/{name}:1"

    @contextmanager
    def _tunnel(self) -> Iterator[int]:
        """The registry's port on our loopback, through SSH."""
        port = free_port()
        ssh = self.control.ssh_command()
        words = [*ssh[:-2], "-N", "-L", f"127.0.0.1:{port}:127.0.0.1:{REGISTRY_PORT}", ssh[-2]]
        tunnel = subprocess.Popen(words, stdin=subprocess.DEVNULL)
        try:
            wait_until(lambda: _answers(f"http://127.0.0.1:{port}/v2/"), "the registry answers", 30)
            yield port
        finally:
            tunnel.terminate()
            tunnel.wait(10)


def _link_collection() -> None:
    """Where ansible.cfg looks for the collection idm.gridcore; nothing is installed."""
    link = PROJECT / ".cache/collections/ansible_collections/idm/gridcore"
    link.parent.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.unlink(missing_ok=True)
        link.symlink_to(PROJECT / "ansible")


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False
