"""What /openapi.json says of a route beyond what the route says itself.

The door, the stores and HTTP answer on all routes alike: that stands here once, and not at each of them. So
do the things that the framework's own description does not know: answers without a body, or which are no
JSON; that problems have a media type of their own; patterns of path parameters; headers of answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, TypeVar

from quart_schema.openapi import OpenAPIProvider
from werkzeug.routing import Rule

from gridcore.protocol import NODE_ID_PATTERN, TASK_NAME_PATTERN
from hub.operators import Problem
from hub.roles import OPEN_PATHS

F = TypeVar("F", bound=Callable[..., Any])

PROBLEM_TYPE = "application/problem+json"
REFERENCE = "#/components/schemas/"

ANYWHERE = (408, 413)
"""What the door may answer on every path."""
WITH_TOKEN = (401, 403, 429, 503)
"""And where a token is needed. 503: what keeps the state is away."""
WITH_BODY = (400, 415, 422)
WITH_QUERY = (422,)
WITH_PARTS = (404,)
"""Where a part of the path is a name or an id."""

EMPTY = frozenset({204, 304})
"""Answers that have no body."""

PARTS: Mapping[str, str] = {
    "name": TASK_NAME_PATTERN,
    "node_id": NODE_ID_PATTERN,
    "token_id": r"^[A-Za-z0-9_-]{1,64}$",
    "key_id": r"^[A-Za-z0-9_-]{1,64}$",
}
"""Patterns of the parts of paths."""

Headers = Mapping[str, tuple[str, bool]]
"""Names of headers, what they say, and whether an answer always has them."""

PROBLEM_HEADERS: Mapping[int, Headers] = {
    415: {"Accept-Encoding": ("What the body may be encoded with.", True)},
    401: {"WWW-Authenticate": ("How to come with a token.", True)},
    429: {"Retry-After": ("Seconds.", True)},
    503: {"Retry-After": ("Seconds.", True)},
}

_TEXTS = "_gridcore_texts"
_HEADERS = "_gridcore_headers"
_OPTIONAL_BODY = "_gridcore_optional_body"
_EXAMPLE = "_gridcore_example"


def document_text(media_type: str, text: str, status: int = 200) -> Callable[[F], F]:
    """Describe an answer that is no JSON; several of one status are a choice."""

    def describe(route: F) -> F:
        known: list[tuple[int, str, str]] = getattr(route, _TEXTS, [])
        setattr(route, _TEXTS, [*known, (status, media_type, text)])
        return route

    return describe


def document_empty(status: int, text: str) -> Callable[[F], F]:
    """Describe an answer without a body."""
    return document_text("", text, status)


def document_answer_headers(status: int, headers: Headers) -> Callable[[F], F]:
    """Describe the headers of an answer."""

    def describe(route: F) -> F:
        setattr(route, _HEADERS, {**getattr(route, _HEADERS, {}), status: headers})
        return route

    return describe


def optional_body(route: F) -> F:
    """Describe that the body may be left out."""
    setattr(route, _OPTIONAL_BODY, True)
    return route


def document_example(body: Mapping[str, Any]) -> Callable[[F], F]:
    """Describe a body that the route takes."""

    def describe(route: F) -> F:
        setattr(route, _EXAMPLE, body)
        return route

    return describe


class Description(OpenAPIProvider):
    """Makes /openapi.json: each shape has a name and stands in it once, so that generators make one class."""

    def schema(self) -> dict[str, Any]:
        document = super().schema()
        problem = Problem.model_json_schema(ref_template=REFERENCE + "{model}")
        document["components"]["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
        return document

    def operation_id(self, _method: str, _path: str, func: Callable[..., Any]) -> str:
        """The route's name, as `listTasks`."""
        verb, *rest = func.__name__.split("_")
        return verb + "".join(word.capitalize() for word in rest)

    def build_paths(self, rule: Rule) -> tuple[dict[str, Any], dict[str, Any]]:
        paths, components = super().build_paths(rule)
        route = self._app.view_functions[rule.endpoint]
        shapes: dict[str, Any] = dict(components)
        completed = {
            path: {
                method: complete(path, name_shapes(operation, shapes), route)
                for method, operation in operations.items()
            }
            for path, operations in paths.items()
        }
        return completed, shapes


