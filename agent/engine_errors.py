"""From what the docker client or the engine wrote to an error that tells the operator what to do.

The only module that reads their English, and only where nothing else tells: what a registry said, which
arrives as text alone, a full disk, and four answers that have no code of their own. Each was seen with Docker
20.10 or later and has a test against a real engine. What can be told by looking is not asked of the text: at
which step a start failed, whose container has a name, whether an image is there.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from agent.errors import EngineError, EngineTimeout, EngineUnreachable

TIMED_OUT = (-9, 124)
"""timeout(1) ended the client, by SIGKILL itself with it; the client may have said something before."""
CLIENT_KILLED = 137
"""Something did."""


class Stage(Enum):
    """How far a start came, as the engine shows it afterwards."""

    NAME = "a container that is not ours has the name"
    TWIN = "a container of another gridnode has the name"
    IMAGE = "the image is not there"
    COMMAND = "neither the image nor the task names a command"
    CREATE = "no container was made"
    START = "a container was made, and did not start"


@dataclass(frozen=True)
class _Row:
    needles: tuple[str, ...]
    kind: str
    hint: str = ""
    permanent: bool = False


_UNREACHABLE = (
    _Row(("cannot connect to the docker daemon", "error during connect"), "engine", "is dockerd running?"),
    _Row(("permission denied while trying to connect",), "engine", "add this user to the group `docker`"),
)
_DISK_FULL = _Row(("no space left on device",), "disk-full", "free some disk space")
_NO_GPU = _Row(
    ("could not select device driver",),
    "no-gpu",
    "install the NVIDIA container toolkit on this node, or set gpu_count = 0",
)
_PULL = (
    _DISK_FULL,
    _Row(
        ("no matching manifest for", "does not match the specified platform"),
        "wrong-platform",
        "build the image for this platform, or name one in the task's `images`",
        permanent=True,
    ),
    _Row(
        ("manifest unknown", "not found: manifest", "name unknown", "repository does not exist"),
        "image-not-found",
        "push the image, or correct the task's image name",
        permanent=True,
    ),
    _Row(
        ("unauthorized", "denied:", "access to the resource is denied", "no basic auth credentials"),
        "image-denied",
        "log this node's docker in to the registry",
        permanent=True,
    ),
    _Row(
        ("server gave http response to https client",),
        "registry-not-trusted",
        "it speaks no TLS: name it in this node's /etc/docker/daemon.json as one of `insecure-registries`,"
        " or give it a certificate",
    ),
    _Row(
        ("certificate signed by unknown authority", "x509: "),
        "registry-not-trusted",
        "give this node its authority's certificate as /etc/docker/certs.d/HOST:PORT/ca.crt",
    ),
    _Row(
        (
            "connection refused",
            "no such host",
            "i/o timeout",
            "connection reset",
            "tls handshake",
            "context deadline exceeded",
            "too many requests",
            "toomanyrequests",
            "temporary failure in name resolution",
            "network is unreachable",
            "no route to host",
            "500 internal server error",
            "502 bad gateway",
            "503 service unavailable",
        ),
        "registry-away",
        "see whether this node reaches the registry; it is tried again",
    ),
)
_NO_APPARMOR = _Row(
    ("apparmor enabled on system but",),
    "not-started",
    "install the package `apparmor` on this node; until then its engine starts no container",
)
_BUSY = "a disk usage operation is already running"
TRY = (
    "the image's command was not reached; `gridnode check` on the node tells whether it starts any container"
)


def translate(exit_code: int, stderr: str, doing: str) -> EngineError:
    """The error for a docker call that failed; `doing` says in a few words what was asked."""
    return _nothing_reached(exit_code, stderr, doing) or _told(stderr, doing, (_DISK_FULL,), "engine")


def not_pulled(exit_code: int, stderr: str, doing: str) -> EngineError:
    """The error for an image that could not be fetched."""
    return _nothing_reached(exit_code, stderr, doing) or _told(stderr, doing, _PULL, "failed")


def not_started(exit_code: int, stderr: str, doing: str, stage: Stage, advice: str = TRY) -> EngineError:
    """The error for a container that could not be started, by how far that came.

    The first program of a container is the engine's own init, which starts the image's command and fails
    within the container: so a start that the engine reports as failed never lacks the image's command,
    whatever its text says. `advice` is what to do where nothing better is known.
    """
    if (lost := _nothing_reached(exit_code, stderr, doing)) is not None:
        return lost
    match stage:
        case Stage.IMAGE:
            return EngineError("no-image", f"{doing}: the image is not there any more; it is fetched again")
        case Stage.NAME:
            hint = "a container that is not ours has this name; remove or rename it"
            return EngineError("name-taken", f"{doing}: {_essence(stderr)} ({hint})")
        case Stage.TWIN:
            hint = (
                "a container of another gridnode has this name: give each agent a node_id of its own, "
                "or remove it where its agent is gone"
            )
            return EngineError("name-taken", f"{doing}: {_essence(stderr)} ({hint})")
        case Stage.COMMAND:
            return EngineError("no-command", f"{doing}: {stage.value}; set the task's `command`")
        case Stage.CREATE:
            return _told(stderr, doing, (_DISK_FULL,), "not-created")
        case Stage.START:
            return _told(stderr, doing, (_DISK_FULL, _NO_GPU, _NO_APPARMOR), "not-started", advice)


def is_unreachable(exit_code: int, stderr: str) -> bool:
    """Whether the call did not come to the engine, or had no answer: nothing is known then."""
    return _nothing_reached(exit_code, stderr, "") is not None


def is_busy(text: str) -> bool:
    """Whether the engine measures already: once at a time, for whomever (`docker system df` too)."""
    return _BUSY in text


def _nothing_reached(exit_code: int, stderr: str, doing: str) -> EngineError | None:
    if exit_code in TIMED_OUT or (exit_code == CLIENT_KILLED and not _essence(stderr)):
        return EngineTimeout("engine", f"{doing}: the container engine did not answer in time")
    for row in _UNREACHABLE:
        if any(needle in stderr.lower() for needle in row.needles):
            text = f"the container engine cannot be reached ({row.hint}): {_essence(stderr)}"
            return EngineUnreachable(row.kind, text)
    return None


def _told(stderr: str, doing: str, rows: tuple[_Row, ...], kind: str, hint: str = "") -> EngineError:
    """The first row that fits, or else `kind`."""
    text = _essence(stderr) or "docker failed and did not say why"
    row = next((row for row in rows if any(needle in stderr.lower() for needle in row.needles)), None)
    row = row or _Row((), kind, hint)
    return EngineError(
        row.kind, f"{doing}: {text}{f' ({row.hint})' if row.hint else ''}", permanent=row.permanent
    )


def _essence(stderr: str) -> str:
    """The line that says why, without the client's own decoration."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("See 'docker", "Run 'docker"))]
    text = " ".join(dict.fromkeys(lines[-2:]))
    for prefix in ("docker: ", "Error response from daemon: ", "Error: "):
        text = text.replace(prefix, "")
    return text[:600]
