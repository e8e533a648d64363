"""Paths that lead nowhere, given to each command of hub and agent: one plain line, and never a traceback.

All of it runs without the capabilities of root, who may enter every directory.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.nursery import the_nursery

TOKEN = "4b1f0e7d9c2a4b1f8e7d9c2a61d35e77"

HUB_CONFIG = (
    ("--check",),
    (),
    ("init",),
    ("backup", "{good}/b"),
    ("restore", "{good}/b"),
    ("accept-loss", "--yes"),
    ("notify-test",),
    ("token", "list"),
    ("key", "list"),
)
AGENT_CONFIG = (("--check",), (), ("init",), ("status",), ("pause",), ("resume",), ("check",))
HUB_KEYS = {
    "state": 'state = "sqlite:///{bad}"',
    "password-file": 'state = "redis://localhost:1/0?password_file={bad}"',
    "redis-ca": 'state = "rediss://localhost:1/0?ca={bad}"',
    "certificate": 'tls_certificate = "{bad}"\ntls_key = "{good}/k"',
    "key": 'tls_certificate = "{good}/c"\ntls_key = "{bad}"',
    "secret-file": '[[notify]]\nurl = "http://127.0.0.1:1/"\nevents = ["*"]\nsecret_file = "{bad}"',
    "notify-ca": '[[notify]]\nurl = "https://127.0.0.1:1/"\nevents = ["*"]\nca_file = "{bad}"',
}
HUB_KEY_COMMANDS = (("--check",), ("backup", "{good}/b"), ("restore", "{good}/b"), ("notify-test",))
AGENT_KEYS = {"ca_file": 'ca_file = "{bad}"', "state_directory": 'state_directory = "{bad}"'}
KINDS = ("hidden", "below-a-file", "too-long", "loop", "directory")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="paths-"))
    (made / "hidden").mkdir()
    (made / "hidden" / "x").write_text("x")
    (made / "hidden").chmod(0)
    (made / "file").write_text("x")
    (made / "loop").symlink_to(made / "loop")
    (made / "directory").mkdir()
    (made / "good").mkdir()
    (made / "hub.toml").write_text(f'token = "{TOKEN}"\nbind = "127.0.0.1:0"\nstate = "memory:"\n')
    yield made
    (made / "hidden").chmod(0o700)
    shutil.rmtree(made)


def bad(place: Path, kind: str) -> str:
    names = {"hidden": "hidden/x", "below-a-file": "file/x", "too-long": "n" * 300}
    return str(place / names.get(kind, kind))


def run(program: str, place: Path, *words: str, **env: str) -> subprocess.CompletedProcess[str]:
    """As a user who may not enter `hidden`."""
    return the_nursery(program).run(words, 30, {"HOME": str(place / "good"), **env}, ordinary=True)


def is_plain(done: subprocess.CompletedProcess[str]) -> bool:
    """It failed, with a line that a person can read."""
    return "Traceback" not in done.stderr and done.returncode in (1, 2, 78) and done.stderr.strip() != ""


@pytest.mark.parametrize("kind", KINDS)
def test_no_configuration_in_such_a_place_ends_a_command_of_the_hub_with_a_traceback(
    place: Path, kind: str
) -> None:
    for words in HUB_CONFIG:
        given = [word.format(good=place / "good") for word in words]
        for options, env in ((["--config", bad(place, kind)], {}), ([], bad_variable(place, kind))):
            done = run("computehub", place, *options, *given, **env)
            assert is_plain(done), (options, given, done)


def bad_variable(place: Path, kind: str) -> dict[str, str]:
    return {"IDM_GRIDCORE_CONFIG": bad(place, kind)}


@pytest.mark.parametrize("kind", KINDS)
def test_no_configuration_in_such_a_place_ends_a_command_of_the_agent_with_a_traceback(
    place: Path, kind: str
) -> None:
    for words in AGENT_CONFIG:
        for options, env in ((["--config", bad(place, kind)], {}), ([], bad_variable(place, kind))):
            done = run("gridnode", place, *options, *words, **env)
            assert is_plain(done), (options, words, done)


@pytest.mark.parametrize("kind", KINDS)
def test_no_other_path_on_the_command_line_does(place: Path, kind: str) -> None:
    config, path = ["--config", str(place / "hub.toml")], bad(place, kind)
    for words in (
        ["backup", path],
        ["backup", "--force", path],
        ["restore", path],
        ["token", "list", "--url", "http://127.0.0.1:1", "--token-file", path],
        ["token", "list", "--url", "https://127.0.0.1:1", "--ca-file", path],
    ):
        done = run("computehub", place, *config, *words)
        assert is_plain(done), (words, done)
    done = run("gridnode", place, "--config", str(place / "good/n.toml"), "init", "--join-token-file", path)
    assert is_plain(done), done


@pytest.mark.parametrize("kind", [*KINDS, "null"])
@pytest.mark.parametrize("key", HUB_KEYS)
def test_no_path_in_the_hubs_configuration_does(place: Path, key: str, kind: str) -> None:
    path = r"/srv/a\u0000b" if kind == "null" else bad(place, kind)
    config = place / f"{key}-{kind}.toml"
    text = HUB_KEYS[key].format(bad=path, good=place / "good")
    base = f'token = "{TOKEN}"\nbind = "127.0.0.1:0"\n'
    if not text.startswith("state"):
        base += 'state = "memory:"\n'
    config.write_text(base + text + "\n")
    for words in HUB_KEY_COMMANDS:
        done = run(
            "computehub", place, "--config", str(config), *(w.format(good=place / "good") for w in words)
        )
        assert "Traceback" not in done.stderr, (words, done)
        assert done.returncode in (0, 1, 2, 78), (words, done)
    done = run("computehub", place, "--config", str(config))  # the hub itself: none of these lets it start
    assert is_plain(done), done


@pytest.mark.parametrize("kind", [*KINDS, "null"])
@pytest.mark.parametrize("key", AGENT_KEYS)
def test_no_path_in_the_agents_configuration_does(place: Path, key: str, kind: str) -> None:
    path = r"/srv/a\u0000b" if kind == "null" else bad(place, kind)
    config = place / f"{key}-{kind}-agent.toml"
    text = AGENT_KEYS[key].format(bad=path)
    config.write_text(f'server_url = "http://127.0.0.1:1"\ntoken = "{TOKEN}"\n{text}\n')
    for words in (("--check",), ("status",), ("pause",)):
        done = run("gridnode", place, "--config", str(config), *words)
        assert "Traceback" not in done.stderr, (words, done)
        assert done.returncode in (0, 1, 78), (words, done)


def test_what_hinders_is_told_with_what_to_do(place: Path) -> None:
    hidden = bad(place, "hidden")
    done = run("computehub", place, "--config", hidden, "--check")
    assert done.returncode == 78
    do = "run it as the user whom the file belongs to, or with sudo"
    assert done.stderr == f"{hidden}: cannot be read: Permission denied; {do}\n"
