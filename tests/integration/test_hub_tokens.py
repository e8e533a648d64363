"""Tokens, keys and joining at a real hub: its own command line beside it, raw HTTP, and restarts."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.integration.hub_process import TOKEN, HubProcess
from tests.integration.nursery import environment

NODE = {"hostname": "pi-1", "architecture": "aarch64", "cpu_count": 4, "agent_version": "1"}
BEAT = {"status": "Idle", "active_containers": 0}


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path)
    process.start()
    yield process
    process.end()


def run(
    hub: HubProcess, *arguments: str, stdin: str = "", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    if not stdin and not env:
        return hub.command(*arguments)
    command = [sys.executable, "-m", "hub.cli", "--config", str(hub.config), *arguments]
    return subprocess.run(
        command, input=stdin, capture_output=True, text=True, timeout=30, env=environment() | (env or {})
    )


def command(hub: HubProcess, *arguments: str) -> str:
    done = run(hub, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def create(hub: HubProcess, role: str, *options: str, ttl: str = "1h") -> str:
    return command(hub, "token", "create", "--role", role, "--ttl", ttl, *options).strip()


def listed(hub: HubProcess, *options: str) -> Any:
    return json.loads(command(hub, "token", "list", "--json", *options))


def kinds(hub: HubProcess) -> set[str]:
    """What the hub's file has of its audit trail."""
    with closing(sqlite3.connect(hub.database)) as database:
        return {kind for (kind,) in database.execute("SELECT DISTINCT kind FROM events")}


def test_a_token_is_made_listed_used_and_revoked(hub: HubProcess) -> None:
    done = run(hub, "token", "create", "--role", "operator", "--ttl", "30d", "--name", "alice")
    assert re.fullmatch(r"[\w-]+\.[\w-]+\.[\w-]+\n", done.stdout)
    assert "alice" in done.stderr
    alice = done.stdout.strip()
    assert alice not in done.stderr
    assert hub.post("/api/tasks", {"name": "a", "image": "a:1"}, token=alice).status == 201
    assert hub.get("/api/tokens", token=alice).status == 403
    (record,) = listed(hub)
    assert (record["role"], record["name"], record["status"]) == ("operator", "alice", "valid")
    assert "alice" in command(hub, "token", "list")
    assert alice not in command(hub, "token", "list") + json.dumps(record)
    command(hub, "token", "revoke", record["id"])
    command(hub, "token", "revoke", record["id"])
    assert hub.get("/api/tasks", token=alice).status == 401
    assert listed(hub, "--status", "valid") == []
    assert listed(hub, "--status", "revoked")[0]["id"] == record["id"]
    assert alice not in hub.log
    assert {"token-created", "token-revoked"} <= kinds(hub)


def test_keys_change_without_an_outage_and_a_retired_one_ends_its_tokens(hub: HubProcess) -> None:
    before = create(hub, "viewer")
    first = json.loads(command(hub, "key", "list", "--json"))[0]["id"]
    rotated = command(hub, "key", "rotate").strip()
    after = create(hub, "viewer")
    keys = json.loads(command(hub, "key", "list", "--json"))
    assert [(key["id"], key["signs"]) for key in keys] == [(rotated, True), (first, False)]
    assert [hub.get("/api/tasks", token=token).status for token in (before, after)] == [200, 200]
    command(hub, "key", "retire", first)
    assert [hub.get("/api/tasks", token=token).status for token in (before, after)] == [401, 200]
    refused = run(hub, "key", "retire", rotated)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "only key" in refused.stderr
    hub.stop()
    hub.start()
    assert [hub.get("/api/tasks", token=token).status for token in (before, after)] == [401, 200]


