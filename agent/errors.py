"""What can go wrong between the agent and its container engine.

GridCoreError
└── EngineError            a call did not do what was asked; `kind` says which way
    ├── EngineUnreachable  no client, no daemon, no permission: nothing is known about the containers
    └── EngineTimeout      the deadline passed: the outcome is unknown, list before acting
"""

from __future__ import annotations

from gridcore.errors import GridCoreError


class EngineError(GridCoreError):
    """The engine refused; `kind` is a short stable word, the text one line for the operator.

    `permanent`: asking again soon will not help (no such image, wrong platform, no permission).
    """

    def __init__(self, kind: str, message: str, *, permanent: bool = False) -> None:
        super().__init__(message)
        self.kind = kind
        self.permanent = permanent


class EngineUnreachable(EngineError):
    """The engine does not answer at all."""


class EngineTimeout(EngineError):
    """The engine did not answer in time."""
