"""What the hub refuses, and what can go wrong in it.

GridCoreError
├── Refused              the request cannot be done; nothing has changed
│   ├── NothingPending   `next` with no task waiting
│   ├── NothingRunning   `finish` with no current task
│   ├── NotCurrent       the guard names a task (or generation) that is not current
│   ├── TaskConflict     another definition is stored under this name
│   ├── UnknownTask
│   ├── TaskInUse        the task is current, or tried on some nodes
│   ├── TaskCompleted    the task is over
│   ├── NothingEarlier   the task has no former definition
│   ├── GenerationChanged  If-Match names the task as it was
│   ├── NothingToMatch   If-Match, where there is nothing that it could name
│   ├── NoCanary         no task is tried, or another one
│   ├── CanaryRunning    a task is tried already
│   ├── NoCanaryNodes    no node can try the task
│   ├── NodeOnline       the node works, and cannot be forgotten
│   ├── UnknownNode
│   ├── Forbidden        the token is valid, and does not allow this
│   ├── UnknownToken
│   ├── UnknownKey
│   ├── LastKey          the only key that still signs
│   ├── NotSupported     the node's agent does not know this order
│   ├── NodeOffline      the node cannot be asked now
│   ├── NoLog            the node has no such log, and says why
│   ├── TooManyOrders    too many operators wait for logs of one node
│   ├── NodeSilent       the node did not bring the log in time
│   ├── TooManyStreams   too many clients follow the audit trail
│   ├── Stopping         the hub ends, and answers what it holds
│   ├── MalformedBody    the body is no JSON object in UTF-8
│   ├── EncodedBody      the body is compressed
│   └── InvalidFields    it is one, but its fields are wrong; `errors` names each
├── PartlyDone           many nodes were to be ordered, and the state was lost on the way
└── StoreUnavailable     the state could not be read or written; nothing has changed. The log was told why
    ├── StoreAway        it is on another machine, which is away
    ├── StateLost        what is kept there is not the state that the hub knows
    ├── StoreFull        there is no room for more
    └── OutcomeUnknown   or it has: the state was lost from sight in between
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


class TaskInUse(Refused):
    """Nodes work on the task: it is current, or tried on some of them."""

    def __init__(self, name: str, *, is_tried: bool) -> None:
        super().__init__(
            f"Task {name} is being tried on some nodes. "
            "Use POST /api/tasks/promote or POST /api/tasks/abort first."
            if is_tried
            else f"Task {name} is current. Use POST /api/tasks/finish first."
        )


class TaskCompleted(Refused):
    """The task is over: it has no place in the list and no definition that could still matter."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Task {name} is completed. Use POST /api/tasks/{name}/requeue first.")


class NothingEarlier(Refused):
    """The task has no former definition."""

    def __init__(self, name: str) -> None:
        super().__init__(f"Task {name} has no earlier definition that it could go back to.")


class GenerationChanged(Refused):
    """If-Match names the task as it was before; `revision` is its own one now, `current` and `generation`
    tell what is current."""

    def __init__(self, name: str, revision: str, current: str | None, generation: str) -> None:
        super().__init__(
            f"Not done, since task {name} has changed since you looked, or If-Match names something else. "
            f"Look at GET /api/tasks/{name}, then ask again with its ETag."
        )
        self.revision = revision
        self.current = current
        self.generation = generation


class NothingToMatch(Refused):
    """The request has an If-Match, and what it asks for has no ETag: to ignore it would be no guard."""

    def __init__(self) -> None:
        super().__init__(
            "Not done, since If-Match guards changes of one task (PATCH, DELETE, revert, move, requeue). "
            'Leave it out; `next` and `finish` take {"task": …, "generation": …} as a guard.'
        )


class NoCanary(Refused):
    """No task is tried on some nodes, or it is another one (`tried`)."""

    def __init__(self, tried: str | None) -> None:
        super().__init__(
            f"It is {tried} that is being tried on some nodes. Look at GET /api/tasks, then ask again."
            if tried
            else 'No task is being tried. Try the next one with POST /api/tasks/next and {"canary": 1}.'
        )


