"""What the agent does next, case by case; tests/unit/agent/test_planner_machine.py has all of them mixed."""

from __future__ import annotations

from dataclasses import replace

from agent.planner import (
    Container,
    Fetch,
    Freeze,
    Image,
    Kill,
    Remove,
    Start,
    State,
    Terminate,
    Thaw,
    next_deadline,
    plan,
)
from agent.reasons import Reason
from agent.settings import Settings
from agent.slots import SlotMemory
from agent.spec import NodeFacts, SlotSpec, Wanted, want
from gridcore.protocol import TaskConfig

CPUS = (0, 1, 2)
NODE = NodeFacts(CPUS, 8192, "owner")
SETTINGS = Settings(server_url="http://hub:1", token="t")


def wanted_for(name: str, generation: str = "1-a", cpus: tuple[int, ...] = CPUS, **fields: object) -> Wanted:
    config = TaskConfig.model_validate(
        {"task_name": name, "image": f"{name}:1", "generation": generation, **fields}
    )
    return want(config, replace(NODE, cpus=cpus), "node", SETTINGS)


def running(slot: SlotSpec, **fields: object) -> Container:
    container = Container(
        id=f"c{slot.instance}-{slot.digest[:6]}",
        name=slot.name,
        status="running",
        spec=slot.digest,
        instance=slot.instance,
        cpu=slot.cpu,
        started=1.0,
    )
    return replace(container, **fields)  # type: ignore[arg-type] # test data


READY = Image("one:1", "ready")


def test_an_unknown_desired_state_touches_nothing() -> None:
    slot = wanted_for("one").slots[0]
    containers = (running(slot), running(slot, id="x", status="exited"))
    assert plan(State(None, containers, 0.0)) == []


def test_nothing_wanted_ends_everything() -> None:
    slot = wanted_for("one").slots[0]
    container = running(slot)
    assert plan(State(Wanted(reason=Reason("no-task", "no task")), (container,), 0.0)) == [
        Terminate((container,))
    ]


def test_one_fetch_for_all_slots_then_a_start_for_each() -> None:
    wanted = wanted_for("one")
    assert plan(State(wanted, (), 0.0)) == [Fetch("one:1")]
    assert plan(State(wanted, (), 0.0, image=Image("one:1", "fetching"))) == []
    assert plan(State(wanted, (), 0.0, image=READY)) == [Start(slot) for slot in wanted.slots]
    assert plan(State(wanted, (), 0.0, image=Image("other:1", "ready"))) == [Fetch("one:1")]


def test_a_failed_fetch_waits_for_its_time() -> None:
    state = State(
        wanted_for("one"), (), 5.0, image=Image("one:1", "failed", 1, 6.0, Reason("registry-away", "away"))
    )
    assert plan(state) == []
    assert next_deadline(state) == 6.0
    assert plan(replace(state, now=6.0)) == [Fetch("one:1")]


def test_what_fits_stays_and_only_the_rest_starts() -> None:
    wanted = wanted_for("one")
    kept = running(wanted.slots[1])
    assert plan(State(wanted, (kept,), 0.0, image=READY)) == [Start(wanted.slots[0]), Start(wanted.slots[2])]


def test_of_two_that_fit_one_slot_the_older_stays() -> None:
    wanted = wanted_for("one", parallelism=1)
    older, newer = running(wanted.slots[0]), running(wanted.slots[0], id="newer", started=2.0)
    assert plan(State(wanted, (newer, older), 0.0, image=READY)) == [Terminate((newer,))]


def test_the_old_containers_cpu_must_be_free_before_the_new_one_starts() -> None:
    old = running(wanted_for("one").slots[1])
    new = wanted_for("two", "2-b")
    actions = plan(State(new, (old,), 0.0, image=Image("two:1", "ready")))
    assert actions == [Terminate((old,)), Start(new.slots[0]), Start(new.slots[2])]
    assert plan(State(new, (old,), 0.0)) == [Terminate((old,)), Fetch("two:1")], "they wait for no pull"
    state = State(new, (old,), 10.0, image=Image("two:1", "ready"), deadlines={old.id: 30.0})
    assert all(isinstance(action, Start) for action in plan(state))
    assert plan(replace(state, now=30.0))[0] == Kill((old,))


def test_an_ended_container_is_removed_before_its_name_is_used_again() -> None:
    wanted = wanted_for("one", parallelism=1)
    ended = running(wanted.slots[0], status="exited")
    assert plan(State(wanted, (ended,), 0.0, image=READY)) == [Remove((ended,))]
    assert plan(State(wanted, (ended,), 0.0, image=READY, busy_containers={ended.id})) == []


def test_a_slot_waits_after_a_failure() -> None:
    wanted = wanted_for("one", parallelism=1)
    state = State(wanted, (), 0.0, memory={0: SlotMemory(not_before=3.0)}, image=READY)
    assert plan(state) == []
    assert next_deadline(state) == 3.0
    assert plan(replace(state, now=3.0)) == [Start(wanted.slots[0])]


def test_a_container_under_creation_is_not_a_failed_start() -> None:
    wanted = wanted_for("one", parallelism=1)
    created = running(wanted.slots[0], status="created")
    assert plan(State(wanted, (created,), 0.0, image=READY, busy_instances={0})) == []
    assert plan(State(wanted, (created,), 0.0, image=READY)) == [Remove((created,))]


def test_frozen_containers_stay_and_nothing_starts_or_is_fetched() -> None:
    wanted = wanted_for("one")
    kept = running(wanted.slots[0])
    frozen = State(wanted, (kept,), 0.0, image=READY, frozen=True)
    assert plan(frozen) == [Freeze((kept,))]
    paused = replace(kept, status="paused")
    assert plan(replace(frozen, containers=(paused,))) == []
    assert plan(replace(frozen, containers=(), image=None)) == []
    resumed = replace(frozen, containers=(paused,), frozen=False)
    assert plan(resumed) == [Thaw((paused,)), Start(wanted.slots[1]), Start(wanted.slots[2])]


def test_a_frozen_container_that_must_go_is_thawed_first_since_it_hears_nothing() -> None:
    old = running(wanted_for("one").slots[0], status="paused")
    nothing = State(Wanted(reason=Reason("drained", "drained")), (old,), 0.0, frozen=True)
    assert plan(nothing) == [Thaw((old,))]
    thawed = replace(old, status="running")
    assert plan(replace(nothing, containers=(thawed,))) == [Terminate((thawed,))]


def test_the_owners_freeze_needs_no_word_from_the_hub() -> None:
    container = running(wanted_for("one").slots[0])
    paused = replace(container, status="paused")
    assert plan(State(None, (container,), 0.0, frozen=True)) == [Freeze((container,))]
    assert plan(State(None, (paused,), 0.0)) == [Thaw((paused,))]


def test_a_container_that_broke_a_limit_goes_although_it_fits() -> None:
    wanted = wanted_for("one", parallelism=1)
    spewer = running(wanted.slots[0])
    state = State(wanted, (spewer,), 0.0, image=READY, condemned={spewer.id})
    assert plan(state) == [Terminate((spewer,))]


def test_a_container_that_the_engine_is_removing_is_waited_for() -> None:
    wanted = wanted_for("one", parallelism=1)
    going = running(wanted.slots[0], status="removing")
    assert plan(State(wanted, (going,), 0.0, image=READY)) == []
