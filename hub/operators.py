"""What all routes of the operators' half of the API share: their answers, and how these are described."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict
from quart import Request, Response
from quart_schema import document_response

from hub.bodies import read_optional_message, read_query
from hub.errors import NothingToMatch

F = TypeVar("F", bound=Callable[..., Any])


class NoQuery(BaseModel):
    """The query of a path that takes none."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class NoBody(BaseModel):
    """The body of a call or of an answer that needs none: nothing, or an empty object."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class FieldError(BaseModel):
    """One field that is wrong."""

    field: str
    message: str


class Problem(BaseModel):
    """RFC 9457: why a request was not done, and what to do. The last ones are there where they help."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldError] | None = None
    current: str | None = None
    """The current task."""
    generation: str | None = None
    """The revision of what is current."""
    revision: str | None = None
    """That of the task."""


async def read_nothing(request: Request) -> None:
    """Refuse a query and a body that say something. Raises InvalidFields, MalformedBody."""
    read_query(request, NoQuery)
    await read_optional_message(request, NoBody)


def refuse_vain_guard(request: Request) -> None:
    """Raises NothingToMatch where a change is to be guarded by an If-Match that nobody would look at."""
    rule = request.url_rule.rule if request.url_rule else ""
    is_change = rule.startswith("/api/") and request.method not in ("GET", "HEAD", "OPTIONS")
    is_looked_at = rule.startswith("/api/tasks/<name>")
    if is_change and not is_looked_at and request.headers.get("If-Match", "*").strip() != "*":
        raise NothingToMatch


def answer(value: Any, status: int = 200) -> Response:
    """A JSON answer."""
    return Response(json.dumps(value), status=status, content_type="application/json")


def answer_list(values: Iterable[Any]) -> Response:
    """A JSON answer that may be long: each value by itself, so that other threads have their turn between."""
    body = ", ".join(json.dumps(value) for value in values)
    return Response(f"[{body}]", content_type="application/json")


def no_content(status: int, headers: Mapping[str, str] | None = None) -> Response:
    """An answer without a body, and so without a type of it."""
    response = Response(b"", status=status, headers={**(headers or {})})
    del response.headers["Content-Type"]
    return response


def document_problems(*statuses: int) -> Callable[[F], F]:
    """Describe in /openapi.json with which of these a route refuses."""

    def describe(route: F) -> F:
        for status in statuses:
            route = document_response(Problem, status)(route)
        return route

    return describe
