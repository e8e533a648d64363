"""What the hub refuses, and what can go wrong in it.

GridCoreError
├── Refused              the request cannot be done; nothing has changed
│   ├── NothingPending   `next` with no task waiting
│   ├── NothingRunning   `finish` with no current task
│   ├── NotCurrent       the guard names a task (or generation) that is not current
│   ├── TaskConflict     another definition is stored under this name
│   ├── UnknownTask
│   ├── UnknownNode
│   ├── MalformedBody    the body is no JSON object in UTF-8
│   └── InvalidFields    it is one, but its fields are wrong; `errors` names each
└── StoreUnavailable     the state could not be written; nothing has changed
"""

from __future__ import annotations

from gridcore.errors import GridCoreError


class Refused(GridCoreError):
    """The request cannot be done, and nothing has changed."""


class NothingPending(Refused):
    """`next` found no task that waits."""

    def __init__(self) -> None:
        super().__init__("No task is pending. Add one with POST /api/tasks, then ask again.")


class NothingRunning(Refused):
    """`finish` found no current task."""

    def __init__(self) -> None:
        super().__init__("No task is running. Start one with POST /api/tasks/next.")


class NotCurrent(Refused):
    """The guard is not what is current; `current` and `generation` tell what is."""

    def __init__(self, current: str | None, generation: str) -> None:
        what = f"{current} is" if current else "no task is"
        super().__init__(
            f"Not done, since {what} current: somebody may have switched before you. "
            "Look at GET /api/tasks, then ask again with the current task."
        )
        self.current = current
        self.generation = generation


class TaskConflict(Refused):
    """Another definition is stored under this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"A task {name} with another definition exists. Choose another name.")


class UnknownTask(Refused):
    """No task has this name."""

    def __init__(self, name: str) -> None:
        super().__init__(f"There is no task {name[:80]}. GET /api/tasks lists them.")


class UnknownNode(Refused):
    """No node has this id."""

    def __init__(self, node_id: str) -> None:
        super().__init__(f"There is no node {node_id[:80]}. GET /api/nodes lists them.")


class MalformedBody(Refused):
    """The body is not a JSON object in UTF-8."""


class InvalidFields(Refused):
    """`errors` is one `{"field", "message"}` for each thing that is wrong."""

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__("Correct the fields that `errors` names, and send the request again.")
        self.errors = errors


class StoreUnavailable(GridCoreError):
    """The state could not be written; memory and file are as they were before."""
