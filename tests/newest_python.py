"""Print the newest CPython of this machine that is newer than the running one, or nothing.

Looked for on PATH and among pyenv's versions.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ASK = "import sys, venv; print(sys.implementation.name, *sys.version_info[:3], sys.version_info.releaselevel)"


def candidates() -> Iterator[Path]:
    """Every python3.x that may be one."""
    for directory in os.get_exec_path():
        for path in Path(directory).glob("python3.*"):
            if re.fullmatch(r"python3\.\d+", path.name):
                yield path
    yield from Path.home().glob(".pyenv/versions/*/bin/python3")


def version(path: Path) -> tuple[int, int, int] | None:
    """Its version if it is a released CPython that works, else None."""
    try:
        asked = subprocess.run([path, "-c", ASK], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    words = asked.stdout.split()
    if len(words) != 5 or words[0] != "cpython" or words[4] != "final":
        return None
    major, minor, micro = (int(word) for word in words[1:4])
    return major, minor, micro


def main() -> None:
    """Print the path, or nothing."""
    found = {path: number for path in candidates() if (number := version(path)) is not None}
    newest = max(found, key=lambda path: found[path], default=None)
    if newest is not None and found[newest][:2] > sys.version_info[:2]:
        print(newest)


if __name__ == "__main__":
    main()
