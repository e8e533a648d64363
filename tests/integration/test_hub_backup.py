"""`computehub backup` and `restore`, on a real hub and on a real Redis."""

from __future__ import annotations

import json
import sqlite3
import stat
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import HubProcess
from tests.servers.redis_server import RedisServer


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path)
    yield process
    process.end()


def backup(hub: HubProcess, file: Path, *options: str) -> subprocess.CompletedProcess[str]:
    done = hub.command("backup", str(file), *options)
    assert done.returncode == 0, done.stderr
    return done


def restore(hub: HubProcess, file: Path) -> subprocess.CompletedProcess[str]:
    done = hub.command("restore", str(file))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "begins with no tasks" not in done.stderr, "no hub begins"
    return done


def add(hub: HubProcess, name: str, **fields: Any) -> None:
    assert hub.post("/api/tasks", {"name": name, "image": "x:1", **fields}).status == 201


def register(hub: HubProcess, node_id: str) -> None:
    body = {
        "node_id": node_id,
        "hostname": "h",
        "architecture": "x86_64",
        "cpu_count": 1,
        "agent_version": "1",
    }
    assert hub.post("/gridnode/register", body).status == 200


def begin(hub: HubProcess) -> None:
    """A hub with two tasks, the first of which is current, a drained node and a token."""
    hub.start()
    add(hub, "a", env={"KEY": "hunter2-and-more"})
    add(hub, "b")
    hub.post("/api/tasks/next")
    register(hub, "n")
    hub.post("/api/nodes/n/drain")


def test_what_was_backed_up_is_back_and_nodes_follow(hub: HubProcess, tmp_path: Path) -> None:
    begin(hub)
    before, file = hub.get("/api/tasks").json, tmp_path / "copy"
    backup(hub, file)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    etag = hub.get("/gridnode/task").headers["ETag"]
    hub.post("/api/tasks/finish")
    add(hub, "c")
    register(hub, "m")
    hub.stop()
    said = restore(hub, file).stdout
    assert "2 tasks, 1 nodes" in said
    (aside,) = tmp_path.glob("hub.db.before-restore-*")
    assert str(aside) in said
    assert stat.S_IMODE(hub.database.stat().st_mode) == 0o600
    hub.start()
    after = hub.get("/api/tasks").json
    assert {**after, "generation": None} == {**before, "generation": None}
    assert after["generation"] != before["generation"]
    task = hub.get("/gridnode/task", headers={"If-None-Match": etag})
    assert (task.status, task.json["task_name"]) == (200, "a")
    assert task.json["env"] == {"KEY": "hunter2-and-more"}
    (node,) = hub.get("/api/nodes").json
    assert (node["id"], node["draining"]) == ("n", True)
    kinds = [event["kind"] for event in hub.get("/api/events").json["events"]]
    assert kinds[0] == "restored"
    assert kinds.count("node-joined") == 2, "the trail forgets nothing of what was undone"
    assert kinds.count("task-added") == 3


def test_what_was_there_can_be_had_back(hub: HubProcess, tmp_path: Path) -> None:
    begin(hub)
    backup(hub, tmp_path / "copy")
    add(hub, "c")
    hub.kill()  # what is in SQLite's log beside the file must not be lost
    restore(hub, tmp_path / "copy")
    (aside,) = tmp_path.glob("hub.db.before-restore-*")
    aside.rename(hub.database)
    hub.start()
    assert hub.get("/api/tasks").json["pending"] == ["b", "c"]


def test_a_backup_while_others_write_holds_one_moment(hub: HubProcess, tmp_path: Path) -> None:
    hub.start()
    stopping, added = threading.Event(), list[str]()

    def write(client: int) -> None:
        while not stopping.is_set():
            name = f"t{client}-{len(added)}"
            if hub.post("/api/tasks", {"name": name, "image": "x:1"}).status == 201:
                added.append(name)

    writers = [threading.Thread(target=write, args=(client,)) for client in range(3)]
    for writer in writers:
        writer.start()
    acknowledged = list[list[str]]()
    for number in range(4):
        acknowledged.append(list(added))
        backup(hub, tmp_path / f"copy-{number}")
    stopping.set()
    for writer in writers:
        writer.join()
    for number, known in enumerate(acknowledged):
        lines = [json.loads(line) for line in (tmp_path / f"copy-{number}").read_text().splitlines()]
        tasks = {line["task"]["definition"]["name"] for line in lines if "task" in line}
        told = {line["event"]["task"] for line in lines if "event" in line}
        assert set(known) <= tasks
        assert tasks == told, "tasks and trail are of one moment"
    assert len(acknowledged[-1]) > len(acknowledged[0])


def test_a_revoked_token_stays_revoked_and_one_made_since_still_counts(
    hub: HubProcess, tmp_path: Path
) -> None:
    begin(hub)
    old = hub.post("/api/tokens", {"role": "viewer", "ttl": 3600}).json
    backup(hub, tmp_path / "copy")
    new = hub.post("/api/tokens", {"role": "viewer", "ttl": 3600}).json
    assert hub.request("DELETE", f"/api/tokens/{old['id']}").status in (200, 204)
    hub.stop()
    restore(hub, tmp_path / "copy")
    hub.start()
    assert hub.get("/api/tasks", token=old["token"]).status == 401
    assert hub.get("/api/tasks", token=new["token"]).status == 200


