"""The fleet's Redis by its name: a task says `fleet` where it could say a URL, and nodes are given the URL.

So its password stands in one place, `fleet_redis` in `computehub.toml`, and a new one reaches every task. The
hub keeps the URL with the list, so that several hubs give the same one under one revision. Pure.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from gridcore.protocol import TaskDefinition
from hub.errors import InvalidFields

NAME = "fleet"
FIELDS = ("input_redis", "output_redis")
_NAMED = re.compile(r"fleet(:/(?P<database>\d{1,5}))?", re.ASCII)


def uses(definition: TaskDefinition) -> bool:
    """Whether a task names the fleet's Redis."""
    return any(_NAMED.fullmatch(getattr(definition, field) or "") for field in FIELDS)


def check(definition: TaskDefinition, url: str | None) -> None:
    """Refuse a name that leads nowhere. Raises InvalidFields."""
    errors = []
    for field in FIELDS:
        value = getattr(definition, field) or ""
        if _NAMED.fullmatch(value):
            if url is None:
                text = "this hub has none: give a URL, or set fleet_redis in computehub.toml"
                errors.append({"field": field, "message": text})
        elif value.partition(":")[0] == NAME:
            text = "expected fleet, fleet:/2 for another database than the fleet's own, or a URL"
            errors.append({"field": field, "message": text})
    if errors:
        raise InvalidFields(errors)


def resolve(definition: TaskDefinition, url: str | None) -> TaskDefinition:
    """The definition with the URL in the name's place; without one, unset."""
    given = {}
    for field in FIELDS:
        match = _NAMED.fullmatch(getattr(definition, field) or "")
        if match:
            given[field] = _with_database(url, match["database"])
    return definition.model_copy(update=given) if given else definition


def _with_database(url: str | None, database: str | None) -> str | None:
    if url is None or database is None:
        return url
    return urlsplit(url)._replace(path=f"/{database}").geturl()
