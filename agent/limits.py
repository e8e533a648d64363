"""The limits that the agent itself watches, and how a container broke one: a value, put in words last."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Limit(Enum):
    """What a container has too much of, in the words of its owner's terms."""

    LAYER = "container_disk"
    SCRATCH = "scratch_size"
    LOG = "log_rate"


@dataclass(frozen=True)
class Breach:
    """One container over one limit; `found` and `allowed` in MB, of a log in MB per second."""

    limit: Limit
    found: float
    allowed: float

    def __str__(self) -> str:
        """For operators."""
        match self.limit:
            case Limit.LAYER:
                what = f"wrote {int(self.found)} MB outside of /scratch"
            case Limit.SCRATCH:
                what = f"its /scratch holds {int(self.found)} MB"
            case Limit.LOG:
                return f"writes {self.found:.1f} MB/s to its log, the limit is {self.allowed:g} MB/s"
        return f"{what}, the limit is {self.allowed:g} MB"
