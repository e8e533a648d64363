"""What a slot remembers of the containers that ended in it, and how long it waits before the next. Pure.

Failures double from 1 s to 5 min, with jitter so that a fleet does not act in step. An image that ends well
but at once must not spin either: exit 0 before 5 s of running waits 1 s, doubling to 10 s. A container that
ran for 60 s wipes the slate.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from agent.reasons import Reason

FAILURE_FIRST, FAILURE_MOST = 1.0, 300.0
QUICK_FIRST, QUICK_MOST = 1.0, 10.0
QUICK = 5.0
"""Seconds: exit 0 sooner than this counts as quick."""
HEALTHY = 60.0
"""Seconds of running after which earlier failures are forgotten."""
STEADY = 10.0
"""Seconds of running after which a slot that failed again and again is no longer in trouble."""


@dataclass(frozen=True)
class SlotMemory:
    """One slot's history within one task; `not_before` is on the planner's clock."""

    restarts: int = 0
    failures: int = 0
    quick_exits: int = 0
    not_before: float = 0.0
    error: Reason | None = None
    """What went wrong last, until a container of it runs well."""


def seen_running(memory: SlotMemory, ran: float) -> SlotMemory:
    """A container of it has been running for so many seconds: well at once, unless it keeps failing."""
    is_well = memory.failures < 2 or ran >= STEADY
    return replace(memory, error=None) if is_well and memory.error is not None else memory


def doubled(first: float, most: float, times: int) -> float:
    """`first` seconds, doubled for every time after the first, at most `most`."""
    return min(most, first * 2.0 ** min(times - 1, 32))


def after_interruption(memory: SlotMemory) -> SlotMemory:
    """A container that ended while nobody looked: a restart that its slot is not to blame for."""
    return replace(memory, restarts=memory.restarts + 1)


def jittered(seconds: float, random: Random) -> float:
    """Between half of it and all of it."""
    return seconds * (0.5 + random.random() / 2)


def after_failure(
    memory: SlotMemory, error: Reason, now: float, random: Random, most: float = FAILURE_MOST
) -> SlotMemory:
    """A container that ended badly; `most` is the longest wait in seconds."""
    failures = memory.failures + 1
    wait = jittered(doubled(FAILURE_FIRST, most, failures), random)
    return replace(memory, failures=failures, quick_exits=0, not_before=now + wait, error=error)


def after_failed_start(
    memory: SlotMemory, error: Reason, now: float, random: Random, most: float = FAILURE_MOST
) -> SlotMemory:
    """A container that could not be started: a failure, and a try that counts like any other."""
    return after_failure(replace(memory, restarts=memory.restarts + 1), error, now, random, most)


def after_exit(
    memory: SlotMemory, failure: Reason | None, ran: float, now: float, random: Random
) -> SlotMemory:
    """A container that ended by itself after `ran` seconds; counts the restart that follows.

    `failure` says what was wrong, None that it ended well.
    """
    if ran >= HEALTHY:
        memory = replace(memory, failures=0, quick_exits=0)
    memory = replace(memory, restarts=memory.restarts + 1)
    if failure is not None:
        return after_failure(memory, failure, now, random)
    if ran >= QUICK:
        return replace(memory, failures=0, quick_exits=0, not_before=now, error=None)
    quick = memory.quick_exits + 1
    wait = doubled(QUICK_FIRST, QUICK_MOST, quick)
    return replace(memory, failures=0, quick_exits=quick, not_before=now + wait, error=None)
