"""Editing, holding, trying and ordering many, against every store that `store_kinds.py` lists."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from gridcore.protocol import HeartbeatRequest, RegisterRequest, TaskDefinition, TaskGuard
from hub.backup import read_backup, write_backup
from hub.canary import choose
from hub.contents import fill, read_store
from hub.errors import (
    GenerationChanged,
    InvalidFields,
    NoCanary,
    NodeOnline,
    TaskInUse,
    UnknownNode,
    UnknownTask,
)
from hub.events import EventQuery
from hub.node_calls import config_of
from hub.node_operations import forget_node, order_many
from hub.operations import add_task, deregister, finish, heartbeat, register, start_next
from hub.state import AUDIT, EVERYONE, Operation
from hub.store import Store
from hub.store_local import open_memory
from hub.task_edits import Place
from hub.task_operations import (
    abort,
    edit_task,
    hold,
    judge_canary,
    move_task,
    name_fleet_redis,
    promote,
    release,
    remove_task,
    requeue_task,
    revert_task,
    try_next,
)
from hub.tasklist import Aborted, Canary, TaskStatus
from tests.contract.store_kinds import StoreKind

RETENTION = 30 * 86_400.0


@pytest.fixture
async def store(kind: StoreKind) -> Store:
    """Task `old` is current, `new` and `later` wait; nodes n1, n2 and n3 are there."""
    store = await kind.open()
    for name in ("old", "new", "later"):
        await store.run(add_task(task(name)))
    await store.run(start_next())
    for node_id in ("n1", "n2", "n3"):
        facts = {"hostname": "pi", "architecture": "aarch64", "cpu_count": 4, "agent_version": "1"}
        await store.run(register(RegisterRequest.model_validate({"node_id": node_id, **facts})))
    return store


def task(name: str, image: str = "x:1") -> TaskDefinition:
    return TaskDefinition(name=name, image=image)


async def begin(store: Store, wanted: int = 2) -> Canary:
    candidates = choose(await store.nodes(), task("new"), wanted)
    return await store.run(try_next(candidates, wanted, healthy_after=30, start_within=100))


async def run_it(store: Store, *node_ids: str) -> None:
    for node_id in node_ids:
        given = (await store.tasks()).assigned(node_id)
        await beat(store, node_id, status="Running", generation=given.revision)


async def beat(store: Store, node_id: str, **fields: Any) -> None:
    report = {"node_id": node_id, "status": "Idle", "active_containers": 0, **fields}
    await store.run(heartbeat(HeartbeatRequest.model_validate(report)))


async def told(store: Store, *kinds: str) -> list[str]:
    found = await store.events(EventQuery(kinds=frozenset(kinds)))
    return [item.event.kind for item in reversed(found)]


def listen(store: Store) -> list[str]:
    heard: list[str] = []
    store.listen(lambda whom: None if whom == AUDIT else heard.append(whom))
    return heard


async def pending(store: Store) -> list[str]:
    return (await store.tasks()).named(TaskStatus.PENDING)


async def test_edits_of_the_list_outlast_a_restart(kind: StoreKind, store: Store) -> None:
    await store.run(add_task(task("gone")))
    await store.run(remove_task("gone"))
    await store.run(move_task("later", Place(to="first")))
    await store.run(edit_task("new", lambda _: task("new", "x:2")))
    await store.run(edit_task("new", lambda _: task("new", "x:3")))
    await store.run(revert_task("new"))
    await store.run(finish())
    await store.run(requeue_task("old"))
    before = await store.tasks()
    store = await kind.reopen()
    assert await store.tasks() == before
    assert await pending(store) == ["new", "old"]
    kept = before.get("new")
    assert (kept.definition.image, [one.image for one in kept.earlier]) == ("x:2", ["x:1"])
    with pytest.raises(UnknownTask):
        before.get("gone")


async def test_an_edit_of_the_current_task_wakes_everyone_and_one_of_another_nobody(store: Store) -> None:
    heard = listen(store)
    revision = (await store.tasks()).revision
    await store.run(edit_task("new", lambda _: task("new", "x:2")))
    await store.run(move_task("later", Place(before="new")))
    assert (heard, (await store.tasks()).revision) == ([], revision)
    await store.run(edit_task("old", lambda _: task("old", "x:2"), lambda given: given == revision))
    assert heard == [EVERYONE]
    with pytest.raises(GenerationChanged):
        await store.run(edit_task("old", lambda _: task("old", "x:3"), lambda given: given == revision))


async def test_each_change_of_a_task_is_a_new_revision_of_it_and_of_no_other(
    kind: StoreKind, store: Store
) -> None:
    seen: dict[str, list[str]] = {name: [] for name in ("old", "new", "later")}

    async def changed() -> set[str]:
        found = set()
        for one in (await store.tasks()).tasks:
            if seen[one.name][-1:] != [one.revision]:
                assert one.revision not in seen[one.name]
                seen[one.name].append(one.revision)
                found.add(one.name)
        return found

    assert await changed() == {"old", "new", "later"}
    for operation, expected in (
        (edit_task("new", lambda _: task("new", "x:2")), {"new"}),
        (edit_task("new", lambda _: task("new", "x:2")), set()),
        (revert_task("new"), {"new"}),
        (move_task("later", Place(to="first")), {"later"}),
        (move_task("later", Place(to="first")), set()),
        (edit_task("old", lambda _: task("old", "x:2")), {"old"}),
        (hold(), set()),
        (release(), set()),
        (remove_task("new"), set()),
        (finish(), {"old", "later"}),
        (requeue_task("old"), {"old"}),
        (requeue_task("old"), set()),
        (start_next(), {"old", "later"}),
    ):
        await store.run(operation)
        assert await changed() == expected
        store = await kind.reopen()
        assert await changed() == set()


@pytest.mark.parametrize("name", ["old", "new", "done"])
async def test_of_many_changes_of_a_task_that_was_looked_at_once_one_is_made(store: Store, name: str) -> None:
    await store.run(add_task(task("done")))
    await store.run(move_task("done", Place(to="first")))
    for _ in range(2):
        await store.run(start_next())
    await store.run(requeue_task("old"))
    await store.run(move_task("old", Place(to="first")))
    await store.run(start_next())  # `done` and one more are completed, `old` is current, others wait
    seen = (await store.tasks()).get(name).revision

    def is_seen(revision: str) -> bool:
        return revision == seen

    def change(number: int) -> Operation[Any]:
        if name == "done":
            return requeue_task("done", is_seen)
        return edit_task(name, lambda _: task(name, f"x:{number}"), is_seen)

    if name == "new":
        await store.run(requeue_task("new"))
        seen = (await store.tasks()).get(name).revision
    outcomes = await asyncio.gather(*(store.run(change(n)) for n in range(2, 7)), return_exceptions=True)
    assert sum(isinstance(outcome, GenerationChanged) for outcome in outcomes) == 4
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1


async def test_a_guard_stands_before_each_act_on_a_task(store: Store) -> None:
    await store.run(edit_task("new", lambda _: task("new", "x:2")))
    before, events = await store.tasks(), await told(store)
    for name in ("old", "new"):
        for operation in (
            edit_task(name, lambda _: task("other"), lambda _: False),
            revert_task(name, lambda _: False),
            remove_task(name, lambda _: False),
            requeue_task(name, lambda _: False),
            move_task(name, Place(to="last"), lambda _: False),
        ):
            with pytest.raises(GenerationChanged) as refusal:
                await store.run(operation)
            assert refusal.value.revision == before.get(name).revision
    # The generation is of the current task and says nothing of another one.
    with pytest.raises(GenerationChanged):
        await store.run(revert_task("new", lambda given: given == before.revision))
    assert (await store.tasks(), await told(store)) == (before, events)


async def test_a_backup_has_the_revisions_of_the_tasks(store: Store, tmp_path: Path) -> None:
    await store.run(edit_task("new", lambda _: task("new", "x:2")))
    kept = await read_store(store)
    write_backup(kept, tmp_path / "backup", lambda _: None)
    other = open_memory()
    await fill(other, read_backup(tmp_path / "backup", lambda _: None))
    assert [one.revision for one in (await other.tasks()).tasks] == [one.revision for one in kept.tasks.tasks]


async def test_what_refuses_an_edit_leaves_no_trace(store: Store) -> None:
    before, events = await store.tasks(), await told(store)
    with pytest.raises(TaskInUse):
        await store.run(remove_task("old"))
    with pytest.raises(ZeroDivisionError):
        await store.run(edit_task("new", lambda _: 1 / 0))  # type: ignore[arg-type,return-value]  # it fails before
    assert (await store.tasks(), await told(store)) == (before, events)


async def test_a_hold_outlasts_a_restart_and_happens_once(kind: StoreKind, store: Store) -> None:
    await asyncio.gather(*(store.run(hold()) for _ in range(5)))
    held = await store.tasks()
    store = await kind.reopen()
    again = await store.tasks()
    assert again == held
    assert again.assigned("n1") == again.assigned("never seen") == (again.revision, None)
    await asyncio.gather(*(store.run(release()) for _ in range(5)))
    given = (await store.tasks()).assigned("n1")
    assert given.task is not None
    assert given.revision != held.revision
    assert await told(store, "fleet-held", "fleet-released") == ["fleet-held", "fleet-released"]


async def test_a_new_url_of_the_fleets_redis_is_one_new_revision_of_what_names_it(
    kind: StoreKind, store: Store
) -> None:
    first, second = "redis://:one@10.0.0.1:6379/0", "redis://:two@10.0.0.1:6379/0"
    with pytest.raises(InvalidFields):
        await store.run(add_task(TaskDefinition(name="named", image="x:1", input_redis="fleet")))
    before = await store.tasks()
    await store.run(name_fleet_redis(first))
    assert (await store.tasks()).revision == before.revision, "the current task does not name it"
    await store.run(edit_task("old", lambda old: old.model_copy(update={"output_redis": "fleet:/3"})))
    before = await store.tasks()
    heard = listen(store)
    await asyncio.gather(*(store.run(name_fleet_redis(second)) for _ in range(5)))
    after = await store.tasks()
    assert after.revision != before.revision
    assert heard == [EVERYONE]
    assert await told(store, "fleet-redis-changed") == ["fleet-redis-changed"] * 2
    store = await kind.reopen()
    again = await store.tasks()
    assert again == after
    given = config_of(again, again.assigned("n1"), "linux/amd64")
    assert given is not None
    assert (given.generation, given.input_redis) == (after.revision, None)
    assert given.output_redis == "redis://:two@10.0.0.1:6379/3"
    assert again.get("old").definition.output_redis == "fleet:/3", "no task carries the password"


async def test_a_try_wakes_its_nodes_and_changes_nothing_for_the_others(
    kind: StoreKind, store: Store
) -> None:
    heard = listen(store)
    before = (await store.tasks()).assigned("n3")
    canary = await begin(store)
    assert heard == ["n1 n2"]
    store = await kind.reopen()
    after = await store.tasks()
    assert after.canary == canary
    assert after.assigned("n3") == before
    assert after.assigned("n1") == after.assigned("n2") == (canary.revision, after.get("new"))
    await store.run(abort("new"))
    assert (await store.tasks()).assigned("n1") == before


async def test_only_nodes_that_can_when_it_is_decided_try_it(store: Store) -> None:
    candidates = choose(await store.nodes(), task("new"), 1)
    await store.run(deregister("n1"))
    canary = await store.run(try_next(candidates, 1, 60, 900, TaskGuard(task="old")))
    assert canary.nodes == ("n2",)


async def test_of_many_who_decide_at_once_one_does(store: Store) -> None:
    canary = await begin(store)
    presses = [store.run(promote("new")) for _ in range(5)] + [store.run(abort("new")) for _ in range(5)]
    outcomes = await asyncio.gather(*presses, return_exceptions=True)
    assert sum(not isinstance(outcome, Exception) for outcome in outcomes) == 1
    assert sum(isinstance(outcome, NoCanary) for outcome in outcomes) == 9
    tasks = await store.tasks()
    assert tasks.canary is None
    (end,) = await told(store, "canary-promoted", "canary-aborted")
    assert (tasks.revision == canary.revision) == (end == "canary-promoted")


async def test_of_many_who_judge_at_once_each_step_happens_once(kind: StoreKind, store: Store) -> None:
    canary = await begin(store)

    async def look() -> None:
        known = (await store.tasks()).canary
        assert known is not None
        await asyncio.gather(*(store.run(judge_canary(known)) for _ in range(5)))

    await run_it(store, "n1")
    await look()
    await run_it(store, "n2")
    await look()
    kind.clock.advance(30)
    await run_it(store, "n1", "n2")
    await look()
    healthy = (await store.tasks()).canary
    assert healthy is not None
    assert (healthy.state, healthy.revision) == ("healthy", canary.revision)
    await beat(store, "n1", status="Error", generation=canary.revision)
    await look()
    assert await told(store, "canary-healthy", "canary-aborted") == ["canary-healthy"]


async def test_a_failure_ends_it_once_and_wakes_its_nodes(store: Store) -> None:
    before = (await store.tasks()).assigned("n1")
    canary = await begin(store)
    await beat(store, "n2", status="Error", generation=canary.revision, reason="no such image")
    heard = listen(store)
    await asyncio.gather(*(store.run(judge_canary(canary)) for _ in range(5)))
    assert (heard, (await store.tasks()).assigned("n1")) == (["n1 n2"], before)
    (event,) = await store.events(EventQuery(kinds=frozenset({"canary-aborted"})))
    assert event.event.detail["reason"] == "node n2 reports an error: no such image"
    assert await pending(store) == ["new", "later"]


async def test_what_is_known_of_an_aborted_try_outlasts_a_restart(kind: StoreKind, store: Store) -> None:
    await begin(store)
    await store.run(abort("new"))
    before = await store.tasks()
    assert before.get("new").aborted == Aborted(kind.clock.read().wall, "aborted by hub", 2)
    store = await kind.reopen()
    assert await store.tasks() == before


async def test_silence_ends_it(kind: StoreKind, store: Store) -> None:
    canary = await begin(store)
    kind.clock.advance(61)
    await store.sweep(RETENTION)
    assert await store.run(judge_canary(canary)) == "canary-aborted"
    assert await store.run(judge_canary(canary)) is None


async def test_a_verdict_on_a_canary_that_is_over_does_nothing(store: Store) -> None:
    canary = await begin(store, 1)
    await store.run(abort())
    await begin(store, 2)
    await store.run(deregister("n1"))
    assert await store.run(judge_canary(canary)) is None
    assert (await store.tasks()).canary is not None


async def test_a_node_that_is_forgotten_stays_forgotten(kind: StoreKind, store: Store) -> None:
    with pytest.raises(NodeOnline):
        await store.run(forget_node("n1"))
    await store.run(deregister("n1"))
    await store.run(forget_node("n1"))
    store = await kind.reopen()
    assert {node.record.id for node in await store.nodes()} == {"n2", "n3"}
    with pytest.raises(UnknownNode):
        await store.run(forget_node("n1"))


async def test_many_nodes_are_ordered_in_one_operation(kind: StoreKind, store: Store) -> None:
    await store.run(order_many(("n3",), "drain"))
    heard = listen(store)
    done = await store.run(order_many(("n1", "n2", "n3", "n4"), "drain", {"count": 4}))
    assert (done.changed, done.unchanged, list(done.skipped)) == (("n1", "n2"), 1, ["n4"])
    assert heard == ["n1 n2"]
    assert await told(store, "drain-ordered") == ["drain-ordered"]
    store = await kind.reopen()
    assert all(node.draining for node in await store.nodes())
    await store.run(order_many(("n1",), "resume"))
    assert not (await store.node("n1")).draining
