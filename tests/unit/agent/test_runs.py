"""The last three runs of a slot, on disk."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from agent.runs import Run, Runs, cut


def a_run(number: int, instance: int = 0, **more: Any) -> Run:
    values: dict[str, Any] = {
        "instance": instance,
        "task": "squares",
        "generation": "7-9f",
        "container": f"c{number}",
        "image": "squares:1",
        "started": 100.0 + number,
        "ended": 101.5 + number,
        "exit_code": 3,
        "kind": "failed",
        "message": "exit code 3",
    }
    return Run(**(values | more))


def test_nothing_is_known_and_nothing_written_before_the_first_run(tmp_path: Path) -> None:
    runs = Runs(tmp_path / "runs")
    assert runs.last(0) is None
    assert runs.log(0, 1) is None
    assert not (tmp_path / "runs").exists()


def test_the_last_three_runs_survive_the_agent_newest_first(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for number in range(1, 6):
        runs.keep(a_run(number), f"log {number}\n".encode())
    for seen in (runs, Runs(tmp_path)):
        assert seen.last(0) == a_run(5)
        assert [seen.log(0, previous) for previous in (1, 2, 3)] == [
            (a_run(number), f"log {number}\n".encode()) for number in (5, 4, 3)
        ]
        assert seen.log(0, 4) is None
        assert seen.log(0, 0) is None
    assert len(list((tmp_path / "0").iterdir())) == 3
    Runs(tmp_path).keep(a_run(6), b"")
    assert Runs(tmp_path).last(0) == a_run(6)


def test_slots_are_apart(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.keep(a_run(1, 0), b"a")
    runs.keep(a_run(2, 4095), b"b")
    assert Runs(tmp_path).log(4095, 1) == (a_run(2, 4095), b"b")
    assert runs.last(1) is None
    assert runs.log(10**9, 1) is None
    assert runs.log(-1, 1) is None


def test_a_run_without_exit_code_or_message_is_kept(tmp_path: Path) -> None:
    run = a_run(1, exit_code=None, message=None, kind="disk", task='quoted "ä"\n')
    Runs(tmp_path).keep(run, b"\nfirst line empty\n")
    assert Runs(tmp_path).log(0, 1) == (run, b"\nfirst line empty\n")


def test_an_agent_killed_before_it_removed_a_container_does_not_make_two_runs_of_it(tmp_path: Path) -> None:
    Runs(tmp_path).keep(a_run(1, kind="disk"), b"log")
    runs = Runs(tmp_path)
    runs.keep(a_run(1, kind="killed"), b"log")
    assert runs.log(0, 1) == (a_run(1, kind="disk"), b"log")
    assert runs.log(0, 2) is None


def test_others_cannot_read_logs(tmp_path: Path) -> None:
    Runs(tmp_path / "a" / "runs").keep(a_run(1), b"secret")
    for path in (tmp_path / "a" / "runs", tmp_path / "a" / "runs" / "0"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    (file,) = (tmp_path / "a" / "runs" / "0").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_a_long_log_loses_its_start(tmp_path: Path) -> None:
    log = b"".join(b"line %d\n" % number for number in range(20_000))
    Runs(tmp_path).keep(a_run(1), log)
    kept = Runs(tmp_path).log(0, 1)
    assert kept is not None
    assert 64 * 1024 - 20 < len(kept[1]) <= 64 * 1024
    assert kept[1].startswith(b"line ")
    assert log.endswith(kept[1])


@pytest.mark.parametrize(
    ("log", "most", "expected"),
    [
        (b"short\n", 10, b"short\n"),
        (b"one\ntwo\nthree\n", 10, b"three\n"),
        (b"x" * 50, 10, b"x" * 10),
        ("ä".encode() * 10, 5, "ä".encode() * 2),
        (b"x" * 20 + b"\n", 10, b"x" * 9 + b"\n"),
        (b"\x80" * 20, 10, b"\x80" * 7),
        (b"abc", 0, b""),
    ],
)
def test_a_log_is_cut_where_a_line_or_a_character_starts(log: bytes, most: int, expected: bytes) -> None:
    assert cut(log, most) == expected


def test_corrupt_records_are_passed_over_with_one_warning(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    for number in (1, 2, 3):
        runs.keep(a_run(number), b"log")
    newest, middle, oldest = sorted((tmp_path / "0").iterdir(), reverse=True)
    newest.write_bytes(b"")
    middle.write_bytes(b'{"instance": "x"}\n\xff')
    (tmp_path / "0" / ".temporary").write_bytes(b"half")
    (tmp_path / "0" / "notes.txt").write_bytes(b"somebody's own")
    with capture_logs() as logs:
        again = Runs(tmp_path)
        assert again.log(0, 1) == (a_run(1), b"log")
        assert again.log(0, 2) is None
    assert len(logs) == 1
    assert sorted(p.name for p in (tmp_path / "0").iterdir()) == sorted([oldest.name, "notes.txt"])
    again.keep(a_run(4), b"new")
    assert Runs(tmp_path).log(0, 1) == (a_run(4), b"new")


def test_a_log_removed_by_hand_leaves_the_record(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.keep(a_run(1), b"log")
    for file in (tmp_path / "0").iterdir():
        file.unlink()
    assert runs.log(0, 1) == (a_run(1), b"")


@pytest.mark.parametrize("room", [1000, 0])
def test_a_full_disk_loses_the_log_first_then_the_record_and_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    real = os.fdopen

    def small(handle: int, *arguments: Any, **more: Any) -> Any:
        file = real(handle, *arguments, **more)
        write = file.write

        class Small:
            def __enter__(self) -> Small:
                return self

            def __exit__(self, *_: object) -> None:
                file.close()

            def write(self, data: bytes) -> int:
                if len(data) > room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                return int(write(data))

        return Small()

    monkeypatch.setattr("agent.runs.os.fdopen", small)
    runs = Runs(tmp_path)
    with capture_logs() as logs:
        for number in range(1, 6):
            runs.keep(a_run(number), b"x" * 5000)
    assert len(logs) == 1
    assert runs.last(0) == a_run(5)
    assert runs.log(0, 1) == (a_run(5), b"")
    assert Runs(tmp_path).last(0) == (a_run(5) if room else None)
    assert len(list((tmp_path / "0").iterdir())) == (3 if room else 0)  # no temporary files either


def test_a_directory_that_cannot_be_made_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runs = Runs(tmp_path / "file" / "runs")
    with capture_logs() as logs:
        runs.keep(a_run(1), b"log")
        runs.keep(a_run(2), b"log")
    assert len(logs) == 1
    assert runs.last(0) == a_run(2)


def test_records_alone_are_held_in_memory(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    runs.keep(a_run(1), b"x" * 60_000)
    assert len(repr(vars(runs))) < 2000
    assert not list(Path(tempfile.gettempdir()).glob(".runs*"))
