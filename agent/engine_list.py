"""Containers as the engine lists them, each made one small plain value before anything else looks at it."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from agent import spec
from agent.planner import Container

SEEN = (
    '{"id":{{json .Id}},"name":{{json .Name}},"status":{{json .State.Status}},'
    '"exit":{{json .State.ExitCode}},"oom":{{json .State.OOMKilled}},"error":{{json .State.Error}},'
    '"started":{{json .State.StartedAt}},"finished":{{json .State.FinishedAt}},'
    '"signal":{{json (index .Config "StopSignal")}},"labels":{{json .Config.Labels}},'
    '"env":{{json .Config.Env}},"image":{{json .Config.Image}},"cpus":{{json .HostConfig.CpusetCpus}},'
    '"memory":{{json .HostConfig.Memory}},"mounts":{{json .Mounts}}}'
)
"""One line of JSON a container: a whole inspection has ten times as much, in the client and then here.

By `index`, since the engine leaves out a signal that no image names.
"""

ROW = (
    "[{{json .ID}},{{json .Names}},{{json .State}},"
    + ",".join(f'{{{{json (.Label "{label}")}}}}' for label in (spec.OWNER, spec.TASK, spec.INSTANCE))
    + "]"
)
"""One line of JSON a container, in a list. A label's text is anybody's: quoted, it stays one value."""
_REAL_TIME = re.compile(r"RTMIN\+(?:[1-9]|1[0-5])|RTMAX-(?:[1-9]|1[0-4])")
_LAST_SIGNAL = 64

MOST_NAMED = 8
"""Names of containers in a warning, at most."""


@dataclass(frozen=True)
class Row:
    """A container as a list shows it."""

    id: str
    name: str
    status: str
    owner: str
    task: str
    instance: str

    @classmethod
    def of(cls, line: str) -> Row:
        container_id, names, *rest = map(str, json.loads(line))
        # Old links to a container are names too: `container/alias`.
        own = next((name for name in names.split(",") if "/" not in name), "")
        return cls(container_id, own, *rest)

    def is_of(self, owner: str) -> bool:
        """Whether it is a container of ours: its labels say so, and its name agrees with them."""
        return self.owner == owner and spec.is_named(self.name, self.task, self.instance)


def twin_warning(others: Iterable[Row], node_id: str | None) -> tuple[str, ...]:
    """What to say of containers that carry this node's id and another agent's label: one line, or none."""
    names = sorted(row.name for row in others if spec.node_in(row.name, row.task, row.instance) == node_id)
    if node_id is None or not names:
        return ()
    return (
        f"containers here ({len(names)}) belong to another gridnode with this node_id, or to this one before "
        f"its gridnode.toml was moved; they are left alone. Where no such gridnode runs, end them with: "
        f"docker rm -f {_listed(names)}",
    )


def stray_warning(others: Iterable[Row], owner: str) -> tuple[str, ...]:
    """What to say of containers that carry this agent's label under a name that it never gave, or nothing."""
    names = sorted(row.name for row in others if row.owner == owner)
    if not names:
        return ()
    return (
        f"containers here ({len(names)}) carry this gridnode's labels, but not its names: renamed, or of an "
        f"image made from one of its containers; they are left alone: {_listed(names)}",
    )


def _listed(names: list[str]) -> str:
    return " ".join(names[:MOST_NAMED]) + (" …" if len(names) > MOST_NAMED else "")


def is_unchanged(row: Row, known: Mapping[str, Container]) -> bool:
    """Whether a row is a live container as last seen."""
    seen = known.get(row.id)
    if seen is None or seen.status not in ("running", "paused"):
        return False
    return (row.name, row.status) == (seen.name, seen.status)


def frozen(seen: Mapping[str, Any]) -> Container:
    """The value of one line that SEEN shows."""
    labels = seen["labels"] or {}
    volumes = [mount for mount in seen["mounts"] or () if mount.get("Type") == "volume"]
    scratch = [mount.get("Name") for mount in volumes if mount.get("Destination") == spec.SCRATCH_PATH]
    return Container(
        id=seen["id"],
        name=seen["name"].lstrip("/"),
        status=seen["status"] or "dead",
        spec=labels.get(spec.SPEC, ""),
        instance=_int(labels.get(spec.INSTANCE)),
        cpu=_int(seen["cpus"]),
        task=labels.get(spec.TASK, ""),
        generation=labels.get(spec.GENERATION, ""),
        exit_code=seen["exit"] or 0,
        oom=bool(seen["oom"]),
        error=seen["error"] or None,
        memory_mb=(seen["memory"] or 0) // 2**20,
        stop_timeout=_float(labels.get(spec.STOP_TIMEOUT), 30.0),
        stop_signal=_signal(seen["signal"]),
        started=_seconds(seen["started"]),
        finished=_seconds(seen["finished"]),
        image=seen["image"] or "",
        scratch=scratch[0] if scratch else None,
        secrets=spec.secrets_in(
            dict(line.split("=", 1) for line in seen["env"] or () if "=" in line),
            (labels.get(spec.SECRET_ENV) or "").split(","),
        ),
    )


def _signal(text: str | None) -> str:
    """The image's own signal, as the engine reads it; TERM where it names none, or nothing that is one."""
    name = (text or "").upper().removeprefix("SIG")
    if name.isdecimal() and name.isascii():
        return str(int(name)) if 0 < int(name[:4]) <= _LAST_SIGNAL else "TERM"
    is_known = f"SIG{name}" in signal.Signals.__members__ or _REAL_TIME.fullmatch(name)
    return name if is_known else "TERM"


def _int(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() else None


def _float(text: str | None, default: float) -> float:
    try:
        return float(text or default)
    except ValueError:
        return default


def _seconds(text: str | None) -> float:
    """The engine's RFC 3339 as seconds since the epoch; its year 1 means never: 0."""
    moment = datetime.fromisoformat(text) if text else None
    return moment.timestamp() if moment is not None and moment.year > 1 else 0.0
