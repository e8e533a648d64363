"""What happens to a machine: its agent, its engine, its containers, its disks, its clock, itself."""

from __future__ import annotations

import contextlib
import time

from agent.slots import STEADY
from tests.fleet.chaos import look
from tests.fleet.chaos.ground import fill, free
from tests.fleet.chaos.scene import UNIT, WITHIN, Catalogue, Scene
from tests.fleet.engine import FleetError
from tests.fleet.grid import REGISTRY_PORT, wait_until

FAULTS = Catalogue()

KILL_AGENT = f"systemctl kill --kill-whom=main --signal=KILL {UNIT}"
HAND_OVER = f"systemctl kill --kill-whom=main --signal=USR1 {UNIT}"

# Reads the first event of our containers that happens after the trigger; then the agent dies in that phase.
KILL_AT_EVENT = """\
exec 3< <(exec timeout 25 docker events --since "$(date +%s.%N)" --filter label=gridcore.owner \
    --filter type=container --filter event={event} --format x 2>/dev/null)
events=$!
{trigger}
read -r -t 25 _ <&3
sleep {delay}
{kill}
kill $events
"""
PROVEN_WITHIN = WITHIN + STEADY
"""Seconds: a slot that failed to start again and again is in Error until its container has run so long."""
FAKETIME_FILE = "/etc/chaos-faketime"
FAKETIME_DROP_IN = f"/run/systemd/system/{UNIT}.service.d/chaos.conf"
FAKETIME = f"""\
[Service]
Environment=LD_PRELOAD=libfaketime.so.1 LD_LIBRARY_PATH=/usr/lib/x86_64-linux-gnu/faketime
Environment=FAKETIME_TIMESTAMP_FILE={FAKETIME_FILE} FAKETIME_CACHE_DURATION=1 FAKETIME_DONT_FAKE_MONOTONIC=1
"""

# The agent


@FAULTS.add("agent-killed-running", "agent SIGKILLed while everything runs", agent="new")
def _(scene: Scene) -> None:
    old = scene.agent_pid()
    scene.shell(KILL_AGENT)
    scene.wait_new_agent(old)


@FAULTS.add("agent-killed-registering", "agent SIGKILLed while it waits for the hub's answer", agent="new")
def _(scene: Scene) -> None:
    ground, host = scene.ground, scene.host
    with ground.proxied("hold"):
        asked, old = ground.asked(host, "POST /gridnode/register"), scene.agent_pid()
        scene.shell(HAND_OVER)
        wait_until(lambda: ground.asked(host, "POST /gridnode/register") > asked, "the agent registers", 40)
        old = scene.agent_pid()
        scene.shell(KILL_AGENT)
    scene.wait_new_agent(old)


@FAULTS.add("agent-killed-pulling", "agent SIGKILLed while it pulls the next task's image", agent="new")
def _(scene: Scene) -> None:
    ground, image, old = scene.ground, scene.ground.other_image, scene.agent_pid()
    control = ground.grid.control
    scene.shell(f"docker rmi --force {image} >/dev/null 2>&1 || true")
    scene.hurt_everywhere()
    control.ssh("systemctl kill --signal=STOP docker-registry")
    try:
        ground.switch(image)
        pulling = f"ss -Htn dst {control.address}:{REGISTRY_PORT} | grep -q ."
        scene.shell(f"timeout 20 sh -c 'until {pulling}; do sleep 0.05; done'; {KILL_AGENT}")
    finally:
        control.ssh("systemctl kill --signal=CONT docker-registry")
    scene.wait_new_agent(old)


@FAULTS.add("agent-killed-starting", "agent SIGKILLed between creating and starting a container", agent="new")
def _(scene: Scene) -> None:
    old = scene.agent_pid()
    scene.hurt_all(scene.mine)
    trigger = f"docker rm --force {' '.join(box.id for box in scene.mine)} >/dev/null"
    scene.shell(_at_event("create", trigger, scene.injection.fraction * 0.2))
    scene.wait_new_agent(old)


@FAULTS.add("agent-killed-switching", "agent SIGKILLed while the old task's containers stop", agent="new")
def _(scene: Scene) -> None:
    ground, old = scene.ground, scene.agent_pid()
    scene.hurt_everywhere()
    script, ready = "/run/chaos-at-event", "/run/chaos-ready"
    scene.host.put(script, _at_event("kill", f"touch {ready}", 0.1).encode())
    scene.shell(f"rm -f {ready}; setsid bash {script} >/dev/null 2>&1 </dev/null &")
    wait_until(lambda: scene.shell(f"ls {ready} 2>/dev/null || true"), "the host watches its engine", 10)
    ground.switch(ground.want.image)
    wait_until(lambda: scene.agent_pid() != old, "the agent is killed", 30)
    scene.wait_new_agent(old)


