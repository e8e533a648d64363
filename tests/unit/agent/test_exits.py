"""Exits in the operator's words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.exits import Circumstances, classify
from agent.limits import Breach, Limit
from agent.memory_kills import Word
from agent.planner import Container

ENDED = Container("c1", "idm-t-n-0", "exited", exit_code=3, memory_mb=64, stop_timeout=5)
NOBODY = Circumstances()


@pytest.mark.parametrize(
    ("code", "kind", "text"),
    [
        (0, "finished", "finished"),
        (3, "failed", "exit code 3"),
        (139, "failed", "exit code 139 (killed by signal 11)"),
        (192, "failed", "exit code 192 (killed by signal 64)"),
        (255, "failed", "exit code 255"),
        (153, "disk", "wrote a file larger than the limit"),
    ],
)
def test_exits_that_nobody_asked_for(code: int, kind: str, text: str) -> None:
    end = classify(replace(ENDED, exit_code=code), b"", NOBODY)
    assert (end.kind, end.text, end.is_failure) == (kind, text, code != 0)


def test_what_init_could_not_start_is_told_from_what_ran_and_failed() -> None:
    tail = b"[FATAL tini (7)] exec /worker failed: Exec format error\n"
    end = classify(replace(ENDED, exit_code=1), tail, NOBODY)
    assert (end.kind, end.is_failure) == ("wrong-platform", True)
    assert end.text == "could not start: /worker is for another architecture (exec format error)"
    tail = b"[FATAL tini (7)] exec no-such failed: No such file or directory\n"
    end = classify(replace(ENDED, exit_code=127), tail, NOBODY)
    assert (end.kind, end.text) == ("no-command", "could not start: no-such: No such file or directory")


@pytest.mark.parametrize(
    ("kernel", "kind", "text"),
    [
        (Word.CONTAINER, "out-of-memory", "out of memory (limit 64 MB)"),
        (Word.MACHINE, "sigkill-unexplained", "killed (SIGKILL), and not by the agent; the kernel killed a"),
        (Word.EARLIER, "sigkill", "killed (SIGKILL) by something else, long after a process of it was"),
        (Word.NOTHING, "sigkill", "killed (SIGKILL) by something else: neither the agent nor the kernel"),
        (Word.UNKNOWN, "sigkill-unexplained", "killed (SIGKILL), and not by the agent; whether for want of"),
    ],
)
def test_a_kill_is_for_memory_only_where_the_kernel_says_so(kernel: Word, kind: str, text: str) -> None:
    end = classify(replace(ENDED, exit_code=137), b"", Circumstances(kernel=kernel))
    assert (end.kind, end.is_failure) == (kind, True)
    assert end.text.startswith(text)


def test_a_kill_for_memory_that_a_container_outlived_is_told_with_its_exit() -> None:
    end = classify(replace(ENDED, exit_code=1), b"", Circumstances(kernel=Word.CONTAINER))
    assert end.kind == "out-of-memory"
    assert end.text == "exit code 1, after the kernel killed a process of it for memory (limit 64 MB)"
    assert classify(replace(ENDED, exit_code=0), b"", Circumstances(kernel=Word.CONTAINER)).kind == "finished"
    elsewhere = Circumstances(kernel=Word.MACHINE)
    assert classify(replace(ENDED, exit_code=1), b"", elsewhere).text == "exit code 1"


@pytest.mark.parametrize(
    ("code", "tail"),
    [
        (1, b"HTTP 413: File too large\n"),
        (137, b"File too large\n"),
        (3, b"[FATAL tini (7)] exec /worker failed: Exec format error\n"),
        (1, b"began\n[FATAL tini (7)] exec /worker failed: Exec format error\n"),
        (127, b"[FATAL tini (7)] exec x failed: No such file\nmore\n"),
    ],
)
def test_what_a_program_writes_decides_nothing_about_its_end(code: int, tail: bytes) -> None:
    end = classify(replace(ENDED, exit_code=code), tail, NOBODY)
    assert end.kind == ("sigkill-unexplained" if code == 137 else "failed")


def test_an_end_that_was_asked_for_is_no_failure_unless_a_limit_was_broken() -> None:
    killed = replace(ENDED, exit_code=137)
    assert classify(killed, b"", Circumstances(asked=True)).kind == "stopped"
    end = classify(killed, b"", Circumstances(asked=True, killed=True))
    assert (end.kind, end.text, end.is_failure) == ("killed", "did not stop within 5 s", False)
    end = classify(killed, b"", Circumstances(asked=True, killed=True, condemned=Breach(Limit.LAYER, 9.5, 8)))
    assert (end.kind, end.text, end.is_failure) == (
        "disk",
        "wrote 9 MB outside of /scratch, the limit is 8 MB",
        True,
    )


def test_what_went_down_with_the_engine_is_not_to_blame() -> None:
    away = Circumstances(interrupted=True)
    assert classify(replace(ENDED, exit_code=255), b"", away).kind == "interrupted"
    end = classify(replace(ENDED, exit_code=137), b"", away)
    assert (end.is_failure, end.text) == (
        False,
        "ended while the agent, the engine or the machine was away (exit code 137)",
    )
    for_memory = Circumstances(interrupted=True, kernel=Word.CONTAINER)
    assert classify(replace(ENDED, exit_code=137), b"", for_memory).kind == "out-of-memory"
    assert classify(replace(ENDED, exit_code=255), b"", for_memory).kind == "interrupted"
    assert classify(replace(ENDED, exit_code=3), b"", away).is_failure
