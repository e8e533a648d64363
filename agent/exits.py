"""How a container ended, in the operator's words. Pure.

The exit code alone does not tell: whoever asked for the end, the limit that was broken, and the last line of
an init that could not start its command all count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.limits import Breach
from agent.planner import Container

_INIT_FAILED = re.compile(rb"\[FATAL tini \(\d+\)\] exec (?P<command>.*) failed: (?P<why>.*)")
_BAD_FORMAT = "exec format error"
_FILE_TOO_LARGE = 128 + 25
"""SIGXFSZ: a file grew beyond the limit."""
_TOO_LARGE = b"File too large"
"""EFBIG in words: programs that ignore SIGXFSZ, as Python does, end with an error that says this."""
INTERRUPTED = (137, 143, 255)
"""Exit codes of containers that went down with the engine or the machine."""


@dataclass(frozen=True)
class Circumstances:
    """What the agent knows beside the exit itself."""

    asked: bool = False
    """It was told to stop."""
    killed: bool = False
    """It did not stop in its time."""
    condemned: Breach | None = None
    """The limit that it broke."""
    interrupted: bool = False
    """The engine was away when it ended, or no agent was there to see it."""


@dataclass(frozen=True)
class Exit:
    """A short stable kind, the text for people, and whether its slot is to blame."""

    kind: str
    text: str
    is_failure: bool


def classify(container: Container, log_tail: bytes, known: Circumstances) -> Exit:
    """The exit of a container that has ended."""
    code = container.exit_code
    if known.condemned:
        return Exit("disk", str(known.condemned), True)
    if known.killed:
        return Exit("killed", f"did not stop within {container.stop_timeout:g} s", False)
    if known.asked:
        return Exit("stopped", f"stopped (exit code {code})" if code else "stopped", False)
    if code == 0:
        return Exit("finished", "finished", False)
    if known.interrupted and code in INTERRUPTED:
        return Exit("interrupted", "went down with the container engine or the machine", False)
    return _failure(container, log_tail)


def _failure(container: Container, log_tail: bytes) -> Exit:
    code = container.exit_code
    if match := _INIT_FAILED.search(log_tail[-4096:]):
        command, why = (match[name].decode(errors="replace").strip() for name in ("command", "why"))
        if why.lower() == _BAD_FORMAT:
            text = f"could not start: {command} is for another architecture (exec format error)"
            return Exit("wrong-platform", text, True)
        return Exit("no-command", f"could not start: {command}: {why}", True)
    if container.oom or code == 137:
        sure = "out of memory" if container.oom else "killed, probably out of memory"
        return Exit("out-of-memory", f"{sure} (limit {container.memory_mb} MB)", True)
    if code == _FILE_TOO_LARGE or _TOO_LARGE in log_tail[-4096:]:
        return Exit("disk", "wrote a file larger than the limit", True)
    if container.error:
        return Exit("failed", f"exit code {code}: {container.error}", True)
    if code > 128:
        return Exit("failed", f"exit code {code} (killed by signal {code - 128})", True)
    return Exit("failed", f"exit code {code}", True)
