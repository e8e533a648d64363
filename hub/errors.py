"""What the hub refuses, and what can go wrong in it.

GridCoreError
├── Refused              the request cannot be done; nothing has changed
│   ├── NothingPending   `next` with no task waiting
│   ├── NothingRunning   `finish` with no current task
│   ├── NotCurrent       the guard names a task (or generation) that is not current
│   ├── TaskConflict     another definition is stored under this name
│   ├── UnknownTask
│   ├── UnknownNode
│   ├── NotSupported     the node's agent does not know this order
│   ├── NodeOffline      the node cannot be asked now
│   ├── NoLog            the node has no such log, and says why
│   ├── TooManyOrders    too many operators wait for logs of one node
│   ├── NodeSilent       the node did not bring the log in time
│   ├── Stopping         the hub ends, and answers what it holds
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


class NotSupported(Refused):
    """The node's agent speaks the fixed protocol only."""

    def __init__(self, node_id: str, what: str, instead: str) -> None:
        super().__init__(f"The agent of node {node_id} does not know {what}. {instead.format(id=node_id)}")


class NodeOffline(Refused):
    """A node that is not there cannot bring anything."""

    def __init__(self, node_id: str) -> None:
        super().__init__(
            f"Node {node_id} is Offline, and only the node itself has the log. See its last_seen."
        )


class NoLog(Refused):
    """The node answered that there is no such log; the text is its own."""

    def __init__(self, why: str) -> None:
        super().__init__(why or "The node has no such log.")


class TooManyOrders(Refused):
    """So many operators wait for logs of this node already."""

    retry_after = 10
    """Seconds after which the others have been answered, one way or the other."""

    def __init__(self, node_id: str, most: int) -> None:
        super().__init__(f"{most} requests for logs of node {node_id} are waiting already. Ask again later.")


class NodeSilent(Refused):
    """The node did not bring the log while the operator waited."""

    def __init__(self, node_id: str, seconds: float) -> None:
        super().__init__(
            f"Node {node_id} did not bring the log within {seconds:g} s. It may be busy or cut off: "
            "look at its last_seen, and ask again."
        )


class Stopping(Refused):
    """The hub ends while somebody waits."""

    retry_after = 5
    """Seconds: a hub that is restarted is back by then."""

    def __init__(self) -> None:
        super().__init__("The hub is being stopped. Ask again once it is back.")


class MalformedBody(Refused):
    """The body is not a JSON object in UTF-8."""


class InvalidFields(Refused):
    """`errors` is one `{"field", "message"}` for each thing that is wrong."""

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__("Correct the fields that `errors` names, and send the request again.")
        self.errors = errors


class StoreUnavailable(GridCoreError):
    """The state could not be written; memory and file are as they were before."""