@FAULTS.add("agent-killed-stopping", "agent SIGKILLed while it stops, then started again", agent="new")
def _(scene: Scene) -> None:
    old = scene.agent_pid()
    scene.hurt_all(scene.mine)
    scene.shell(_at_event("kill", f"systemctl stop --no-block {UNIT}", scene.injection.fraction * 0.5))
    wait_until(
        lambda: scene.host.ssh(f"systemctl is-active {UNIT} || true") in ("failed", "inactive"),
        "systemd gives the agent up", 30,
    )  # fmt: skip
    left = sum(box.status == "running" for box in look.sight(scene.host).ours.values())
    scene.notes.append(f"{left} containers were left behind")
    scene.shell(f"systemctl start {UNIT}")
    scene.wait_new_agent(old)


# The engine


@FAULTS.add("engine-stopped", "dockerd stopped, started later", seconds=(5, 25))
def _(scene: Scene) -> None:
    scene.hurt_all(scene.mine)
    scene.shell("systemctl stop docker.socket docker.service")
    try:
        scene.last()
    finally:
        scene.shell("systemctl start docker.socket docker.service")
    _engine_answers(scene)


@FAULTS.add("engine-restarted", "dockerd restarted")
def _(scene: Scene) -> None:
    scene.hurt_all(scene.mine)
    scene.shell("systemctl restart docker.service")
    _engine_answers(scene)


@FAULTS.add("engine-killed", "dockerd SIGKILLed; systemd starts it again")
def _(scene: Scene) -> None:
    scene.hurt_all(scene.mine)
    old = scene.shell("systemctl show -p MainPID --value docker")
    scene.shell("systemctl kill --kill-whom=main --signal=KILL docker")
    wait_until(
        lambda: scene.shell("systemctl show -p MainPID --value docker") not in ("0", old), "a new dockerd", 30
    )
    _engine_answers(scene)


@FAULTS.add("engine-hung", "dockerd SIGSTOPped, and goes on later", seconds=(5, 75))
def _(scene: Scene) -> None:
    scene.shell("systemctl kill --kill-whom=main --signal=STOP docker")
    try:
        scene.last()
    finally:
        scene.shell("systemctl kill --kill-whom=main --signal=CONT docker")
    _engine_answers(scene)


# The containers


@FAULTS.add("containers-killed", "docker kill, by hand")
def _(scene: Scene) -> None:
    scene.hurt_all(scene.chosen())
    scene.shell(f"docker kill {' '.join(box.id for box in scene.chosen())} >/dev/null")


@FAULTS.add("containers-removed", "docker rm --force, by hand")
def _(scene: Scene) -> None:
    scene.hurt_all(scene.chosen())
    scene.shell(f"docker rm --force {' '.join(box.id for box in scene.chosen())} >/dev/null")


@FAULTS.add(
    "foreign-container",
    "a container that is not ours holds a slot's name",
    seconds=(4, 20),
    word_within=PROVEN_WITHIN,
)
def _(scene: Scene) -> None:
    box = scene.chosen()[-1]
    scene.hurt_all([box])
    # The agent is held for a moment, or it would have its own container back before ours is there.
    foreign = scene.shell(
        f"systemctl kill --kill-whom=main --signal=STOP {UNIT}\n"
        f"trap 'systemctl kill --kill-whom=main --signal=CONT {UNIT}' EXIT\n"
        f"docker rm --force {box.id} >/dev/null\n"
        f"docker run --detach --name {box.name} --entrypoint sleep {box.image} 86400"
    )
    try:
        begin = time.monotonic()
        there = _foreign(scene, foreign)
        scene.must_be_said("name-taken")
        time.sleep(max(0.0, scene.seconds - (time.monotonic() - begin)))
        if there is None or _foreign(scene, foreign) != there:
            scene.wrong.append(f"the foreign container {box.name} was touched")
        others = [one for one in scene.mine if one.id != box.id]
        running = {one.id for one in look.sight(scene.host).ours.values() if one.status == "running"}
        scene.wrong += [f"{one.name} suffers from its neighbour" for one in others if one.id not in running]
    finally:
        scene.shell(f"docker rm --force {foreign} >/dev/null")


# The disks


@FAULTS.add(
    "engine-disk-full",
    "no byte is left for the engine while containers must start",
    seconds=(8, 20),
    word_within=PROVEN_WITHIN,
    fills_disk=True,
)
def _(scene: Scene) -> None:
    scene.hurt_all(scene.mine)  # a full disk may also end those that run
    _full(scene, "/var/lib/docker")


