"""The planner against a simulated engine: whatever happens in any order, it keeps its rules and converges.

Starts are slow (they are under way until a later step), calls get lost, the engine goes away, agents die in
the middle of all of it. Rules that hold after every step: no more containers live or starting than CPUs, one
container a CPU, nothing unwanted is started, and each agent asks each unwanted container to stop just once.
Left alone from any state, the wanted containers run and no other.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable
from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from agent.planner import (
    Action,
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
    plan,
)
from agent.reasons import Reason
from agent.spec import SlotSpec, Wanted
from tests.unit.agent.test_planner import CPUS, running, wanted_for

STOP_TIMEOUT = 30


class World:
    """The engine's containers, and what one agent remembers."""

    def __init__(self) -> None:
        self.ids = itertools.count()
        self.now = 0.0
        self.containers: dict[str, Container] = {}
        self.starting: dict[int, SlotSpec] = {}
        self.condemned: set[str] = set()
        self.wanted: Wanted | None = None
        self.frozen = False
        self.image: Image | None = None
        self.deadlines: dict[str, float] = {}
        self.terminated: dict[str, int] = {}

    def twin(self) -> World:
        """The same once more, to see what would become of it."""
        other = copy.copy(self)
        other.ids = itertools.count(1_000_000)
        other.containers, other.starting = dict(self.containers), dict(self.starting)
        other.condemned, other.deadlines = set(self.condemned), dict(self.deadlines)
        other.terminated = dict(self.terminated)
        return other

    def state(self) -> State:
        return State(
            self.wanted,
            tuple(self.containers.values()),
            self.now,
            {},
            self.deadlines,
            busy_instances=self.starting.keys(),
            image=self.image,
            frozen=self.frozen,
            condemned=self.condemned,
        )

    def tick(self, lose: Iterable[int] = ()) -> None:
        """Look, plan, act; of the actions those in `lose` do not arrive."""
        lost = set(lose)
        self.deadlines = {i: t for i, t in self.deadlines.items() if i in self.containers}
        for number, action in enumerate(plan(self.state())):
            if number not in lost:
                self.act(action)

    def act(self, action: Action) -> None:
        match action:
            case Fetch(image):
                assert not self.frozen, "a frozen node fetches"
                self.image = Image(image, "ready")
            case Start(slot):
                self.begin_start(slot)
            case Freeze(containers):
                self.become(containers, "running", "paused")
            case Thaw(containers):
                self.become(containers, "paused", "running")
            case Terminate(containers):
                for c in containers:
                    assert c.status != "paused", "it cannot hear"
                    self.terminated[c.id] = self.terminated.get(c.id, 0) + 1
                    self.deadlines[c.id] = self.now + STOP_TIMEOUT
            case Kill(containers):
                for c in containers:
                    assert c.id in self.terminated, "killed without having been asked"
                    self.containers[c.id] = replace(c, status="exited")
            case Remove(containers):
                for c in containers:
                    assert self.containers[c.id].ended
                    del self.containers[c.id]

    def begin_start(self, slot: SlotSpec) -> None:
        assert self.wanted is not None
        assert slot in self.wanted.slots, "something unwanted is started"
        assert not self.frozen, "a frozen node starts something"
        assert slot.name not in {c.name for c in self.containers.values()}
        live = [c for c in self.containers.values() if not c.ended]
        busy = {c.cpu for c in live} | {s.cpu for s in self.starting.values()}
        assert slot.cpu not in busy, "a CPU is double-booked"
        self.starting[slot.instance] = slot

    def end_start(self, instance: int, status: str | None) -> None:
        """The engine has done it: the container is there, running or created, or it is not."""
        slot = self.starting.pop(instance)
        taken = slot.name in {c.name for c in self.containers.values()}
        if status is not None and not taken:
            container = running(slot, id=f"c{next(self.ids)}", started=self.now, status=status)
            self.containers[container.id] = container

    def become(self, containers: Iterable[Container], before: str, after: str) -> None:
        for c in containers:
            if self.containers[c.id].status == before:
                self.containers[c.id] = replace(self.containers[c.id], status=after)

    def settle(self) -> None:
        """Leave it alone until nothing changes by time any more."""
        for _ in range(10):
            for instance in list(self.starting):
                self.end_start(instance, "running")
            self.tick()
            self.now += STOP_TIMEOUT + 1


