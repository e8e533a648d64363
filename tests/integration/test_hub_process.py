"""The hub as a process: what it survives, what it writes, how it starts and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

import pytest

from gridcore.config import load, open_warning
from hub.settings import HubSettings, first_state
from tests.integration.hub_process import TOKEN, HubProcess
from tests.integration.many_hubs import eventually
from tests.integration.nursery import environment

FIRST_SCHEMA = """
CREATE TABLE list (revision TEXT NOT NULL);
CREATE TABLE tasks (
    name TEXT PRIMARY KEY, position INTEGER NOT NULL, status TEXT NOT NULL, definition TEXT NOT NULL,
    added_at REAL NOT NULL, started_at REAL, completed_at REAL
);
CREATE TABLE nodes (id TEXT PRIMARY KEY, record TEXT NOT NULL, live TEXT NOT NULL);
INSERT INTO list VALUES ('1-00000000000000aa');
INSERT INTO tasks VALUES ('a', 0, 'Running', '{"name": "a", "image": "x:1"}', 1.0, 2.0, NULL);
PRAGMA application_id = 0x47524944;
PRAGMA user_version = 1;
"""
FIRST_RECORD = {
    "id": "n", "hostname": "h", "architecture": "aarch64", "cpu_count": 4, "platform": "linux/arm64",
    "agent_version": "0.1.0", "labels": {}, "gpu_count": None, "machine": None, "presence": "online",
    "stop": "asked",
}  # fmt: skip
FIRST_LIVE = (
    '{"last_seen": 1700000000.0, "runtime_status": "Idle", "active_containers": 0, "task": null, '
    '"generation": null, "reason": null, '
    '"errors": [{"instance": null, "kind": "k", "message": "m", "time": 1.0}]}'
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubProcess]:
    process = HubProcess(tmp_path, fresh=True)
    yield process
    process.end()


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def computehub(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "hub.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        env={**environment(), **variables},
        check=False,
    )


def add(hub: HubProcess, name: str) -> int:
    return hub.post("/api/tasks", {"name": name, "image": "x:1"}).status


# --- The end -----------------------------------------------------------------------------------------------


@pytest.mark.shutdown
def test_sigterm_answers_held_requests_and_exits_0_within_2_s(hub: HubProcess, resources: ExitStack) -> None:
    hub.start()
    etag = hub.get("/gridnode/task").headers["ETag"]
    statuses: list[int] = []

    def hold() -> None:
        headers = {"If-None-Match": etag, "Prefer": "wait=50"}
        statuses.append(hub.get("/gridnode/task?node_id=a", headers=headers).status)

    held = [threading.Thread(target=hold) for _ in range(20)]
    for thread in held:
        thread.start()
    # What else may be open: a connection that idles, one that is half a request, one that owes its body.
    _idle, half, slow = (
        resources.enter_context(socket.create_connection(("127.0.0.1", hub.port))) for _ in range(3)
    )
    half.sendall(b"GET /gridnode/task HTTP/1.1\r\nHo")
    slow.sendall(
        f"POST /api/tasks HTTP/1.1\r\nHost: hub\r\nAuthorization: Bearer {TOKEN}\r\n"
        "Content-Length: 100\r\n\r\n{".encode()
    )
    time.sleep(0.7)
    begun_at = time.monotonic()
    assert hub.stop() == 0
    assert time.monotonic() - begun_at < 2
    for thread in held:
        thread.join(5)
    assert statuses == [304] * 20
    assert "Traceback" not in hub.log


@pytest.mark.shutdown
def test_systemd_hears_ready_and_stopping(
    hub: HubProcess, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        hub.start()
        assert manager.recv(100) == b"READY=1"
        assert hub.stop() == 0
        assert manager.recv(100) == b"STOPPING=1"


# --- What is on disk ---------------------------------------------------------------------------------------


def test_each_acknowledged_operation_was_synced_to_disk_before(tmp_path: Path) -> None:
    strace = shutil.which("strace")
    assert strace, "this test needs strace (apt-get install strace)"
    trace = tmp_path / "trace"
    hub = HubProcess(tmp_path, (strace, "-f", "-qq", "-e", "trace=fsync,fdatasync", "-o", str(trace)))

    def syncs() -> int:
        return sum("sync(" in line for line in trace.read_text().splitlines())

    hub.start()
    try:
        for number in range(10):
            before = syncs()
            assert add(hub, f"task-{number}") == 201
            assert syncs() > before
        for path in ("/api/tasks/next", "/api/tasks/finish"):
            before = syncs()
            assert hub.post(path).status == 200
            assert syncs() > before
        node = {"node_id": "n", "hostname": "h", "architecture": "x86_64", "cpu_count": 1}
        before = syncs()
        assert hub.post("/gridnode/register", node).status == 200
        assert syncs() > before
        before = syncs()
        for _ in range(10):
            hub.post("/gridnode/heartbeat", {"node_id": "n", "status": "Idle", "active_containers": 0})
        assert syncs() == before, "heartbeats must not cost disk writes"
        assert hub.post("/api/nodes/n/stop").status == 200
        assert syncs() > before
    finally:
        children = Path(f"/proc/{hub.process.pid}/task/{hub.process.pid}/children") if hub.process else None
        for child in children.read_text().split() if children else []:
            os.kill(int(child), 15)
        if hub.process:
            hub.process.wait(20)


@pytest.mark.parametrize("attempt", range(3))
def test_kill_9_in_the_middle_of_operations_loses_none_that_was_acknowledged(
    hub: HubProcess, attempt: int
) -> None:
    hub.start()
    acknowledged: list[str] = []

    def add_many(worker: int) -> None:
        for number in range(1_000):
            name = f"task-{worker}-{number}"
            try:
                if add(hub, name) == 201:
                    acknowledged.append(name)
            except (OSError, http.client.HTTPException):
                return

    workers = [threading.Thread(target=add_many, args=(worker,)) for worker in range(4)]
    for worker in workers:
        worker.start()
    time.sleep(0.5 + attempt * 0.3)
    hub.kill()
    for worker in workers:
        worker.join()
    hub.start()
    assert len(acknowledged) > 10
    assert set(acknowledged) <= set(hub.get("/api/tasks").json["pending"])


def test_the_state_is_private_from_its_first_moment(hub: HubProcess, tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        hub.start()
    finally:
        os.umask(previous)
    add(hub, "a")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("hub.db*")}
    assert set(modes) >= {"hub.db", "hub.db-wal", "hub.db-shm"}
    assert set(modes.values()) == {0o600}


# --- The start ---------------------------------------------------------------------------------------------


def refusal(hub: HubProcess) -> str:
    """The one line with which the hub refuses to start."""
    result = computehub("--config", str(hub.config))
    assert result.returncode == 78
    assert "Traceback" not in result.stderr
    (line,) = [line for line in result.stderr.splitlines() if "[warning" not in line]
    return line


def test_two_hubs_on_one_database_are_refused(hub: HubProcess, tmp_path: Path) -> None:
    hub.start()
    (tmp_path / "second").mkdir()
    second = HubProcess(tmp_path / "second")
    second.config.write_text(second.config.read_text().replace(str(second.database), str(hub.database)))
    assert "another hub" in refusal(second)
    assert hub.get("/api/tasks").status == 200


def test_an_address_in_use_is_one_clear_line(hub: HubProcess) -> None:
    with socket.create_server(("127.0.0.1", hub.port)):
        assert "Address already in use" in refusal(hub)


def test_a_name_that_does_not_resolve_is_one_clear_line(hub: HubProcess) -> None:
    hub.config.write_text(hub.config.read_text().replace("127.0.0.1:", "no-such-host.invalid:"))
    assert "bind: no-such-host.invalid" in refusal(hub)


def test_a_file_that_is_no_database_is_one_clear_line(hub: HubProcess) -> None:
    hub.database.write_text("This is not a database, but it is long enough to be taken for one. " * 100)
    assert "not a database" in refusal(hub)


def test_a_damaged_database_is_one_clear_line(hub: HubProcess) -> None:
    hub.start()
    for number in range(50):
        add(hub, f"task-{number}")
    assert hub.stop() == 0
    content = bytearray(hub.database.read_bytes())
    content[4096:-100] = os.urandom(len(content) - 4096 - 100)
    hub.database.write_bytes(content)
    assert str(hub.database) in refusal(hub)


def test_the_database_of_another_program_is_left_alone(hub: HubProcess) -> None:
    with closing(sqlite3.connect(hub.database)) as database:
        database.execute("CREATE TABLE theirs (a)")
    assert "not one of a hub" in refusal(hub)


def test_the_database_of_a_newer_hub_is_left_alone(hub: HubProcess) -> None:
    hub.start()
    hub.stop()
    with closing(sqlite3.connect(hub.database)) as database:
        database.execute("PRAGMA user_version = 99")
    assert "newer GridCore" in refusal(hub)


def test_the_database_of_the_first_hubs_is_used_as_it_is(hub: HubProcess) -> None:
    with closing(sqlite3.connect(hub.database)) as database:
        database.executescript(FIRST_SCHEMA)
        database.execute("INSERT INTO nodes VALUES ('n', ?, ?)", (json.dumps(FIRST_RECORD), FIRST_LIVE))
        database.commit()
    hub.start()
    assert hub.get("/api/tasks").json["current"] == "a"
    node = hub.get("/api/nodes/n").json
    assert (node["status"], node["stop_requested"], node["draining"]) == ("Online", True, False)
    assert (node["containers"], node["warnings"], node["paused"]) == ([], [], False)
    assert [error["message"] for error in node["errors"]] == ["m"]
    assert hub.post("/api/nodes/n/drain").status == 200
    revision = hub.get("/api/tasks/a").json["revision"]
    assert revision
    assert hub.stop() == 0
    hub.start()
    assert hub.get("/api/tasks/a").json["revision"] == revision
    assert hub.get("/api/nodes/n").json["draining"] is True
    with closing(sqlite3.connect(hub.database)) as database:
        assert database.execute("PRAGMA user_version").fetchone() == (3,)


def test_a_missing_directory_is_one_clear_line(hub: HubProcess, tmp_path: Path) -> None:
    hub.config.write_text(hub.config.read_text().replace(str(hub.database), str(tmp_path / "no" / "hub.db")))
    assert "No such file or directory" in refusal(hub)


@pytest.mark.parametrize("token", ["", "   ", "your-secret-token", "changeme"])
def test_an_empty_or_well_known_token_is_refused_and_not_repeated(hub: HubProcess, token: str) -> None:
    hub.config.write_text(hub.config.read_text().replace(TOKEN, token))
    assert "token:" in refusal(hub)


def test_an_unknown_kind_of_state_is_refused_without_its_password(hub: HubProcess) -> None:
    text = hub.config.read_text().replace(f"sqlite:///{hub.database}", "mysql://hub:hunter2@db/grid")
    hub.config.write_text(text)
    line = refusal(hub)
    assert "state: expected sqlite:///" in line
    assert "hunter2" not in line


def test_check_says_whether_the_file_is_valid(hub: HubProcess) -> None:
    good = computehub("--config", str(hub.config), "--check")
    assert (good.returncode, good.stderr) == (0, "")
    assert not hub.database.exists()
    hub.config.write_text(hub.config.read_text() + "bnd = 1\n")
    bad = computehub("--config", str(hub.config), "--check")
    assert bad.returncode == 78
    assert "bnd: unknown key; did you mean bind?" in bad.stderr


def test_a_first_start_without_a_file_shows_where_and_what(tmp_path: Path) -> None:
    result = computehub("--config", str(tmp_path / "computehub.toml"))
    assert result.returncode == 78
    assert str(tmp_path / "computehub.toml") in result.stderr
    assert 'bind = "0.0.0.0:8080"' in result.stderr


def test_init_writes_a_private_file_that_the_hub_accepts_and_never_overwrites_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "computehub.toml"
    first = computehub("init", "--config", str(path))
    assert first.returncode == 0
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    written = path.read_text()
    assert computehub("--config", str(path), "--check").returncode == 0
    assert computehub("init", "--config", str(path)).returncode == 78
    assert path.read_text() == written


def test_what_init_writes_works_as_it_is_for_whoever_ran_it(tmp_path: Path) -> None:
    path = tmp_path / "a b%?#" / "mine.toml"
    assert computehub("init", "--config", str(path)).returncode == 0
    checked = computehub("--config", str(path), "--check")
    assert (checked.returncode, checked.stderr) == (0, "")
    assert load(HubSettings, path, {}).database == path.with_name("mine.state.db")
    backed = computehub("backup", "--config", str(path), str(tmp_path / "b"))
    assert str(path.with_name("mine.state.db")) in backed.stderr, "a hub has not begun yet"
    assert first_state(Path("/etc/idm-gridcore/computehub.toml")) == Path("/var/lib/idm-gridcore/hub.db")


def test_the_check_warns_of_a_state_that_cannot_be_opened_and_makes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "computehub.toml"
    assert computehub("init", "--config", str(path)).returncode == 0
    for state in (tmp_path / "none" / "hub.db", tmp_path, path / "hub.db"):
        checked = computehub("--config", str(path), "--check", IDM_GRIDCORE_STATE=f"sqlite:///{state}")
        assert checked.returncode == 0, "a service's directory is made when it starts"
        assert checked.stderr.startswith(f"warning: state: {state} cannot be opened: "), checked.stderr
    assert list(tmp_path.iterdir()) == [path]


def test_the_check_and_a_start_warn_of_a_secret_that_everybody_can_read(hub: HubProcess) -> None:
    told = f"everybody on this machine can read {hub.config}, and it holds a secret; `chmod 600` it"
    assert computehub("--config", str(hub.config), "--check").stderr == ""
    hub.config.chmod(0o644)
    assert computehub("--config", str(hub.config), "--check").stderr == f"warning: {told}\n"
    hub.start()
    assert hub.log.count(told) == 1
    hub.config.write_text("node_token_days = 3\n")
    assert open_warning(hub.config) is None, "there is none in it"
    hub.config.write_text('state = "redis://:password@hub:6379/0"\n')
    assert open_warning(hub.config) is not None


def test_the_environment_can_name_the_file_and_override_its_keys(hub: HubProcess) -> None:
    named = computehub("--check", IDM_GRIDCORE_CONFIG=str(hub.config))
    assert named.stdout == f"{hub.config}: valid\n"
    overridden = computehub("--check", IDM_GRIDCORE_CONFIG=str(hub.config), IDM_GRIDCORE_BIND="nonsense")
    assert overridden.returncode == 78


def test_version_and_help_are_there() -> None:
    assert "computehub, version" in computehub("--version").stdout
    assert "computehub init" in computehub("--help").stdout


def test_a_hub_takes_as_many_connections_as_it_may(tmp_path: Path) -> None:
    hub = HubProcess(tmp_path, wrapper=("prlimit", "--nofile=64:5000")).start()
    try:
        held = [hub.connect() for _ in range(100)]
        for connection in held:
            connection.request("GET", "/health")
        assert {connection.getresponse().status for connection in held} == {200}
        for connection in held:
            connection.close()
    finally:
        hub.end()


def test_a_hub_that_tells_nobody_carries_no_http_client() -> None:
    code = "import sys, hub.cli, hub.serve; sys.exit('aiohttp' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


def test_a_hub_says_when_it_begins_with_nothing_so_that_an_emptied_file_is_seen(hub: HubProcess) -> None:
    told = "there was no state in the file: the hub begins with no tasks and no nodes"
    hub.start()
    assert hub.log.count(told) == 1
    assert hub.post("/api/tasks", {"name": "t", "image": "x:1"}).status == 201
    assert hub.stop() == 0
    hub.start()
    assert hub.log.count(told) == 1, "it goes on with what there is"
    assert hub.stop() == 0
    hub.database.write_bytes(b"")
    hub.start()
    assert hub.log.count(told) == 2


@pytest.mark.parametrize("gone", [("-wal",), ("-shm",), ("-wal", "-shm")])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_what_is_kept_beside_the_file_is_missed_before_a_change_is_acknowledged(
    hub: HubProcess, gone: tuple[str, ...], is_replaced: bool, tmp_path: Path
) -> None:
    hub.start()
    assert hub.post("/api/tasks", {"name": "kept", "image": "x:1"}).status == 201
    for end in gone:
        file = hub.database.with_name(hub.database.name + end)
        copy = file.read_bytes()
        file.unlink()
        if is_replaced:
            (tmp_path / "other").write_bytes(copy)
            (tmp_path / "other").rename(file)
    refused = hub.post("/api/tasks", {"name": "lost", "image": "x:1"})
    assert refused.status == 503
    assert refused.json["type"].endswith("state-lost")
    assert hub.get("/api/tasks").json["pending"] == ["kept"]
    if "-wal" in gone and not is_replaced:
        saved = hub.command("backup", str(tmp_path / "backup"))
        assert saved.returncode == 1
        assert "was removed while the hub runs" in saved.stderr
        assert not (tmp_path / "backup").exists()
        assert hub.stop() == 0
        hub.start()
        assert hub.get("/api/tasks").json["pending"] == ["kept"]


@contextmanager
def on_a_small_disk(tmp_path: Path, size: str) -> Iterator[tuple[HubProcess, Path]]:
    """A hub whose state is on a disk of its own, and a file by which that is filled."""
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(small)], check=True)
    hub = HubProcess(tmp_path, state=f"sqlite:///{small}/hub.db")
    try:
        yield hub, small / "filler"
    finally:
        hub.end()
        subprocess.run(["umount", str(small)], check=True)


def fill_up(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as filler:
        while True:
            filler.write(b"x" * 4096)


def test_a_state_on_a_full_disk_says_what_helps_there_and_goes_on_when_there_is_room(tmp_path: Path) -> None:
    with on_a_small_disk(tmp_path, "1m") as (hub, filler):
        hub.start()
        assert hub.post("/api/tasks", {"name": "t", "image": "x:1"}).status == 201
        fill_up(filler)
        more = {"name": "u", "image": "x" * 400}
        for answer in (hub.post("/api/tasks", more), hub.request("DELETE", "/api/tasks/t")):
            assert (answer.status, answer.json["type"].rpartition(":")[2]) == (503, "store-full")
            assert "Make room on its disk" in answer.json["detail"]
        assert hub.get("/api/tasks").json["pending"] == ["t"]
        filler.unlink()
        assert hub.request("DELETE", "/api/tasks/t").status == 204


def test_a_log_that_was_emptied_is_missed_and_one_that_a_checkpoint_cut_is_not(hub: HubProcess) -> None:
    hub.start()
    assert hub.post("/api/tasks", {"name": "kept", "image": "x:1"}).status == 201
    written = hub.database.with_name(hub.database.name + "-wal")
    with closing(sqlite3.connect(hub.database)) as shell:
        shell.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert written.stat().st_size == 0
    assert hub.post("/api/tasks", {"name": "too", "image": "x:1"}).status == 201
    os.truncate(written, 0)
    for _ in range(2):
        refused = hub.post("/api/tasks", {"name": "lost", "image": "x:1"})
        assert (refused.status, refused.json["type"].rpartition(":")[2]) == (503, "state-lost")
    assert hub.get("/api/tasks").json["pending"] == ["kept", "too"]
    hub.kill()
    hub.start()
    assert hub.get("/api/tasks").json["pending"] == ["kept"]  # the file itself is whole


def beside(hub: HubProcess, end: str) -> Path:
    return hub.database.with_name(hub.database.name + end)


def cut_the_log(hub: HubProcess, _old: Path) -> None:
    os.truncate(beside(hub, "-wal"), beside(hub, "-wal").stat().st_size // 2)


def blank_the_log(hub: HubProcess, _old: Path) -> None:
    with beside(hub, "-wal").open("r+b") as file:
        file.write(bytes(beside(hub, "-wal").stat().st_size))


def put_an_older_log_there(hub: HubProcess, old: Path) -> None:
    shutil.copyfile(old.with_name("older-wal"), beside(hub, "-wal"))


def empty_the_index(hub: HubProcess, _old: Path) -> None:
    os.truncate(beside(hub, "-shm"), 0)


def cut_the_index(hub: HubProcess, _old: Path) -> None:
    os.truncate(beside(hub, "-shm"), 100)


def cut_the_index_later(hub: HubProcess, _old: Path) -> None:
    os.truncate(beside(hub, "-shm"), 20_000)


def put_another_file_there(hub: HubProcess, old: Path) -> None:
    shutil.copyfile(old, hub.database)  # as with `cp backup hub.db` in place of a restore


def put_all_of_an_older_one_there(hub: HubProcess, old: Path) -> None:
    for end in ("", "-wal", "-shm"):
        shutil.copyfile(old.with_name(f"older{end}"), beside(hub, end))


@pytest.mark.parametrize(
    "damage",
    [
        cut_the_log,
        blank_the_log,
        put_an_older_log_there,
        empty_the_index,
        cut_the_index,
        cut_the_index_later,
        put_another_file_there,
        put_all_of_an_older_one_there,
    ],
)
def test_what_somebody_writes_into_the_open_files_is_missed_before_a_change_is_acknowledged(
    hub: HubProcess, damage: Callable[[HubProcess, Path], None], tmp_path: Path
) -> None:
    hub.start()
    for name in ("first", "second"):
        assert hub.post("/api/tasks", {"name": name, "image": "x:1"}).status == 201
    hub.stop()
    other = tmp_path / "other.db"
    shutil.copyfile(hub.database, other)
    hub.start()
    for number in range(20):
        assert hub.post("/api/tasks", {"name": f"more-{number}", "image": "x:1"}).status == 201
        if number == 10:
            hub.stop()
            hub.start()
    for end in ("", "-wal", "-shm"):
        shutil.copyfile(beside(hub, end), tmp_path / f"older{end}")
    assert hub.post("/api/tasks", {"name": "last", "image": "x:1"}).status == 201
    damage(hub, other if damage is put_another_file_there else tmp_path / "older")
    for _ in range(2):
        refused = hub.post("/api/tasks", {"name": "lost", "image": "x:1"})
        assert (refused.status, refused.json["type"].rpartition(":")[2]) == (503, "state-lost")
    assert "last" in hub.get("/api/tasks").json["pending"]
    assert hub.get("/api/events").status == 503
    assert hub.stop() == 0
    assert "Traceback" not in hub.log
    if damage in (empty_the_index, cut_the_index, cut_the_index_later):  # the log is whole
        hub.start()
        assert "last" in hub.get("/api/tasks").json["pending"]


def test_a_backup_of_a_file_that_is_not_the_hubs_any_more_is_refused(hub: HubProcess, tmp_path: Path) -> None:
    hub.start()
    assert hub.post("/api/tasks", {"name": "kept", "image": "x:1"}).status == 201
    blank_the_log(hub, tmp_path)
    saved = hub.command("backup", str(tmp_path / "backup"))
    assert (saved.returncode, "was cut or overwritten while the hub runs" in saved.stderr) == (1, True)
    with closing(sqlite3.connect(tmp_path / "other")) as shell:
        shell.execute("CREATE TABLE t (a)")
    (tmp_path / "other").replace(hub.database)
    saved = hub.command("backup", str(tmp_path / "backup"))
    assert (saved.returncode, "was replaced while the hub runs" in saved.stderr) == (1, True)
    hub.database.write_bytes(b"")
    hub.kill()
    saved = hub.command("backup", str(tmp_path / "backup"))
    assert (saved.returncode, "hub.db is empty" in saved.stderr) == (78, True), saved
    assert beside(hub, "-wal").exists(), "what is beside an empty file is left there"
    assert not (tmp_path / "backup").exists()


@pytest.mark.parametrize("how", ["PASSIVE", "FULL", "RESTART", "TRUNCATE"])
def test_what_another_program_does_through_sqlite_is_no_damage(hub: HubProcess, how: str) -> None:
    """As those do that copy the log away while the hub runs: they write a row of their own, too."""
    hub.start()
    with closing(sqlite3.connect(hub.database, timeout=10, isolation_level=None)) as shell:
        shell.execute("CREATE TABLE theirs (a)")
        for number in range(40):
            assert hub.post("/api/tasks", {"name": f"t-{number}", "image": "x:1"}).status == 201
            if number % 3:
                shell.execute(f"PRAGMA wal_checkpoint({how})")
            if number % 2:
                shell.execute("INSERT INTO theirs VALUES (randomblob(9000))")
        shell.execute("DROP TABLE theirs")
        shell.execute("VACUUM")
        assert hub.post("/api/tasks", {"name": "after", "image": "x:1"}).status == 201
    hub.kill()
    hub.start()
    assert len(hub.get("/api/tasks").json["pending"]) == 41


def test_a_start_that_fails_for_what_may_pass_says_so_and_does_not_end_for_good(
    hub: HubProcess, tmp_path: Path
) -> None:
    hub.start()
    assert hub.post("/api/tasks", {"name": "kept", "image": "x:1"}).status == 201
    assert hub.stop() == 0
    with closing(sqlite3.connect(hub.database, isolation_level=None)) as shell:
        shell.execute("BEGIN EXCLUSIVE")
        hub.spawn()
        assert hub.process is not None
        assert hub.process.wait(30) == 1  # 78 would be for good
        assert "Another program has locked it" in hub.log
    with on_a_small_disk(tmp_path, "600k") as (full, filler):
        full.start()
        assert full.post("/api/tasks", {"name": "kept", "image": "x:1"}).status == 201
        assert full.stop() == 0
        fill_up(filler)
        full.spawn()
        assert full.process is not None
        assert full.process.wait(30) == 1
        assert "full" in full.log
        assert "move it away" not in full.log + hub.log
        filler.unlink()
        full.start()
        assert full.get("/api/tasks").json["pending"] == ["kept"]


def test_a_log_on_a_full_disk_ends_no_hub(hub: HubProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_log", Path("/dev/full"))
    hub.spawn()
    assert hub.process is not None
    eventually(lambda: hub.get("/health").status == 200, "it answers")
    assert hub.post("/api/tasks", {"name": "t", "image": "x:1"}).status == 201
    assert hub.stop() == 0