@FAULTS.add(
    "agent-disk-full",
    "no byte is left for the agent while containers must start",
    seconds=(8, 20),
    word_within=PROVEN_WITHIN,
    fills_disk=True,
)
def _(scene: Scene) -> None:
    # What is in memory gets small file systems of its own, in the agent's view of the machine only.
    inside = f"nsenter --mount --target {scene.agent_pid()}"
    small = ("/run/gridnode", "/tmp")  # noqa: S108 # the unit's own, by PrivateTmp
    for directory in small:
        owner = scene.shell(f"{inside} stat -c uid=%u,gid=%g,mode=%a {directory}")
        scene.shell(f"{inside} mount -t tmpfs -o size=64k,{owner} tmpfs {directory}")
    try:
        for directory in small:
            scene.shell(f"{inside} dd if=/dev/zero of={directory}/.fill bs=4k 2>/dev/null || true")
        scene.hurt_all(scene.mine)
        _full(scene, "/var/lib/gridnode", said=False)
    finally:
        for directory in small:
            scene.shell(f"{inside} umount {directory}")


# The clock


@FAULTS.add("clock-forward", "the agent's clock is set forward by an hour, and back", seconds=(5, 15))
def _(scene: Scene) -> None:
    _clock(scene, "+3600")


@FAULTS.add("clock-back", "the agent's clock is set back by an hour, and forward", seconds=(5, 15))
def _(scene: Scene) -> None:
    _clock(scene, "-3600")


# The machine


@FAULTS.add("machine-rebooted", "power off and on", agent="any")
def _(scene: Scene) -> None:
    scene.hurt_all(scene.mine)
    scene.host.kill()
    scene.host.start()


@FAULTS.add("machine-paused", "frozen for longer than the offline time", seconds=(65, 75), agent="any")
def _(scene: Scene) -> None:
    # Any: systemd's watchdog counts the time of a freeze, and may replace the agent afterwards.
    scene.host.pause()
    try:
        scene.last()
    finally:
        scene.host.unpause()
    scene.host.wait_ready()


def _at_event(event: str, trigger: str, delay: float) -> str:
    return KILL_AT_EVENT.format(event=event, trigger=trigger, delay=f"{delay:.3f}", kill=KILL_AGENT)


def _engine_answers(scene: Scene) -> None:
    scene.shell("timeout 60 sh -c 'until docker info >/dev/null 2>&1; do sleep 0.1; done'", timeout=70)


def _foreign(scene: Scene, container: str) -> str | None:
    """Who it is, since when, and that it runs; None when it is gone."""
    with contextlib.suppress(FleetError):
        shown = "{{.Id}} {{.State.StartedAt}} {{.State.Running}}"
        return scene.shell(f"docker inspect --format '{shown}' {container}")
    return None


def _full(scene: Scene, directory: str, *, said: bool = True) -> None:
    """Fill it, lose a container, and see that the node says why it has not got it back."""
    box = scene.chosen()[-1]
    begin = time.monotonic()
    try:
        fill(scene.host, directory)
        # The container's own blocks are filled too, before the agent can use them.
        scene.shell(f"systemctl kill --kill-whom=main --signal=STOP {UNIT}")
        try:
            scene.shell(f"docker rm --force {box.id} >/dev/null", timeout=90)
            fill(scene.host, directory)
        finally:
            scene.shell(f"systemctl kill --kill-whom=main --signal=CONT {UNIT}")
        if said:
            scene.must_be_said("disk-full")
        time.sleep(max(0.0, scene.seconds - (time.monotonic() - begin)))
    finally:
        free(scene.host, directory)


def _clock(scene: Scene, offset: str) -> None:
    """Step the clock of the agent's process alone, and let it decide something meanwhile."""
    host, box, old = scene.host, scene.chosen()[-1], scene.agent_pid()
    host.ssh(f"mkdir -p $(dirname {FAKETIME_DROP_IN})")
    host.put(FAKETIME_FILE, b"+0\n")
    host.put(FAKETIME_DROP_IN, FAKETIME.encode())
    scene.aftermath.append(lambda: _own_clock(scene))
    scene.shell(f"systemctl daemon-reload; {HAND_OVER}")
    scene.wait_new_agent(old)
    scene.before = scene.ground.sights()  # from here on it has to be this agent
    if not scene.shell(f"grep -l libfaketime /proc/{scene.agent_pid()}/maps"):
        raise FleetError("libfaketime is not in the agent's process")
    host.put(FAKETIME_FILE, f"{offset}\n".encode())
    time.sleep(2)
    scene.hurt_all([box])
    scene.shell(f"docker kill {box.id} >/dev/null")
    scene.last()
    host.put(FAKETIME_FILE, b"+0\n")


def _own_clock(scene: Scene) -> None:
    old = scene.agent_pid()
    scene.shell(f"rm -f {FAKETIME_DROP_IN}; systemctl daemon-reload; {HAND_OVER}")
    scene.wait_new_agent(old)
