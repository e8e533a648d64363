"""Several hubs over one Redis: each answers for all of them, and any one may die."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.hub_process import TOKEN, Answer, HubProcess
from tests.integration.many_hubs import Caller, Hubs, Node, Operator, eventually, task_names, wait_for_more
from tests.servers.haproxy import Haproxy
from tests.servers.redis_server import RedisServer


@pytest.fixture(scope="module")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(scope="module")
def pair(redis_server: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[HubProcess]]:
    with Hubs(tmp_path_factory.mktemp("pair"), f"{redis_server.url}?prefix=pair", 2) as hubs:
        yield hubs


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def add(hub: HubProcess, *names: str) -> None:
    for name in names:
        assert hub.post("/api/tasks", {"name": name, "image": "x:1"}).status == 201


def node(resources: ExitStack, port: int, node_id: str) -> Node:
    made = Node(port, node_id).start()
    resources.callback(made.stop)
    return made


# --- Two hubs ----------------------------------------------------------------------------------------------


def test_of_two_operators_who_finish_at_once_on_two_hubs_one_is_told_what_is_current(
    pair: list[HubProcess],
) -> None:
    add(pair[0], "race-1", "race-2", "race-3")
    pair[1].post("/api/tasks/next")
    for current, following in (("race-1", "race-2"), ("race-2", "race-3"), ("race-3", None)):
        together = threading.Barrier(2)
        answers: list[Answer] = []

        def finish(place: int) -> None:
            together.wait()  # noqa: B023  # ended before the next round
            answers.append(pair[place].post("/api/tasks/finish", {"task": current}))  # noqa: B023  called in this round

        threads = [threading.Thread(target=finish, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        done, refused = sorted(answers, key=lambda answer: answer.status)
        assert (done.status, done.json["started"]) == (200, following)
        assert (refused.status, refused.json["current"]) == (409, following)
    assert pair[0].get("/api/tasks").json == pair[1].get("/api/tasks").json


def test_a_request_held_at_one_hub_answers_what_was_done_at_the_other(
    pair: list[HubProcess], resources: ExitStack
) -> None:
    here, there = pair
    watching = node(resources, here.port, "held")
    add(there, "switch-1")
    began = time.monotonic()
    assert there.post("/api/tasks/next").status == 200
    generation = there.get("/api/tasks").json["generation"]
    eventually(lambda: watching.generation == generation, "the node was told of the switch", 3)
    assert there.post("/api/nodes/held/drain").status == 200
    eventually(lambda: any(order["drain"] for order in watching.orders), "it was told to drain", 3)
    assert there.post("/api/nodes/held/stop").status == 200
    eventually(lambda: any(order["stop_requested"] for order in watching.orders), "it was told to stop", 3)
    assert time.monotonic() - began < 5, "so long a request is held"


def test_a_held_request_answers_within_two_seconds_where_no_notice_arrives(
    pair: list[HubProcess], redis_server: RedisServer, resources: ExitStack
) -> None:
    here, there = pair
    watching = node(resources, here.port, "deaf")
    add(there, "deaf-1")
    with redis_server.client() as client:
        # The connections on which the hubs hear notices are cut in the moment of the switch, again and again.
        ending = threading.Event()

        def cut() -> None:
            while not ending.is_set():
                client.client_kill_filter(_type="pubsub")

        cutting = threading.Thread(target=cut)
        cutting.start()
        try:
            assert there.post("/api/tasks/next").status == 200
        finally:
            ending.set()
            cutting.join()
    generation = there.get("/api/tasks").json["generation"]
    eventually(lambda: watching.generation == generation, "the node was told of the switch", 2)


def test_a_log_is_asked_for_at_another_hub_than_the_nodes(
    pair: list[HubProcess], resources: ExitStack
) -> None:
    node(resources, pair[0].port, "writer")
    answers = [pair[1].get("/api/nodes/writer/logs"), pair[0].get("/api/nodes/writer/logs")]
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"log of writer\n")] * 2


def test_a_node_is_known_at_a_hub_where_it_did_not_register(pair: list[HubProcess]) -> None:
    here, there = (Caller(hub.port) for hub in pair)
    facts = {"node_id": "roaming", "hostname": "h", "architecture": "x86_64", "cpu_count": 1}
    assert here.ask("POST", "/gridnode/register", facts).status == 200
    beat = {"node_id": "roaming", "status": "Running", "active_containers": 2}
    assert there.ask("POST", "/gridnode/heartbeat", beat).json["known"]
    seen = here.ask("GET", "/api/nodes/roaming").json
    assert (seen["status"], seen["active_containers"]) == ("Online", 2)
    here.close()
    there.close()


def test_a_token_made_at_one_hub_counts_at_the_other_until_it_is_revoked_at_either(
    pair: list[HubProcess],
) -> None:
    here, there = pair
    made = here.post("/api/tokens", {"role": "viewer", "ttl": 600}).json
    assert there.get("/api/tasks", token=made["token"]).status == 200
    assert there.request("DELETE", f"/api/tokens/{made['id']}").status in (200, 204)
    assert there.get("/api/tasks", token=made["token"]).status == 401
    eventually(lambda: here.get("/api/tasks", token=made["token"]).status == 401, "the other hub knows it", 3)


def test_a_stream_at_one_hub_tells_what_happens_at_the_other(pair: list[HubProcess]) -> None:
    here, there = pair
    connection = here.connect(timeout=10)
    headers = {"Authorization": f"Bearer {TOKEN}", "Accept": "text/event-stream"}
    connection.request("GET", "/api/events?kind=task-added&task=streamed", headers=headers)
    stream = connection.getresponse()
    assert stream.status == 200
    add(there, "streamed")
    lines: list[str] = []
    while not lines or not lines[-1].startswith("data: "):
        lines.append(stream.readline().decode())
    event = json.loads(lines[-1].removeprefix("data: "))
    assert (event["kind"], event["task"], event["who"]) == ("task-added", "streamed", "shared token")
    connection.close()
    assert here.request("DELETE", "/api/tasks/streamed").status in (200, 204)


def test_a_canary_begun_at_one_hub_is_promoted_at_the_other(
    pair: list[HubProcess], resources: ExitStack
) -> None:
    here, there = pair
    nodes = [node(resources, hub.port, f"canary-{place}") for place, hub in enumerate(pair)]
    add(here, "tried")
    before = {one.id: one.generation for one in nodes}
    begun = here.post("/api/tasks/next", {"canary": 1})
    assert begun.status == 200, begun.body
    trying = eventually_one(nodes, before)
    assert there.get("/api/tasks").json["canary"]["nodes"] == [trying.id]
    assert there.post("/api/tasks/promote").status == 200
    (other,) = (one for one in nodes if one is not trying)
    eventually(lambda: other.generation != before[other.id], "the other node was told, too", 3)
    assert here.get("/api/tasks").json["current"] == "tried"


def eventually_one(nodes: list[Node], before: dict[str, str]) -> Node:
    """The one node that was told of something new."""
    eventually(lambda: any(one.generation != before[one.id] for one in nodes), "one node was told", 3)
    (told,) = (one for one in nodes if one.generation != before[one.id])
    return told


# --- Three hubs behind a load balancer ---------------------------------------------------------------------


def test_no_hub_that_dies_takes_an_acknowledged_operation_or_a_node_with_it(
    redis_server: RedisServer, tmp_path: Path, resources: ExitStack
) -> None:
    hubs = resources.enter_context(Hubs(tmp_path, f"{redis_server.url}?prefix=three", 3))
    proxy = resources.enter_context(Haproxy.before(tmp_path / "haproxy", [hub.port for hub in hubs]))
    proxy.wait_until_up(3)
    nodes = [node(resources, proxy.port, f"node-{number}") for number in range(12)]
    operators = [Operator(proxy.port, f"by-{number}") for number in range(3)]
    for operator in operators:
        operator.start()
    asking = Caller(proxy.port)
    for killed in hubs:
        wait_for_more(operators)
        killed.kill()
        for one in nodes[::4]:
            eventually(lambda one=one: one.beat() is None, "a heartbeat arrives")  # type: ignore[misc]  # a default argument binds it
        eventually(lambda: asking.ask("POST", "/api/tasks/next").status == 200, "a hub switches")
        generation = asking.ask("GET", "/api/tasks").json["generation"]
        eventually(
            lambda: all(one.generation == generation for one in nodes),  # noqa: B023  # awaited in this round
            "every node was told of the switch",
        )
        killed.start()
        proxy.wait_until_up(3)
    for operator in operators:
        operator.stop()
    there = set(task_names(asking.ask("GET", "/api/tasks")))
    added = {name for operator in operators for name in operator.added}
    assert added <= there
    assert not there & {name for operator in operators for name in operator.refused}
    assert {seen["status"] for seen in asking.ask("GET", "/api/nodes").json} == {"Online"}
    asking.close()
