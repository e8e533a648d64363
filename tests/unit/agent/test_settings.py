"""gridnode.toml: read with clear errors, written back with care."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.settings import Settings, example, write_node_id
from gridcore.config import load
from gridcore.errors import ConfigError

GOOD = 'server_url = "http://hub:8080"\ntoken = "t0ken"\n'


def settings_of(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> Settings:
    path = tmp_path / "gridnode.toml"
    path.write_text(text)
    return load(Settings, path, env or {})


def test_the_defaults_are_the_protocols(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, GOOD)
    assert (settings.heartbeat_interval, settings.stop_timeout, settings.container_memory) == (30, 30, 1024)
    assert (settings.parallelism, settings.node_id, settings.max_stop_timeout) == (None, None, 600)


@pytest.mark.parametrize(
    ("extra", "key", "expected"),
    [
        ("heartbeat_interval = 46", "heartbeat_interval", "less than or equal to 45"),
        ("heartbeat_intervall = 3", "heartbeat_intervall", "did you mean heartbeat_interval?"),
        ("parallelism = 0", "parallelism", "greater than or equal to 1"),
        ('parallelism = "two"', "parallelism", "integer"),
        ('node_id = "-x"', "node_id", "pattern"),
        ('architecture = "armv6l"', "architecture", "expected x86_64, aarch64 or arm"),
        ("= 3", "", "not valid TOML"),
        ('hours = "22-7"', "hours", 'such as "22:00-07:00"'),
        ('hours = "24:00-07:00"', "hours", 'such as "22:00-07:00"'),
        ('hours = "07:00-07:00"', "hours", 'such as "22:00-07:00"'),
        ("cpus = 0", "cpus", "at least 1"),
        ('cpus = "3-1"', "cpus", 'such as "0-3,6"'),
        ('cpus = "0,"', "cpus", 'such as "0-3,6"'),
        ("cpus = true", "cpus", 'such as "0-3,6"'),
        ('allowed_images = "a/*"', "allowed_images", 'a list, such as ["a/*"]'),
        ("cpus = [1]", "cpus", 'such as "0-3,6"'),
        ('mounts = "/a:/b"', "mounts", 'a list, such as ["/a:/b"]'),
        ('capabilities = ["--privileged"]', "capabilities.0", 'such as "NET_RAW"'),
        ('mounts = ["data:/data"]', "mounts.0", '"/on/this/machine:/in/the/container"'),
        ('mounts = ["/data:/data:z"]', "mounts.0", '"/on/this/machine:/in/the/container"'),
        ('mounts = ["/data:/scratch/"]', "mounts.0", "not free for a mount"),
        ('mounts = ["/data:/x/../scratch"]', "mounts.0", "not free for a mount"),
        ('mounts = ["/data:/"]', "mounts.0", "not free for a mount"),
        ('network = "--host"', "network", "pattern"),
        ("yield_load = 0", "yield_load", "greater than 0"),
        ("cpu_shares = 1", "cpu_shares", "greater than or equal to 2"),
        ('state_directory = "here"', "", "expected an absolute path"),
    ],
)
def test_a_bad_value_names_file_key_and_expectation(
    tmp_path: Path, extra: str, key: str, expected: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, GOOD + extra)
    assert str(caught.value).startswith(f"{tmp_path}/gridnode.toml: {key}")
    assert expected in str(caught.value)


def test_the_owners_terms_are_strict_by_default(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, GOOD)
    assert (settings.capabilities, settings.mounts, settings.new_privileges) == ((), (), False)
    assert (settings.network, settings.cpu_shares, settings.oom_score) == ("bridge", 2, 500)
    assert (settings.allowed_images, settings.hours, settings.cpus, settings.yield_load) == (None,) * 4


def test_the_owner_can_loosen_them(tmp_path: Path) -> None:
    settings = settings_of(
        tmp_path,
        GOOD + 'allowed_images = ["a/*"]\nhours = "22:00-07:00"\ncpus = "0-3,6"\ncapabilities = ["NET_RAW"]\n'
        'mounts = ["/data:/data:ro", "/x:/y"]\nnetwork = "host"\nnew_privileges = true\n',
    )
    assert settings.cpus == "0-3,6"
    assert settings.mounts == ("/data:/data:ro", "/x:/y")
    assert (settings.network, settings.capabilities) == ("host", ("NET_RAW",))
    assert settings_of(tmp_path, GOOD, {"IDM_GRIDCORE_CPUS": "2"}).cpus == 2
    assert settings_of(tmp_path, GOOD, {"IDM_GRIDCORE_CPUS": "0-1"}).cpus == "0-1"


def test_a_bad_token_is_not_repeated(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        settings_of(tmp_path, 'server_url = "hub:8080"\ntoken = "my secret"\n')
    assert "my secret" not in str(caught.value)
    assert len(str(caught.value).splitlines()) == 2


def test_the_environment_wins(tmp_path: Path) -> None:
    settings = settings_of(tmp_path, GOOD, {"IDM_GRIDCORE_PARALLELISM": "3", "IDM_GRIDCORE_TOKEN": "other"})
    assert (settings.parallelism, settings.token) == (3, "other")


def test_the_example_is_complete_but_for_the_token(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="token: is not set"):
        settings_of(tmp_path, example())
    assert settings_of(tmp_path, example().replace("paste-the-token-of-the-hub-here", "t0ken"))


def test_the_node_id_replaces_an_old_one_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "gridnode.toml"
    text = f'# mine\nnode_id = "old"   # by hand\n{GOOD}\n[labels]\nroom = "x"  # here\n'
    path.write_text(text)
    path.chmod(0o640)
    write_node_id(path, "new")
    assert path.read_text() == text.replace('"old"', '"new"')
    assert path.stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["gridnode.toml"]


def run(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "agent.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **env},
    )


def test_the_command_line(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "gridnode.toml"
    missing = run(IDM_GRIDCORE_CONFIG=str(path))
    assert missing.returncode == 78
    assert str(path) in missing.stderr
    assert "server_url" in missing.stderr
    assert run("--config", str(path), "init").returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    again = run("--config", str(path), "init")
    assert (again.returncode, "exists already" in again.stderr) == (78, True)
    unset = run("--config", str(path), "--check")
    assert unset.returncode == 78
    assert unset.stderr.startswith(f"gridnode: {path}: token: ")
    path.write_text(GOOD)
    assert run("--config", str(path), "--check").returncode == 0
    assert run("--version").stdout.startswith("gridnode, version ")
    gone = run("--config", str(tmp_path / "none.toml"))
    assert gone.returncode == 78
    assert "there is no such file" in gone.stderr
