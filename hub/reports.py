"""What a node last reported, with the hub's times in place of the node's spans.

Nodes say how long ago something was, since their clocks are not trusted; people want to know when. All of it
is live: it changes with every heartbeat, and each heartbeat replaces it, but for the errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gridcore.protocol import ContainerReport, ExitReport

STEADY = 2.0
"""Seconds by which a time may differ from the one that was computed before and still be the same moment."""

LONGEST = 1e9
"""Seconds; a longer span is nonsense (JSON's `1e999` is infinite) and would break what counts with it."""


@dataclass(frozen=True, slots=True)
class NodeError:
    """One thing that went wrong on a node; `time` is the hub's, seconds since the epoch."""

    instance: int | None
    kind: str
    message: str
    time: float
    task: str | None = None
    """Whose container it is about; None from an older agent, too."""


@dataclass(frozen=True, slots=True)
class LastExit:
    """How a slot's last container ended: `time` in seconds since the epoch, `ran` in seconds."""

    kind: str
    exit_code: int | None
    message: str | None
    time: float
    ran: float


@dataclass(frozen=True, slots=True)
class ContainerState:
    """One slot of a node; `started` in seconds since the epoch."""

    instance: int
    cpu: int | None
    state: str
    started: float | None
    restarts: int
    last_exit: LastExit | None = None


def read_containers(
    reports: Iterable[ContainerReport], before: Iterable[ContainerState], now: float
) -> tuple[ContainerState, ...]:
    """The slots of a heartbeat that arrived at `now`; `before` are those of the one before.

    Heartbeats take their time on the way, so the same start comes out a little different each time. What
    differs by less than STEADY is left as it was, so that a time that is shown changes only with a reason.
    """
    known = {container.instance: container for container in before}
    return tuple(_read_container(report, known, now) for report in reports)


def _read_container(
    report: ContainerReport, known: Mapping[int, ContainerState], now: float
) -> ContainerState:
    before = known.get(report.instance)
    started = None if report.age is None else _moment(now, report.age, before.started if before else None)
    ended = report.last_exit
    return ContainerState(
        instance=report.instance,
        cpu=report.cpu,
        state=report.state,
        started=started,
        restarts=report.restarts,
        last_exit=_read_exit(ended, before.last_exit if before else None, now) if ended else None,
    )


def _read_exit(report: ExitReport, before: LastExit | None, now: float) -> LastExit:
    return LastExit(
        kind=report.kind,
        exit_code=report.exit_code,
        message=report.message,
        time=_moment(now, report.ago, before.time if before else None),
        ran=min(report.ran, LONGEST),
    )


def _moment(now: float, ago: float, before: float | None) -> float:
    moment = float(round(now - min(ago, LONGEST)))
    return before if before is not None and abs(before - moment) < STEADY else moment
