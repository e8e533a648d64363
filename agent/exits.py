"""How a container ended, in the operator's words. Pure.

The exit code alone does not tell: whoever asked for the end, the limit that was broken, and the last line of
an init that could not start its command all count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from agent.limits import Breach
from agent.memory_kills import Word
from agent.planner import Container

_INIT_FAILED = re.compile(rb"\[FATAL tini \(\d+\)\] exec (?P<command>.*) failed: (?P<why>.*)\n?")
"""All that a container writes whose init could not start its command: a program that ran wrote more."""
_INIT_CODES = (1, 126, 127)
_BAD_FORMAT = "exec format error"
_FILE_TOO_LARGE = 128 + 25
"""SIGXFSZ: a file grew beyond the limit."""
SIGKILLED = 128 + 9
_LAST_SIGNAL = 64
"""What exits with more was not killed: 255 is a program's own -1."""
INTERRUPTED = (137, 143, 255)
"""Exit codes of containers that go down with the engine or the machine. Others may end so, too."""


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
    kernel: Word = Word.UNKNOWN
    """What the kernel says of kills for memory."""


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
    was_for_memory = code == SIGKILLED and known.kernel is Word.CONTAINER
    if known.interrupted and code in INTERRUPTED and not was_for_memory:
        text = f"ended while the agent, the engine or the machine was away (exit code {code})"
        return Exit("interrupted", text, False)
    return _failure(container, log_tail, known.kernel)


def _failure(container: Container, log_tail: bytes, kernel: Word) -> Exit:
    code = container.exit_code
    if code in _INIT_CODES and (match := _INIT_FAILED.fullmatch(log_tail)):
        command, why = (match[name].decode(errors="replace").strip() for name in ("command", "why"))
        if why.lower() == _BAD_FORMAT:
            text = f"could not start: {command} is for another architecture (exec format error)"
            return Exit("wrong-platform", text, True)
        return Exit("no-command", f"could not start: {command}: {why}", True)
    if kernel is Word.CONTAINER or code == SIGKILLED:
        return _killed(code, container.memory_mb, kernel)
    if code == _FILE_TOO_LARGE:
        return Exit("disk", "wrote a file larger than the limit", True)
    if container.error:
        return Exit("failed", f"exit code {code}: {container.error}", True)
    if 128 < code <= 128 + _LAST_SIGNAL:
        return Exit("failed", f"exit code {code} (killed by signal {code - 128})", True)
    return Exit("failed", f"exit code {code}", True)


def _killed(code: int, limit_mb: int, kernel: Word) -> Exit:
    """SIGKILL that the agent did not send, or a kill for memory in a container that then ended otherwise."""
    limit = f"(limit {limit_mb} MB)"
    if code != SIGKILLED:
        text = f"exit code {code}, after the kernel killed a process of it for memory {limit}"
        return Exit("out-of-memory", text, True)
    match kernel:
        case Word.CONTAINER:
            return Exit("out-of-memory", f"out of memory {limit}", True)
        case Word.EARLIER:
            text = f"killed (SIGKILL) by something else, long after a process of it was for memory {limit}"
            return Exit("sigkill", text, True)
        case Word.NOTHING:
            text = "killed (SIGKILL) by something else: neither the agent nor the kernel for want of memory"
            return Exit("sigkill", text, True)
        case Word.MACHINE:
            text = (
                "killed (SIGKILL), and not by the agent; the kernel killed a process of this machine for want"
                f" of memory at about that time, whether in this container cannot be told {limit}"
            )
        case Word.UNKNOWN:
            text = "killed (SIGKILL), and not by the agent; whether for want of memory cannot be told here"
    return Exit("sigkill-unexplained", text, True)
