"""The fleet that chaos happens to: hosts with bounded disks, a hub behind our proxy, endless work."""

from __future__ import annotations

import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import redis

from tests.fleet import hosts, images
from tests.fleet.chaos import look
from tests.fleet.engine import MACHINE, FleetError, docker, run
from tests.fleet.grid import Grid
from tests.fleet.hosts import Host
from tests.fleet.show import step

PROXY_PORT, HUB_PORT = 8090, 8080
MODE_FILE, PROXY_LOG = "/run/chaos-mode", "/run/chaos-proxy.log"
INPUT, OUTPUT = "chaos:input", "chaos:output"
ITEM_SECONDS = 1.0  # so that stopping takes long enough to be hit
HEARTBEAT = 5  # s; shorter than what an operator would choose, so that the hub's word is never old
RESERVE = 500  # items that always wait, so that no worker is ever out of work
IN_HAND = 4 * ITEM_SECONDS
"""Seconds in which a healthy worker gives the result of what it has taken, Redis' retries included."""

# Loop devices for the hosts' own bounded disks; the kernel frees one when the host that mounted it goes.
LOOP_OPTIONS = ["--device-cgroup-rule=b 7:* rmw", "--device=/dev/loop-control"]
LARGEST = 4 * 2**30  # bytes; nothing larger is ever filled
DISKS = """\
#!/bin/sh
# Bounded disks for the engine and for the agent's state, since the volume below is the outer machine's.
set -eu
disk() { # directory, size
    # Not `mountpoint`: the volume from outside is one too.
    case "$(findmnt -no SOURCE "$1" | tail -1)" in /dev/loop*) return 0 ;; esac
    mkdir -p "$1"
    [ -e "$1/.disk.img" ] || { truncate -s "$2" "$1/.disk.img"; mkfs.ext4 -q -m 0 "$1/.disk.img"; }
    mount -o loop "$1/.disk.img" "$1"
}
for number in $(seq 0 63); do [ -e /dev/loop$number ] || mknod /dev/loop$number b 7 $number; done
disk /var/lib/docker 2G
disk /var/lib/gridnode 64M
"""
DISKS_UNIT = """\
[Unit]
Description=Bounded disks (tests/fleet/chaos)
DefaultDependencies=no
After=local-fs.target
Before=docker.service docker.socket gridnode.service
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/chaos-disks
[Install]
RequiredBy=docker.service
WantedBy=multi-user.target
"""