class PlannerMachine(RuleBasedStateMachine):
    @initialize()
    def begin(self) -> None:
        self.generations = itertools.count(1)
        self.world = World()
        self.cpus: tuple[int, ...] = CPUS
        self.the_task_changes("one", 3)
        self.world.settle()

    @rule(name=st.sampled_from(["one", "two"]), parallelism=st.integers(1, 3))
    def the_task_changes(self, name: str, parallelism: int) -> None:
        generation = f"{next(self.generations)}-x"
        self.world.wanted = wanted_for(name, generation, self.cpus, parallelism=parallelism)

    @rule()
    def the_task_is_taken_back_and_comes_again(self) -> None:
        before, self.world.wanted = self.world.wanted, Wanted(reason=Reason("drained", "drained"))
        self.world.tick()
        self.world.wanted = before

    @rule(kind=st.sampled_from(["no-task", "drained", "stopping", "owner"]))
    def nothing_is_wanted(self, kind: str) -> None:
        self.world.wanted = Wanted(reason=Reason(kind, kind))

    @rule()
    def the_owner_freezes_or_thaws(self) -> None:
        self.world.frozen = not self.world.frozen
        self.world.tick()

    @rule(lose=st.sets(st.integers(0, 4), max_size=3))
    def a_tick(self, lose: set[int]) -> None:
        self.world.now += 1
        self.world.tick(lose)

    @rule(count=st.integers(1, 4))
    def ticks_without_trouble(self, count: int) -> None:
        for _ in range(count):
            for instance in list(self.world.starting):
                self.world.end_start(instance, "running")
            self.world.now += 10
            self.world.tick()

    @rule(seconds=st.integers(1, 60))
    def hub_or_engine_are_away(self, seconds: int) -> None:
        """No list, no word: time passes, and nothing is decided."""
        self.world.now += seconds

    @precondition(lambda self: self.world.starting)
    @rule(data=st.data(), status=st.sampled_from(["running", "created", None]))
    def a_start_ends(self, data: st.DataObject, status: str | None) -> None:
        self.world.end_start(data.draw(st.sampled_from(sorted(self.world.starting))), status)

    @precondition(lambda self: self.world.containers)
    @rule(data=st.data(), status=st.sampled_from(["exited", "dead"]))
    def a_container_ends(self, data: st.DataObject, status: str) -> None:
        chosen = data.draw(st.sampled_from(sorted(self.world.containers)))
        self.world.containers[chosen] = replace(self.world.containers[chosen], status=status)

    @precondition(lambda self: self.world.containers)
    @rule(data=st.data())
    def a_container_is_removed_by_hand(self, data: st.DataObject) -> None:
        del self.world.containers[data.draw(st.sampled_from(sorted(self.world.containers)))]

    @precondition(lambda self: self.world.containers)
    @rule(data=st.data())
    def a_container_breaks_a_limit(self, data: st.DataObject) -> None:
        self.world.condemned.add(data.draw(st.sampled_from(sorted(self.world.containers))))

    @rule(outcome=st.sampled_from(["running", "created", None]), cpus=st.permutations(list(CPUS)))
    def the_agent_is_killed_and_another_one_comes(self, outcome: str | None, cpus: list[int]) -> None:
        """Perhaps with other CPUs in its configuration; what the first one began may be done or not."""
        world, self.cpus = self.world, tuple(cpus)
        for instance in list(world.starting):
            world.end_start(instance, outcome)
        world.deadlines, world.image, world.wanted = {}, None, None
        world.terminated, world.condemned = {}, set()

    @invariant()
    def no_more_than_the_cpus_carry(self) -> None:
        if not hasattr(self, "world"):
            return
        live = [c.cpu for c in self.world.containers.values() if not c.ended]
        booked = live + [slot.cpu for slot in self.world.starting.values()]
        assert len(booked) == len(set(booked)) <= len(CPUS)

    @invariant()
    def every_unwanted_container_is_stopped_once(self) -> None:
        assert all(count == 1 for count in self.world.terminated.values())

    @invariant()
    def left_alone_it_converges(self) -> None:
        world = self.world.twin()
        if world.wanted is None:
            before = dict(world.containers)
            world.settle()
            survivors = {i for i, c in before.items() if not c.ended}
            assert survivors <= {i for i, c in world.containers.items() if not c.ended}, "unknown is not zero"
            return
        world.settle()
        assert plan(world.state()) == []
        assert not (world.condemned | world.terminated.keys()) & world.containers.keys(), "it had to go"
        specs = {c.spec for c in world.containers.values()}
        statuses = {c.status for c in world.containers.values()}
        assert len(specs) == len(world.containers), "two containers in one slot"
        wanted = {slot.digest for slot in world.wanted.slots}
        assert specs <= wanted if world.frozen else specs == wanted
        assert statuses <= ({"paused"} if world.frozen else {"running"})


TestPlannerMachine = PlannerMachine.TestCase
TestPlannerMachine.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
