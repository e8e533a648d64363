"""/scratch outlives containers, agents and reboots, but not its task: what other tasks left is removed."""

from __future__ import annotations

import time
from collections.abc import Sequence

import structlog

from agent.engine import Engine
from agent.errors import EngineError
from agent.planner import Container
from agent.spec import Wanted

log = structlog.get_logger()

GAP = 60.0
"""Seconds until the next attempt after one that did not succeed."""


class Scratch:
    """Looks once a task and once a start of the agent, when nothing of other tasks runs any more."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._due: float | None = 0.0

    def task_changed(self) -> None:
        """Another task is current, or none."""
        self._due = 0.0

    def is_due(self, asked: Wanted | None, containers: Sequence[Container]) -> bool:
        """Whether `tidy` should run now: only the hub's own word on what is current ends a task."""
        if asked is None or not asked.is_word or self._due is None or time.monotonic() < self._due:
            return False
        if any(c.generation != asked.key for c in containers):
            return False
        self._due = time.monotonic() + GAP
        return True

    async def tidy(self, key: str | None) -> None:
        """Remove every volume of ours that is not of the task with this key."""
        due, before = None, self._due
        try:
            over = [name for name, of in (await self._engine.scratch()).items() if of != key]
            if over:
                await self._engine.remove_scratch(over)
                log.info("scratch of earlier tasks removed", volumes=len(over))
        except EngineError as error:
            log.debug("scratch", error=str(error))
            due = before
        if self._due == before:  # or the task changed meanwhile: once more
            self._due = due
