"""A short chaos on a fleet of its own: other faults for each commit; a few landings meet all of them."""

from __future__ import annotations

import os
import subprocess

import pytest

from tests.fleet.chaos.record import Record
from tests.fleet.chaos.run import FAULTS, everything
from tests.fleet.chaos.schedule import draw
from tests.fleet.engine import PROJECT, labelled
from tests.fleet.hosts import STATE
from tests.fleet.show import console

pytestmark = pytest.mark.slow

PREFIX = "chaostest"
MINUTES = 20.0  # more than so many take; it ends after the last
MOST = 12


def seed() -> int:
    """`GRIDCORE_CHAOS_SEED` repeats a run; else the commit decides."""
    if given := os.environ.get("GRIDCORE_CHAOS_SEED"):
        return int(given)
    said = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=PROJECT, capture_output=True, text=True, check=False
    ).stdout
    return int(said[:7] or "5", 16)  # unpacked from an archive, there is no commit


@pytest.fixture(scope="module")
def faults() -> list[str]:
    """This run's; said first, so that it can be had again."""
    chosen = draw(seed(), list(FAULTS), MOST)
    console.print(
        f"chaos: GRIDCORE_CHAOS_SEED={seed()} repeats this run: {', '.join(chosen)}", soft_wrap=True
    )
    return chosen


@pytest.fixture(scope="module")
def record(faults: list[str]) -> Record:
    """What was seen; the fleet is gone by then."""
    return everything(PREFIX, seed(), MINUTES, nodes=2, faults=faults, most=len(faults))


def test_every_fault_happened_once(record: Record, faults: list[str]) -> None:
    assert sorted(one.fault for one in record.seen) == faults


def test_no_invariant_was_violated(record: Record) -> None:
    wrong = {one.fault: one.violations for one in record.seen if one.violations}
    assert (wrong, record.afterwards) == ({}, [])


def test_the_hosts_are_gone(record: Record) -> None:
    assert not any(labelled(kind, PREFIX) for kind in ("container", "volume", "network"))
    assert not (STATE / PREFIX).exists()
