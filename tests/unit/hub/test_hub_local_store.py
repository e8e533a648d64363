"""How the local store works with its journal: one commit for many, and nothing real before it is kept."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gridcore.protocol import HeartbeatRequest, RegisterRequest, TaskDefinition
from hub.errors import StoreUnavailable, TaskConflict
from hub.journal_memory import MemoryJournal
from hub.operations import add_task, heartbeat, register, start_next
from hub.registry import Node
from hub.state import EVERYONE, Change, State
from hub.store_local import LocalStore
from hub.tasklist import TaskList


class SlowJournal(MemoryJournal):
    """Takes its time, counts, and fails when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.commits: list[Change] = []
        self.live: list[Sequence[Node]] = []
        self.is_full = False

    async def commit(self, change: Change) -> None:
        await asyncio.sleep(0.01)
        if self.is_full:
            raise StoreUnavailable("the disk is full")
        self.commits.append(change)

    async def keep_live(self, nodes: Sequence[Node], observed: float) -> None:
        if self.is_full:
            raise StoreUnavailable("the disk is full")
        self.live.append(nodes)


@pytest.fixture
def journal() -> SlowJournal:
    return SlowJournal()


@pytest.fixture
def store(journal: SlowJournal) -> LocalStore:
    return LocalStore(State(TaskList.empty(0)), journal)


def task(name: str, image: str = "x:1") -> TaskDefinition:
    return TaskDefinition(name=name, image=image)


def registration(node_id: str) -> RegisterRequest:
    return RegisterRequest(node_id=node_id, hostname="h", architecture="x86_64", cpu_count=1)


def beat(node_id: str) -> HeartbeatRequest:
    return HeartbeatRequest(node_id=node_id, status="Idle", active_containers=0)


async def test_what_arrives_during_a_commit_joins_the_next(store: LocalStore, journal: SlowJournal) -> None:
    await asyncio.gather(*(store.run(register(registration(f"n{number}"))) for number in range(100)))
    assert len(await store.nodes()) == 100
    assert len(journal.commits) <= 2


async def test_nothing_is_seen_and_nobody_woken_before_the_commit(
    store: LocalStore, journal: SlowJournal
) -> None:
    await store.run(add_task(task("a")))
    seen: list[int] = []
    store.listen(lambda whom: seen.append(len(journal.commits)) if whom == EVERYONE else None)
    switching = asyncio.create_task(store.run(start_next(None)))
    await asyncio.sleep(0)
    assert (await store.tasks()).current is None
    await switching
    assert (await store.tasks()).current is not None
    assert seen == [2]


async def test_a_failed_commit_changes_nothing_and_the_next_one_is_tried(
    store: LocalStore, journal: SlowJournal
) -> None:
    journal.is_full = True
    outcomes = await asyncio.gather(
        store.run(add_task(task("a"))), store.run(add_task(task("a", "y:1"))), return_exceptions=True
    )
    assert [type(outcome) for outcome in outcomes] == [StoreUnavailable, StoreUnavailable]
    assert (await store.tasks()).tasks == ()
    journal.is_full = False
    assert (await store.run(add_task(task("a", "y:1"))))[1] is True


async def test_operations_of_one_commit_see_each_other(store: LocalStore) -> None:
    outcomes = await asyncio.gather(
        store.run(add_task(task("a"))),
        store.run(add_task(task("a"))),
        store.run(add_task(task("a", "y:1"))),
        return_exceptions=True,
    )
    assert isinstance(outcomes[2], TaskConflict)
    assert [outcome[1] for outcome in outcomes[:2] if isinstance(outcome, tuple)] == [True, False]


async def test_heartbeats_are_kept_now_and_then_and_only_those_of_nodes_that_moved(
    store: LocalStore, journal: SlowJournal
) -> None:
    await store.run(register(registration("a")))
    await store.run(register(registration("b")))
    await store.flush()
    commits = len(journal.commits)
    for _ in range(10):
        await store.run(heartbeat(beat("a")))
    assert len(journal.commits) == commits
    await store.flush()
    await store.flush()
    kept = [[node.record.id for node in nodes] for nodes in journal.live]
    assert [sorted(names) for names in kept] == [["a", "b"], ["a"], []]


async def test_a_flush_that_failed_is_made_up_for(store: LocalStore, journal: SlowJournal) -> None:
    await store.run(register(registration("a")))
    journal.is_full = True
    with pytest.raises(StoreUnavailable):
        await store.flush()
    journal.is_full = False
    await store.flush()
    assert [node.record.id for node in journal.live[-1]] == ["a"]