def test_a_running_hub_keeps_its_state(hub: HubProcess, tmp_path: Path) -> None:
    begin(hub)
    backup(hub, tmp_path / "copy")
    refused = hub.command("restore", str(tmp_path / "copy"))
    assert refused.returncode == 78
    assert "belongs to another hub that runs now" in refused.stderr
    assert hub.get("/api/tasks").json["current"] == "a"
    assert list(tmp_path.glob("*restor*")) == []


def test_a_backup_never_replaces_a_file_unless_told_to(hub: HubProcess, tmp_path: Path) -> None:
    begin(hub)
    (tmp_path / "copy").write_text("mine")
    refused = hub.command("backup", str(tmp_path / "copy"))
    assert refused.returncode == 1
    assert "exists already" in refused.stderr
    assert (tmp_path / "copy").read_text() == "mine"
    backup(hub, tmp_path / "copy", "--force")
    missing = hub.command("backup", str(tmp_path / "no" / "such" / "copy"))
    assert (missing.returncode, "cannot be written" in missing.stderr) == (1, True)


def _cut(lines: list[str]) -> list[str]:
    return lines[:-1]


def _changed(lines: list[str]) -> list[str]:
    return [line.replace("x:1", "evil:1") for line in lines]


def _newer(lines: list[str]) -> list[str]:
    return [lines[0].replace('"gridcore-backup":1', '"gridcore-backup":99'), *lines[1:]]


def _other(_lines: list[str]) -> list[str]:
    return ['{"some": "json"}']


def _empty(_lines: list[str]) -> list[str]:
    return []


@pytest.mark.parametrize(
    ("spoil", "told"),
    [(_cut, "cut off"), (_changed, "checksum differs"), (_newer, "schema 99"), (_other, "no backup"),
     (_empty, "no backup")],
)  # fmt: skip
def test_a_backup_that_is_not_whole_restores_nothing(
    hub: HubProcess, tmp_path: Path, spoil: Any, told: str
) -> None:
    begin(hub)
    file = tmp_path / "copy"
    backup(hub, file)
    hub.stop()
    file.write_text("".join(f"{line}\n" for line in spoil(file.read_text().splitlines())))
    before = hub.database.read_bytes()
    refused = hub.command("restore", str(file))
    assert refused.returncode == 1
    assert told in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1
    assert hub.database.read_bytes() == before


def test_a_damaged_state_can_be_replaced(hub: HubProcess, tmp_path: Path) -> None:
    begin(hub)
    backup(hub, tmp_path / "copy")
    hub.stop()
    hub.database.write_bytes(b"SQLite format 3\0" + b"\xff" * 8_000)
    assert hub.command("backup", str(tmp_path / "other")).returncode == 1
    restore(hub, tmp_path / "copy")
    hub.start()
    assert hub.get("/api/tasks").json["current"] == "a"


def test_a_new_hub_begins_with_a_backup(hub: HubProcess, tmp_path: Path) -> None:
    begin(hub)
    backup(hub, tmp_path / "copy")
    (tmp_path / "other").mkdir()
    other = HubProcess(tmp_path / "other")
    assert "before-restore" not in restore(other, tmp_path / "copy").stdout
    try:
        other.start()
        assert other.get("/api/tasks").json["current"] == "a"
        with sqlite3.connect(other.database) as database:
            assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        database.close()
    finally:
        other.end()


def test_a_state_in_memory_has_nothing_to_back_up(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path, state="memory:")
    for command in ("backup", "restore"):
        (tmp_path / "copy").unlink(missing_ok=True)
        assert hub.command(command, str(tmp_path / "copy")).returncode == 1


def test_a_fleet_moves_from_sqlite_to_redis_and_back(hub: HubProcess, tmp_path: Path) -> None:
    begin(hub)
    backup(hub, tmp_path / "copy")
    tasks = hub.get("/api/tasks").json
    hub.stop()
    (tmp_path / "redis").mkdir()
    with RedisServer(tmp_path / "server") as server:
        other = HubProcess(tmp_path / "redis", state=server.url)
        restore(other, tmp_path / "copy")
        try:
            other.start()
            moved = other.get("/api/tasks").json
            assert {**moved, "generation": None} == {**tasks, "generation": None}
            (node,) = other.get("/api/nodes").json
            assert (node["id"], node["draining"]) == ("n", True)
            add(other, "c")
            refused = other.command("restore", str(tmp_path / "copy"))
            assert (refused.returncode, "this Redis holds tasks" in refused.stderr) == (1, True)
            backup(other, tmp_path / "back")
        finally:
            other.end()
    restore(hub, tmp_path / "back")
    hub.start()
    assert hub.get("/api/tasks").json["pending"] == ["b", "c"]
    kinds = [event["kind"] for event in hub.get("/api/events").json["events"]]
    assert kinds.count("restored") == 2
