"""What every store does, whatever it keeps its state in. `store_kinds.py` lists the stores."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from gridcore.protocol import HeartbeatRequest, RegisterRequest, TaskDefinition, TaskGuard
from hub.contents import fill, read_store
from hub.errors import NotCurrent, NothingPending, NothingRunning, NotSupported, TaskConflict, UnknownNode
from hub.operations import (
    add_task,
    deregister,
    finish,
    heartbeat,
    order_drain,
    order_resume,
    order_stop,
    register,
    start_next,
)
from hub.state import AUDIT, EVERYONE
from hub.store import Store
from hub.store_local import open_memory
from hub.tasklist import TaskStatus
from tests.contract.store_kinds import KINDS, StoreKind

RETENTION = 30 * 86_400.0
SHORT = 600.0
REPORT = {
    "containers": [
        {
            "instance": 0, "cpu": 2, "state": "running", "restarts": 3, "age": 90,
            "last_exit": {"kind": "failed", "exit_code": 1, "message": "m", "ago": 100, "ran": 5},
        }
    ],
    "warnings": ["no memory limit"],
    "paused": True,
}  # fmt: skip
SURVIVING = [kind for kind in KINDS if kind.survives]


def task(name: str, **fields: Any) -> TaskDefinition:
    return TaskDefinition(name=name, image=f"{name}:1", **fields)


def registration(node_id: str | None = None, **fields: Any) -> RegisterRequest:
    facts = {"hostname": "pi", "architecture": "aarch64", "cpu_count": 4, **fields}
    return RegisterRequest(node_id=node_id, **facts)


def beat(node_id: str, **fields: Any) -> HeartbeatRequest:
    return HeartbeatRequest.model_validate(
        {"node_id": node_id, "status": "Idle", "active_containers": 0, **fields}
    )


def listen(store: Store) -> list[str]:
    """Whom the store wakes from now on, but for those who follow the audit trail."""
    heard: list[str] = []
    store.listen(lambda whom: None if whom == AUDIT else heard.append(whom))
    return heard


async def status(store: Store, node_id: str) -> str:
    return (await store.node(node_id)).record.presence.value


# --- Tasks -------------------------------------------------------------------------------------------------


async def test_a_new_store_has_nothing_and_a_revision(store: Store) -> None:
    tasks = await store.tasks()
    assert (tasks.current, tasks.tasks) == (None, ())
    assert tasks.revision


async def test_tasks_keep_their_order(store: Store) -> None:
    for name in "cab":
        await store.run(add_task(task(name)))
    assert (await store.tasks()).named(TaskStatus.PENDING) == ["c", "a", "b"]


async def test_the_same_definition_again_is_no_change_and_another_one_conflicts(store: Store) -> None:
    assert (await store.run(add_task(task("a", env={"K": "v"}))))[1] is True
    assert (await store.run(add_task(task("a", env={"K": "v"}))))[1] is False
    with pytest.raises(TaskConflict):
        await store.run(add_task(task("a", env={"K": "w"})))
    assert len((await store.tasks()).tasks) == 1


async def test_every_change_of_what_is_current_has_a_revision_of_its_own(store: Store) -> None:
    seen = [(await store.tasks()).revision]
    for name in "ab":
        await store.run(add_task(task(name)))
    assert (await store.tasks()).revision == seen[0]
    for step in (start_next, start_next, finish):
        await store.run(step(None))
        seen.append((await store.tasks()).revision)
    assert len(set(seen)) == len(seen)


async def test_what_is_refused_changes_nothing(store: Store) -> None:
    with pytest.raises(NothingPending):
        await store.run(start_next(None))
    with pytest.raises(NothingRunning):
        await store.run(finish(None))
    await store.run(add_task(task("a")))
    await store.run(start_next(None))
    before = await store.tasks()
    with pytest.raises(NothingPending):
        await store.run(start_next(None))
    with pytest.raises(NotCurrent) as refusal:
        await store.run(finish(TaskGuard(task="b")))
    assert refusal.value.current == "a"
    assert await store.tasks() == before


async def test_of_many_operators_who_press_at_once_with_a_guard_one_wins(store: Store) -> None:
    for name in "abcdef":
        await store.run(add_task(task(name)))
    await store.run(start_next(None))
    presses = [store.run(start_next(TaskGuard(task="a"))) for _ in range(20)]
    outcomes = await asyncio.gather(*presses, return_exceptions=True)
    assert sum(not isinstance(outcome, NotCurrent) for outcome in outcomes) == 1
    current = (await store.tasks()).current
    assert current is not None
    assert current.name == "b"


async def test_tasks_added_at_once_are_all_there_once(store: Store) -> None:
    names = [f"task-{number}" for number in range(50)]
    added = await asyncio.gather(*(store.run(add_task(task(name))) for name in names + names))
    assert sum(is_new for _, is_new in added) == 50
    assert sorted((await store.tasks()).named(TaskStatus.PENDING)) == sorted(names)


async def test_listeners_hear_of_a_switch_once_it_can_be_seen(store: Store) -> None:
    heard = listen(store)
    await store.run(add_task(task("a")))
    assert heard == []
    await store.run(start_next(None))
    assert heard == [EVERYONE]


async def test_an_operation_whose_client_left_is_done_all_the_same(store: Store) -> None:
    asking = asyncio.create_task(store.run(add_task(task("a"))))
    await asyncio.sleep(0)
    asking.cancel()
    await store.run(add_task(task("b")))
    assert (await store.tasks()).named(TaskStatus.PENDING) == ["a", "b"]


# --- Nodes -------------------------------------------------------------------------------------------------


async def test_a_node_without_an_id_gets_one_and_keeps_it(store: Store) -> None:
    first = await store.run(register(registration()))
    node_id = first.node.record.id
    again = await store.run(register(registration(node_id)))
    assert (first.is_new, again.is_new) == (True, False)
    assert [node.record.id for node in await store.nodes()] == [node_id]


async def test_a_heartbeat_shows_what_the_node_reports(store: Store) -> None:
    await store.run(register(registration("a")))
    assert (
        await store.run(
            heartbeat(beat("a", status="Running", active_containers=3, reason="r", reason_kind="failed"))
        )
    ).known
    live = (await store.node("a")).live
    assert (live.runtime_status, live.active_containers) == ("Running", 3)
    assert (live.reason, live.reason_kind) == ("r", "failed")
    assert not (await store.run(heartbeat(beat("b")))).known
    with pytest.raises(UnknownNode):
        await store.node("b")


async def test_a_heartbeat_shows_its_containers_with_the_hubs_times(kind: StoreKind, store: Store) -> None:
    await store.run(register(registration("a")))
    assert (await store.node("a")).live.containers == ()
    await store.run(heartbeat(beat("a", **REPORT)))
    now, live = kind.clock.read().wall, (await store.node("a")).live
    (container,) = live.containers
    assert (container.instance, container.cpu, container.state, container.restarts) == (0, 2, "running", 3)
    assert container.started == now - 90
    assert container.last_exit is not None
    assert (container.last_exit.kind, container.last_exit.exit_code) == ("failed", 1)
    assert (container.last_exit.time, container.last_exit.ran) == (now - 100, 5)
    assert (live.warnings, live.paused) == (("no memory limit",), True)
    await store.run(heartbeat(beat("a")))
    live = (await store.node("a")).live
    assert (live.containers, live.warnings, live.paused) == ((), (), False)


async def test_a_heartbeats_answer_says_whose_images_the_node_runs(store: Store) -> None:
    await store.run(register(registration("a")))
    assert (await store.run(heartbeat(beat("a")))).platform == "linux/arm64"


async def test_the_last_20_errors_are_kept_with_the_hubs_time(kind: StoreKind, store: Store) -> None:
    await store.run(register(registration("a")))
    for number in range(25):
        kind.clock.advance(1)
        await store.run(heartbeat(beat("a", errors=[{"kind": "exit", "message": str(number)}])))
    errors = (await store.node("a")).live.errors
    assert [error.message for error in errors] == [str(number) for number in range(5, 25)]
    assert errors[-1].time == kind.clock.read().wall


async def test_a_node_is_offline_after_a_minute_of_silence_and_back_when_it_is_heard(
    kind: StoreKind, store: Store
) -> None:
    await store.run(register(registration("a")))
    kind.clock.advance(59)
    assert (await store.sweep(RETENTION)).silent == ()
    kind.clock.advance(1)
    swept = await store.sweep(RETENTION)
    assert [node.record.id for node in swept.silent] == ["a"]
    assert await status(store, "a") == "offline"
    assert (await store.sweep(RETENTION)).silent == ()
    assert (await store.run(heartbeat(beat("a")))).is_back
    assert await status(store, "a") == "online"


async def test_a_request_for_the_task_counts_as_heard(kind: StoreKind, store: Store) -> None:
    await store.run(register(registration("a")))
    kind.clock.advance(50)
    assert await store.hear("a") is False
    assert await store.hear("nobody") is False
    kind.clock.advance(50)
    assert (await store.sweep(RETENTION)).silent == ()
    kind.clock.advance(60)
    await store.sweep(RETENTION)
    assert await store.hear("a") is True


async def test_a_step_of_the_wall_clock_calls_nobody_offline(kind: StoreKind, store: Store) -> None:
    await store.run(register(registration("a")))
    kind.clock.step_wall(86_400 * 365)
    assert (await store.sweep(RETENTION)).silent == ()
    kind.clock.step_wall(-86_400 * 700)
    assert (await store.sweep(RETENTION)).silent == ()


async def test_a_node_that_deregistered_is_not_heard_until_it_registers(store: Store) -> None:
    assert await store.run(deregister("nobody")) is None
    await store.run(register(registration("a")))
    await store.run(heartbeat(beat("a", status="Running", active_containers=3)))
    assert await store.run(deregister("a")) is not None
    assert (await store.run(heartbeat(beat("a")))).known is False
    assert await store.hear("a") is False
    node = await store.node("a")
    assert (node.is_online, node.live.active_containers, node.live.runtime_status) == (False, 0, None)
    await store.run(register(registration("a")))
    assert await status(store, "a") == "online"


async def test_a_node_is_forgotten_after_the_retention(kind: StoreKind, store: Store) -> None:
    for node_id in "abc":
        await store.run(register(registration(node_id)))
    kind.clock.advance(60)
    await store.sweep(SHORT)
    await store.run(register(registration("c")))
    await store.run(deregister("c"))
    kind.clock.advance(SHORT - 60)
    assert (await store.sweep(SHORT)).forgotten == ()
    kind.clock.advance(1)
    await store.run(register(registration("b")))
    assert [node.record.id for node in (await store.sweep(SHORT)).forgotten] == ["a"]
    assert [node.record.id for node in await store.nodes()] == ["b", "c"]
    kind.clock.advance(60)
    assert [node.record.id for node in (await store.sweep(SHORT)).forgotten] == ["c"]
    assert (await (await kind.reopen()).nodes())[0].record.id == "b"


@pytest.mark.parametrize("way", ["off", "clock set forward", "clock set forth and back", "held up"])
async def test_time_in_which_no_hub_could_hear_makes_nobody_silent_or_forgotten(
    kind: StoreKind, store: Store, way: str
) -> None:
    for node_id in ("on", "off", "left"):
        await store.run(register(registration(node_id, agent_version="1")))
    await store.run(order_drain("off"))
    await store.run(deregister("left"))
    for _ in range(5):
        kind.clock.advance(15)
        await store.run(heartbeat(beat("on")))
    await store.sweep(SHORT)
    assert [await status(store, name) for name in ("on", "off", "left")] == ["online", "offline", "gone"]
    kind.clock.advance(50)
    if way == "off":
        await store.flush()
        kind.clock.pass_unseen(40 * 86_400)
        store = await kind.reopen()
    elif way == "held up":
        kind.clock.pass_unseen(70)
    else:
        kind.clock.step_wall(40 * 86_400)
    assert (await store.sweep(SHORT)).silent == ()
    if way == "clock set forth and back":
        kind.clock.step_wall(-40 * 86_400)
    swept = await store.sweep(SHORT)
    assert (swept.silent, swept.forgotten) == ((), ())
    assert (await store.node("off")).draining
    kind.clock.advance(40)
    # Whoever was there had no minute yet in which it could have been heard.
    assert (await store.sweep(SHORT)).silent == ()
    assert await status(store, "on") == "online"
    kind.clock.advance(20)
    assert [node.record.id for node in (await store.sweep(SHORT)).silent] == ["on"]
    # And what was counted before goes on to count.
    kind.clock.advance(SHORT - 180)
    assert {node.record.id for node in (await store.sweep(SHORT)).forgotten} == {"off", "left"}


@pytest.mark.parametrize("kind", SURVIVING, indirect=True, ids=lambda kind: kind.__name__)
async def test_absence_adds_up_over_restarts(kind: StoreKind, store: Store) -> None:
    await store.run(register(registration("a")))
    await store.run(deregister("a"))
    for _ in range(4):
        kind.clock.advance(SHORT / 5)
        assert (await store.sweep(SHORT)).forgotten == ()
        kind.clock.pass_unseen(86_400)
        kind.clock.restart()
        store = await kind.reopen()
    kind.clock.advance(SHORT / 5 + 1)
    assert [node.record.id for node in (await store.sweep(SHORT)).forgotten] == ["a"]


async def test_a_stop_stands_until_told_and_ends_with_the_registration_after_that(store: Store) -> None:
    with pytest.raises(UnknownNode):
        await store.run(order_stop("a"))
    await store.run(register(registration("a")))
    assert (await store.run(order_stop("a"))).stop_requested
    assert (await store.run(register(registration("a")))).node.stop_requested
    assert (await store.run(heartbeat(beat("a")))).stop_requested
    assert (await store.run(heartbeat(beat("a")))).stop_requested
    assert not (await store.run(register(registration("a")))).node.stop_requested
    assert not (await store.run(heartbeat(beat("a")))).stop_requested


async def test_a_stop_is_over_when_the_node_that_was_told_has_left(store: Store) -> None:
    for node_id in ("told", "untold"):
        await store.run(register(registration(node_id)))
        await store.run(order_stop(node_id))
    await store.run(heartbeat(beat("told")))
    for node_id in ("told", "untold"):
        await store.run(deregister(node_id))
    assert not (await store.node("told")).stop_requested
    assert (await store.node("untold")).stop_requested
    assert not (await store.run(register(registration("told")))).node.stop_requested
    assert (await store.run(heartbeat(beat("untold")))).known is False
    assert (await store.run(register(registration("untold")))).node.stop_requested


async def test_a_drain_is_a_level_that_stands_until_it_is_taken_back(store: Store) -> None:
    for order in (order_drain, order_resume):
        with pytest.raises(UnknownNode):
            await store.run(order("a"))
    await store.run(register(registration("a", agent_version="1")))
    assert (await store.run(order_drain("a"))).draining
    assert [(await store.run(heartbeat(beat("a")))).drain for _ in range(3)] == [True] * 3
    assert (await store.run(register(registration("a", agent_version="1")))).node.draining
    await store.run(deregister("a"))
    assert (await store.run(register(registration("a", agent_version="1")))).node.draining
    assert not (await store.run(order_resume("a"))).draining
    assert [(await store.run(heartbeat(beat("a")))).drain for _ in range(2)] == [False] * 2
    assert not (await store.run(register(registration("a", agent_version="1")))).node.draining


async def test_an_agent_that_speaks_the_fixed_protocol_only_cannot_be_drained(store: Store) -> None:
    await store.run(register(registration("a")))
    with pytest.raises(NotSupported, match="stop"):
        await store.run(order_drain("a"))
    assert not (await store.node("a")).draining
    assert not (await store.run(order_resume("a"))).draining


async def test_a_resume_takes_back_a_stop_that_is_untold_and_no_other(store: Store) -> None:
    await store.run(register(registration("a")))
    await store.run(order_stop("a"))
    assert not (await store.run(order_resume("a"))).stop_requested
    assert not (await store.run(heartbeat(beat("a")))).stop_requested
    await store.run(order_stop("a"))
    assert (await store.run(heartbeat(beat("a")))).stop_requested
    assert (await store.run(order_resume("a"))).stop_requested


@pytest.mark.parametrize("told_by", ["heartbeat", "registration"])
async def test_drain_and_resume_each_end_one_held_request_until_they_are_told(
    store: Store, told_by: str
) -> None:
    heard = listen(store)

    async def tell() -> None:
        if told_by == "heartbeat":
            await store.run(heartbeat(beat("a")))
        else:
            await store.run(register(registration("a", agent_version="1")))

    await store.run(register(registration("a", agent_version="1")))
    for order in (order_drain, order_resume):
        await store.run(order("a"))
        assert heard.pop() == "a"
        assert [await store.take_nudge("a"), await store.take_nudge("a")] == [True, False]
        await store.run(order("a"))
        assert await store.take_nudge("a") is False
        await tell()
        assert await store.take_nudge("a") is False
        await store.run(order("a"))
        assert await store.take_nudge("a") is False


async def test_each_of_two_orders_ends_a_held_request(store: Store) -> None:
    await store.run(register(registration("a", agent_version="1")))
    await store.run(order_drain("a"))
    assert await store.take_nudge("a")
    await store.run(order_stop("a"))
    assert await store.take_nudge("a")
    await store.run(heartbeat(beat("a")))
    assert not await store.take_nudge("a")


async def test_a_drain_that_is_taken_back_before_it_was_told_ends_no_held_request(store: Store) -> None:
    await store.run(register(registration("a", agent_version="1")))
    await store.run(order_drain("a"))
    await store.run(order_resume("a"))
    assert await store.take_nudge("a") is False


async def test_an_order_wakes_its_node_and_ends_one_held_request(store: Store) -> None:
    heard = listen(store)
    await store.run(register(registration("a")))
    assert await store.take_nudge("a") is False
    await store.run(order_stop("a"))
    assert heard == ["a"]
    assert [await store.take_nudge("a"), await store.take_nudge("a")] == [True, False]


async def test_an_order_that_was_told_ends_no_held_request(store: Store) -> None:
    await store.run(register(registration("a")))
    await store.run(order_stop("a"))
    await store.run(heartbeat(beat("a")))
    assert await store.take_nudge("a") is False
    await store.run(order_stop("a"))
    assert await store.take_nudge("a") is False


async def test_a_second_machine_with_the_same_id_gets_its_own(store: Store) -> None:
    await store.run(register(registration("a", machine="m1")))
    second = await store.run(register(registration("a", machine="m2")))
    assert (second.clone_of, second.is_new) == ("a", True)
    assert second.node.record.id != "a"
    assert (await store.node("a")).record.machine == "m1"
    own = await store.run(register(registration(second.node.record.id, machine="m2")))
    assert (own.clone_of, own.is_new) == (None, False)


@pytest.mark.parametrize("reason", ["silent", "left", "no machine", "same machine"])
async def test_an_id_moves_to_another_machine_when_the_first_is_gone(
    kind: StoreKind, store: Store, reason: str
) -> None:
    await store.run(register(registration("a", machine="m1")))
    if reason == "silent":
        kind.clock.advance(60)
    elif reason == "left":
        await store.run(deregister("a"))
    machine = {"no machine": None, "same machine": "m1"}.get(reason, "m2")
    again = await store.run(register(registration("a", machine=machine)))
    assert (again.node.record.id, again.clone_of) == ("a", None)


async def test_two_clones_that_register_at_once_become_two_nodes(store: Store) -> None:
    both = await asyncio.gather(
        store.run(register(registration("a", machine="m1"))),
        store.run(register(registration("a", machine="m2"))),
    )
    assert len({entry.node.record.id for entry in both}) == 2


async def test_what_happens_to_a_node_while_it_is_being_written_is_not_lost(store: Store) -> None:
    await store.run(register(registration("a")))
    _, first, second = await asyncio.gather(
        store.run(order_stop("a")),
        store.run(heartbeat(beat("a", errors=[{"kind": "k", "message": "one"}]))),
        store.run(heartbeat(beat("a", errors=[{"kind": "k", "message": "two"}]))),
    )
    assert first.known
    assert second.known
    assert [error.message for error in (await store.node("a")).live.errors] == ["one", "two"]


async def test_a_node_out_of_a_backup_has_its_minute_and_its_retention(kind: StoreKind, store: Store) -> None:
    elsewhere = open_memory()
    for node_id in ("on", "left"):
        await elsewhere.run(register(registration(node_id)))
    await elsewhere.run(deregister("left"))
    await fill(store, await read_store(elsewhere))
    kind.clock.advance(59)
    assert (await store.sweep(SHORT)).silent == ()
    kind.clock.advance(1)
    assert [node.record.id for node in (await store.sweep(SHORT)).silent] == ["on"]
    kind.clock.advance(SHORT - 60)
    assert (await store.sweep(SHORT)).forgotten == ()
    kind.clock.advance(1)
    assert len((await store.sweep(SHORT)).forgotten) == 2


# --- A restart ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SURVIVING, indirect=True, ids=lambda kind: kind.__name__)
async def test_a_restart_changes_nothing_but_the_clock(kind: StoreKind, store: Store) -> None:
    for name in "abc":
        await store.run(add_task(task(name, env={"K": "v"}, input_redis="redis://:p@h/0")))
    await store.run(start_next(None))
    await store.run(start_next(None))
    await store.run(register(registration("on", labels={"room": "1"}, machine="m", agent_version="1")))
    await store.run(register(registration("off")))
    await store.run(register(registration("gone")))
    await store.run(deregister("gone"))
    await store.run(heartbeat(beat("on", status="Running", active_containers=2)))
    await store.run(order_stop("on"))
    await store.run(order_drain("on"))
    kind.clock.advance(30)
    await store.run(heartbeat(beat("on", errors=[{"kind": "k", "message": "m"}], **REPORT)))
    kind.clock.advance(40)
    await store.sweep(RETENTION)
    tasks, nodes = await store.tasks(), await store.nodes()
    kind.clock.restart()
    store = await kind.reopen()
    assert await store.tasks() == tasks
    assert [node.record for node in await store.nodes()] == [node.record for node in nodes]
    before, after = next(n for n in nodes if n.record.id == "on"), await store.node("on")
    assert before.draining
    assert before.live.containers
    for part in ("errors", "containers", "warnings", "paused"):
        assert getattr(after.live, part) == getattr(before.live, part)
    kind.clock.advance(59)
    assert (await store.sweep(RETENTION)).silent == ()
    assert [await status(store, name) for name in ("on", "off", "gone")] == ["online", "offline", "gone"]
    kind.clock.advance(1)
    assert [node.record.id for node in (await store.sweep(RETENTION)).silent] == ["on"]


@pytest.mark.parametrize("kind", SURVIVING, indirect=True, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("is_told", [False, True])
async def test_an_order_survives_a_restart_and_nudges_after_it_only_if_it_is_untold(
    kind: StoreKind, store: Store, is_told: bool
) -> None:
    await store.run(register(registration("a", agent_version="1")))
    for order, level in ((order_drain, True), (order_resume, False)):
        await store.run(order("a"))
        if is_told:
            await store.run(heartbeat(beat("a")))
        store = await kind.reopen()
        assert (await store.node("a")).draining is level
        assert await store.take_nudge("a") is not is_told
        assert (await store.run(heartbeat(beat("a")))).drain is level
