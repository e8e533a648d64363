"""Request bodies and queries: from bytes to a valid message, or to an error that names what is wrong."""

from __future__ import annotations

import difflib
import json
from typing import Any, NoReturn, TypeVar
from urllib.parse import parse_qsl

from pydantic import BaseModel, ValidationError
from quart import Request

from gridcore.json_values import find_faults, is_text, printable, read_json
from hub.errors import EncodedBody, InvalidFields, MalformedBody

M = TypeVar("M", bound=BaseModel)


async def read_message(request: Request, model: type[M], *, any_text: bool = False) -> M:
    """The message in the body, whatever Content-Type it claims (`curl -d` says form-urlencoded).

    `any_text`: the message mends its texts itself.

    Raises:
        EncodedBody: it is compressed.
        MalformedBody: it is not a JSON object in UTF-8.
        InvalidFields: a field is missing, wrong, unknown or given twice.
    """
    return parse_message(await _read_bytes(request), model, any_text=any_text)


async def read_optional_message(request: Request, model: type[M]) -> M | None:
    """Like `read_message`; None if there is no body, or nothing but white space."""
    body = await _read_bytes(request)
    return parse_message(body, model) if body.strip() else None


async def read_object(request: Request) -> dict[str, Any]:
    """The JSON object in the body, before anybody knows its fields. Raises as `read_message` does."""
    return _parse_object(await _read_bytes(request))


async def read_optional_object(request: Request) -> dict[str, Any] | None:
    """Like `read_object`; None if there is no body, or nothing but white space."""
    body = await _read_bytes(request)
    return _parse_object(body) if body.strip() else None


def read_query(request: Request, model: type[M]) -> M:
    """The query as a message; of a parameter that is given twice neither is taken.

    Raises:
        InvalidFields: a parameter is wrong, unknown or given twice.
    """
    return parse_query(request, model, several=frozenset())


def parse_query(request: Request, model: type[M], several: frozenset[str]) -> M:
    """Like `read_query`; those in `several` may be given more than once, and are lists."""
    refuse_broken_text(request)
    given = {name: request.args.getlist(name) for name in request.args}
    twice = [name for name, values in given.items() if len(values) > 1 and name not in several]
    if twice:
        raise InvalidFields([{"field": name[:80], "message": "given more than once"} for name in twice])
    return validate({name: values if name in several else values[0] for name, values in given.items()}, model)


def refuse_broken_text(request: Request) -> None:
    """Raises InvalidFields where a parameter of the query is no UTF-8."""
    pairs = parse_qsl(request.query_string.decode("ascii", "surrogateescape"), errors="surrogateescape")
    broken = {name for name, value in pairs if not (is_text(name) and is_text(value))}
    if broken:
        raise InvalidFields(
            [{"field": printable(name)[:80], "message": "expected UTF-8"} for name in sorted(broken)]
        )


def parse_message(body: bytes, model: type[M], *, any_text: bool = False) -> M:
    """The message in these bytes. Raises as `read_message` does.

    A message that ignores what it does not know also takes a name that is given twice: the last one counts.
    """
    may_repeat = model.model_config.get("extra") != "forbid"
    return validate(_parse_object(body, may_repeat=may_repeat, any_text=any_text), model)


def validate(value: dict[str, Any], model: type[M]) -> M:
    """The message that these JSON values are. Raises InvalidFields."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        problems = error.errors(include_url=False, include_context=False, include_input=False)
        raise InvalidFields([_field_error(dict(problem), model) for problem in problems]) from None


async def _read_bytes(request: Request) -> bytes:
    body = await request.get_data(cache=True, as_text=False, parse_form_data=False)
    encoding = request.headers.get("Content-Encoding", "").strip().lower()
    if body and encoding not in ("", "identity"):
        raise EncodedBody
    return body


def _parse_object(body: bytes, *, may_repeat: bool = False, any_text: bool = False) -> dict[str, Any]:
    try:
        value = read_json(body.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except UnicodeDecodeError:
        raise MalformedBody("The body is not UTF-8. Send a JSON object, encoded in UTF-8.") from None
    except json.JSONDecodeError as error:
        where = f"line {error.lineno}, column {error.colno}"
        raise MalformedBody(f"The body is not JSON ({error.msg}, {where}). Send a JSON object.") from None
    except RecursionError:
        raise MalformedBody("The body is nested too deeply. Send a plain JSON object.") from None
    except ValueError:  # an integer of thousands of digits
        raise MalformedBody("The body holds a number that is too long. Send a plain JSON object.") from None
    if not isinstance(value, dict):
        raise MalformedBody("The body is JSON, but not an object. Send {…} with the fields of docs/api.md.")
    faults = [] if any_text else find_faults(value, may_repeat=may_repeat)
    if faults:
        raise InvalidFields([fault._asdict() for fault in faults])
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBody(f"The body holds {name}, which is not JSON. Send numbers only.")


def _field_error(problem: dict[str, Any], model: type[BaseModel]) -> dict[str, str]:
    field = ".".join(str(part)[:80] for part in problem["loc"]) or "(body)"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "extra_forbidden":
        message = unknown_field(field, model)
    elif problem["type"] == "missing":
        message = "missing"
    return {"field": field, "message": message}


def unknown_field(field: str, model: type[BaseModel]) -> str:
    """What is said of a field that this model has not."""
    near = difflib.get_close_matches(field, model.model_fields, 1)
    return f"unknown field; did you mean {near[0]}?" if near else "unknown field"
