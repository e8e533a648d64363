"""What the node says of itself: made from the reconciler's state, sent by the hub link."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from agent.errors import EngineError
from agent.planner import State, idle_instances, keepers
from agent.reasons import FETCHING, OWNER, UNASKED, Reason
from agent.runs import Run
from agent.slots import SlotMemory
from gridcore.masking import mask_values
from gridcore.protocol import (
    MAX_ERROR_BYTES,
    MAX_ERRORS,
    ContainerReport,
    ExitReport,
    NodeErrorReport,
    NodeRuntimeStatus,
)

NODE_KINDS = ("config", "engine", "internal")
"""Errors that no task is the cause of, and none ends."""


@dataclass(frozen=True)
class SlotReport:
    """One slot; times in seconds since the epoch, so that nothing changes by time alone."""

    instance: int
    cpu: int | None
    state: str
    restarts: int = 0
    started: float | None = None
    last: Run | None = None

    def wire(self, now: float) -> ContainerReport:
        """As a heartbeat carries it at `now`."""
        last = self.last
        return ContainerReport(
            instance=self.instance,
            cpu=self.cpu,
            state=self.state,
            restarts=self.restarts,
            age=max(0.0, now - self.started) if self.started else None,
            last_exit=last
            and ExitReport(
                kind=last.kind,
                exit_code=last.exit_code,
                message=clip(last.message) if last.message else None,
                ago=max(0.0, now - last.ended),
                ran=max(0.0, last.ended - last.started),
            ),
        )


@dataclass(frozen=True)
class Report:
    """One moment of the node."""

    status: NodeRuntimeStatus = "Idle"
    active_containers: int = 0
    task: str | None = None
    generation: str | None = None
    reason: Reason | None = None
    slots: tuple[SlotReport, ...] = ()
    warnings: tuple[str, ...] = ()
    paused: bool = False

    def containers(self, now: float) -> list[ContainerReport]:
        """The slots as a heartbeat carries them; `now` in seconds since the epoch."""
        return [slot.wire(now) for slot in self.slots]

    def sentence(self) -> str:
        """The report in one line, for `systemctl status`."""
        what = f"{self.active_containers} containers of {self.task}" if self.task else "no task"
        return f"{self.status}: {what}" + (f" ({self.reason.text})" if self.reason else "")


@dataclass(frozen=True)
class Trouble:
    """One error as the node's own status shows it; `at` is on the monotonic clock."""

    at: float
    kind: str
    message: str
    instance: int | None


class Board:
    """The latest report and the errors that no heartbeat has carried yet; wakes the hub link on news."""

    def __init__(self) -> None:
        self.report = Report()
        self.news = asyncio.Event()
        self.secrets: tuple[str, ...] = ()
        """Values that no message may show."""
        self.recent: deque[Trouble] = deque(maxlen=MAX_ERRORS)
        self._errors: deque[NodeErrorReport] = deque(maxlen=MAX_ERRORS)

    def show(self, report: Report) -> bool:
        """Replace the report; True if it says something new."""
        if report == self.report:
            return False
        self.report = report
        self.news.set()
        return True

    def begin_task(self) -> None:
        """Another task: the last one's troubles are over. What no heartbeat has carried yet is still sent."""
        node_wide = [trouble for trouble in self.recent if trouble.kind in NODE_KINDS]
        self.recent = deque(node_wide, maxlen=MAX_ERRORS)

    def error(self, kind: str, message: str, instance: int | None = None, *, task: str | None = None) -> None:
        """Note one error for the next heartbeat; the oldest go when there are too many.

        `task` is that of the container which it is about, if any: the node may have another one by then.
        """
        message = clip(mask_values(message, self.secrets))
        self._errors.append(NodeErrorReport(instance=instance, kind=kind, message=message, task=task or None))
        self.recent.append(Trouble(time.monotonic(), kind, message, instance))
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


def report_of(
    state: State,
    engine_error: EngineError | None,
    *,
    held: str | None = None,
    paused: bool = False,
    warnings: tuple[str, ...] = (),
    last: Callable[[int], Run | None] = lambda _instance: None,
) -> Report:
    """The node as its containers, histories and troubles show it. Pure but for `last`, a slot's last run.

    `held` says why containers are frozen.
    """
    wanted = state.wanted
    kept = keepers(state)
    live = [c for c in state.containers if not c.ended]
    active = [c for c in live if c.status != "paused"]
    leaving = next((c for c in live if wanted is not None and c.id not in kept), None)
    if held is not None:
        reason: Reason | None = Reason(OWNER, held)
    else:
        reason = wanted.reason if wanted else Reason(UNASKED, "waiting for the hub's first word")
    trouble = Reason(engine_error.kind, str(engine_error)) if engine_error else _trouble(state)
    image = state.image
    if reason is None and image is not None and image.state == "fetching" and idle_instances(state):
        reason = Reason(FETCHING, f"fetching {image.name}")
    status: NodeRuntimeStatus = "Error" if trouble else "Running" if active else "Idle"
    # While the old task's containers end, that is what the node still runs.
    shown = leaving or wanted
    if wanted is not None and wanted.warning:
        warnings = (*warnings, wanted.warning)
    return Report(
        status=status,
        active_containers=len(active),
        task=shown.task if shown else None,
        generation=shown.generation if shown else None,
        reason=trouble or reason,
        slots=tuple(sorted(_slots(state, kept, last), key=lambda slot: slot.instance)),
        warnings=warnings,
        paused=paused,
    )


def _trouble(state: State) -> Reason | None:
    """What is wrong with the image that slots wait for; else with the last run of a slot that is not well."""
    slots = state.wanted.slots if state.wanted else ()
    errors = [state.memory[slot.instance].error for slot in slots if slot.instance in state.memory]
    image = state.image.error if state.image and idle_instances(state) else None
    return image or next((e for e in errors if e), None)


def _slots(state: State, kept: Mapping[str, int], last: Callable[[int], Run | None]) -> Iterator[SlotReport]:
    """Every container, and every wanted slot that has none."""
    seen: set[int] = set()
    for c in sorted(state.containers, key=lambda c: c.id):
        if c.instance is None:
            continue
        seen.add(c.instance)
        stays = state.wanted is None or c.id in kept or c.ended
        restarts = state.memory.get(c.instance, SlotMemory()).restarts
        shown = c.status if stays else "stopping"
        ended = _of_task(last(c.instance), c.generation)
        yield SlotReport(c.instance, c.cpu, shown, restarts, c.started or None, ended)
    for slot in state.wanted.slots if state.wanted else ():
        if slot.instance not in seen:
            shown = "starting" if slot.instance in state.busy_instances else "waiting"
            restarts = state.memory.get(slot.instance, SlotMemory()).restarts
            ended = _of_task(last(slot.instance), slot.generation)
            yield SlotReport(slot.instance, slot.cpu, shown, restarts, None, ended)


def _of_task(run: Run | None, generation: str) -> Run | None:
    """The slot's last run, if it was one of this task: another task's says nothing about this one."""
    return run if run is not None and run.generation == generation else None


def clip(text: str) -> str:
    """At most 1 KiB of UTF-8, since that is what a hub takes; what UTF-8 does not have (parts of odd file
    names) as `?`."""
    return text.encode(errors="replace")[:MAX_ERROR_BYTES].decode(errors="ignore")
