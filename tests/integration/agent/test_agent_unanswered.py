"""An engine that lists, but never says what became of a start, is told, and asked less and less often."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.agent.conftest import Agent, eventually
from tests.integration.agent.fixed_hub import TalkingHub, task

COMMAND = """#!/bin/sh
case "$*" in
*"container create"* | *"container run"*)
  if [ -e {away} ]; then
    echo . >> {tries}
    echo 'error during connect: Post "http://docker/containers/create": EOF' >&2
    exit 1
  fi ;;
esac
exec {docker} "$@"
"""


def test_starts_without_an_answer_are_told_as_long_as_they_last_and_not_repeated_at_once(
    make_hub: Callable[[], TalkingHub],
    make_agent: Callable[..., Agent],
    images: dict[str, str],
    tmp_path: Path,
) -> None:
    away, tries, command = tmp_path / "away", tmp_path / "tries", tmp_path / "bin" / "docker"
    command.parent.mkdir()
    command.write_text(COMMAND.format(away=away, tries=tries, docker=shutil.which("docker")))
    command.chmod(0o755)
    away.touch()
    hub = make_hub()
    hub.task = task("squares", images["worker"])
    agent = make_agent(hub.url, parallelism=1).start(PATH=f"{command.parent}:{os.environ['PATH']}")
    eventually(tries.exists, "a first try")
    time.sleep(10)
    assert len(tries.read_text().split()) <= 6  # at 0, 1, 3, 7 … seconds, or a little sooner
    beat = hub.beats()[-1]
    assert beat["status"] == "Error"
    assert "the container engine cannot be reached" in beat["reason"]
    assert beat["containers"][0]["restarts"] >= 2
    assert {error["kind"] for error in hub.errors()} == {"engine"}
    statuses = [beat["status"] for beat in hub.beats()]
    assert set(statuses[statuses.index("Error") :]) == {"Error"}, "never Idle in between"
    away.unlink()
    eventually(lambda: len(agent.containers()) == 1, "it runs", 20)
    eventually(lambda: hub.beats()[-1]["status"] == "Running", "after a while all is well", 40)
    assert hub.beats()[-1].get("reason") is None
    assert agent.stop() == 0