class Ground:
    """A grid and what the faults need of it."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        self.images: tuple[str, ...] = ()
        self._switches = 0
        self._current: str | None = None
        self._want: look.Want | None = None
        self._cpus = 0
        self._pushed = 0
        self._over = threading.Event()
        self._feeder = threading.Thread(target=self._feed, daemon=True)

    @property
    def nodes(self) -> list[Host]:
        """The hosts that compute."""
        return self.grid.nodes

    @property
    def want(self) -> look.Want:
        """What every node should run."""
        assert self._want is not None, "nothing was started yet"
        return self._want

    # The hub, through the proxy and past it

    def proxy(self, mode: str) -> None:
        """How the proxy between agents and hub behaves from now on."""
        self.grid.control.ssh(f"echo '{mode}' >{MODE_FILE}.new && mv {MODE_FILE}.new {MODE_FILE}")
        time.sleep(0.1)

    @contextmanager
    def proxied(self, mode: str) -> Iterator[None]:
        """A misbehaving hub, for a while."""
        self.proxy(mode)
        try:
            yield
        finally:
            self.proxy("pass")

    def asked(self, host: Host, request: str) -> int:
        """How many such requests a node has made so far."""
        line = f"{host.address} {request}"
        return int(self.grid.control.ssh(f"grep -cF '{line}' {PROXY_LOG} || true"))

    def hub_answers(self) -> bool:
        """Whether the hub itself, past the proxy, answers."""
        try:
            self.grid.current()
        except FleetError:
            return False
        return True

    def switch(self, image: str) -> None:
        """A new task is current; what every node should run changes with it."""
        self._switches += 1
        name, url = f"chaos_{self._switches}", self._redis_url()
        self.grid.ask_hub(
            "/api/tasks",
            {
                "name": name, "image": image, "input_redis": url, "output_redis": url,
                "input_queue": INPUT, "output_queue": OUTPUT, "memory": 128, "stop_timeout": 20,
                "env": {"ITEM_SECONDS": str(ITEM_SECONDS)},
            },
        )  # fmt: skip
        if self._current is None:
            self.grid.playbook("task_next")
        else:
            self.grid.ask_hub("/api/tasks/next", {"task": self._current})
        self._current = name
        generation = str(self.grid.ask_hub("/api/tasks")["generation"])
        self._want = look.Want(name, image, generation, self._cpus)

    @property
    def other_image(self) -> str:
        """The image that the current task does not use."""
        return next(image for image in self.images if image != self.want.image)

    # Looking

    def sights(self) -> dict[str, look.Sight]:
        """Every node at this moment."""
        return self.grid.everywhere(look.sight)

    def word(self, host: Host, since: float = 0.0) -> list[str]:
        """What the hub says of a node that is not so; `since` is when it must have heard it last (epoch)."""
        try:
            return look.judge_word(self.want, self.grid.node(host), since)
        except FleetError as problem:
            return [str(problem)]

    def results(self) -> int:
        """How many results there are so far."""
        with suppress(redis.RedisError):
            return self.grid.length(OUTPUT)
        return 0

    def taken(self) -> int:
        """How many items workers have taken so far; they are the integers from 0 on, in this order."""
        try:
            first = self.grid.redis.lindex(INPUT, 0)
        except redis.RedisError as problem:
            raise FleetError(f"the fleet's Redis does not answer: {problem}") from None
        return self._pushed if first is None else int(str(first))

    def ill(self) -> list[str]:
        """What is not as it should be anywhere."""
        seen = self.sights()
        return [
            f"{host.container}: {text}"
            for host in self.nodes
            for text in [*look.judge_containers(self.want, seen[host.name]), *self.word(host)]
        ]

    def wait_well(self, seconds: float) -> None:
        """Until every node does what it should, and the hub says so."""
        deadline = time.monotonic() + seconds
        while ill := self.ill():
            if time.monotonic() > deadline:
                raise FleetError(f"not well within {seconds:.0f} s: {'; '.join(ill)}")
            time.sleep(0.5)

    # Coming and going

    def begin(self) -> None:
        """The first task, and work for it."""
        self._cpus = int(self.nodes[0].ssh("nproc"))
        self._feeder.start()
        self.switch(self.images[0])
        self.wait_well(90)

    def end(self) -> None:
        """No more work."""
        self._over.set()
        if self._feeder.ident is not None:
            self._feeder.join(10)

    def _feed(self) -> None:
        while not self._over.wait(0.5):
            with suppress(redis.RedisError):
                missing = RESERVE - self.grid.length(INPUT)
                if missing > 0:
                    self.grid.redis.rpush(INPUT, *range(self._pushed, self._pushed + missing))
                    self._pushed += missing

    def _redis_url(self) -> str:
        password = urllib.parse.quote(self.grid.fleet.secret("redis_password"), safe="")
        return f"redis://:{password}@{self.grid.control.address}:6379/0"


def prepare(prefix: str, nodes: int, *, bounded_disks: bool) -> Ground:
    """From nothing to a fleet that computes; disks that can be filled need loop devices on this machine."""
    with step("Make this machine ready") as running:
        running.note = run([MACHINE], timeout=900).splitlines()[-1].removeprefix("machine: ")
    with step("Make the images"):
        images.host_image()
        built = [images.example_image("squares"), _second_image()]
    with step(f"Start {nodes + 1} hosts{' with bounded disks' if bounded_disks else ''}") as running:
        ground = Ground(Grid.start(prefix, nodes, LOOP_OPTIONS if bounded_disks else ()))
        if bounded_disks:
            ground.grid.everywhere(_bound_disks)
        _start_proxy(ground.grid.control)
        running.note = ", ".join(host.container for host in ground.grid.fleet.hosts.values())
    with step("Roll out Redis, hub and agents: site.yml"):
        ground.grid.playbook(
            "site",
            gridcore_hub_url=f"http://{ground.grid.control.address}:{PROXY_PORT}",
            gridcore_agent_heartbeat_interval=HEARTBEAT,
        )
    with step("Start the registry and push the images"):
        ground.grid.start_registry()
        names = ("squares", "squares-again")
        ground.images = tuple(ground.grid.push(image, name) for image, name in zip(built, names, strict=True))
    with step("Start the first task") as running:
        ground.begin()
        running.note = f"{nodes} nodes compute, {ground.want.count} containers each"
    return ground


def take_down(prefix: str) -> None:
    """Remove everything that was started."""
    hosts.down(prefix)


def fill(host: Host, directory: str) -> None:
    """Leave no byte free; refused on anything but a small loop device of our own.

    Below a host's directories lies the outer machine's disk, which everybody here shares.
    """
    source, size = bounded(host, directory)
    if not source.startswith("/dev/loop") or size > LARGEST:
        raise FleetError(f"{host.container}:{directory} is {source} with {size} bytes: not filled")
    host.ssh(
        f"cd {directory} && {{ fallocate -l $(df --output=avail -B1 . | tail -1) .fill 2>/dev/null || true; "
        "dd if=/dev/zero of=.fill-rest bs=4k 2>/dev/null || true; }",
        timeout=120,
    )


def bounded(host: Host, directory: str) -> tuple[str, int]:
    """What is mounted on exactly this directory, last of all, and its size in bytes."""
    shown = host.ssh(f"findmnt -bno SOURCE,SIZE --mountpoint {directory} | tail -1").split()
    return (shown[0], int(shown[1])) if len(shown) == 2 else ("nothing", 0)


def free(host: Host, directory: str) -> None:
    """Take back what `fill` took."""
    host.ssh(f"rm -f {directory}/.fill {directory}/.fill-rest")


def _second_image() -> str:
    """The same worker behind a layer of its own, so that it has to be pulled."""
    tag = "gridcore-chaos-again:latest"
    layer = "USER 0\nRUN head -c 4000000 /dev/urandom >/blob\nUSER 65534\n"
    recipe = f"FROM {images.example_image('squares')}\n{layer}"
    docker("build", "--quiet", "--tag", tag, "-", stdin=recipe.encode(), timeout=300)
    return tag


def _bound_disks(host: Host) -> None:
    host.put("/usr/local/lib/chaos-disks", DISKS.encode(), 0o755)
    host.put("/etc/systemd/system/chaos-disks.service", DISKS_UNIT.encode())
    host.ssh(
        "systemctl stop docker.socket docker && systemctl daemon-reload && "
        "systemctl enable --quiet --now chaos-disks && systemctl start docker.socket docker"
    )
    host.wait_ready()
    for directory in ("/var/lib/docker", "/var/lib/gridnode"):
        source, _ = bounded(host, directory)
        if not source.startswith("/dev/loop"):
            raise FleetError(
                f"{host.container}: {directory} is {source}, not a bounded disk; are there loop devices?"
            )


def _start_proxy(control: Host) -> None:
    control.put("/usr/local/lib/chaos-proxy.py", Path(__file__).with_name("proxy.py").read_bytes())
    control.ssh(
        f"systemd-run --quiet --unit=chaos-proxy -p Restart=always "
        f"python3 /usr/local/lib/chaos-proxy.py {PROXY_PORT} {HUB_PORT} {MODE_FILE} {PROXY_LOG}"
    )
