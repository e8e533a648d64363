"""Figures beside their goals, as a table. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Figure:
    """One line of the table; without a goal it is there to compare with."""

    name: str
    value: float
    unit: str
    goal: float | None = None
    """The most that it may be."""
    note: str = ""

    @property
    def missed(self) -> bool:
        """Whether there is a goal and it was not met."""
        return self.goal is not None and self.value > self.goal


def table(figures: Sequence[Figure]) -> Iterator[str]:
    """The lines of a table for a terminal."""
    head = ("figure", "measured", "goal", "met", "")
    rows = [head]
    for one in figures:
        goal = "-" if one.goal is None else f"<= {_number(one.goal)} {one.unit}"
        met = "-" if one.goal is None else "NO" if one.missed else "yes"
        rows.append((one.name, f"{_number(one.value)} {one.unit}", goal, met, one.note))
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for row in rows:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
        yield "  ".join([*cells, row[4]]).rstrip()


def percentile(values: Sequence[float], percent: float) -> float:
    """The least of the values that so many percent of them do not exceed; 100 is the greatest."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def _number(value: float) -> str:
    if value >= 1000:
        return f"{value:,.0f}"
    if isinstance(value, int):
        return str(value)
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 10 else f"{value:.1f}"
