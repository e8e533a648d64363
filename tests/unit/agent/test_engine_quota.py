"""Whether the engine's disk can bound a volume is found by trying, not from its words.

Below the seam of one `docker run`; each real start of the agents' tests is the same on this machine's engine.
"""

from __future__ import annotations

from typing import Any

import pytest
from python_on_whales.exceptions import DockerException

from agent import engine_errors
from agent.engine import Engine
from agent.errors import EngineError
from agent.settings import Settings
from agent.spec import NodeFacts, want
from gridcore.protocol import TaskConfig

WORDS = b"Conflict. The container name /idm-quota-size-n1-0 is in use"


class Starts(list[bool]):
    """Whether each start asked for a bound; `refuses` says which of them the engine refuses."""

    def __init__(self, refuses: set[bool]) -> None:
        super().__init__()
        self.refuses = refuses

    def __call__(self, _slot: object, _file: str, *, quota: bool) -> None:
        self.append(quota)
        if quota in self.refuses:
            raise DockerException(["docker", "run"], 125, stderr=WORDS)


def start(engine: Engine, **settings: Any) -> None:
    values = {"server_url": "http://hub:8080", "token": "x" * 20, **settings}
    task = TaskConfig(task_name="quota-size", image="quota-size:1")
    wanted = want(task, NodeFacts((0,), 8000, "owner"), "n1", Settings.model_validate(values))
    engine._start(wanted.slots[0], "")


def engine_of(starts: Starts, stage: engine_errors.Stage, monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine("owner")
    monkeypatch.setattr(engine, "_run_with", starts)
    monkeypatch.setattr(engine, "_stage", lambda _slot: stage)
    return engine


def test_an_engine_that_makes_a_container_only_without_a_bound_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    starts = Starts({True})
    engine = engine_of(starts, engine_errors.Stage.CREATE, monkeypatch)
    start(engine)
    start(engine)
    assert starts == [True, False, False]


@pytest.mark.parametrize(
    ("refuses", "stage", "tried"),
    [
        ({True}, engine_errors.Stage.NAME, [True]),
        ({True}, engine_errors.Stage.START, [True]),
        ({True, False}, engine_errors.Stage.CREATE, [True, False]),
    ],
)
def test_a_start_that_fails_for_anything_else_loosens_no_bound(
    refuses: set[bool], stage: engine_errors.Stage, tried: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    starts = Starts(refuses)
    engine = engine_of(starts, stage, monkeypatch)
    with pytest.raises(EngineError):
        start(engine)
    assert starts == tried
    starts.refuses = set()
    start(engine)
    assert starts == [*tried, True]


def test_without_scratch_there_is_nothing_to_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    starts = Starts({True})
    with pytest.raises(EngineError):
        start(engine_of(starts, engine_errors.Stage.CREATE, monkeypatch), scratch_size=0)
    assert starts == [True]
