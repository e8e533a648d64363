"""What a person sees of the demo: one line a step with its time, a spinner or a bar while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)

from tests.fleet.engine import FleetError

console = Console(highlight=False)


class Step:
    """One step while it runs; `note` ends up behind its line."""

    def __init__(self, progress: Progress, title: str, total: int | None) -> None:
        self.note = ""
        self._progress = progress
        self._task = progress.add_task(title, total=total)

    def advance(self, more: int) -> None:
        """So many more are done."""
        self._progress.advance(self._task, more)

    def reach(self, done: int) -> None:
        """So many are done in all."""
        self._progress.update(self._task, completed=done)


@contextmanager
def step(title: str, total: int | None = None) -> Iterator[Step]:
    """A step of the demo; with a total it has a bar. A failed one says so, and the error goes on."""
    columns = [SpinnerColumn(), TextColumn("{task.description}")]
    if total is not None:
        columns += [BarColumn(), MofNCompleteColumn()]
    begin = time.monotonic()
    progress = Progress(
        *columns, TimeElapsedColumn(), console=console, transient=True, disable=not console.is_terminal
    )
    running = Step(progress, title, total)
    mark = "[red]✗[/]"
    try:
        with progress:
            yield running
        mark = "[green]✓[/]"
    finally:
        taken = f"{time.monotonic() - begin:6.1f} s"
        console.print(f"{mark} {taken}  {title}  [dim]{running.note}[/]", soft_wrap=True)


def follow(
    running: Step, ask: Callable[[], int], total: int, explain: Callable[[], str], patience: float = 90
) -> None:
    """Show a growing number until it reaches the total; gives up, and explains, when it stands still."""
    best, since = -1, time.monotonic()
    while (now := ask()) < total:
        running.reach(now)
        if now > best:
            best, since = now, time.monotonic()
        elif time.monotonic() - since > patience:
            raise FleetError(f"{now} of {total}, and nothing new for {patience:.0f} s; {explain()}")
        time.sleep(0.25)
    running.reach(total)
