"""What happens between nodes and hub. Nothing healthy may be restarted for any of it."""

from __future__ import annotations

from tests.fleet.chaos.ground import PROXY_PORT
from tests.fleet.chaos.scene import Catalogue, Scene
from tests.fleet.grid import wait_until

FAULTS = Catalogue()

OFFLINE = (66.0, 80.0)
"""Seconds: longer than the 60 after which a hub calls a node Offline."""
A_WHILE = (5.0, 30.0)


@FAULTS.add("hub-unreachable", "packets to the hub vanish, for longer than the offline time", seconds=OFFLINE)
def _(scene: Scene) -> None:
    rule = f"OUTPUT -p tcp -d {scene.ground.grid.control.address} --dport {PROXY_PORT} -j DROP"
    scene.shell(f"iptables -w -I {rule}")
    try:
        scene.last()
        _must_be_offline(scene)
    finally:
        scene.shell(f"iptables -w -D {rule}")


@FAULTS.add("cable-pulled", "the node has no network, for longer than the offline time", seconds=OFFLINE)
def _(scene: Scene) -> None:
    scene.host.cut_off()
    try:
        scene.last()
        _must_be_offline(scene)
    finally:
        scene.host.reconnect()
        scene.host.wait_ready()


@FAULTS.add("hub-restarted", "the hub is restarted")
def _(scene: Scene) -> None:
    scene.ground.grid.control.ssh("systemctl restart computehub")
    wait_until(scene.ground.hub_answers, "the hub answers", 30)


@FAULTS.add("hub-stopped", "the hub is stopped, and started later", seconds=A_WHILE)
def _(scene: Scene) -> None:
    control = scene.ground.grid.control
    control.ssh("systemctl stop computehub")
    try:
        scene.last()
    finally:
        control.ssh("systemctl start computehub")
    wait_until(scene.ground.hub_answers, "the hub answers", 30)


@FAULTS.add("hub-killed", "the hub is SIGKILLed; systemd starts it again")
def _(scene: Scene) -> None:
    control = scene.ground.grid.control
    ask = "systemctl show -p MainPID --value computehub"
    old = control.ssh(ask)
    control.ssh("systemctl kill --kill-whom=main --signal=KILL computehub")
    wait_until(lambda: control.ssh(ask) not in ("0", old), "a new hub", 30)
    wait_until(scene.ground.hub_answers, "the hub answers", 30)


@FAULTS.add("hub-slow", "every answer of the hub takes 3 to 20 s", seconds=A_WHILE)
def _(scene: Scene) -> None:
    with scene.ground.proxied(f"slow {3 + 17 * scene.injection.fraction:.1f}"):
        scene.last()


@FAULTS.add("hub-500", "the hub answers 500", seconds=A_WHILE)
def _(scene: Scene) -> None:
    with scene.ground.proxied("error"):
        scene.last()


@FAULTS.add("hub-nonsense", "the hub answers 200 with what no hub would say", seconds=A_WHILE)
def _(scene: Scene) -> None:
    with scene.ground.proxied("nonsense"):
        scene.last()


@FAULTS.add("hub-resets", "connections to the hub are reset", seconds=A_WHILE)
def _(scene: Scene) -> None:
    with scene.ground.proxied("reset"):
        scene.last()


# A refused token is asked about again only once a minute, and that is as it should be.
@FAULTS.add("token-revoked", "the hub says 401 to every node", seconds=A_WHILE, word_within=75)
def _(scene: Scene) -> None:
    with scene.ground.proxied("revoked"):
        scene.last()
        scene.must_blame_hub("token-rejected")


def _must_be_offline(scene: Scene) -> None:
    status = scene.ground.grid.node(scene.host)["status"]
    if status != "Offline":
        scene.wrong.append(f"the hub calls a node {status} that it has not heard for {scene.seconds:.0f} s")