def test_the_command_line_says_plainly_what_is_wrong(hub: HubProcess, tmp_path: Path) -> None:
    viewer = create(hub, "viewer")
    (tmp_path / "viewer.token").write_text(viewer + "\n")
    cases = [
        (("token", "create", "--role", "operator", "--ttl", "soon"), 2, "30d"),
        (("token", "create", "--role", "join", "--ttl", "52w"), 1, "31 days"),
        (("token", "create", "--role", "viewer", "--ttl", "1d", "--node", "n"), 1, "role node"),
        (("token", "create", "--role", "viewer", "--ttl", "1d", "--name", "hub"), 1, "another name"),
        (("token", "revoke", "0000000000000000"), 1, "no token with this id"),
        (("token", "revoke", viewer), 2, "not its id"),
        (("key", "retire", "x/../y"), 1, ""),
        (("token", "list", "--token-file", str(tmp_path / "viewer.token")), 1, "403"),
        (("token", "list", "--token-file", str(tmp_path / "none")), 78, "no such file"),
        (("token", "list", "--url", "ftp://x"), 78, "https://HOST:PORT"),
        (("token", "list", "--url", "http://127.0.0.1:1"), 1, "Is computehub running?"),
    ]
    for arguments, code, text in cases:
        done = run(hub, *arguments)
        assert (done.returncode, done.stdout) == (code, ""), (arguments, done)
        assert text in done.stderr, (arguments, done.stderr)
        assert "Traceback" not in done.stderr
    # In this command's own words, and something did answer.
    done = run(hub, "token", "list", "--url", f"https://127.0.0.1:{hub.port}")
    assert "--url must begin with http://" in done.stderr
    assert "Is computehub running?" not in done.stderr
    hub.stop()
    done = run(hub, "token", "list")
    assert (done.returncode, done.stdout) == (1, "")
    assert "Is computehub running?" in done.stderr


def test_another_machine_gives_the_address_and_a_token_in_a_file_or_the_environment(
    hub: HubProcess, tmp_path: Path
) -> None:
    admin = create(hub, "admin", "--name", "bob")
    url = f"http://127.0.0.1:{hub.port}"
    arguments = [sys.executable, "-m", "hub.cli", "token", "list", "--json", "--url", url]
    nowhere = environment() | {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path)}
    for more, stdin, env in (
        (["--token-file", "-"], admin, nowhere),
        ([], "", nowhere | {"IDM_GRIDCORE_TOKEN": admin}),
    ):
        done = subprocess.run(
            [*arguments, *more], input=stdin, capture_output=True, text=True, timeout=30, env=env
        )
        assert done.returncode == 0, done.stderr
        assert [token["name"] for token in json.loads(done.stdout)] == ["bob"]


def test_a_node_exchanges_a_join_token_for_one_of_its_own_that_survives_restarts(hub: HubProcess) -> None:
    join = create(hub, "join", "--name", "shelf", ttl="10m")
    assert hub.get("/gridnode/task", token=join).status == 403
    assert hub.post("/gridnode/heartbeat", {**BEAT, "node_id": "x"}, token=join).status == 403
    joined = hub.post("/gridnode/register", {**NODE, "node_id": None}, token=join)
    assert joined.status == 200
    node_id, own = joined.json["node_id"], joined.json["token"]
    hub.kill()
    hub.start()
    assert hub.post("/gridnode/heartbeat", {**BEAT, "node_id": node_id}, token=own).json == {
        "stop_requested": False, "known": True, "drain": False,
    }  # fmt: skip
    # Its token says who it is, and it gets no other one.
    again = hub.post("/gridnode/register", NODE, token=own)
    assert (again.json["node_id"], "token" in again.json) == (node_id, False)
    assert hub.get(f"/gridnode/task?node_id={node_id}", token=own).status == 200
    for path, body in (
        ("/gridnode/register", {**NODE, "node_id": "another"}),
        ("/gridnode/heartbeat", {**BEAT, "node_id": "another"}),
        ("/gridnode/deregister", {"node_id": "another"}),
        ("/gridnode/logs", {"node_id": "another", "id": "x"}),
    ):
        assert hub.post(path, body, token=own).status == 403, path
    assert hub.get("/gridnode/task?node_id=another", token=own).status == 403
    assert hub.get("/api/nodes", token=own).status == 403
    (record,) = listed(hub, "--role", "node")
    assert (record["node"], record["created_by"]) == (node_id, "shelf")
    command(hub, "token", "revoke", record["id"])
    assert hub.post("/gridnode/heartbeat", {**BEAT, "node_id": node_id}, token=own).status == 401
    assert own not in hub.log
    assert join not in hub.log


