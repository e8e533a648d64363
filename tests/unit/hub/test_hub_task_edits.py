"""Editing the list over HTTP: tasks go, come back, move and change; the fleet is held and released."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.hub.operated_hub import OperatedHub

SECRET = "redis://:hunter22@10.0.0.1:6379/0"


@pytest.fixture
def hub() -> OperatedHub:
    return OperatedHub()


async def test_a_removed_task_is_gone_and_its_name_is_free(hub: OperatedHub) -> None:
    await hub.add("a", "b")
    await hub.do("DELETE", "/api/tasks/b")
    assert (await hub.tasks())["pending"] == ["a"]
    assert await hub.refused("DELETE", "/api/tasks/b") == (404, "unknown-task")
    await hub.add("b", memory=64)
    assert [event["kind"] for event in await hub.events("task-removed")] == ["task-removed"]


async def test_the_current_task_can_be_neither_removed_nor_requeued_nor_moved(hub: OperatedHub) -> None:
    await hub.add("a", "b")
    await hub.do("POST", "/api/tasks/next")
    for method, path, body in (
        ("DELETE", "/api/tasks/a", None),
        ("POST", "/api/tasks/a/requeue", None),
        ("POST", "/api/tasks/a/move", {"to": "last"}),
        ("POST", "/api/tasks/b/move", {"after": "a"}),
    ):
        assert await hub.refused(method, path, body) == (409, "task-in-use")


async def test_a_task_called_like_an_act_can_be_removed_all_the_same(hub: OperatedHub) -> None:
    await hub.add("hold", "next")
    await hub.do("DELETE", "/api/tasks/hold")
    assert (await hub.do("PATCH", "/api/tasks/next", {"memory": 64}))["memory"] == 64
    assert (await hub.tasks())["held"] is False


async def test_a_completed_task_is_requeued_once(hub: OperatedHub) -> None:
    await hub.add("a", "b")
    for _ in range(2):
        await hub.do("POST", "/api/tasks/next")
    await hub.add("c")
    again = await hub.do("POST", "/api/tasks/a/requeue")
    assert (again["status"], again["started_at"], again["completed_at"]) == ("Pending", None, None)
    assert await hub.do("POST", "/api/tasks/a/requeue") == again
    assert (await hub.tasks())["pending"] == ["c", "a"]
    assert len(await hub.events("task-requeued")) == 1


async def test_a_move_answers_with_the_new_order(hub: OperatedHub) -> None:
    await hub.add("a", "b", "c")
    assert await hub.do("POST", "/api/tasks/c/move", {"before": "a"}) == {"pending": ["c", "a", "b"]}
    assert await hub.do("POST", "/api/tasks/c/move", {"to": "last"}) == {"pending": ["a", "b", "c"]}
    assert (await hub.tasks())["pending"] == ["a", "b", "c"]
    assert await hub.refused("POST", "/api/tasks/a/move", {"after": "x"}) == (404, "unknown-task")


@pytest.mark.parametrize(
    "body", [{}, {"before": "a", "to": "last"}, {"to": "middle"}, {"above": "a"}, {"before": None}]
)
async def test_a_move_says_one_place(hub: OperatedHub, body: object) -> None:
    await hub.add("a", "b")
    status, _ = await hub.refused("POST", "/api/tasks/b/move", body)
    assert status == 422
    assert (await hub.tasks())["pending"] == ["a", "b"]


async def test_a_patch_merges_env_by_name_and_null_takes_away(hub: OperatedHub) -> None:
    await hub.add("a", env={"KEEP": "kept-value", "DROP": "1", "CHANGE": "old-value"}, memory=64)
    patch = {"env": {"DROP": None, "CHANGE": "new-value", "ADD": "x"}, "memory": None, "command": ["go"]}
    view = await hub.do("PATCH", "/api/tasks/a", patch)
    assert view["env"] == {"KEEP": "***", "CHANGE": "***", "ADD": "***"}
    assert (view["memory"], view["command"], view["earlier"]) == (None, ["go"], 1)
    stored = (await hub.store.tasks()).get("a").definition
    assert stored.env == {"KEEP": "kept-value", "CHANGE": "new-value", "ADD": "x"}


async def test_an_object_that_a_patch_has_emptied_is_as_if_it_had_never_been(hub: OperatedHub) -> None:
    await hub.add("a", env={"X": "1"}, images={"linux/arm64": "arm:1"})
    view = await hub.do("PATCH", "/api/tasks/a", {"env": {"X": None}, "images": {"linux/arm64": None}})
    assert (view["env"], view["images"]) == (None, None)
    assert (await hub.do("POST", "/api/tasks", {"name": "a", "image": "a:1"}))["name"] == "a"


@pytest.mark.parametrize(
    ("patch", "field"),
    [
        ({"name": "b"}, "name"),
        ({"memry": 64}, "memry"),
        ({"memry": None}, "memry"),
        ({"memory": "much"}, "memory"),
        ({"input_redis": "redis://:***@10.0.0.1/0"}, "input_redis"),
        ({"env": {"TOKEN": "***"}}, "env.TOKEN"),
        ({"env": {"TASK_NAME": "x"}}, "env"),
        ({"env": {"X": 5}}, "env.X"),
        ({"env": {"X": {"Y": None}}}, "env.X"),
        ({"image": None}, "(body)"),
        ({"images": {"linux/s390x": "x:1"}}, "images.linux/s390x.[key]"),
    ],
)
async def test_a_patch_that_is_wrong_changes_nothing(
    hub: OperatedHub, patch: dict[str, Any], field: str
) -> None:
    await hub.add("a")
    before = await hub.tasks()
    status, problem = await hub.refused("PATCH", "/api/tasks/a", patch)
    assert (status, list(problem)) == (422, [field])
    assert await hub.tasks() == before


async def test_a_patch_of_the_current_task_is_a_new_generation_and_revert_goes_back(hub: OperatedHub) -> None:
    await hub.add("a", input_redis=SECRET)
    await hub.do("POST", "/api/tasks/next")
    first = (await hub.tasks())["generation"]
    await hub.do("PATCH", "/api/tasks/a", {"image": "a:2"})
    second = (await hub.tasks())["generation"]
    await hub.do("PATCH", "/api/tasks/a", {"image": "a:2"})
    assert first != second == (await hub.tasks())["generation"]
    assert (await hub.tasks())["current"] == "a"
    view = await hub.do("POST", "/api/tasks/a/revert")
    assert (view["image"], view["earlier"]) == ("a:1", 0)
    assert len({first, second, (await hub.tasks())["generation"]}) == 3
    assert await hub.refused("POST", "/api/tasks/a/revert") == (409, "nothing-earlier")


async def test_events_name_the_fields_that_changed_and_never_their_values(hub: OperatedHub) -> None:
    await hub.add("a")
    await hub.do("PATCH", "/api/tasks/a", {"env": {"TOKEN": "sesame-open"}, "input_redis": SECRET})
    await hub.do("POST", "/api/tasks/a/revert")
    changed, reverted = await hub.events("task-changed", "task-reverted")
    assert changed["fields"] == reverted["fields"] == ["env", "input_redis"]
    assert not any(secret in f"{changed}{reverted}" for secret in ("sesame", "hunter22"))


async def test_what_a_former_definition_had_for_secrets_stays_hidden(hub: OperatedHub) -> None:
    await hub.add("a", env={"TOKEN": "sesame-open"})
    await hub.do("PATCH", "/api/tasks/a", {"env": {"TOKEN": "other-word"}})
    await hub.join("n")
    await hub.beat("n", reason="cannot log in with sesame-open")
    assert (await hub.node("n"))["reason"] == "cannot log in with ***"


@pytest.mark.parametrize("act", ["PATCH /api/tasks/a", "POST /api/tasks/a/revert"])
async def test_if_match_guards_a_change_with_the_generation(hub: OperatedHub, act: str) -> None:
    await hub.add("a", "b")
    await hub.do("PATCH", "/api/tasks/a", {"memory": 64})
    await hub.do("POST", "/api/tasks/next")
    method, path = act.split()
    body = {"memory": 65} if method == "PATCH" else None
    generation = (await hub.tasks())["generation"]
    await hub.do("POST", "/api/tasks/hold")
    before = await hub.tasks()
    refused = await hub.refused(method, path, body, If_Match=f'"{generation}"')
    assert refused == (412, "generation-changed")
    assert await hub.tasks() == before
    await hub.do(method, path, body, If_Match=f'"{before["generation"]}"')


async def test_each_answer_with_a_task_has_its_revision_as_etag(hub: OperatedHub) -> None:
    added = await hub.ask("POST", "/api/tasks", {"name": "a", "image": "a:1"})
    shown = await hub.ask("GET", "/api/tasks/a")
    changed = await hub.ask("PATCH", "/api/tasks/a", {"memory": 64})
    reverted = await hub.ask("POST", "/api/tasks/a/revert")
    await hub.add("b")
    moved = await hub.ask("POST", "/api/tasks/a/move", {"to": "last"})
    etags = [answer.headers["ETag"] for answer in (added, shown, changed, reverted, moved)]
    assert etags[0] == etags[1]
    assert len(set(etags)) == 4
    assert etags[0] == f'"{(await added.get_json())["revision"]}"'
    (task,) = [task for task in (await hub.tasks())["tasks"] if task["name"] == "a"]
    assert etags[-1] == f'"{task["revision"]}"'


async def test_of_two_operators_who_read_the_same_pending_task_one_changes_it(hub: OperatedHub) -> None:
    await hub.add("a")
    seen = (await hub.ask("GET", "/api/tasks/a")).headers["ETag"]
    await hub.do("PATCH", "/api/tasks/a", {"memory": 64}, If_Match=seen)
    response = await hub.ask("PATCH", "/api/tasks/a", {"command": ["go"]}, {"If-Match": seen})
    problem = await response.get_json()
    view = await hub.do("GET", "/api/tasks/a")
    assert (response.status_code, problem["revision"]) == (412, view["revision"])
    assert (view["memory"], view["command"]) == (64, None)
    assert "GET /api/tasks/a" in problem["detail"]


@pytest.mark.parametrize(
    "act", ["next", "finish", "hold", "release", "promote", "abort", "", "nodes/drain", "nodes/n/stop"]
)
async def test_where_if_match_guards_nothing_what_is_sent_with_one_is_not_done(
    hub: OperatedHub, act: str
) -> None:
    await hub.add("a", "b")
    await hub.do("POST", "/api/tasks/next")
    await hub.join("n")
    path = f"/api/{act}" if act.startswith("nodes/") else f"/api/tasks/{act}".rstrip("/")
    body = {"": {"name": "c", "image": "c:1"}, "nodes/drain": {"all": True}}.get(act)
    before = await hub.tasks(), await hub.node("n")
    assert await hub.refused("POST", path, body, If_Match='"1-of-long-ago"') == (412, "nothing-to-match")
    assert (await hub.tasks(), await hub.node("n")) == before


async def test_an_if_match_for_whatever_there_is_guards_nothing_and_is_taken_everywhere(
    hub: OperatedHub,
) -> None:
    await hub.add("a")
    await hub.do("POST", "/api/tasks/next", If_Match="*")
    await hub.do("PATCH", "/api/tasks/a", {"memory": 64}, If_Match="*")


async def test_a_revert_that_is_sent_again_goes_back_once(hub: OperatedHub) -> None:
    await hub.add("a")
    for memory in (64, 65):
        await hub.do("PATCH", "/api/tasks/a", {"memory": memory})
    seen = (await hub.ask("GET", "/api/tasks/a")).headers["ETag"]
    await hub.do("POST", "/api/tasks/a/revert", If_Match=seen)
    assert await hub.refused("POST", "/api/tasks/a/revert", If_Match=seen) == (412, "generation-changed")
    assert (await hub.do("GET", "/api/tasks/a"))["memory"] == 64


@pytest.mark.parametrize(
    ("act", "body"),
    [("DELETE", None), ("POST /requeue", None), ("POST /move", {"to": "last"}), ("PATCH", {"memory": 64})],
)
async def test_an_act_on_a_task_that_has_changed_is_refused(
    hub: OperatedHub, act: str, body: dict[str, Any] | None
) -> None:
    await hub.add("a", "b")
    stale = (await hub.ask("GET", "/api/tasks/a")).headers["ETag"]
    await hub.do("PATCH", "/api/tasks/a", {"image": "a:2"})
    before = await hub.tasks()
    method, _, end = act.partition(" ")
    for given in (stale, f'"{before["generation"]}"', '"nonsense"', "nonsense"):
        refused = await hub.refused(method, f"/api/tasks/a{end}", body, If_Match=given)
        assert refused == (412, "generation-changed")
    assert await hub.tasks() == before
    fresh = (await hub.ask("GET", "/api/tasks/a")).headers["ETag"]
    await hub.do(method, f"/api/tasks/a{end}", body, If_Match=f'"other", W/{fresh}')


async def test_the_current_task_is_named_by_its_own_revision_too(hub: OperatedHub) -> None:
    await hub.add("a")
    await hub.do("POST", "/api/tasks/next")
    seen = (await hub.ask("GET", "/api/tasks/a")).headers["ETag"]
    await hub.do("POST", "/api/tasks/hold")  # another generation, and the same task
    await hub.do("PATCH", "/api/tasks/a", {"memory": 64}, If_Match=seen)
    assert await hub.refused("PATCH", "/api/tasks/a", {"memory": 65}, If_Match=seen) == (
        412, "generation-changed"
    )  # fmt: skip


async def test_a_completed_task_is_not_changed(hub: OperatedHub) -> None:
    await hub.add("a", "b")
    for _ in range(2):
        await hub.do("POST", "/api/tasks/next")
    for method, path, body in (
        ("PATCH", "/api/tasks/a", {"memory": 64}),
        ("POST", "/api/tasks/a/revert", None),
        ("POST", "/api/tasks/a/move", {"to": "first"}),
    ):
        assert await hub.refused(method, path, body) == (409, "task-completed")


async def test_a_guard_of_null_switches_only_if_nothing_is_current(hub: OperatedHub) -> None:
    await hub.add("a", "b")
    assert (await hub.do("POST", "/api/tasks/next", {"task": None}))["current"] == "a"
    assert await hub.refused("POST", "/api/tasks/next", {"task": None}) == (409, "not-current")
    assert await hub.refused("POST", "/api/tasks/next", {}) == (422, {"task": "missing"})
    assert await hub.refused("POST", "/api/tasks/next", {"generation": None}) == (422, {"task": "missing"})


async def test_a_held_fleet_is_given_nothing_whatever_the_list_does(hub: OperatedHub) -> None:
    await hub.add("a", "b")
    await hub.join("n")
    await hub.do("POST", "/api/tasks/next")
    before = await hub.given("n")
    assert await hub.do("POST", "/api/tasks/hold") == {"held": True, "current": "a"}
    held = await hub.given("n")
    assert await hub.do("POST", "/api/tasks/hold") == {"held": True, "current": "a"}
    assert held == await hub.given() == await hub.given("n")
    assert held[1] is None
    assert before[0] != held[0]
    facts = {"hostname": "x", "architecture": "aarch64", "cpu_count": 1}
    assert (await hub.do("POST", "/gridnode/register", {"node_id": None, **facts}))["current_task"] is None
    assert (await hub.node("n"))["reason"] == "the fleet is held"
    await hub.do("POST", "/api/tasks/finish")
    assert ((await hub.tasks())["current"], (await hub.given("n"))[1]) == ("b", None)
    assert await hub.do("POST", "/api/tasks/release") == {"held": False, "current": "b"}
    released = await hub.given("n")
    assert released[1] == "b"
    assert await hub.do("POST", "/api/tasks/release") == {"held": False, "current": "b"}
    assert released == await hub.given("n")
    kinds = [event["kind"] for event in await hub.events("fleet-held", "fleet-released")]
    assert kinds == ["fleet-held", "fleet-released"]


async def test_a_heartbeat_is_told_why_there_is_nothing_to_do(hub: OperatedHub) -> None:
    await hub.add("a", image="", images={"linux/amd64": "a:1"})
    await hub.join("n")
    assert "nothing" not in await hub.beat("n")
    await hub.do("POST", "/api/tasks/next")
    assert (await hub.beat("n"))["nothing"] == "task a has no image for linux/arm64"
    await hub.do("POST", "/api/tasks/hold")
    assert (await hub.beat("n"))["nothing"] == "the fleet is held"
    await hub.do("POST", "/api/tasks/release")
    await hub.do("PATCH", "/api/tasks/a", {"image": "a:2"})
    assert "nothing" not in await hub.beat("n")


async def test_what_a_node_does_that_is_not_there_is_not_known(hub: OperatedHub) -> None:
    await hub.join("silent", "left")
    for node_id in ("silent", "left"):
        await hub.do("POST", f"/api/nodes/{node_id}/stop")
        await hub.beat(node_id, "Error", active_containers=2, reason="stopping")
    await hub.do("POST", "/gridnode/deregister", {"node_id": "left"})
    await hub.sweep(60)
    for node_id, stop in (("silent", True), ("left", False)):
        node = await hub.node(node_id)
        assert (node["status"], node["runtime_status"], node["reason"]) == ("Offline", None, None)
        assert node["stop_requested"] is stop


async def test_what_a_node_says_itself_stands_above_the_hold(hub: OperatedHub) -> None:
    await hub.join("n")
    await hub.do("POST", "/api/tasks/hold")
    await hub.beat("n", reason="paused by its owner")
    assert (await hub.node("n"))["reason"] == "paused by its owner"


@pytest.mark.parametrize("path", ["hold", "release", "a/requeue", "a/revert", "promote", "abort"])
async def test_fields_that_are_not_known_are_refused(hub: OperatedHub, path: str) -> None:
    await hub.add("a")
    assert await hub.refused("POST", f"/api/tasks/{path}", {"tsk": "a"}) == (
        422, {"tsk": "unknown field; did you mean task?" if path in ("promote", "abort") else "unknown field"}
    )  # fmt: skip
    assert (await hub.refused("POST", f"/api/tasks/{path}?x=1"))[0] == 422
