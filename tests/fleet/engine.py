"""The outer Docker engine, on which the hosts run: short calls of its command line, each with a deadline."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LABEL = "gridcore.fleet"  # on everything that we make; its value is the fleet's prefix

PROJECT = Path(__file__).resolve().parents[2]
MACHINE = Path(__file__).with_name("machine.sh")


class FleetError(Exception):
    """Something about the fleet went wrong; the text says what to do."""


def run(
    command: Sequence[str | Path],
    *,
    stdin: bytes | None = None,
    timeout: float = 120,
    cwd: Path | None = None,
) -> str:
    """Run a command and return what it printed; failure raises `FleetError` with its last words."""
    words = [str(word) for word in command]
    try:
        done = subprocess.run(words, input=stdin, capture_output=True, timeout=timeout, cwd=cwd, check=False)
    except FileNotFoundError:
        raise FleetError(f"{words[0]} is not installed; run {MACHINE}") from None
    except subprocess.TimeoutExpired:
        raise FleetError(f"no end after {timeout:.0f} s: {' '.join(words[:6])} …") from None
    if done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-8:]
        raise FleetError(f"{' '.join(words[:6])} … failed ({done.returncode}): {' / '.join(said)}")
    return done.stdout.decode(errors="replace").strip()


def docker(*arguments: str | Path, stdin: bytes | None = None, timeout: float = 120) -> str:
    """One call of the outer engine."""
    return run(["docker", *arguments], stdin=stdin, timeout=timeout)


def inspect(kind: str, *names: str) -> list[dict[str, Any]]:
    """The engine's own description of containers, images, networks or volumes."""
    found: list[dict[str, Any]] = json.loads(docker(kind, "inspect", *names)) if names else []
    return found


def labelled(kind: str, prefix: str) -> list[str]:
    """Names of what this fleet owns; `kind` is container, volume or network."""
    everything = ["--all"] if kind == "container" else []
    fields = "{{.Names}}" if kind == "container" else "{{.Name}}"
    return docker(kind, "ls", *everything, "--filter", f"label={LABEL}={prefix}", "--format", fields).split()


def image_exists(tag: str) -> bool:
    """Whether the outer engine holds this image."""
    return bool(docker("image", "ls", "--quiet", tag))
