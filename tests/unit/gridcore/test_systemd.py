"""What systemd is told: each assignment on its line, whatever is in it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from gridcore.systemd import notify


def test_a_text_begins_no_assignment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "s"))
        manager.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "s"))
        notify("READY=1", "STATUS=a\nMAINPID=1\r\u2028b \udcff")
        assert manager.recv(1000).decode() == "READY=1\nSTATUS=a MAINPID=1  b ?"