class CanaryRunning(Refused):
    """One task at a time is tried."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"Task {name} is being tried already. Use POST /api/tasks/promote or POST /api/tasks/abort first."
        )


class NoCanaryNodes(Refused):
    """No node can try the task."""

    def __init__(self, name: str) -> None:
        super().__init__(
            f"No node can try {name}: it takes one that is Online, with an agent that sends its version, "
            "neither stopping, draining nor paused, for whose platform the task has an image."
        )


class NodeOnline(Refused):
    """A node that works would be back with its next message."""

    def __init__(self, node_id: str) -> None:
        super().__init__(
            f"Node {node_id} is Online. Stop it first (POST /api/nodes/{node_id}/stop), "
            "and forget it once it is Offline."
        )


class UnknownNode(Refused):
    """No node has this id."""

    def __init__(self, node_id: str) -> None:
        super().__init__(f"There is no node {node_id[:80]}. GET /api/nodes lists them.")


class Forbidden(Refused):
    """The token is valid, and does not allow this. It says nothing of what there is."""

    def __init__(self) -> None:
        super().__init__("This token does not allow that. docs/security.md says which role may do what.")


class UnknownToken(Refused):
    """No record of a token has this id."""

    def __init__(self) -> None:
        super().__init__("There is no token with this id. GET /api/tokens lists them.")


class UnknownKey(Refused):
    """No signing key has this id."""

    def __init__(self) -> None:
        super().__init__("There is no key with this id. GET /api/keys lists them.")


class LastKey(Refused):
    """Without it no token could be signed, and it is the only one."""

    def __init__(self) -> None:
        super().__init__("It is the only key. Make another one first: POST /api/keys.")


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


class TooManyStreams(Refused):
    """As many clients follow the audit trail as this hub serves."""

    retry_after = 30
    """Seconds: streams end when their clients go, and nobody knows when that is."""

    def __init__(self, most: int) -> None:
        super().__init__(
            f"{most} clients follow the audit trail of this hub already. Ask for pages instead, or try again."
        )


class Stopping(Refused):
    """The hub ends while somebody waits."""

    retry_after = 5
    """Seconds: a hub that is restarted is back by then."""

    def __init__(self) -> None:
        super().__init__("The hub is being stopped. Ask again once it is back.")


class MalformedBody(Refused):
    """The body is not a JSON object in UTF-8."""


class EncodedBody(Refused):
    """The body has a Content-Encoding: it is small enough to come as it is."""

    def __init__(self) -> None:
        super().__init__("The hub takes no Content-Encoding. Send the body as it is, not compressed.")


class InvalidFields(Refused):
    """`errors` is one `{"field", "message"}` for each thing that is wrong."""

    def __init__(self, errors: list[dict[str, str]]) -> None:
        super().__init__("Correct the fields that `errors` names, and send the request again.")
        self.errors = errors


class PartlyDone(GridCoreError):
    """Of many nodes only some have their order."""

    retry_after = 5
    """Seconds."""

    def __init__(self, done: int, of: int) -> None:
        super().__init__(
            f"Of {of} nodes the first {done} have their order. "
            "Send the request again: what is done stays done."
        )


class StoreUnavailable(GridCoreError):
    """The state could not be read or written; all of it is as it was before."""

    retry_after = 5
    """Seconds: a Redis that restarts or fails over is back by then, and a disk may have been made room on."""


class StoreAway(StoreUnavailable):
    """What keeps the state is away."""


class StateLost(StoreUnavailable):
    """What is kept cannot be what became of the state that this hub, or a node, knows: it is not taken.

    The first text says why, the second what to do.
    """

    retry_after = 10
    """Seconds: it takes a person, and then the fleet should hear of it soon."""

    def __init__(self, why: str, do: str) -> None:
        super().__init__(why, do)
        self.why, self.do = why, do

    def __str__(self) -> str:
        return f"{self.why}. {self.do}"


class StoreFull(StoreUnavailable):
    """There is no room for what was to be kept: the first text says where, the second what to do."""

    retry_after = 30
    """Seconds: it takes a person."""

    def __init__(self, why: str, do: str) -> None:
        super().__init__(why, do)
        self.why, self.do = why, do

    def __str__(self) -> str:
        return self.why


class OutcomeUnknown(StoreUnavailable):
    """It may have been done, or be lost again: whoever asked must look before asking again."""
