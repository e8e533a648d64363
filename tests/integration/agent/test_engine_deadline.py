"""No docker call keeps the agent for ever, and none outlives it.

A daemon that hangs cannot be had here without hanging every other test's, so the `docker` command itself
is one that never answers; what a real engine does is in the tests beside this one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from agent.engine import Engine
from agent.errors import EngineTimeout, EngineUnreachable
from tests.integration.agent.conftest import eventually


@pytest.fixture
def mute_docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `docker` first on PATH that notes its process id, and a SIGTERM, and never ends by itself."""
    directory = tmp_path / "bin"
    directory.mkdir()
    command = directory / "docker"
    command.write_text(
        f"#!/bin/sh\ntrap 'echo term >> {tmp_path}/heard' TERM\necho $$ >> {tmp_path}/pids\n"
        "while :; do sleep 0.1; done\n"
    )
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")
    return tmp_path / "pids"


def alive(pids: Path) -> list[int]:
    return [number for number in called(pids) if Path(f"/proc/{number}").exists()]


def heard(pids: Path) -> bool:
    """Whether it got a signal that `docker run` passes on to the container that it starts."""
    return (pids.parent / "heard").exists()


def called(pids: Path) -> list[int]:
    return [int(line) for line in pids.read_text().split()] if pids.exists() else []


async def test_a_call_ends_at_its_deadline_and_so_does_its_child(mute_docker: Path) -> None:
    begin = time.monotonic()
    with pytest.raises(EngineTimeout, match="did not answer in time"):
        await Engine("owner", deadline=1).containers()
    assert time.monotonic() - begin < 30
    assert called(mute_docker)
    eventually(lambda: not alive(mute_docker), "its child is gone")
    assert not heard(mute_docker)


def test_a_call_under_way_dies_with_its_agent(mute_docker: Path) -> None:
    program = "import asyncio; from agent.engine import Engine; asyncio.run(Engine('owner').containers())"
    process = subprocess.Popen([sys.executable, "-c", program])
    eventually(lambda: alive(mute_docker), "the call is under way")
    process.send_signal(signal.SIGKILL)
    process.wait()
    eventually(lambda: not alive(mute_docker), "its child is gone")
    assert not heard(mute_docker)


def test_an_answer_that_came_while_the_agent_was_stopped_is_one(mute_docker: Path) -> None:
    command = mute_docker.parent / "bin" / "docker"
    command.write_text(f"#!/bin/sh\necho $$ >> {mute_docker}\nexec sleep 1\n")
    program = (
        "import asyncio; from agent.engine import Engine; asyncio.run(Engine('o', deadline=3).containers())"
    )
    process = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    eventually(lambda: alive(mute_docker), "the call is under way")
    process.send_signal(signal.SIGSTOP)
    time.sleep(10)
    process.send_signal(signal.SIGCONT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 0, said


async def test_a_machine_without_docker_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no.sock")
    with pytest.raises(EngineUnreachable, match="is dockerd running"):
        await Engine("owner").platform()
