"""The audit trail, and what is kept of tokens, in every store."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gridcore.protocol import HeartbeatRequest, RegisterRequest, TaskDefinition
from hub.access import Role, SigningKey, TokenRecord
from hub.errors import NothingPending
from hub.events import NODES_NAMED, Actor, Event, EventQuery
from hub.operations import (
    add_task,
    deregister,
    finish,
    heartbeat,
    note,
    order_stop,
    register,
    start_next,
    take_lease,
)
from hub.retention import look_back
from hub.state import AUDIT, Change, Operation, Outcome
from hub.store import Store
from hub.tasklist import Canary
from tests.contract.store_kinds import KINDS, StoreKind

ALICE = Actor("alice", "192.0.2.7")
KEY = SigningKey("k1", "secret", created=1.0)
TOKEN = TokenRecord("t1", Role.VIEWER, "wall", created=1.0, expires=2e9, created_by="alice")
SURVIVING = [kind for kind in KINDS if kind.survives]
survives = pytest.mark.parametrize("kind", SURVIVING, indirect=True, ids=lambda kind: kind.__name__)


def task(name: str) -> TaskDefinition:
    return TaskDefinition(name=name, image=f"{name}:1")


def node(node_id: str) -> RegisterRequest:
    return RegisterRequest(node_id=node_id, hostname="pi", architecture="aarch64", cpu_count=4)


def event(kind: str, time: float = 1.0, **about: Any) -> Event:
    return Event(time, kind, "hub", **about)


def put(
    *, tokens: tuple[TokenRecord, ...] = (), keys: tuple[SigningKey, ...] = (), drop: tuple[str, ...] = ()
) -> Operation[None]:
    change = Change(
        tokens={**{token.id: token for token in tokens}, **dict.fromkeys(drop)},
        keys={key.id: key for key in keys},
    )
    return Operation(
        lambda _view, _at: Outcome(None, change), tokens=(*(token.id for token in tokens), *drop)
    )


async def told(store: Store, **query: object) -> list[str]:
    return [kept.event.kind for kept in await store.events(EventQuery(**query))]  # type: ignore[arg-type]  # any of its fields


# --- The audit trail ---------------------------------------------------------------------------------------


async def test_every_change_is_told_with_who_asked_from_where_and_when(kind: StoreKind, store: Store) -> None:
    await store.run(add_task(task("a")), ALICE)
    kind.clock.advance(5)
    await store.run(start_next(), ALICE)
    switched, added = [kept.event for kept in await store.events(EventQuery())]
    assert (added.kind, added.task, added.who, added.source) == ("task-added", "a", "alice", "192.0.2.7")
    assert switched.time == kind.clock.read().wall
    assert switched.detail == {"by": "next", "previous": None, "current": "a"}


async def test_what_is_refused_or_changes_nothing_is_not_told(store: Store) -> None:
    await store.run(add_task(task("a")))
    await store.run(add_task(task("a")))
    await store.run(start_next())
    with pytest.raises(NothingPending):
        await store.run(start_next())
    assert await told(store) == ["switched", "task-added"]


async def test_nodes_that_join_and_leave_are_told_and_those_that_return_are_no_news(store: Store) -> None:
    await store.run(register(node("a")), ALICE)
    await store.run(register(node("a")), ALICE)
    await store.run(deregister("a"))
    await store.run(deregister("a"))
    assert await told(store, node="a") == ["node-left", "node-joined"]


async def test_nodes_that_fall_silent_one_after_another_are_one_event(kind: StoreKind, store: Store) -> None:
    for number in range(NODES_NAMED + 5):
        await store.run(register(node(f"n{number}")))
        if number % 10 == 9:
            kind.clock.advance(5)
    kind.clock.advance(45)
    for _ in range(4):
        kind.clock.advance(5)
        await store.sweep(1e6)
    assert not any(node.is_online for node in await store.nodes())
    assert "nodes-offline" not in await told(store)
    for _ in range(4):
        kind.clock.advance(5)
        await store.sweep(1e6)
    (silent,) = await store.events(EventQuery(kinds=frozenset({"nodes-offline"})))
    assert silent.event.detail["count"] == NODES_NAMED + 5
    assert sorted(silent.event.detail["nodes"]) == sorted(f"n{number}" for number in range(NODES_NAMED))


async def test_nodes_that_go_on_falling_silent_are_told_each_minute(kind: StoreKind, store: Store) -> None:
    for number in range(40):
        await store.run(register(node(f"n{number}")))
        kind.clock.advance(5)
        await store.sweep(1e6)
    counts = [
        kept.event.detail["count"]
        for kept in await store.events(EventQuery())
        if "offline" in kept.event.kind
    ]
    assert counts == [13, 13]


async def test_one_silent_node_is_named(kind: StoreKind, store: Store) -> None:
    await store.run(register(node("a")))
    kind.clock.advance(60)
    await store.sweep(1e6)
    kind.clock.advance(10)
    await store.sweep(1e6)
    assert await told(store, node="a") == ["nodes-offline", "node-joined"]


@pytest.mark.parametrize("way", ["heartbeat", "request", "registration"])
async def test_a_node_that_is_back_before_it_is_told_of_is_not_told_as_lost(
    kind: StoreKind, store: Store, way: str
) -> None:
    for number in range(NODES_NAMED + 5):
        await store.run(register(node(f"n{number}")))
    kind.clock.advance(60)
    await store.sweep(1e6)
    returned = [f"n{number}" for number in range(1, NODES_NAMED + 4)]
    for node_id in returned:
        if way == "heartbeat":
            report = HeartbeatRequest(node_id=node_id, status="Idle", active_containers=0)
            await store.run(heartbeat(report))
        elif way == "request":
            await store.hear(node_id)
        else:
            await store.run(register(node(node_id)))
    await store.run(deregister(returned.pop()))  # it is back, and left: that is told by itself
    kind.clock.advance(10)
    await store.sweep(1e6)
    (lost,) = await store.events(EventQuery(kinds=frozenset({"nodes-offline"})))
    assert lost.event.detail == {"count": 2, "nodes": ["n0", f"n{NODES_NAMED + 4}"]}
    assert lost.event.node is None


async def test_where_all_are_back_nothing_is_told_and_a_second_silence_is_told_once(
    kind: StoreKind, store: Store
) -> None:
    await store.run(register(node("a")))
    kind.clock.advance(60)
    await store.sweep(1e6)
    await store.hear("a")
    for _ in range(3):
        kind.clock.advance(10)
        await store.sweep(1e6)
    assert "nodes-offline" not in await told(store)
    kind.clock.advance(30)
    await store.sweep(1e6)
    kind.clock.advance(10)
    await store.sweep(1e6)
    (lost,) = await store.events(EventQuery(kinds=frozenset({"nodes-offline"})))
    assert (lost.event.node, lost.event.detail) == ("a", {"count": 1, "nodes": ["a"]})


async def test_the_trail_is_paged_both_ways(store: Store) -> None:
    for number in range(7):
        await store.run(note(event(f"k{number}")))
    newest = await store.events(EventQuery(limit=3))
    assert [kept.event.kind for kept in newest] == ["k6", "k5", "k4"]
    assert await told(store, before=newest[-1].id, limit=3) == ["k3", "k2", "k1"]
    assert await told(store, after=newest[-1].id) == ["k5", "k6"]
    assert await told(store, after=newest[0].id) == []


async def test_the_trail_is_filtered(store: Store) -> None:
    await store.run(note(event("x", task="a"), event("y", node="n"), replace(event("x"), who="bob")))
    assert await told(store, kinds=frozenset({"x"})) == ["x", "x"]
    assert await told(store, task="a") == ["x"]
    assert await told(store, node="n") == ["y"]
    assert await told(store, who="bob", kinds=frozenset({"x", "y"})) == ["x"]
    assert await told(store, kinds=frozenset({"x"}), limit=1) == ["x"]


async def test_a_place_that_is_none_of_ours_is_no_error(store: Store) -> None:
    await store.run(note(event("x")))
    for place in ("", "nonsense", "9" * 40, "-1", "1-2-3"):
        assert await told(store, before=place) in ([], ["x"])
        assert await told(store, after=place) in ([], ["x"])


async def test_old_events_are_forgotten(kind: StoreKind, store: Store) -> None:
    now = kind.clock.read().wall
    await store.run(note(event("old", now - 100), event("new", now)))
    assert await store.forget_events(now - 50) == 1
    assert await told(store) == ["new"]
    assert await store.forget_events(now - 50) == 0


async def test_who_follows_the_trail_is_woken_after_it_can_be_read(store: Store) -> None:
    heard: list[str] = []
    store.listen(heard.append)
    await store.run(add_task(task("a")))
    assert heard == [AUDIT]
    await store.run(start_next())
    assert sorted(set(heard)) == ["", AUDIT]


# --- Tokens and keys ---------------------------------------------------------------------------------------


async def test_a_revoked_token_is_known_as_such_at_once(store: Store) -> None:
    await store.run(put(tokens=(TOKEN,), keys=(KEY,)))
    assert store.access.revoked == frozenset()
    assert store.access.signing_key == KEY
    await store.run(put(tokens=(replace(TOKEN, revoked=5.0),)))
    assert store.access.revoked == {"t1"}
    await store.run(put(drop=("t1",)))
    assert (await store.tokens(), store.access.revoked) == ([], frozenset())


async def test_the_newest_key_signs_unless_it_is_retired(store: Store) -> None:
    newer = SigningKey("k2", "other", created=2.0)
    await store.run(put(keys=(KEY, newer)))
    assert store.access.signing_key == newer
    await store.run(put(keys=(replace(newer, retired=3.0),)))
    assert store.access.signing_key == KEY
    assert set(store.access.keys) == {"k1", "k2"}


async def test_an_operation_sees_the_tokens_that_it_names(store: Store) -> None:
    await store.run(put(tokens=(TOKEN,)))
    seen = await store.run(Operation(lambda view, _: Outcome(view.token("t1")), tokens=("t1",)))
    assert seen == TOKEN


async def test_operations_on_the_keys_see_each_other(store: Store) -> None:
    def one_more(number: int) -> Operation[int]:
        return Operation(
            lambda view, _: Outcome(
                len(view.keys), Change(keys={f"k{number}": SigningKey(f"k{number}", "s", created=number)})
            )
        )

    counts = await asyncio.gather(*(store.run(one_more(number)) for number in range(8)))
    assert sorted(counts) == list(range(8))


# --- Leases ------------------------------------------------------------------------------------------------


async def test_of_several_hubs_one_has_the_lease_until_it_runs_out(kind: StoreKind, store: Store) -> None:
    tries = await asyncio.gather(*(store.run(take_lease("x", holder, 30)) for holder in "abc"))
    assert sorted(tries) == [False, False, True]
    holder = "abc"[tries.index(True)]
    other = "b" if holder == "a" else "a"
    kind.clock.advance(29)
    assert not await store.run(take_lease("x", other, 30))
    assert await store.run(take_lease("x", holder, 30))
    assert await store.run(take_lease("y", other, 30))
    kind.clock.advance(30)
    assert await store.run(take_lease("x", other, 30))
    assert not await store.run(take_lease("x", holder, 30))


async def test_a_lease_that_a_clock_ran_ahead_with_binds_nobody_once_it_is_set_back(
    kind: StoreKind, store: Store
) -> None:
    kind.clock.step_wall(86_400 * 40)
    assert await store.run(take_lease("x", "a", 30))
    assert not await store.run(take_lease("x", "b", 30))
    kind.clock.step_wall(-86_400 * 40)
    assert await store.run(take_lease("x", "b", 30))


async def test_what_is_old_is_what_was_there_for_the_whole_span_under_a_hub(
    kind: StoreKind, store: Store
) -> None:
    began, span = kind.clock.read().wall, 500.0

    async def look() -> float | None:
        before = await store.run(look_back("x", span))
        return None if before is None else before - began

    assert await look() is None
    kind.clock.step_wall(86_400 * 40)
    assert await look() is None
    kind.clock.advance(200)
    await look()
    kind.clock.step_wall(-86_400 * 40)
    kind.clock.advance(200)
    assert await look() is None
    kind.clock.pass_unseen(86_400 * 400)
    store = await kind.reopen()
    assert await look() is None
    kind.clock.advance(110)
    before = await look()
    assert before is not None
    assert 0 <= before <= 20
    kind.clock.advance(200)
    before = await look()
    assert before is not None
    assert before <= 420
    kind.clock.advance(600)
    before = await look()
    assert before is not None
    # From here on the hub was there all the time.
    assert 86_400 * 400 < before <= kind.clock.read().wall - began - span


# --- A restart ---------------------------------------------------------------------------------------------


@survives
async def test_a_restart_keeps_the_trail_and_the_tokens(kind: StoreKind, store: Store) -> None:
    await store.run(put(tokens=(TOKEN, replace(TOKEN, id="t2", revoked=4.0, node="n")), keys=(KEY,)))
    await store.run(add_task(task("a")), ALICE)
    await store.run(take_lease("x", "me", 30))
    before = await store.events(EventQuery()), await store.tokens(), store.access
    store = await kind.reopen()
    assert (await store.events(EventQuery()), await store.tokens(), store.access) == before
    assert not await store.run(take_lease("x", "somebody else", 30))
    await store.run(note(event("later")))
    assert (await told(store, after=before[0][0].id)) == ["later"]


@survives
async def test_a_restart_keeps_what_a_list_and_its_tasks_have_besides(kind: StoreKind, store: Store) -> None:
    def hold() -> Operation[None]:
        canary = Canary("b", "7-ab", ("n1", "n2"), started_at=3.0, healthy_after=60.0)

        def change(view: object, _at: object) -> Outcome[None]:
            tasks = view.tasks  # type: ignore[attr-defined]  # a View
            first = replace(tasks.tasks[0], earlier=(task("a"), task("a")))
            tasks = replace(tasks, is_held=True, canary=canary, tasks=(first, *tasks.tasks[1:]))
            return Outcome(None, Change(tasks))

        return Operation(change)

    await store.run(add_task(task("a")))
    await store.run(add_task(task("b")))
    await store.run(hold())
    tasks = await store.tasks()
    assert tasks.canary is not None
    store = await kind.reopen()
    assert await store.tasks() == tasks


@survives
async def test_a_task_that_is_taken_out_stays_out(kind: StoreKind, store: Store) -> None:
    for name in "abc":
        await store.run(add_task(task(name)))
    tasks = await store.tasks()
    left = replace(tasks, tasks=(tasks.tasks[2], tasks.tasks[0]))
    await store.run(Operation(lambda _view, _at: Outcome(None, Change(left))))
    store = await kind.reopen()
    assert [kept.name for kept in (await store.tasks()).tasks] == ["c", "a"]


@survives
async def test_an_order_and_its_event_are_kept_together(kind: StoreKind, store: Store) -> None:
    await store.run(register(node("n")))
    await store.run(order_stop("n"), ALICE)
    await store.run(add_task(task("a")))
    await store.run(start_next())
    await store.run(finish())
    store = await kind.reopen()
    assert (await store.node("n")).stop_requested
    assert await told(store) == ["switched", "switched", "task-added", "stop-ordered", "node-joined"]