def name_shapes(operation: Mapping[str, Any], shapes: dict[str, Any]) -> dict[str, Any]:
    """The operation with references where a body or an answer was written out; what they lead to goes into
    `shapes`, by the name of its class."""

    def named(media: Mapping[str, Any]) -> dict[str, Any]:
        schema = media["schema"]
        if "title" not in schema:
            return dict(media)
        shapes[schema["title"]] = schema
        return {**media, "schema": {"$ref": REFERENCE + schema["title"]}}

    def with_names(said: Mapping[str, Any]) -> dict[str, Any]:
        return {**said, "content": {kind: named(media) for kind, media in said.get("content", {}).items()}}

    responses = {
        status: with_names(said) if int(status) not in EMPTY else said
        for status, said in operation["responses"].items()
    }
    body = {"requestBody": with_names(operation["requestBody"])} if "requestBody" in operation else {}
    return {**operation, **body, "responses": responses}


def complete(path: str, operation: Mapping[str, Any], route: Callable[..., Any]) -> dict[str, Any]:
    """The description of one operation, with all that it may answer."""
    parameters = [_parameter(parameter) for parameter in operation["parameters"]]
    completed = {**operation, "parameters": parameters}
    if "requestBody" in operation:
        completed["requestBody"] = _request_body(operation["requestBody"], route)
    responses: dict[int, Any] = {int(status): said for status, said in operation["responses"].items()}
    for status, media_type, text in getattr(route, _TEXTS, ()):
        content = responses.get(status, {}).get("content", {})
        if media_type:
            content = {**content, media_type: {"schema": {"type": "string"}}}
        responses[status] = {"description": text, "content": content}
    for status in {*responses, *_always(path, completed)}:
        responses[status] = _response(status, responses.get(status, {}))
    for status, headers in getattr(route, _HEADERS, {}).items():
        responses[status]["headers"] = _headers(headers)
    completed["responses"] = {str(status): responses[status] for status in sorted(responses)}
    return completed


def _request_body(said: Mapping[str, Any], route: Callable[..., Any]) -> dict[str, Any]:
    example = getattr(route, _EXAMPLE, None)
    content = {
        media_type: {**body, "example": example} if example is not None else body
        for media_type, body in said["content"].items()
    }
    return {**said, "content": content, "required": not getattr(route, _OPTIONAL_BODY, False)}


def _always(path: str, operation: Mapping[str, Any]) -> set[int]:
    """The statuses that a route never names."""
    statuses = {*ANYWHERE} if path in OPEN_PATHS else {*ANYWHERE, *WITH_TOKEN}
    places = {parameter["in"] for parameter in operation["parameters"]}
    if "path" in places:
        statuses |= {*WITH_PARTS}
    if "query" in places and path.startswith("/api/"):  # nodes' queries are read as far as they make sense
        statuses |= {*WITH_QUERY}
    if "requestBody" in operation:
        statuses |= {*WITH_BODY}
    if 400 in operation["responses"]:  # also a body that need not be there is read
        statuses |= {415}
    return statuses


def _response(status: int, said: Mapping[str, Any]) -> dict[str, Any]:
    if status in EMPTY:
        return {"description": said.get("description") or HTTPStatus(status).phrase}
    if status < 400:
        return dict(said)
    problem = {"schema": {"$ref": REFERENCE + "Problem"}}
    completed = {"description": HTTPStatus(status).phrase, "content": {PROBLEM_TYPE: problem}}
    headers = PROBLEM_HEADERS.get(status)
    return {**completed, "headers": _headers(headers)} if headers else completed


def _headers(headers: Headers) -> dict[str, Any]:
    return {
        name: {"description": text, "required": is_required, "schema": {"type": "string"}}
        for name, (text, is_required) in headers.items()
    }


def _parameter(parameter: Mapping[str, Any]) -> dict[str, Any]:
    """A parameter as it can be sent: outside of JSON nothing is null."""
    schema = dict(parameter["schema"])
    if parameter["in"] == "path" and parameter["name"] in PARTS:
        schema["pattern"] = PARTS[parameter["name"]]
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    if len(kinds) == 1:
        del schema["anyOf"]
        schema |= kinds[0]
    if schema.get("default", "") is None:
        del schema["default"]
    return {**parameter, "schema": schema}
