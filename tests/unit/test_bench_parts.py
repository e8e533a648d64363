"""What `make bench` reads from /proc, and how it tells figures from goals."""

from __future__ import annotations

import subprocess
import sys
import time

from tests.load.figures import Figure, table
from tests.load.processes import Sampler, stat

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "x = bytearray(40 << 20); input()"], stdin=subprocess.PIPE)
input()
child.communicate(b"\\n")
print("reaped", flush=True)
input()
"""


def test_the_memory_of_children_is_counted_and_their_cpu_after_they_were_reaped_too() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    sampler = Sampler(process.pid, every=0.01).start()
    try:
        deadline = time.monotonic() + 20
        while not any(s.resident - s.leader > 40 << 20 for s in sampler.since(0.0)):
            assert time.monotonic() < deadline, "the child's memory is never seen"
            time.sleep(0.02)
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"reaped\n"
        time.sleep(0.1)
        assert sampler.samples[-1].children == 0
        seen = stat(process.pid)
        assert seen is not None
        assert seen.session == process.pid
        assert seen.cpu > 0
    finally:
        sampler.close()
        process.communicate(b"\n")
    assert stat(process.pid) is None


def test_a_missed_goal_is_told_and_a_figure_without_goal_is_only_shown() -> None:
    figures = [
        Figure("kept", 1.0, "s", 2.0),
        Figure("missed", 3.0, "s", 2.0, "why"),
        Figure("shown", 9.0, "%"),
    ]
    assert [figure.missed for figure in figures] == [False, True, False]
    _head, *rows = table(figures)
    assert [row.split() for row in rows] == [
        ["kept", "1.00", "s", "<=", "2.00", "s", "yes"],
        ["missed", "3.00", "s", "<=", "2.00", "s", "NO", "why"],
        ["shown", "9.00", "%", "-", "-"],
    ]
