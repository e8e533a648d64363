"""The command line of chaos.

    python -m tests.fleet.chaos --seed 7 --minutes 10 [--nodes 2] [--faults name,name] [--list]

(make chaos SEED=7 MINUTES=10.) The exit status is 0 only if no invariant was violated.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import time
from types import FrameType

from tests.fleet.chaos.run import FAULTS, everything
from tests.fleet.chaos.schedule import choose
from tests.fleet.engine import FleetError
from tests.fleet.show import console

PREFIX = "chaos"


def main() -> None:
    """Parse, run, sum up."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fleet.chaos", description="Break a fleet, repeatably."
    )
    parser.add_argument("--seed", type=int, default=int(os.environ.get("SEED") or random.randrange(10_000)))
    parser.add_argument("--minutes", type=float, default=10.0, help="of injecting; setting up comes before")
    parser.add_argument("--nodes", type=int, default=2)
    parser.add_argument("--faults", default="", help="name,name; all of them without it")
    parser.add_argument("--prefix", default=PREFIX, help="of the hosts' names; two runs at once need two")
    parser.add_argument("--list", action="store_true", help="say what faults there are")
    chosen = parser.parse_args()
    if chosen.list:
        for name, fault in sorted(FAULTS.items()):
            console.print(f"{name:26s} {fault.about}", soft_wrap=True)
        return
    faults = [name.strip() for name in chosen.faults.split(",") if name.strip()]
    try:
        choose(faults, list(FAULTS))
    except ValueError as problem:
        parser.error(str(problem))
    if chosen.nodes < 1 or chosen.minutes <= 0:
        parser.error("at least 1 node and some time are needed")
    signal.signal(signal.SIGTERM, _interrupt)
    begin = time.monotonic()
    try:
        record = everything(chosen.prefix, chosen.seed, chosen.minutes, chosen.nodes, faults)
    except FleetError as problem:
        console.print(f"[red]chaos failed[/] (seed {chosen.seed}): {problem}", soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print(f"chaos: interrupted (seed {chosen.seed}); the hosts are gone")
        sys.exit(130)
    console.print(record.table())
    for text in record.afterwards:
        console.print(text, style="red", soft_wrap=True, markup=False)
    colour = "red" if record.violations else "green"
    console.print(
        f"[{colour}]chaos:[/] seed {chosen.seed}: {len(record.seen)} faults injected, "
        f"{record.violations} invariants violated, {time.monotonic() - begin:.0f} s in all",
        soft_wrap=True,
    )
    seen = {one.fault for one in record.seen}
    if missed := [name for name in faults or sorted(FAULTS) if name not in seen]:
        console.print(f"chaos: not met in {chosen.minutes:g} minutes: {','.join(missed)}", soft_wrap=True)
    sys.exit(1 if record.violations else 0)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
