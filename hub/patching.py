"""Changing a task's definition by a JSON merge patch (RFC 7396)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gridcore.protocol import TaskDefinition
from hub.bodies import unknown_field, validate
from hub.errors import InvalidFields
from hub.views import refuse_masks


def apply_patch(definition: TaskDefinition, patch: Mapping[str, Any]) -> TaskDefinition:
    """The definition with these fields: null takes one away, objects such as `env` are merged by name.

    Raises:
        InvalidFields: a field is unknown or wrong, is the name, or holds a mask.
    """
    if "name" in patch:
        raise InvalidFields([{"field": "name", "message": "cannot be changed: add another task"}])
    unknown = [name for name in patch if name not in TaskDefinition.model_fields]
    if unknown:
        # Also one that is null, which a merge would take away without a word.
        raise InvalidFields(
            [{"field": name[:80], "message": unknown_field(name, TaskDefinition)} for name in unknown]
        )
    merged = _merge(definition.to_stored(), patch)
    emptied = [name for name, value in patch.items() if isinstance(value, dict) and merged[name] == {}]
    changed = validate({name: value for name, value in merged.items() if name not in emptied}, TaskDefinition)
    refuse_masks(changed)
    return changed


def _merge(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(target)
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        elif isinstance(value, dict):
            inner = merged.get(name)
            merged[name] = _merge(inner if isinstance(inner, dict) else {}, value)
        else:
            merged[name] = value
    return merged
