"""Why a node does nothing, or is in trouble: a value, put in words for people and told apart by its kind.

A trouble's kind is that of the error or of the exit that it comes from, so that whoever has both knows that
they are one without comparing what they say. The kinds of doing nothing stand here.
"""

from __future__ import annotations

from dataclasses import dataclass

from gridcore.protocol import NO_TASK

UNASKED = "unasked"
"""No hub has said yet what to run."""
NOTHING_GIVEN = NO_TASK
"""The hub gives this node nothing, for whatever reason of its own."""
DRAINED = "drained"
BAD_TASK = "bad-task"
"""The hub's task cannot be understood."""
OWNER = "owner"
"""The owner's terms in time: hours, a pause, making room."""
NOT_ALLOWED = "image-not-allowed"
LITTLE_MEMORY = "not-enough-memory"
FEW_GPUS = "not-enough-gpus"
UNSUPPORTED = "unsupported-machine"
FETCHING = "fetching"
STOPPING = "stopping"


@dataclass(frozen=True, slots=True)
class Reason:
    """`kind` is a short stable word for programs, `text` what people read."""

    kind: str
    text: str
