"""The planner against a simulated engine: whatever happens, it converges and keeps its rules."""

from __future__ import annotations

import itertools
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.planner import Container, Fetch, Image, Kill, Remove, Start, State, Terminate, next_deadline, plan
from agent.settings import Settings
from agent.slots import SlotMemory
from agent.spec import NodeFacts, SlotSpec, Wanted, want
from gridcore.protocol import TaskConfig

CPUS = (0, 1, 2)
NODE = NodeFacts(CPUS, 8192, "owner")
SETTINGS = Settings(server_url="http://hub:1", token="t")


def wanted_for(name: str, generation: str = "1-a", **fields: object) -> Wanted:
    config = TaskConfig.model_validate(
        {"task_name": name, "image": f"{name}:1", "generation": generation, **fields}
    )
    return want(config, NODE, "node", SETTINGS)


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
    assert plan(State(Wanted(reason="no task"), (container,), 0.0)) == [Terminate((container,))]


def test_one_fetch_for_all_slots_then_a_start_for_each() -> None:
    wanted = wanted_for("one")
    assert plan(State(wanted, (), 0.0)) == [Fetch("one:1")]
    assert plan(State(wanted, (), 0.0, image=Image("one:1", "fetching"))) == []
    assert plan(State(wanted, (), 0.0, image=READY)) == [Start(slot) for slot in wanted.slots]
    assert plan(State(wanted, (), 0.0, image=Image("other:1", "ready"))) == [Fetch("one:1")]


def test_a_failed_fetch_waits_for_its_time() -> None:
    state = State(wanted_for("one"), (), 5.0, image=Image("one:1", "failed", 1, 6.0, "away"))
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


class PlannerMachine(RuleBasedStateMachine):
    """Containers die, tasks change, the agent restarts, calls get lost; after each, the rules hold."""

    @initialize()
    def begin(self) -> None:
        self.ids = itertools.count()
        self.generations = itertools.count(1)
        self.now = 0.0
        self.containers: dict[str, Container] = {}
        self.wanted: Wanted | None = None
        self.image: Image | None = None
        self.deadlines: dict[str, float] = {}
        self.terminated: dict[str, int] = {}

    def state(self) -> State:
        return State(
            self.wanted, tuple(self.containers.values()), self.now, {}, self.deadlines, image=self.image
        )

    def apply(self, actions: list[object], lose: set[int]) -> None:
        """Carry actions out as the engine would; those in `lose` did not arrive."""
        for number, action in enumerate(actions):
            if number in lose:
                continue
            match action:
                case Fetch(image):
                    self.image = Image(image, "ready")
                case Start(slot):
                    assert slot.name not in {c.name for c in self.containers.values()}
                    live = [c for c in self.containers.values() if not c.ended]
                    assert slot.cpu not in {c.cpu for c in live}, "a CPU is double-booked"
                    assert self.wanted is not None
                    assert slot in self.wanted.slots, "something unwanted is started"
                    container = running(slot, id=f"c{next(self.ids)}", started=self.now)
                    self.containers[container.id] = container
                case Terminate(containers):
                    for c in containers:
                        self.terminated[c.id] = self.terminated.get(c.id, 0) + 1
                        self.deadlines[c.id] = self.now + 30
                case Kill(containers):
                    for c in containers:
                        self.containers[c.id] = replace(self.containers[c.id], status="exited")
                case Remove(containers):
                    for c in containers:
                        assert self.containers[c.id].ended
                        del self.containers[c.id]
                        self.deadlines.pop(c.id, None)

    @rule(name=st.sampled_from(["one", "two"]), parallelism=st.integers(1, 3))
    def the_task_changes(self, name: str, parallelism: int) -> None:
        self.wanted = wanted_for(name, f"{next(self.generations)}-x", parallelism=parallelism)

    @rule()
    def no_task(self) -> None:
        self.wanted = Wanted(reason="none")

    @rule(lose=st.sets(st.integers(0, 3), max_size=2))
    def a_tick(self, lose: set[int]) -> None:
        self.now += 1
        self.apply(list(plan(self.state())), lose)

    @precondition(lambda self: self.containers)
    @rule(data=st.data(), status=st.sampled_from(["exited", "dead", "created"]))
    def a_container_ends(self, data: st.DataObject, status: str) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.containers)))
        self.containers[chosen] = replace(self.containers[chosen], status=status)

    @precondition(lambda self: self.containers)
    @rule(data=st.data())
    def a_container_is_removed_by_hand(self, data: st.DataObject) -> None:
        del self.containers[data.draw(st.sampled_from(sorted(self.containers)))]

    @rule()
    def the_agent_restarts(self) -> None:
        self.deadlines, self.image, self.wanted = {}, None, None
        self.terminated = {}

    @rule(seconds=st.integers(1, 60))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @invariant()
    def every_unwanted_container_is_stopped_once(self) -> None:
        assert all(count == 1 for count in getattr(self, "terminated", {}).values())

    @invariant()
    def it_converges(self) -> None:
        if getattr(self, "wanted", None) is None:
            return
        saved = (self.now, dict(self.containers), self.image, dict(self.deadlines), dict(self.terminated))
        for _ in range(8):
            self.apply(list(plan(self.state())), set())
            self.now += 31
        assert plan(self.state()) == []
        assert self.wanted is not None
        specs = sorted(c.spec for c in self.containers.values() if c.status == "running")
        assert specs == sorted(slot.digest for slot in self.wanted.slots)
        assert len(self.containers) == len(self.wanted.slots)
        self.now, self.containers, self.image, self.deadlines, self.terminated = saved


TestPlannerMachine = PlannerMachine.TestCase
TestPlannerMachine.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
