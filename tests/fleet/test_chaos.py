"""A short chaos, the same one every time: the faults that matter most, each once, on a fleet of its own."""

from __future__ import annotations

import pytest

from tests.fleet.chaos.record import Record
from tests.fleet.chaos.run import everything
from tests.fleet.engine import labelled
from tests.fleet.hosts import STATE

pytestmark = pytest.mark.slow

PREFIX = "chaostest"
SEED = 5
MINUTES = 4.0
SHORT = (
    "agent-killed-running",
    "agent-killed-starting",
    "containers-removed",
    "engine-hung",
    "engine-restarted",
    "foreign-container",
    "hub-nonsense",
    "hub-resets",
    "hub-restarted",
)


@pytest.fixture(scope="module")
def record() -> Record:
    """What was seen; the fleet is gone by then."""
    return everything(PREFIX, SEED, MINUTES, nodes=2, faults=SHORT, most=len(SHORT))


def test_every_fault_happened_once(record: Record) -> None:
    assert sorted(one.fault for one in record.seen) == sorted(SHORT)


def test_no_invariant_was_violated(record: Record) -> None:
    wrong = {one.fault: one.violations for one in record.seen if one.violations}
    assert (wrong, record.afterwards) == ({}, [])


def test_the_hosts_are_gone(record: Record) -> None:
    assert not any(labelled(kind, PREFIX) for kind in ("container", "volume", "network"))
    assert not (STATE / PREFIX).exists()
