"""One database, whatever it is called: a link leads no second hub, restore or backup past the first."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.hub_process import HubProcess
from tests.integration.nursery import environment

EXIT_CONFIG = 78
Linker = Callable[[Path, Path], None]
LINKS = [
    pytest.param(lambda new, old: new.symlink_to(old), id="symbolic"),
    pytest.param(lambda new, old: new.hardlink_to(old), id="hard"),
]


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path)
    process.start()
    assert process.post("/api/tasks", {"name": "a", "image": "x:1"}).status == 201
    process.post("/api/tasks/next")
    yield process
    process.end()


@pytest.fixture
def other(tmp_path: Path) -> Iterator[HubProcess]:
    """A hub whose state is to become a link to that of the first."""
    (tmp_path / "other").mkdir()
    process = HubProcess(tmp_path / "other")
    yield process
    process.end()


def run(hub: HubProcess, *arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """Run it, in a mount namespace of its own where a shell command comes first."""
    if not before:
        return hub.command(*arguments)
    command = [sys.executable, "-m", "hub.cli", "--config", str(hub.config), *arguments]
    namespace = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]
    command = [*namespace, "sh", "-ec", f'{before}; exec "$@"', "sh", *command]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment(), check=False)


@pytest.mark.parametrize("link", LINKS)
def test_a_second_hub_on_a_link_to_the_database_is_refused(
    hub: HubProcess, other: HubProcess, link: Linker
) -> None:
    link(other.database, hub.database)
    other.spawn()
    assert other.process is not None
    assert other.process.wait(30) == EXIT_CONFIG
    assert "belongs to another hub that runs now" in other.log
    assert hub.post("/api/tasks", {"name": "b", "image": "x:1"}).status == 201


@pytest.mark.parametrize("link", LINKS)
def test_a_restore_through_a_link_under_a_running_hub_changes_nothing(
    hub: HubProcess, other: HubProcess, tmp_path: Path, link: Linker
) -> None:
    assert run(hub, "backup", str(tmp_path / "copy")).returncode == 0
    assert hub.post("/api/tasks", {"name": "b", "image": "x:1"}).status == 201
    link(other.database, hub.database)
    before = other.database.lstat().st_ino
    refused = run(other, "restore", str(tmp_path / "copy"))
    assert (refused.returncode, refused.stdout) == (EXIT_CONFIG, "")
    assert "belongs to another hub that runs now" in refused.stderr
    assert other.database.lstat().st_ino == before
    assert hub.get("/api/tasks").json["pending"] == ["b"]
    assert list(tmp_path.rglob("*restor*")) == []


def test_a_restore_through_a_symbolic_link_replaces_what_it_leads_to(
    hub: HubProcess, other: HubProcess, tmp_path: Path
) -> None:
    assert run(hub, "backup", str(tmp_path / "copy")).returncode == 0
    hub.post("/api/tasks", {"name": "b", "image": "x:1"})
    hub.stop()
    other.database.symlink_to(hub.database)
    done = run(other, "restore", str(tmp_path / "copy"))
    assert done.returncode == 0, done.stderr
    assert other.database.is_symlink()
    (aside,) = tmp_path.rglob("hub.db.before-restore-*")
    assert aside.parent == hub.database.parent
    hub.start()
    assert hub.get("/api/tasks").json["pending"] == []


def test_a_database_with_two_names_is_not_used_by_either(
    hub: HubProcess, other: HubProcess, tmp_path: Path
) -> None:
    assert run(hub, "backup", str(tmp_path / "copy")).returncode == 0
    hub.stop()
    other.database.hardlink_to(hub.database)
    for arguments in ([], ["backup", str(tmp_path / "more")], ["restore", str(tmp_path / "copy")]):
        refused = run(other, *arguments)
        assert refused.returncode == EXIT_CONFIG, arguments
        assert "has 2 names (hard links)" in refused.stderr
    other.database.unlink()
    hub.start()


def test_a_backup_to_a_link_writes_what_it_leads_to(hub: HubProcess, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    link, target = tmp_path / "copy", tmp_path / "elsewhere" / "copy"
    link.symlink_to(target)
    assert run(hub, "backup", str(link)).returncode == 0
    refused = run(hub, "backup", str(link))
    assert (refused.returncode, "exists already" in refused.stderr) == (1, True)
    target.write_text("old")
    assert run(hub, "backup", str(link), "--force").returncode == 0
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert target.read_text().startswith('{"gridcore-backup"')


def test_a_backup_replaces_no_file_of_the_hub_and_no_device(hub: HubProcess, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(hub.database)
    own = [hub.database, link, hub.config, hub.database.with_name("hub.db-wal")]
    for file in own:
        refused = run(hub, "backup", str(file), "--force")
        assert (refused.returncode, "is a file of the hub itself" in refused.stderr) == (1, True), file
    refused = run(hub, "backup", "/dev/full", "--force")
    assert (refused.returncode, "is no regular file" in refused.stderr) == (1, True)
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)
    hub.stop()
    hub.start()
    assert hub.get("/api/tasks").json["current"] == "a"


@pytest.mark.parametrize("state", ["running", "stopped", "killed", "killed, and its index is lost"])
def test_a_backup_of_what_is_on_a_read_only_disk_has_all_of_it(
    hub: HubProcess, tmp_path: Path, state: str
) -> None:
    (tmp_path / "out").mkdir()
    disk, out = tmp_path / "disk", tmp_path / "out" / "copy"
    disk.mkdir()
    hub.stop()
    moved = disk / "hub.db"
    shutil.move(hub.database, moved)
    hub.config.write_text(hub.config.read_text().replace(str(hub.database), str(moved)))
    hub.start()
    hub.post("/api/tasks", {"name": "b", "image": "x:1"})
    if state == "stopped":
        hub.stop()
    elif state != "running":
        hub.kill()
    if "lost" in state:
        moved.with_name("hub.db-shm").unlink()
    read_only = f"mount --bind {disk} {disk}; mount -o remount,bind,ro {disk}; ! touch {disk}/x 2>/dev/null"
    done = run(hub, "backup", str(out), before=read_only)
    assert done.returncode == 0, done.stderr
    assert "2 tasks" in done.stdout
    hub.end()
    hub.start()
    assert hub.get("/api/tasks").json["pending"] == ["b"]
    hub.stop()
    with sqlite3.connect(moved) as database:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    database.close()
