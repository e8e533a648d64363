"""`gridnode status`, `pause` and `resume` as commands, against the agent's own end of the socket."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from agent.control import SOCKET_NAME, Control
from agent.machine import state_directory
from agent.report import Report
from agent.settings import Settings
from agent.status import status_of
from agent.terms import Owner
from gridcore.config import load
from tests.unit.agent.until import until

GOOD = 'server_url = "http://hub:8080"\ntoken = "t0ken-of-the-fleet"\n'


def write(config: Path, more: str) -> None:
    config.write_text(GOOD + more)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "gridnode.toml"
    path.write_text(GOOD)
    return path


@asynccontextmanager
async def agent_of(config: Path) -> AsyncIterator[Owner]:
    settings = load(Settings, config, {})
    directory = state_directory(config, settings.state_directory)
    owner = Owner(settings, directory, lambda: 0, lambda _: None)
    control = Control(
        directory,
        {
            "status": lambda: status_of(
                Report(), settings, owner.permit, node_id="n1", away=None, paused_for=owner.paused_for
            ),
            "pause": owner.pause,
            "resume": owner.resume,
        },
    )
    task = asyncio.create_task(control.run())
    await until((directory / SOCKET_NAME).exists)
    try:
        yield owner
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def said(config: Path, *arguments: str) -> str:
    done = await asyncio.to_thread(run, "--config", str(config), *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


async def test_an_owner_asks_pauses_and_resumes(config: Path) -> None:
    async with agent_of(config) as owner:
        assert "containers may run" in await said(config, "status")
        paused = await said(config, "pause")
        assert paused == (
            "gridnode: paused: containers are frozen for up to 600 s, then stopped gracefully; "
            "`gridnode resume` goes on\n"
        )
        assert owner.permit.paused
        assert (await said(config, "pause")).startswith("gridnode: already paused: containers are frozen")
        status = json.loads(await said(config, "status", "--json"))
        assert status["permit"] == {"refuse": None, "freeze": "paused by its owner", "paused": True}
        assert 0 <= status["paused_for"] < 60
        assert await said(config, "resume") == "gridnode: resumed: containers may run\n"
        assert await said(config, "resume") == "gridnode: was not paused: containers may run\n"
        assert not owner.permit.paused


async def test_a_file_that_has_become_bad_does_not_hinder_its_owner(config: Path) -> None:
    async with agent_of(config):
        write(config, "paralelism = 3\n")
        assert "paused" in await said(config, "pause")


async def test_with_no_time_to_freeze_containers_are_stopped(config: Path) -> None:
    write(config, "freeze_max = 0\n")
    async with agent_of(config):
        assert "paused: containers are stopped gracefully" in await said(config, "pause")


async def test_another_version_is_no_traceback(config: Path) -> None:
    directory = state_directory(config, None)
    control = Control(directory, {name: lambda: {"new": 1} for name in ("status", "pause", "resume")})
    task = asyncio.create_task(control.run())
    await until((directory / SOCKET_NAME).exists)
    for what in ("status", "pause", "resume"):
        done = await asyncio.to_thread(run, "--config", str(config), what)
        assert (done.returncode, "another version" in done.stderr) == (1, True), done
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


@pytest.mark.parametrize("what", ["status", "pause", "resume"])
def test_without_an_agent_it_says_how_to_start_one(config: Path, what: str) -> None:
    done = run(what, "--config", str(config))
    assert done.returncode == 1
    assert done.stderr == (
        f"gridnode: no gridnode runs with {config}; start it with `systemctl start gridnode` or `gridnode`\n"
    )
    assert not state_directory(config, None).exists()


def test_without_a_configuration_it_is_a_matter_of_configuration(tmp_path: Path) -> None:
    done = run("status", "--config", str(tmp_path / "none.toml"))
    assert (done.returncode, "there is no such file" in done.stderr) == (78, True)
    (tmp_path / "bad.toml").write_text("= 3")
    done = run("status", "--config", str(tmp_path / "bad.toml"))
    assert (done.returncode, "not valid TOML" in done.stderr) == (78, True)


def test_check_warns_of_what_this_machine_lacks(config: Path) -> None:
    write(config, 'cpus = "0-4000"\nallowed_images = []\n')
    done = run("--config", str(config), "--check")
    assert (done.returncode, done.stdout) == (0, f"{config}: good\n")
    assert 'gridnode: warning: cpus: "0-4000" names CPU' in done.stderr
    assert "gridnode: warning: allowed_images: empty" in done.stderr
