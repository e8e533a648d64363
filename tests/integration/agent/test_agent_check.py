"""`gridnode check` starts one real container as a task's is started, and leaves nothing behind."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from agent.probe import program
from gridcore.platforms import AMD64, PLATFORMS
from tests.integration.agent.conftest import Agent, docker, eventually
from tests.integration.agent.fixed_hub import FixedHub, task


def check(config: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "agent.cli", "check", "--config", str(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def left_behind() -> list[str]:
    """Containers, images and volumes of checks."""
    lists = (
        docker("ps", "--all", "--format", "{{.Names}}"),
        docker("images", "--format", "{{.Repository}}"),
        docker("volume", "ls", "--format", "{{.Name}}"),
    )
    return [name for names in lists for name in names.splitlines() if name.startswith("idm-check-")]


def test_a_machine_that_runs_containers_is_good_and_its_agent_is_not_disturbed(
    make_agent: Callable[..., Agent], hub: FixedHub, images: dict[str, str]
) -> None:
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url).start()
    before = eventually(lambda: len(c := agent.containers()) == 2 and c, "two containers run")
    done = check(agent.config)
    assert done.returncode == 0, done.stderr
    assert "one container started, ran and ended" in done.stdout
    eventually(lambda: left_behind() == [], "nothing is left behind (another run may be checking now)")
    assert agent.containers() == before
    assert agent.stop() == 0


def test_terms_under_which_no_container_can_start_are_told_with_the_engines_words(
    make_agent: Callable[..., Agent], hub: FixedHub
) -> None:
    agent = make_agent(hub.url, network="there-is-none")
    done = check(agent.config)
    assert done.returncode == 1
    assert done.stderr.startswith("gridnode: this machine's container engine does not run containers: ")
    assert "network there-is-none not found" in done.stderr
    eventually(lambda: left_behind() == [], "nothing is left behind (another run may be checking now)")


def test_the_program_is_made_for_each_platform(tmp_path: Path) -> None:
    machines = {}
    for platform in PLATFORMS:
        path = tmp_path / "check"
        path.write_bytes(program(platform))
        header = subprocess.run(["readelf", "-hl", path], capture_output=True, text=True, check=True).stdout
        lines = [line.split(":", 1) for line in header.splitlines() if ":" in line]
        machines[platform] = next(value.strip() for key, value in lines if key.strip() == "Machine")
    assert list(machines.values()) == ["Advanced Micro Devices X86-64", "AArch64", "ARM"]
    path.write_bytes(program(AMD64))
    path.chmod(0o755)
    assert subprocess.run([path], check=False).returncode == 0
