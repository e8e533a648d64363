"""What is told of containers that ended, and of those that run on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from random import Random
from typing import cast

import pytest

from agent import accounts, memory_kills
from agent.accounts import Accounts
from agent.engine import Engine
from agent.memory_kills import MemoryKills
from agent.planner import Container
from agent.report import Board
from agent.runs import Runs
from agent.settings import Settings
from agent.spec import NodeFacts, want
from gridcore.protocol import TaskConfig


class Silent:
    """An engine whose containers wrote nothing."""

    async def log_tail(self, container_id: str, lines: int, max_bytes: int) -> bytes:
        return b""


class Node:
    """Accounts on a machine whose kernel can be told to kill."""

    def __init__(self, directory: Path) -> None:
        self.total = 0
        self.began = time.time()
        self.board = Board()
        self.kills = MemoryKills(lambda: self.total, self.began)
        self.accounts = Accounts(cast("Engine", Silent()), Runs(directory), self.board, Random(1), self.kills)

    def killed(self, name: str) -> Container:
        """A container that SIGKILL has just ended."""
        return Container(name, name, "exited", instance=0, exit_code=137, memory_mb=32, finished=time.time())

    def told(self) -> list[tuple[str, str]]:
        """What the operator hears: kind and text."""
        return [(error.kind, error.message) for error in self.board.take_errors()]


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


async def test_who_was_killed_by_hand_waits_for_what_the_engine_says_of_another(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accounts, "HEARSAY", 0)  # it still lets others go first

    async def say(container_id: str) -> None:
        node.accounts.out_of_memory(container_id, time.time())

    node.total = 1
    await asyncio.gather(node.accounts.settle(node.killed("by-hand"), None, asked=False), say("a-pool"))
    [(kind, text)] = node.told()
    assert kind == "sigkill"
    assert text.startswith("by-hand: killed (SIGKILL) by something else: neither the agent nor the kernel")
    node.total = 2
    await asyncio.gather(node.accounts.settle(node.killed("late"), None, asked=False), say("late"))
    assert node.told() == [("out-of-memory", "late: out of memory (limit 32 MB)")]
    node.total = 3
    both = (node.accounts.settle(node.killed(name), None, asked=False) for name in ("unheard", "by-hand-too"))
    await asyncio.gather(*both)
    assert [kind for kind, _ in node.told()] == ["sigkill-unexplained"] * 2, (
        "nothing says which of them it was"
    )


def test_a_kill_for_memory_that_a_container_outlives_is_told_once(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = Container("a-pool", "a-pool", "running", instance=1, memory_mb=32)
    node.total = 1
    node.accounts.out_of_memory(pool.id, time.time())
    node.accounts.run_on([pool])
    assert node.told() == [], "it may still end of it"
    monkeypatch.setattr(memory_kills, "UNSURE", 0)
    node.accounts.run_on([pool])
    node.accounts.run_on([pool])
    text = "a-pool: the kernel killed a process of it for memory (limit 32 MB), and it runs on"
    assert node.told() == [("out-of-memory", text)]


async def test_a_slots_reason_shows_none_of_its_tasks_secrets(node: Node) -> None:
    secret = "hunter2hunter2"
    settings = Settings(server_url="http://hub:8080", token="x" * 20)
    config = TaskConfig(task_name="t", image="x:1", env={"KEY": secret})
    wanted = want(config, NodeFacts((0,), 8000, "owner"), "n1", settings)
    [slot] = wanted.slots
    node.accounts.start_failed(slot, "failed", f"the engine says {secret}")
    reasons = [str(node.accounts.memory[0].error)]
    ended = Container("c", "c", "exited", slot.digest, 0, exit_code=1, error=secret, secrets=slot.secrets)
    await node.accounts.settle(ended, wanted, asked=False)
    reasons.append(str(node.accounts.memory[0].error))
    assert [("***" in text, secret in text) for text in reasons] == [(True, False)] * 2
