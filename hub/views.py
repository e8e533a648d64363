"""What operators see of tasks and nodes, with every secret masked; and the refusal to take a mask for one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from gridcore.masking import is_masked, mask_text, mask_url
from gridcore.protocol import MASK, NO_TASK, TaskDefinition
from hub.causes import NODES_SHOWN, Cause
from hub.errors import InvalidFields
from hub.redaction import Hide
from hub.registry import Node
from hub.reports import ContainerState
from hub.tasklist import Aborted, Canary, Task, TaskList, why_nothing

_URLS = ("input_redis", "output_redis")
_TEXTS = ("image", "input_queue", "output_queue")


def refuse_masks(definition: TaskDefinition) -> None:
    """Refuse a definition copied out of an answer of ours, with `***` where a secret belongs.

    Raises:
        InvalidFields: names each field that holds a mask.
    """
    texts = {name: getattr(definition, name) or "" for name in (*_URLS, *_TEXTS)}
    texts |= {f"command.{place}": text for place, text in enumerate(definition.command or [])}
    texts |= {f"images.{platform}": image for platform, image in (definition.images or {}).items()}
    masked = [field for field, text in texts.items() if is_masked(text)]
    masked += [name for name in _URLS if MASK in texts[name] and name not in masked]
    masked += [f"env.{name}" for name, value in (definition.env or {}).items() if MASK in value]
    if masked:
        raise InvalidFields(
            [{"field": field, "message": f"holds {MASK}; give the real value"} for field in masked]
        )


def task_view(task: Task) -> dict[str, Any]:
    """A task as operators see it: all fields of its definition, its status and its times."""
    return {
        **_masked_definition(task.definition),
        "status": task.status.value,
        "added_at": _time(task.added_at),
        "started_at": _time(task.started_at),
        "completed_at": _time(task.completed_at),
        "earlier": len(task.earlier),
        "aborted": _aborted_view(task.aborted) if task.aborted else None,
        "revision": task.revision,
    }


def _aborted_view(aborted: Aborted) -> dict[str, Any]:
    return {"at": _time(aborted.at), "reason": aborted.reason, "nodes": aborted.nodes}


def canary_view(canary: Canary) -> dict[str, Any]:
    """A task that is tried, and on which nodes."""
    return {
        "task": canary.task,
        "state": canary.state,
        "nodes": list(canary.nodes),
        "wanted": canary.wanted,
        "generation": canary.revision,
        "started_at": _time(canary.started_at),
        "up_since": _time(canary.up_since),
        "healthy_after": canary.healthy_after,
        "start_within": canary.start_within,
    }


def _masked_definition(definition: TaskDefinition) -> dict[str, Any]:
    view = {"name": definition.name, "image": None, "images": None, **definition.model_dump(mode="json")}
    for name in _URLS:
        view[name] = mask_url(view[name]) if view[name] else None
    for name in _TEXTS:
        view[name] = mask_text(view[name]) if view[name] else None
    view["images"] = definition.images and {
        platform: mask_text(image) for platform, image in definition.images.items()
    }
    view["command"] = definition.command and [mask_text(part) for part in definition.command]
    view["env"] = definition.env and dict.fromkeys(definition.env, MASK)
    return view


def node_view(node: Node, tasks: TaskList, hide: Hide) -> dict[str, Any]:
    """A node as operators see it; `hide` masks what it wrote itself."""
    record, live = node.record, node.live
    reason, reason_kind = _reason(node, tasks, hide) if node.is_online else (None, None)
    return {
        "id": record.id,
        "hostname": record.hostname,
        "architecture": record.architecture,
        "cpu_count": record.cpu_count,
        "last_seen": _time(live.last_seen),
        "status": "Online" if node.is_online else "Offline",
        # What an Offline node does now nobody knows; what it had, and what went wrong, is as it said last.
        "runtime_status": live.runtime_status if node.is_online else None,
        "active_containers": live.active_containers,
        "platform": record.platform,
        "stop_requested": node.stop_requested,
        "draining": node.draining,
        "paused": live.paused,
        "agent_version": record.agent_version,
        "labels": dict(record.labels),
        "gpu_count": record.gpu_count,
        "task": live.task,
        "generation": live.generation,
        "reason": reason,
        "reason_kind": reason_kind,
        "warnings": [hide(warning) for warning in live.warnings],
        "containers": [_container_view(container, hide) for container in live.containers],
        "errors": [
            {
                "instance": error.instance,
                "kind": error.kind,
                "message": hide(error.message),
                "time": _time(error.time),
                "task": error.task,
            }
            for error in live.errors
        ],
    }


def _container_view(container: ContainerState, hide: Hide) -> dict[str, Any]:
    ended = container.last_exit
    return {
        "instance": container.instance,
        "cpu": container.cpu,
        "state": container.state,
        "started": _second(container.started),
        "restarts": container.restarts,
        "last_exit": ended
        and {
            "kind": ended.kind,
            "exit_code": ended.exit_code,
            "message": hide(ended.message) if ended.message else None,
            "time": _second(ended.time),
            "ran": ended.ran,
        },
    }


def cause_view(cause: Cause) -> dict[str, Any]:
    """A cause as operators see it; its texts were masked before they were compared."""
    return {
        "kind": cause.kind,
        "cause": cause.cause,
        "nodes": len(cause.node_ids),
        "of": cause.online,
        "summary": cause.summary,
        "node_ids": list(cause.node_ids[:NODES_SHOWN]),
        "first": _time(cause.first),
        "last": _time(cause.last),
        "example": cause.example,
    }


def _reason(node: Node, tasks: TaskList, hide: Hide) -> tuple[str | None, str | None]:
    """Why a node does nothing, and the kind of that: what it says itself, or what the hub knows of it."""
    if node.live.reason:
        return hide(node.live.reason), node.live.reason_kind
    record = node.record
    nothing = why_nothing(tasks.assigned(record.id), record.platform, is_held=tasks.is_held)
    return nothing, NO_TASK if nothing else None


def _time(seconds: float | None) -> str | None:
    """RFC 3339 in UTC, to the millisecond."""
    return None if seconds is None else rfc3339(seconds)


def _second(seconds: float | None) -> str | None:
    """The same, to the second: what a node's span allows."""
    return None if seconds is None else rfc3339(seconds, "seconds")


def rfc3339(seconds: float, precision: str = "milliseconds") -> str:
    """Seconds since the epoch as RFC 3339 in UTC."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec=precision).replace("+00:00", "Z")
