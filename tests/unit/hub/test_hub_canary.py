"""A task that is tried on some nodes: which ones, what they are given, how it ends."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gridcore.protocol import TaskDefinition
from hub.canary import choose, judge
from hub.observed import Instant
from hub.registry import DrainOrder, Live, Node, NodeRecord, Presence, StopOrder
from hub.reports import ContainerState, LastExit
from hub.tasklist import Canary
from tests.unit.hub.operated_hub import AUTH, OperatedHub

ANY = TaskDefinition(name="t", image="t:1")
PLATFORMS = {"x": "linux/amd64", "a": "linux/arm64", "r": "linux/arm/v7"}


def node(node_id: str, live: dict[str, Any] | None = None, **record: Any) -> Node:
    """A node whose platform its first letter tells."""
    platform = PLATFORMS[node_id[0]]
    kept = NodeRecord(node_id, "pi", "aarch64", 4, platform, **{"agent_version": "1", **record})
    return Node(kept, Live(**{"heard": 0, "last_seen": 0, **(live or {})}))


# --- The choice --------------------------------------------------------------------------------------------


def test_one_of_each_platform_comes_before_a_second_of_any() -> None:
    nodes = [node(name) for name in ("a3", "a2", "a1", "r1", "x2", "x1")]
    assert choose(nodes, ANY, 6) == ("a1", "x1", "r1", "a2", "x2", "a3")
    assert choose(reversed(nodes), ANY, 6) == choose(nodes, ANY, 6)


def test_nodes_that_are_in_error_now_come_last_on_their_platform() -> None:
    nodes = [node("a1", live={"runtime_status": "Error"}), node("a2")]
    assert choose(nodes, ANY, 2) == ("a2", "a1")


@pytest.mark.parametrize(
    "unfit",
    [
        node("a1", presence=Presence.OFFLINE),
        node("a1", presence=Presence.GONE),
        node("a1", agent_version=None),
        node("a1", stop=StopOrder.ASKED),
        node("a1", drain=DrainOrder.TOLD),
        node("a1", live={"paused": True}),
        node("x1"),
    ],
)
def test_who_could_not_run_it_is_not_chosen(unfit: Node) -> None:
    for_arm = TaskDefinition.model_validate({"name": "t", "images": {"linux/arm64": "t:1"}})
    assert choose([unfit, node("a2")], for_arm, 5) == ("a2",)


# --- The verdict -------------------------------------------------------------------------------------------

START = 1_000.0
TRIED = Canary("t", "5-new", ("a1", "a2"), START, healthy_after=60, start_within=300, wanted=2)
UP = {"runtime_status": "Running", "generation": "5-new"}


def verdict(now: float, *, canary: Canary = TRIED, **nodes: Node | None) -> Canary | str:
    return judge(canary, {"a1": node("a1", UP), "a2": node("a2", UP), **nodes}, Instant(now, now))


def test_it_is_healthy_once_all_have_been_up_for_long_enough() -> None:
    up = verdict(START + 100)
    assert isinstance(up, Canary)
    assert (up.state, up.up_since) == ("up", START + 100)
    assert verdict(START + 159, canary=up) is up
    healthy = verdict(START + 160, canary=up)
    assert isinstance(healthy, Canary)
    assert healthy.state == "healthy"


def test_nodes_that_still_run_the_old_task_are_waited_for() -> None:
    late = node("a2", {"runtime_status": "Running", "generation": "4-old"})
    assert verdict(START + 299, a2=late) is TRIED
    assert verdict(START + 300, a2=late) == "node a2 was not running it after 300 s"


def test_a_node_that_is_idle_for_a_while_starts_both_clocks_anew() -> None:
    up = replace(TRIED, up_since=START + 10)
    lapsed = verdict(START + 400, canary=up, a2=node("a2", {**UP, "runtime_status": "Idle"}))
    assert isinstance(lapsed, Canary)
    assert (lapsed.state, lapsed.clock) == ("starting", START + 400)


def container(kind: str, ended: float, ran: float) -> ContainerState:
    return ContainerState(0, 0, "running", None, 1, LastExit(kind, 1, "exit code 1", ended, ran))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (None, "node a2 was forgotten"),
        (node("a2", UP, presence=Presence.OFFLINE), "node a2 is Offline"),
        (node("a2", UP, stop=StopOrder.ASKED), "node a2 was told to stop"),
        (node("a2", UP, drain=DrainOrder.ASKED), "node a2 was drained"),
        (
            node("a2", {**UP, "runtime_status": "Error", "reason": "no such image"}),
            "node a2 reports an error: no such image",
        ),
        (
            node("a2", {**UP, "containers": (container("failed", START + 20, 5),)}),
            "node a2 had a container that failed: exit code 1",
        ),
        (
            node("a2", {**UP, "containers": (container("some-new-kind", START + 20, 5),)}),
            "node a2 had a container that failed: exit code 1",
        ),
    ],
)
@pytest.mark.parametrize("canary", [TRIED, replace(TRIED, up_since=START + 5)])
def test_what_speaks_against_it_on_one_node_ends_it(bad: Node | None, reason: str, canary: Canary) -> None:
    assert verdict(START + 30, canary=canary, a2=bad) == reason
    healthy = replace(canary, is_healthy=True)
    assert verdict(START + 30, canary=healthy, a2=bad) is healthy


@pytest.mark.parametrize(
    "fine",
    [
        {"containers": (container("finished", START + 20, 5),)},
        {"containers": (container("stopped", START + 20, 5),)},
        # Of the task that ran before:
        {"containers": (container("failed", START + 2, 500),)},
        {"runtime_status": "Error", "reason": "the old task fails", "generation": "4-old"},
    ],
)
def test_what_does_not_speak_against_it_does_not_end_it(fine: dict[str, Any]) -> None:
    assert isinstance(verdict(START + 30, a2=node("a2", {**UP, **fine})), Canary)


# --- Over HTTP ---------------------------------------------------------------------------------------------


@pytest.fixture
async def hub() -> OperatedHub:
    """Nodes n1, n2 and n3 work on `old`; `new` and `later` wait."""
    hub = OperatedHub(prefetch=True)
    await hub.add("old", "new", "later")
    await hub.do("POST", "/api/tasks/next")
    await hub.join("n1", "n2", "n3")
    await hub.run_it("n1", "n2", "n3")
    return hub


async def try_it(hub: OperatedHub, **body: Any) -> Any:
    return await hub.do("POST", "/api/tasks/next", {"canary": 1, **body})


async def test_only_the_nodes_that_try_it_are_given_another_task(hub: OperatedHub) -> None:
    before = await hub.given("n2")
    answer = await try_it(hub)
    assert (answer["current"], answer["canary"]["nodes"]) == ("old", ["n1"])
    tried = await hub.given("n1")
    assert tried == (answer["canary"]["generation"], "new")
    assert before == await hub.given("n2") == await hub.given() == await hub.given("unknown")
    shown = await hub.tasks()
    assert (shown["current"], shown["generation"]) == ("old", before[0])
    assert shown["pending"] == ["new", "later"]
    assert shown["canary"] == answer["canary"]
    again = await hub.do(
        "POST",
        "/gridnode/register",
        {"node_id": "n1", "hostname": "x", "architecture": "aarch64", "cpu_count": 1},
    )
    assert (again["current_task"]["task_name"], again["current_task"]["generation"]) == ("new", tried[0])


async def test_each_node_fetches_ahead_what_it_needs_next(hub: OperatedHub) -> None:
    await try_it(hub)
    assert (await hub.beat("n1"))["prefetch"] == "later:1"
    assert (await hub.beat("n2"))["prefetch"] == "new:1"


async def test_an_answer_says_that_there_were_fewer_nodes_than_wanted(hub: OperatedHub) -> None:
    answer = await try_it(hub, canary=5)
    assert len(answer["canary"]["nodes"]) == 3
    assert answer["message"] == "new is being tried on 3 of the 5 nodes asked for."


async def test_only_the_held_requests_of_the_nodes_that_try_it_end(hub: OperatedHub) -> None:
    revision, _ = await hub.given("n2")

    async def held(node_id: str) -> str | None:
        response = await hub.app.test_client().get(
            f"/gridnode/task?platform=linux/arm64&node_id={node_id}",
            headers={**AUTH, "If-None-Match": f'"{revision}"', "Prefer": "wait=50"},
        )
        task = await response.get_json() if response.status_code == 200 else None
        return task and task["task_name"]

    first, second = asyncio.create_task(held("n1")), asyncio.create_task(held("n2"))
    while len(hub.waiters) < 2:  # noqa: ASYNC110  nobody tells when a request is held
        await asyncio.sleep(0)
    await try_it(hub)
    assert await first == "new"
    await hub.do("POST", "/api/tasks/promote")
    assert await second == "new"


async def test_a_promotion_leaves_the_nodes_that_tried_it_alone(hub: OperatedHub) -> None:
    await try_it(hub)
    tried = await hub.given("n1")
    assert await hub.refused("POST", "/api/tasks/promote", {"task": "later"}) == (409, "no-canary")
    answer = await hub.do("POST", "/api/tasks/promote", {"task": "new"})
    assert answer == {"previous": "old", "current": "new"}
    assert tried == await hub.given("n1") == await hub.given("n2")
    shown = await hub.tasks()
    assert (shown["completed"], shown["canary"], shown["generation"]) == (["old"], None, tried[0])
    assert await hub.refused("POST", "/api/tasks/promote") == (409, "no-canary")


@pytest.mark.parametrize("act", ["next", "finish"])
async def test_a_plain_switch_to_what_is_tried_is_a_promotion(hub: OperatedHub, act: str) -> None:
    await try_it(hub)
    tried = await hub.given("n1")
    await hub.do("POST", f"/api/tasks/{act}")
    assert tried == await hub.given("n1") == await hub.given("n2")
    (promoted,) = await hub.events("canary-promoted")
    assert (promoted["task"], promoted["by"]) == ("new", act)
    assert len(await hub.events("switched")) == 2


async def test_an_abort_gives_back_what_is_current_under_its_old_generation(hub: OperatedHub) -> None:
    before = await hub.given("n1")
    await try_it(hub)
    assert await hub.do("POST", "/api/tasks/abort") == {"aborted": "new", "nodes": ["n1"], "current": "old"}
    assert before == await hub.given("n1")
    assert (await hub.tasks())["pending"] == ["new", "later"]
    assert await hub.refused("POST", "/api/tasks/abort") == (409, "no-canary")


async def test_what_is_tried_cannot_be_touched_and_nothing_gets_before_it(hub: OperatedHub) -> None:
    await try_it(hub)
    for method, path, body in (
        ("DELETE", "/api/tasks/new", None),
        ("PATCH", "/api/tasks/new", {"memory": 64}),
        ("POST", "/api/tasks/new/move", {"to": "last"}),
        ("POST", "/api/tasks/new/requeue", None),
        ("POST", "/api/tasks/later/move", {"to": "first"}),
        ("POST", "/api/tasks/later/move", {"before": "new"}),
    ):
        assert await hub.refused(method, path, body) == (409, "task-in-use")
    assert await hub.do("POST", "/api/tasks/later/move", {"after": "new"}) == {"pending": ["new", "later"]}
    assert await hub.refused("POST", "/api/tasks/next", {"canary": 1}) == (409, "canary-running")


async def test_the_current_task_may_be_changed_meanwhile(hub: OperatedHub) -> None:
    await try_it(hub)
    tried = await hub.given("n1")
    await hub.do("PATCH", "/api/tasks/old", {"image": "old:2"})
    assert await hub.given("n1") == tried
    assert (await hub.given("n2"))[0] != tried[0]


async def test_without_a_node_that_can_nothing_is_tried(hub: OperatedHub) -> None:
    for node_id in ("n1", "n2", "n3"):
        await hub.do("POST", f"/api/nodes/{node_id}/drain")
    before = await hub.tasks()
    assert await hub.refused("POST", "/api/tasks/next", {"canary": 1}) == (409, "no-canary-nodes")
    assert await hub.tasks() == before


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"canary": 1, "task": "new"}, (409, "not-current")),
        ({"canary": 1, "task": None}, (409, "not-current")),
        ({"canary": 1, "task": "old", "generation": "0-x"}, (409, "not-current")),
        ({"canary": 0}, 422),
        ({"canary": None}, 422),
        ({"canary": "1"}, 422),
        ({"canary": 201}, 422),
        ({"canary": 1, "healthy_after": 0}, 422),
        ({"canary": 1, "healthy_after": 86_401}, 422),
        ({"canary": 1, "generation": "0-x"}, 422),
        ({"healthy_after": 60, "task": "old"}, 422),
    ],
)
async def test_a_try_is_guarded_and_its_numbers_are_bounded(
    hub: OperatedHub, body: object, expected: object
) -> None:
    status, problem = await hub.refused("POST", "/api/tasks/next", body)
    assert expected in (status, (status, problem))
    assert (await hub.tasks())["canary"] is None


async def test_with_nothing_to_try_nothing_is_tried() -> None:
    hub = OperatedHub()
    await hub.join("n1")
    assert await hub.refused("POST", "/api/tasks/next", {"canary": 1}) == (400, "nothing-pending")


async def test_it_becomes_healthy_and_then_waits_for_somebody(hub: OperatedHub) -> None:
    await try_it(hub, healthy_after=30)
    await hub.sweep(5)
    assert (await hub.tasks())["canary"]["state"] == "starting"
    await hub.run_it("n1")
    await hub.sweep(5)
    assert (await hub.tasks())["canary"]["state"] == "up"
    for _ in range(3):
        await hub.run_it("n1", "n2", "n3")
        await hub.sweep(10)
    assert (await hub.tasks())["canary"]["state"] == "healthy"
    await hub.do("POST", "/api/nodes/n1/drain")
    await hub.sweep(10)
    assert (await hub.tasks())["canary"]["state"] == "healthy"
    kinds = [
        event["kind"] for event in await hub.events("canary-started", "canary-healthy", "canary-aborted")
    ]
    assert kinds == ["canary-started", "canary-healthy"]


async def test_an_error_ends_it_and_the_reason_hides_secrets(hub: OperatedHub) -> None:
    await hub.do("PATCH", "/api/tasks/new", {"env": {"TOKEN": "sesame-open"}})
    before = await hub.given("n1")
    await try_it(hub)
    revision, _ = await hub.given("n1")
    await hub.beat("n1", "Error", generation=revision, reason="bad token sesame-open")
    await hub.sweep()
    assert (await hub.tasks())["canary"] is None
    assert await hub.given("n1") == before
    (aborted,) = await hub.events("canary-aborted")
    assert aborted["reason"] == "node n1 reports an error: bad token ***"
    await hub.sweep()
    assert len(await hub.events("canary-aborted")) == 1


async def test_an_aborted_task_says_so_until_something_else_becomes_of_it(hub: OperatedHub) -> None:
    async def aborted() -> Any:
        (task,) = [task for task in (await hub.tasks())["tasks"] if task["name"] == "new"]
        assert task["aborted"] == (await hub.do("GET", "/api/tasks/new"))["aborted"]
        return task["aborted"]

    async def fail() -> Any:
        await try_it(hub)
        assert await aborted() is None
        before = (await hub.do("GET", "/api/tasks/new"))["revision"]
        await hub.do("POST", "/api/tasks/abort")
        assert (await hub.do("GET", "/api/tasks/new"))["revision"] != before
        return await aborted()

    assert await aborted() is None
    said = await fail()
    assert said == {"at": said["at"], "reason": "aborted by shared token", "nodes": 1}
    assert said["at"].endswith("Z")
    await hub.do("POST", "/api/tasks/later/move", {"to": "last"})
    assert await fail() == said
    await hub.do("PATCH", "/api/tasks/new", {"memory": 64})
    assert await aborted() is None
    await fail()
    await hub.do("POST", "/api/tasks/next")
    assert await aborted() is None


async def test_a_node_that_falls_silent_ends_it(hub: OperatedHub) -> None:
    await try_it(hub)
    await hub.sweep(61)
    assert (await hub.tasks())["canary"] is None
    (aborted,) = await hub.events("canary-aborted")
    assert aborted["reason"] == "node n1 is Offline"


async def test_a_hold_stops_it_and_its_clock_and_a_release_starts_both_anew(hub: OperatedHub) -> None:
    await try_it(hub, healthy_after=30, start_within=100)
    await hub.run_it("n1")
    await hub.sweep()
    tried = await hub.given("n1")
    await hub.do("POST", "/api/tasks/hold")
    assert (await hub.given("n1"))[1] is None
    for _ in range(4):
        await hub.beat("n1")
        await hub.sweep(50)
    assert (await hub.tasks())["canary"]["state"] == "up"
    await hub.do("POST", "/api/tasks/release")
    again = await hub.given("n1")
    assert again[1] == "new"
    assert again[0] != tried[0]
    await hub.sweep(50)
    assert (await hub.tasks())["canary"]["state"] == "starting"
    await hub.beat("n1")
    await hub.sweep(50)
    (aborted,) = await hub.events("canary-aborted")
    assert aborted["reason"] == "node n1 was not running it after 100 s"


@pytest.mark.parametrize("way", ["away", "clock set forward", "clock set back"])
async def test_time_that_the_hub_did_not_see_neither_ends_it_nor_makes_it_healthy(
    hub: OperatedHub, way: str
) -> None:
    def pass_time() -> None:
        if way == "away":
            hub.clock.pass_unseen(3_600)
        else:
            hub.clock.step_wall(3_600 if way == "clock set forward" else -3_600)

    await try_it(hub, healthy_after=30, start_within=100)
    await hub.sweep(20)
    pass_time()
    await hub.sweep()
    assert (await hub.tasks())["canary"]["state"] == "starting"
    await hub.run_it("n1", "n2", "n3")
    await hub.sweep()
    pass_time()
    for expected in ("up", "up", "healthy"):
        await hub.run_it("n1", "n2", "n3")
        await hub.sweep()
        assert (await hub.tasks())["canary"]["state"] == expected
        hub.clock.advance(16)


async def test_a_node_without_an_image_for_what_it_tries_would_say_so(hub: OperatedHub) -> None:
    await hub.do("PATCH", "/api/tasks/old", {"image": None, "images": {"linux/amd64": "old:1"}})
    await try_it(hub)
    assert (await hub.node("n1"))["reason"] is None
    assert (await hub.node("n2"))["reason"] == "task old has no image for linux/arm64"
