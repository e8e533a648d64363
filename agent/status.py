"""What `gridnode status` shows: one dict for programs (`--json`), the same as text for people. Pure.

No secret is in it: the token never, and passwords in URLs read `***`.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from agent.report import Report
from agent.settings import Settings
from agent.terms import Permit
from gridcore import __version__
from gridcore.masking import mask_text, mask_url

LOOSENED = ("capabilities", "new_privileges", "mounts", "network")
"""Terms that are strict unless the owner says otherwise: shown when he does."""
_LABEL = 12


def status_of(
    report: Report,
    settings: Settings,
    permit: Permit,
    *,
    node_id: str | None,
    away: str | None,
    away_kind: str | None = None,
    errors: Sequence[tuple[float, str, str, int | None]] = (),
    away_for: float | None = None,
    heard: float | None = None,
    paused_for: float | None = None,
    now: float | None = None,
) -> dict[str, Any]:
    """The node at one moment, as JSON values; ages and spans in seconds.

    `away` is why the hub does not answer, or None, `away_kind` the same for programs (the kinds of
    `HubError`), `away_for` since when. `heard` is the age of its last answer to a heartbeat, None before the
    first: while that is fresh, the hub calls the node Online. `errors` are (age, kind, message,
    instance), the oldest first. `now` is in seconds since the epoch.
    """
    now = time.time() if now is None else now
    terms: dict[str, Any] = {
        "hours": settings.hours,
        "allowed_images": None if settings.allowed_images is None else list(settings.allowed_images),
        "cpus": settings.cpus,
        "freeze_max": settings.freeze_max,
        "yield_load": settings.yield_load,
    }
    for key in LOOSENED:
        value = getattr(settings, key)
        if value != Settings.model_fields[key].default:
            terms[key] = list(value) if isinstance(value, tuple) else value
    status = {
        "node_id": node_id,
        "agent_version": __version__,
        "hub": {
            "url": mask_url(settings.server_url),
            "answers": away is None,
            "away": away,
            "kind": away_kind,
            "for": away_for,
            "heard": heard,
        },
        "status": report.status,
        "task": report.task,
        "generation": report.generation,
        "active_containers": report.active_containers,
        "reason": report.reason.text if report.reason else None,
        "reason_kind": report.reason.kind if report.reason else None,
        "permit": asdict(permit),
        "paused_for": paused_for,
        "terms": terms,
        "warnings": list(report.warnings),
        "slots": [slot.model_dump(mode="json") for slot in report.containers(now)],
        "errors": [
            {"age": age, "kind": kind, "message": message, "instance": instance}
            for age, kind, message, instance in errors
        ],
    }
    masked = _masked(status)
    assert isinstance(masked, dict)  # noqa: S101 # it was one
    return masked


def render(status: Mapping[str, Any]) -> str:
    """The dict of `status_of` for people, without a newline at its end."""
    # Messages come from other people's images: nothing in them may command the terminal.
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in _lines(status))


def span(seconds: float) -> str:
    """`45 s`, `3 min`, `2 h 5 min`, `4 d 3 h`: as exact as people want to know it."""
    whole = int(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes = whole // 60
    if minutes < 100:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def _lines(status: Mapping[str, Any]) -> Iterator[str]:
    yield _field("node", f"{status['node_id'] or 'not registered yet'} (gridnode {status['agent_version']})")
    yield _field("hub", _hub(status["hub"]))
    count = status["active_containers"]
    containers = f", {count} container{'' if count == 1 else 's'} at work" if status["task"] else ""
    yield _field("status", f"{status['status']}{containers}")
    yield _field("task", status["task"] or "none")
    if status["reason"]:
        yield _field("why", status["reason"])
    yield ""
    yield "your terms"
    yield from _terms(status)
    for warning in status["warnings"]:
        yield _field("! warning", warning)
    if status["slots"]:
        yield ""
        yield from _table(
            ("slot", "CPU", "state", "for", "restarts", "last exit"),
            [_slot(slot) for slot in status["slots"]],
        )
    if status["errors"]:
        yield ""
        yield "last errors"
        for error in reversed(status["errors"]):
            where = "" if error["instance"] is None else f"slot {error['instance']}: "
            yield f"  {span(error['age'])} ago  {where}{error['kind']}: {_one_line(error['message'])}"


def _hub(hub: Mapping[str, Any]) -> str:
    if hub["answers"]:
        return f"{hub['url']} answers"
    since = "" if hub["for"] is None else f" for {span(hub['for'])}"
    return f"{hub['url']} does not answer{since}: {hub['away']}"


def _terms(status: Mapping[str, Any]) -> Iterator[str]:
    terms, permit = status["terms"], status["permit"]
    if permit["paused"]:
        since = "" if status["paused_for"] is None else f" for {span(status['paused_for'])}"
        yield _field("  paused", f"yes{since}; `gridnode resume` goes on")
    now = permit["refuse"] or permit["freeze"]
    what = "no containers" if permit["refuse"] else "containers are frozen"
    yield _field("  now", f"{what}: {now}" if now else "containers may run")
    yield _field("  hours", terms["hours"] or "always")
    images = terms["allowed_images"]
    yield _field("  images", "any" if images is None else ", ".join(images) or "none")
    cpus = terms["cpus"]
    count = f"{cpus} of them" if isinstance(cpus, int) else cpus
    yield _field("  CPUs", "all" if cpus is None else count)
    if terms["yield_load"] is not None:
        yield _field("  yield", f"frozen while others' load is above {terms['yield_load']:g}")
    for key in LOOSENED:
        if key in terms:
            value = terms[key]
            yield _field("  loosened", f"{key}: {', '.join(value) if isinstance(value, list) else value}")


def _slot(slot: Mapping[str, Any]) -> tuple[str, ...]:
    last = slot["last_exit"]
    return (
        str(slot["instance"]),
        "-" if slot["cpu"] is None else str(slot["cpu"]),
        slot["state"],
        "-" if slot["age"] is None else span(slot["age"]),
        str(slot["restarts"]),
        "-" if last is None else _exit(last),
    )


def _exit(last: Mapping[str, Any]) -> str:
    text = f"{last['kind']} {span(last['ago'])} ago, after {span(last['ran'])}"
    return f"{text}: {_one_line(last['message'])}" if last["message"] else text


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def _field(label: str, text: str) -> str:
    return f"{label:{_LABEL}}{_one_line(text)}"


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _masked(value: Any) -> Any:
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, dict):
        return {key: _masked(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_masked(inner) for inner in value]
    return value
