"""The demo, which is also the proof: a fleet from nothing, a million squares, a switch, a picture, two stops.

    python -m tests.fleet.demo [--nodes 2] [--items 1000000]      (make demo NODES=2 ITEMS=1000000)
    python -m tests.fleet.demo --down                             (make demo-down)

The exit status is 0 only if everything was seen. The fleet stays up afterwards, to look around in.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tests.fleet import hosts, images, picture, work
from tests.fleet.engine import MACHINE, PROJECT, FleetError, run
from tests.fleet.grid import Grid, wait_until
from tests.fleet.show import console, follow, step

PREFIX = "demo"
PICTURE = PROJECT / ".demo" / "mandelbrot.png"


@dataclass
class Outcome:
    """What was seen."""

    nodes: int = 0
    squares: work.Squares | None = None
    squares_seconds: float = 0
    switch_seconds: float = 0  # from the hub's switch until every node's containers were of the new task
    tiles: int = 0
    proved: int = 0  # tiles recomputed here
    offline: list[str] = field(default_factory=list)


def prepare(prefix: str, nodes: int) -> Grid:
    """From nothing to a fleet that knows both tasks and has nothing to do yet."""
    with step("Make this machine ready") as running:
        running.note = run([MACHINE], timeout=900).splitlines()[-1].removeprefix("machine: ")
    with step("Make the host image") as running:
        running.note = images.host_image()
    with step("Make the Python image for the examples") as running:
        running.note = images.python_base()
    with step(f"Start {nodes + 1} hosts with systemd, sshd and Docker") as running:
        grid = Grid.start(prefix, nodes)
        running.note = ", ".join(host.container for host in grid.fleet.hosts.values())
    with step("Roll out Redis, hub and agents: site.yml") as running:
        grid.playbook("site")
        wait_until(lambda: _online(grid) == nodes, f"{nodes} nodes are Online", 60)
        running.note = f"{nodes} nodes Online"
    with step("Start the registry, build and push the example images"):
        grid.start_registry()
        pulled = {example: grid.publish(example) for example in ("squares", "mandelbrot")}
    with step("Register the tasks squares and mandelbrot: task_add.yml"):
        for name, image in pulled.items():
            grid.playbook(
                "task_add", task_name=name, task_image=image,
                task_input_queue=f"{name}:input", task_output_queue=f"{name}:output",
            )  # fmt: skip
    return grid


def compute_squares(grid: Grid, items: int, outcome: Outcome) -> None:
    """Push the integers, start the task, and prove every result."""
    with step(f"Push {items:,} integers", items) as pushing:
        work.push_integers(grid.redis, "squares:input", items, pushing.advance)
    with step("Start squares: task_next.yml"):
        begin = time.monotonic()
        grid.playbook("task_next")
    with step(f"Compute {items:,} squares", items) as running:
        follow(running, lambda: grid.length("squares:output"), items, grid.complaints)
        outcome.squares_seconds = time.monotonic() - begin
        running.note = f"{items / outcome.squares_seconds:,.0f} a second, with the containers' start"
    with step("Verify every result", items) as checking:

        def check() -> work.Squares:
            checking.reach(0)
            results = work.read_all(grid.redis, "squares:output", checking.advance)
            return work.verify_squares(results, items)

        found = check()
        # A duplicate makes the list long before the last result is in: look again while there may be more.
        deadline = time.monotonic() + 20
        while found.missing and not found.wrong and time.monotonic() < deadline:
            time.sleep(1)
            found = check()
        outcome.squares = found
        checking.note = str(found)
        if not found.exact:
            raise FleetError(f"the squares are not exact: {found}")


def switch(grid: Grid, before: str, after: str) -> float:
    """Switch by playbook; returns the seconds from the hub's switch until all compute the new task only.

    Both the hub's word and the containers on the hosts count, and there must be as many as before.
    """
    counts = grid.everywhere(lambda host: len(grid.containers(host)))

    def watch(name: str) -> float:
        wait_until(lambda: grid.current() == after, f"{after} is current", 60, pause=0.02)
        begin = time.monotonic()
        host = grid.fleet.hosts[name]
        wait_until(
            lambda: grid.computes(host, after, counts[name]), f"{name} computes {after} only", 120, pause=0.05
        )
        return time.monotonic() - begin

    with ThreadPoolExecutor(len(grid.nodes)) as pool:
        watched = [pool.submit(watch, host.name) for host in grid.nodes]
        grid.playbook("task_next", task=before)
        return max(one.result() for one in watched)


def render(grid: Grid, outcome: Outcome, path: Path) -> None:
    """Switch to mandelbrot, collect the tiles, prove some, and save the picture."""
    total = work.push_tiles(grid.redis, "mandelbrot:input")
    with step("Switch the fleet to mandelbrot: task_next.yml") as running:
        outcome.switch_seconds = switch(grid, "squares", "mandelbrot")
        running.note = f"all containers of the new task {outcome.switch_seconds:.1f} s after the hub's switch"
    with step(f"Render {total} tiles", total) as rendering:
        follow(rendering, lambda: grid.length("mandelbrot:output"), total, grid.complaints)
        pixels = work.collect_tiles(work.read_all(grid.redis, "mandelbrot:output"))
        outcome.tiles = len(pixels)
    with step("Recompute a random twentieth here, and save the picture") as running:
        outcome.proved = work.recompute(pixels)
        picture.save(pixels, path)
        running.note = f"{outcome.proved} tiles equal; {path}"


def stop_two(grid: Grid, outcome: Outcome) -> None:
    """One node stops by the operator's order, one by its own machine's; both must be gone without a trace."""
    by_order, by_hand = grid.nodes[:2]
    with step(f"Stop {by_order.container}: node_stop.yml"):
        grid.playbook("node_stop", node=by_order.container)
    with step(f"Stop {by_hand.container}: systemctl stop gridnode"):
        by_hand.ssh("systemctl stop gridnode", timeout=120)
    with step("Both are Offline and hold no container") as running:
        for host in (by_order, by_hand):
            wait_until(lambda host=host: grid.gone(host), f"{host.container} is Offline and empty", 30)  # type: ignore[misc]
            state = host.ssh("systemctl is-active gridnode || true")
            if state != "inactive":
                raise FleetError(f"gridnode on {host.container} is {state}, not inactive")
            outcome.offline.append(host.container)
        running.note = ", ".join(outcome.offline)


def everything(prefix: str, nodes: int, items: int, path: Path = PICTURE) -> tuple[Grid, Outcome]:
    """The whole demo. Whatever is not seen raises."""
    grid = prepare(prefix, nodes)
    outcome = Outcome(nodes=nodes)
    compute_squares(grid, items, outcome)
    render(grid, outcome, path)
    stop_two(grid, outcome)
    return grid, outcome


def _online(grid: Grid) -> int:
    return sum(node["status"] == "Online" for node in grid.ask_hub("/api/nodes"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fleet.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--nodes", type=int, default=int(os.environ.get("NODES") or 2))
    parser.add_argument("--items", type=int, default=int(os.environ.get("ITEMS") or 1_000_000))
    parser.add_argument("--down", action="store_true", help="remove everything that a demo has started")
    chosen = parser.parse_args()
    if chosen.nodes < 2 or chosen.items < 1:
        parser.error("the demo needs at least 2 nodes, one for each way to stop, and 1 item")
    begin = time.monotonic()
    try:
        if chosen.down:
            hosts.down(PREFIX)
            console.print("demo: hosts, volumes and network are removed")
            return
        _, seen = everything(PREFIX, chosen.nodes, chosen.items)
    except FleetError as problem:
        console.print(
            f"[red]demo failed after {time.monotonic() - begin:.0f} s:[/] {problem}", soft_wrap=True
        )
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("demo: interrupted; make demo-down removes what was started")
        sys.exit(130)
    summary = [
        f"{chosen.items:,} squares on {seen.nodes} nodes in {seen.squares_seconds:.0f} s ({seen.squares})",
        f"switched in {seen.switch_seconds:.1f} s",
        f"{seen.tiles} tiles rendered and {seen.proved} proved",
        f"{len(seen.offline)} nodes stopped cleanly",
        f"{time.monotonic() - begin:.0f} s in all",
    ]
    console.print(f"[green]demo:[/] {'; '.join(summary)}", soft_wrap=True)


if __name__ == "__main__":
    main()
