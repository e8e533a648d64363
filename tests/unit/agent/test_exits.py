"""Exits in the operator's words."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agent.exits import Circumstances, classify
from agent.limits import Breach, Limit
from agent.planner import Container

ENDED = Container("c1", "idm-t-n-0", "exited", exit_code=3, memory_mb=64, stop_timeout=5)
NOBODY = Circumstances()


@pytest.mark.parametrize(
    ("code", "oom", "kind", "text"),
    [
        (0, False, "finished", "finished"),
        (3, False, "failed", "exit code 3"),
        (137, True, "out-of-memory", "out of memory (limit 64 MB)"),
        (137, False, "out-of-memory", "killed, probably out of memory (limit 64 MB)"),
        (139, False, "failed", "exit code 139 (killed by signal 11)"),
        (153, False, "disk", "wrote a file larger than the limit"),
    ],
)
def test_exits_that_nobody_asked_for(code: int, oom: bool, kind: str, text: str) -> None:
    end = classify(replace(ENDED, exit_code=code, oom=oom), b"", NOBODY)
    assert (end.kind, end.text, end.is_failure) == (kind, text, code != 0)


def test_what_init_could_not_start_is_told_from_what_ran_and_failed() -> None:
    tail = b"[FATAL tini (7)] exec /worker failed: Exec format error\n"
    end = classify(replace(ENDED, exit_code=1), tail, NOBODY)
    assert (end.kind, end.is_failure) == ("wrong-platform", True)
    assert end.text == "could not start: /worker is for another architecture (exec format error)"
    tail = b"[FATAL tini (7)] exec no-such failed: No such file or directory\n"
    end = classify(replace(ENDED, exit_code=127), tail, NOBODY)
    assert (end.kind, end.text) == ("no-command", "could not start: no-such: No such file or directory")


def test_a_program_that_ignores_the_kernels_signal_says_itself_that_its_file_was_too_large() -> None:
    end = classify(replace(ENDED, exit_code=1), b"OSError: [Errno 27] File too large\n", NOBODY)
    assert (end.kind, end.text) == ("disk", "wrote a file larger than the limit")
    assert classify(replace(ENDED, exit_code=0), b"File too large\n", NOBODY).kind == "finished"


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
    assert not classify(replace(ENDED, exit_code=137), b"", away).is_failure
    assert classify(replace(ENDED, exit_code=3), b"", away).is_failure
