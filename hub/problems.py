"""Errors as RFC 9457 `application/problem+json`: the only place where the hub turns one into an answer.

`type` is stable and made to be compared; `title` belongs to the type; `detail` says what to do. No answer
repeats a value that it was sent, since that could be a secret.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import structlog
from quart import Quart, Response
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from hub import errors
from hub.errors import InvalidFields, NotCurrent, OutcomeUnknown, Refused, StoreUnavailable

TYPE_PREFIX = "urn:idm-gridcore:problem:"

REFUSALS: Mapping[type[Refused], tuple[int, str, str]] = {
    errors.NothingPending: (400, "nothing-pending", "No task is pending"),
    errors.NothingRunning: (400, "nothing-running", "No task is running"),
    errors.NotCurrent: (409, "not-current", "Another task is current"),
    errors.TaskConflict: (409, "task-conflict", "The name is taken by another definition"),
    errors.UnknownTask: (404, "unknown-task", "No such task"),
    errors.TaskInUse: (409, "task-in-use", "Nodes work on the task"),
    errors.TaskCompleted: (409, "task-completed", "The task is completed"),
    errors.NothingEarlier: (409, "nothing-earlier", "The task has no earlier definition"),
    errors.GenerationChanged: (412, "generation-changed", "The task has changed"),
    errors.NothingToMatch: (412, "nothing-to-match", "If-Match guards nothing here"),
    errors.NoCanary: (409, "no-canary", "The task is not being tried"),
    errors.CanaryRunning: (409, "canary-running", "A task is being tried already"),
    errors.NoCanaryNodes: (409, "no-canary-nodes", "No node can try the task"),
    errors.NodeOnline: (409, "node-online", "The node is Online"),
    errors.UnknownNode: (404, "unknown-node", "No such node"),
    errors.Forbidden: (403, "forbidden", "The token does not allow this"),
    errors.UnknownToken: (404, "unknown-token", "No such token"),
    errors.UnknownKey: (404, "unknown-key", "No such key"),
    errors.LastKey: (409, "last-key", "It is the only key"),
    errors.NotSupported: (409, "not-supported", "The node's agent does not know this"),
    errors.NodeOffline: (409, "node-offline", "The node is Offline"),
    errors.NoLog: (404, "no-log", "The node has no such log"),
    errors.TooManyOrders: (429, "too-many-orders", "Too many requests for one node"),
    errors.NodeSilent: (504, "node-silent", "The node did not answer in time"),
    errors.TooManyStreams: (503, "too-many-streams", "Too many streams of events"),
    errors.Stopping: (503, "stopping", "The hub is being stopped"),
    errors.MalformedBody: (400, "malformed-body", "The body is not a JSON object"),
    errors.EncodedBody: (415, "encoded-body", "The body is compressed"),
    errors.InvalidFields: (422, "invalid-fields", "Some fields are invalid"),
}

HTTP_PROBLEMS: Mapping[int, tuple[str, str, str]] = {
    401: (
        "unauthorized",
        "A token is needed",
        "Send a valid token: `Authorization: Bearer <token>`. The shared one stands in the hub's "
        "computehub.toml; `computehub token create` makes others.",
    ),
    403: ("forbidden", "The token does not allow this", str(errors.Forbidden())),
    404: ("not-found", "No such path", "GET /openapi.json lists what there is."),
    405: (
        "method-not-allowed",
        "The path does not take this method",
        "The header Allow lists those that it takes.",
    ),
    408: ("body-timeout", "The body did not arrive", "Send the request again."),
    413: (
        "body-too-large",
        "The body is too large",
        "A body may have 64 KiB, that of POST /gridnode/logs 1 MiB.",
    ),
    429: (
        "too-many-attempts",
        "Too many requests without a valid token",
        "Wait as long as Retry-After says, and look at the token: it is not valid.",
    ),
}

log = structlog.get_logger()


def problem(status: int, slug: str, title: str, detail: str, **members: Any) -> Response:
    """An `application/problem+json` answer; `members` are further members of the object."""
    body = {"type": TYPE_PREFIX + slug, "title": title, "status": status, "detail": detail, **members}
    response = Response(json.dumps(body), status=status, content_type="application/problem+json")
    if status == 401:
        response.headers["WWW-Authenticate"] = 'Bearer realm="computehub"'
    elif status == 429 and slug == "too-many-attempts":
        response.headers["Retry-After"] = "5"
    return response


def http_problem(status: int) -> Response:
    """The answer for a status that HTTP itself gives a meaning."""
    slug, title, detail = HTTP_PROBLEMS.get(
        status, ("bad-request", "The request is not valid", "Look at docs/api.md for what the hub takes.")
    )
    return problem(status, slug, title, detail)


def store_problem(error: StoreUnavailable) -> Response:
    """The answer where the state cannot be used now. Who could not use it has told the log, once."""
    if isinstance(error, errors.StateLost):
        response = problem(503, "state-lost", "What the hub kept is lost", str(error))
    elif isinstance(error, errors.StoreFull):
        response = problem(
            503,
            "store-full",
            "There is no room for it",
            f"Nothing has changed: {error.why}. {error.do}.",
        )
    elif isinstance(error, OutcomeUnknown):
        response = problem(
            503,
            "outcome-unknown",
            "It is not known whether it was done",
            "The hub lost its state from sight, or no replica confirmed the change. Look with GET "
            "whether it is done before you send the request again.",
        )
    else:
        response = problem(
            503,
            "store-unavailable",
            "The hub cannot use its state",
            "Nothing has changed. Send the request again; if that does not help, look at the hub's log "
            "and at what keeps its state (a disk, a Redis).",
        )
    response.headers["Retry-After"] = str(error.retry_after)
    return response


def answer_with_problems(app: Quart, forbidden: Callable[[], None]) -> None:
    """Have every error of this application answered here; `forbidden` is called where one is a 403."""

    @app.errorhandler(Refused)
    async def refused(refusal: Refused) -> Response:
        status, slug, title = REFUSALS[type(refusal)]
        if status == 403:
            forbidden()
        members: dict[str, Any] = {}
        if isinstance(refusal, NotCurrent | errors.GenerationChanged):
            members = {"current": refusal.current, "generation": refusal.generation}
            if isinstance(refusal, errors.GenerationChanged):
                members["revision"] = refusal.revision
        elif isinstance(refusal, InvalidFields):
            members = {"errors": refusal.errors}
        response = problem(status, slug, title, str(refusal), **members)
        if isinstance(refusal, errors.TooManyOrders | errors.TooManyStreams | errors.Stopping):
            response.headers["Retry-After"] = str(refusal.retry_after)
        elif isinstance(refusal, errors.EncodedBody):
            response.headers["Accept-Encoding"] = "identity"
        return response

    @app.errorhandler(HTTPException)
    async def http_error(error: HTTPException) -> Response:
        response = http_problem(error.code or 500)
        if isinstance(error, MethodNotAllowed) and error.valid_methods:
            response.headers["Allow"] = ", ".join(sorted(error.valid_methods))
        return response

    @app.errorhandler(errors.PartlyDone)
    async def partly_done(error: errors.PartlyDone) -> Response:
        response = problem(503, "partly-done", "Only a part was done", str(error))
        response.headers["Retry-After"] = str(error.retry_after)
        return response

    @app.errorhandler(StoreUnavailable)
    async def store_unavailable(error: StoreUnavailable) -> Response:
        return store_problem(error)

    @app.errorhandler(Exception)
    async def bug(error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return problem(
            500, "internal", "The hub has a bug", "The hub's log has a traceback; please report it."
        )