def test_who_joins_again_with_the_same_token_gets_the_same_and_leaves_no_record_more(hub: HubProcess) -> None:
    join = create(hub, "join", ttl="10m")
    first, again = (
        hub.post("/gridnode/register", {**NODE, "node_id": "pi-1"}, token=join).json["token"]
        for _ in range(2)
    )
    assert first == again
    assert len(listed(hub, "--role", "node")) == 1


def test_a_copied_disk_gets_an_id_and_a_token_of_its_own_that_lives_no_longer(hub: HubProcess) -> None:
    join = create(hub, "join", ttl="10m")
    own = hub.post("/gridnode/register", {**NODE, "machine": "a"}, token=join).json
    copy = hub.post("/gridnode/register", {**NODE, "machine": "b"}, token=own["token"]).json
    assert copy["node_id"] != own["node_id"]
    expiries = {record["node"]: record["expires"] for record in listed(hub, "--role", "node")}
    assert expiries[copy["node_id"]] == expiries[own["node_id"]]
    for mine, other in ((own, copy), (copy, own)):
        beat = {**BEAT, "node_id": mine["node_id"]}
        assert hub.post("/gridnode/heartbeat", beat, token=mine["token"]).status == 200
        assert hub.post("/gridnode/heartbeat", beat, token=other["token"]).status == 403


def test_a_token_that_ends_soon_is_followed_by_another_one_with_a_heartbeat(hub: HubProcess) -> None:
    hub.stop()
    hub.config.write_text(hub.config.read_text() + "node_token_days = 0.0003\n")  # 25 s
    hub.start()
    join = create(hub, "join")
    own = hub.post("/gridnode/register", {**NODE, "node_id": "pi-1"}, token=join).json["token"]
    beat = {**BEAT, "node_id": "pi-1"}
    assert "token" not in hub.post("/gridnode/heartbeat", beat, token=own).json
    deadline = time.monotonic() + 24
    while "token" not in (answer := hub.post("/gridnode/heartbeat", beat, token=own).json):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert hub.post("/gridnode/heartbeat", beat, token=own).json["token"] == answer["token"]
    assert "token" not in hub.post("/gridnode/heartbeat", beat, token=answer["token"]).json
    assert len(listed(hub, "--node", "pi-1")) == 2


def test_the_shared_token_changes_without_an_outage(hub: HubProcess) -> None:
    hub.stop()
    text = hub.config.read_text()
    hub.config.write_text(
        text.replace(TOKEN, "a-new-secret-of-some-length") + f'previous_token = "{TOKEN}"\n'
    )
    hub.start()
    assert hub.get("/api/tasks", token=TOKEN).status == 200
    assert hub.get("/api/tasks", token="a-new-secret-of-some-length").status == 200
    hub.stop()
    hub.config.write_text(text.replace(TOKEN, "a-new-secret-of-some-length"))
    hub.start()
    assert hub.get("/api/tasks", token=TOKEN).status == 401


def test_the_audit_trail_tells_whom_a_trusted_proxy_spoke_for(hub: HubProcess) -> None:
    hub.stop()
    hub.config.write_text(hub.config.read_text() + 'trusted_proxies = ["127.0.0.1"]\n')
    hub.start()
    forwarded = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7"}
    hub.request("POST", "/api/tasks", {"name": "a", "image": "a:1"}, headers=forwarded)
    hub.request("GET", "/api/tasks", token="wrong", headers=forwarded)
    deadline = time.monotonic() + 20
    while "access-refused" not in kinds(hub):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    with closing(sqlite3.connect(hub.database)) as database:
        events = [json.loads(text) for (text,) in database.execute("SELECT event FROM events")]
    assert {event["source"] for event in events} == {"203.0.113.7"}
    assert "access refused" in hub.log


def test_no_help_is_missing_an_example() -> None:
    for group in ("token", "key"):
        done = subprocess.run(
            [sys.executable, "-m", "hub.cli", group, "--help"],
            capture_output=True, text=True, timeout=30, env=dict(os.environ),
        )  # fmt: skip
        assert f"computehub {group} " in done.stdout
