"""The control socket: who may ask what, and that nothing asked ends the agent."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from agent import control
from agent.control import AgentAway, AgentError, Control, ask


def _boom() -> dict[str, Any]:
    raise RuntimeError("boom")


HANDLERS: dict[str, Callable[[], dict[str, Any]]] = {
    "status": lambda: {"node": "n", "text": "ü" * 100},
    "boom": _boom,
    "long": lambda: {"text": "x" * control.MAX_ANSWER},
}


@asynccontextmanager
async def serving(directory: Path) -> AsyncIterator[Path]:
    task = asyncio.create_task(Control(directory, HANDLERS).run())
    path = directory / control.SOCKET_NAME
    while not task.done() and not path.exists():  # noqa: ASYNC110 # another process's file, in effect
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.02)
    try:
        yield directory
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def asked(directory: Path, what: str, **more: Any) -> dict[str, Any]:
    return await asyncio.to_thread(ask, directory, what, **more)


def said(directory: Path, line: bytes) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.settimeout(5)
        channel.connect(str(directory / control.SOCKET_NAME))
        with suppress(BrokenPipeError):
            channel.sendall(line)
        answer: dict[str, Any] = json.loads(channel.makefile("rb").readline())
        return answer


async def test_a_question_is_answered_and_only_the_owner_may_ask(tmp_path: Path) -> None:
    async with serving(tmp_path / "a" / "state") as directory:
        assert await asked(directory, "status") == HANDLERS["status"]()
        assert directory.stat().st_mode & 0o777 == 0o700
        assert (directory / control.SOCKET_NAME).stat().st_mode & 0o777 == 0o600
    assert list(directory.iterdir()) == []


async def test_a_path_longer_than_a_socket_address_works(tmp_path: Path) -> None:
    long = tmp_path / ("d" * 120) / ("e" * 120)
    async with serving(long):
        assert (await asked(long, "status"))["node"] == "n"


async def test_the_socket_of_a_killed_agent_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / control.SOCKET_NAME))
    with pytest.raises(AgentAway):
        ask(tmp_path, "status")
    async with serving(tmp_path):
        await asyncio.sleep(0.05)
        assert (await asked(tmp_path, "status"))["node"] == "n"


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"nonsense\n",
        b"[1]\n",
        b'{"do": 3}\n',
        b'{"do": ["status"]}\n',
        b"\xff\xfe\n",
        b"[" * 50_000 + b"\n",
        b"x" * (control.MAX_QUESTION * 3) + b"\n",
    ],
)
async def test_a_bad_question_gets_an_error_and_the_next_one_its_answer(tmp_path: Path, line: bytes) -> None:
    async with serving(tmp_path):
        assert "error" in await asyncio.to_thread(said, tmp_path, line)
        assert (await asked(tmp_path, "status"))["node"] == "n"


async def test_a_defect_and_an_endless_answer_are_told(tmp_path: Path) -> None:
    async with serving(tmp_path):
        with pytest.raises(AgentError, match="a defect in gridnode: boom failed"):
            await asked(tmp_path, "boom")
        with pytest.raises(AgentError, match="too long"):
            await asked(tmp_path, "long")
        with pytest.raises(AgentError, match="expected one of status, boom, long"):
            await asked(tmp_path, "dance")


async def test_silent_clients_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "PATIENCE", 0.2)
    async with serving(tmp_path):
        silent = [await asyncio.open_unix_connection(tmp_path / control.SOCKET_NAME) for _ in range(20)]
        for reader, writer in silent:
            assert b"error" in await reader.readline()
            writer.close()
        assert (await asked(tmp_path, "status"))["node"] == "n"


async def test_ending_does_not_wait_for_a_client(tmp_path: Path) -> None:
    async with serving(tmp_path):
        _, writer = await asyncio.open_unix_connection(tmp_path / control.SOCKET_NAME)
        await asyncio.sleep(0.05)
        began = asyncio.get_running_loop().time()
    assert asyncio.get_running_loop().time() - began < 1
    writer.close()


async def test_an_agent_that_cannot_make_its_socket_goes_on(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    await asyncio.wait_for(Control(tmp_path / "state", HANDLERS).run(), 5)
    (tmp_path / "other" / control.SOCKET_NAME / "x").mkdir(parents=True)
    await asyncio.wait_for(Control(tmp_path / "other", HANDLERS).run(), 5)


def test_no_agent_is_told_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(AgentAway, match=r"no gridnode runs with /etc/x\.toml; start it with `systemctl"):
        ask(tmp_path / "none", "status", config=Path("/etc/x.toml"))


def test_a_hung_agent_is_told(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as hung:
        hung.bind(str(tmp_path / control.SOCKET_NAME))
        hung.listen()
        with pytest.raises(AgentError, match=r"does not answer within 0\.2 s"):
            ask(tmp_path, "status", 0.2)


async def test_another_user_is_told_to_use_sudo(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.fail("this test takes another user's place, and needs root for that; CI and make test have it")
    for directory in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        directory.chmod(0o755)
    program = (
        "import os,sys; from pathlib import Path; from agent.control import ask\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: ask(Path(sys.argv[1]), 'status')\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    async with serving(tmp_path / "state") as directory:
        for mode in (0o700, 0o755):  # the socket itself says no, too
            directory.chmod(mode)
            done = await asyncio.to_thread(
                subprocess.run,
                [sys.executable, "-c", program, str(directory)],
                capture_output=True,
                text=True,
                check=True,
            )
            assert done.stdout.startswith("AgentError"), done
            assert "with sudo" in done.stdout
