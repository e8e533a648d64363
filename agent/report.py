"""What the node says of itself: made from the reconciler's state, sent by the hub link."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from agent.errors import EngineError
from agent.planner import State, idle_instances, keepers
from agent.slots import SlotMemory
from gridcore.protocol import (
    MAX_ERROR_BYTES,
    MAX_ERRORS,
    ContainerReport,
    NodeErrorReport,
    NodeRuntimeStatus,
)


@dataclass(frozen=True)
class Report:
    """One moment of the node, as a heartbeat carries it."""

    status: NodeRuntimeStatus = "Idle"
    active_containers: int = 0
    task: str | None = None
    generation: str | None = None
    reason: str | None = None
    containers: tuple[ContainerReport, ...] = ()

    def sentence(self) -> str:
        """The report in one line, for `systemctl status`."""
        what = f"{self.active_containers} containers of {self.task}" if self.task else "no task"
        return f"{self.status}: {what}" + (f" ({self.reason})" if self.reason else "")


class Board:
    """The latest report and the errors that no heartbeat has carried yet; wakes the hub link on news."""

    def __init__(self) -> None:
        self.report = Report()
        self.news = asyncio.Event()
        self._errors: deque[NodeErrorReport] = deque(maxlen=MAX_ERRORS)

    def show(self, report: Report) -> bool:
        """Replace the report; True if it says something new."""
        if report == self.report:
            return False
        self.report = report
        self.news.set()
        return True

    def error(self, kind: str, message: str, instance: int | None = None) -> None:
        """Note one error for the next heartbeat; the oldest go when there are too many."""
        message = clip(message)
        self._errors.append(NodeErrorReport(instance=instance, kind=kind, message=message))
        self.news.set()

    def take_errors(self) -> list[NodeErrorReport]:
        """The errors not sent yet; give them back with `keep_errors` when the sending failed."""
        taken = list(self._errors)
        self._errors.clear()
        return taken

    def keep_errors(self, taken: list[NodeErrorReport]) -> None:
        """Put errors back, before those that came meanwhile."""
        room = MAX_ERRORS - len(self._errors)
        self._errors.extendleft(reversed(taken[-room:] if room else []))


def report_of(state: State, engine_error: EngineError | None) -> Report:
    """The node as its containers, histories and troubles show it. Pure."""
    wanted = state.wanted
    kept = keepers(state)
    live = [c for c in state.containers if not c.ended]
    leaving = next((c for c in live if c.id not in kept), None)
    reason = wanted.reason if wanted else "waiting for the hub's first word"
    trouble = str(engine_error) if engine_error else _trouble(state)
    image = state.image
    if reason is None and image is not None and image.state == "fetching" and idle_instances(state):
        reason = f"fetching {image.name}"
    status: NodeRuntimeStatus = "Error" if trouble else "Running" if live else "Idle"
    # While the old task's containers end, that is what the node still runs.
    shown = leaving or wanted
    return Report(
        status=status,
        active_containers=len(live),
        task=shown.task if shown else None,
        generation=shown.generation if shown else None,
        reason=trouble or reason,
        containers=tuple(_slots(state, kept)),
    )


def _trouble(state: State) -> str | None:
    """Why a slot waits after a failure, or None if none does."""
    idle = idle_instances(state)
    if not idle:
        return None
    errors = [state.memory[instance].error for instance in idle if instance in state.memory]
    return next((e for e in errors if e), state.image.error if state.image else None)


def _slots(state: State, kept: Mapping[str, int]) -> Iterator[ContainerReport]:
    for c in sorted(state.containers, key=lambda c: (c.instance or 0, c.id)):
        if c.instance is None:
            continue
        shown = c.status if c.id in kept or c.ended else "stopping"
        restarts = state.memory.get(c.instance, SlotMemory()).restarts
        yield ContainerReport(instance=c.instance, cpu=c.cpu, state=shown, restarts=restarts)


def clip(text: str) -> str:
    """At most 1 KiB of UTF-8, since that is what a hub takes."""
    return text.encode()[:MAX_ERROR_BYTES].decode(errors="ignore")
