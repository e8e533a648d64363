"""From what the docker client wrote to standard error to an error that tells the operator what to do.

The client's texts are the only thing that tells failures apart; each row was seen with Docker 20.10 or later.
"""

from __future__ import annotations

from dataclasses import dataclass

from agent.errors import EngineError, EngineTimeout, EngineUnreachable

TIMEOUT_EXIT = (124, 137)
"""timeout(1) ended the client, with SIGTERM or SIGKILL."""


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
_ROWS = (
    _Row(("no space left on device",), "disk-full", "free some disk space"),
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
        (
            "connection refused",
            "no such host",
            "i/o timeout",
            "connection reset",
            "tls handshake",
            "server gave http response",
            "context deadline exceeded",
            "too many requests",
            "toomanyrequests",
            "temporary failure in name resolution",
            "network is unreachable",
            "500 internal server error",
            "502 bad gateway",
            "503 service unavailable",
        ),
        "registry-away",
    ),
    _Row(
        ("is already in use by container",),
        "name-taken",
        "a container that is not ours holds this name; remove or rename it",
    ),
    _Row(
        ("could not select device driver",),
        "no-gpu",
        "install the NVIDIA container toolkit on this node, or set gpu_count = 0",
    ),
    _Row(("no such image", "unable to find image"), "no-image"),
    _Row(("exec format error",), "wrong-platform", "the image is for another architecture", permanent=True),
    _Row(
        ("executable file not found", "no such file or directory: unknown"),
        "no-command",
        "the command does not exist in the image",
    ),
)


def translate(exit_code: int, stderr: str, doing: str) -> EngineError:
    """The error for a docker call that failed; `doing` says in a few words what was asked."""
    if exit_code in TIMEOUT_EXIT and not stderr.strip():
        return EngineTimeout("engine", f"{doing}: the container engine did not answer in time")
    text = _essence(stderr) or f"docker ended with exit code {exit_code}"
    lower = stderr.lower()
    for row in _UNREACHABLE:
        if any(needle in lower for needle in row.needles):
            return EngineUnreachable(row.kind, f"the container engine cannot be reached ({row.hint}): {text}")
    for row in _ROWS:
        if any(needle in lower for needle in row.needles):
            hint = f" ({row.hint})" if row.hint else ""
            return EngineError(row.kind, f"{doing}: {text}{hint}", permanent=row.permanent)
    return EngineError("failed", f"{doing}: {text}")


def _essence(stderr: str) -> str:
    """The line that says why, without the client's own decoration."""
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith(("See 'docker", "Run 'docker"))]
    text = " ".join(lines[-2:])
    for prefix in ("docker: ", "Error response from daemon: ", "Error: "):
        text = text.replace(prefix, "")
    return text[:600]
