"""The hub's client over the transport seam: what each kind of answer becomes."""

from __future__ import annotations

import json
from typing import Any

import pytest

from gridcore.client import HubClient, Request, Response
from gridcore.errors import HubRefused, HubRejectedToken, HubUnreachable
from gridcore.protocol import HeartbeatRequest, RegisterRequest

BEAT = HeartbeatRequest(node_id="n", status="Idle", active_containers=0)


class Hub:
    """Gives its answers in turn; an exception among them is raised."""

    def __init__(self, *answers: Response | Exception) -> None:
        self.answers = list(answers)
        self.asked: list[Request] = []

    async def __call__(self, request: Request) -> Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def reply(status: int, body: Any = None, **headers: str) -> Response:
    return Response(status, {k.replace("_", "-"): v for k, v in headers.items()}, json.dumps(body).encode())


async def test_a_connection_that_was_closed_is_tried_once_more() -> None:
    hub = Hub(HubUnreachable("reset"), reply(200, {"stop_requested": True}))
    assert (await HubClient(hub).heartbeat(BEAT)).stop_requested
    hub = Hub(HubUnreachable("reset"), HubUnreachable("still"))
    with pytest.raises(HubUnreachable, match="still"):
        await HubClient(hub).heartbeat(BEAT)


async def test_a_registration_is_not_repeated_since_it_could_make_two_nodes() -> None:
    hub = Hub(HubUnreachable("reset"))
    with pytest.raises(HubUnreachable):
        await HubClient(hub).register(RegisterRequest(hostname="h", architecture="arm", cpu_count=1))
    assert len(hub.asked) == 1
    assert hub.asked[0].body["node_id"] is None  # the key is fixed, also without an id


@pytest.mark.parametrize("status", [401, 403])
async def test_a_rejected_token_is_told_apart(status: int) -> None:
    with pytest.raises(HubRejectedToken):
        await HubClient(Hub(reply(status))).heartbeat(BEAT)


async def test_a_firewalls_page_and_a_proxys_login_are_no_word_about_the_token() -> None:
    page = reply(403, "<html>Access denied</html>", content_type="text/html; charset=utf-8")
    login = reply(401, None, www_authenticate='Basic realm="proxy"')
    for stranger in (page, login):
        with pytest.raises(HubUnreachable, match="a proxy or a firewall"):
            await HubClient(Hub(stranger)).heartbeat(BEAT)
    # A hub that was made with a web framework may show its page for 401; ours names its scheme.
    theirs = reply(401, "<title>401 Unauthorized</title>", content_type="text/html")
    ours = reply(401, {"title": "A token is needed"}, www_authenticate='Bearer realm="computehub"')
    for answer in (theirs, ours):
        with pytest.raises(HubRejectedToken):
            await HubClient(Hub(answer)).heartbeat(BEAT)


async def test_a_bad_token_among_too_many_is_a_bad_token_and_other_limits_are_not() -> None:
    slowed = reply(429, {"type": "urn:x:too-many-attempts"}, retry_after="5")
    with pytest.raises(HubRejectedToken) as rejected:
        await HubClient(Hub(slowed)).heartbeat(BEAT)
    assert rejected.value.retry_after == 5
    with pytest.raises(HubRefused):
        await HubClient(Hub(reply(429, {"type": "urn:x:too-many-orders"}))).heartbeat(BEAT)


async def test_a_refusal_carries_the_hubs_own_words() -> None:
    with pytest.raises(HubRefused, match="no such thing") as caught:
        await HubClient(Hub(reply(404, {"detail": "no such thing", "type": "t"}))).heartbeat(BEAT)
    assert (caught.value.status, caught.value.problem["type"]) == (404, "t")


@pytest.mark.parametrize(
    "answer", [reply(500), reply(200, "nonsense"), Response(200, {}, b"<html>"), reply(302), reply(200, [1])]
)
async def test_what_is_not_the_protocol_is_no_hub(answer: Response) -> None:
    with pytest.raises(HubUnreachable):
        await HubClient(Hub(answer)).heartbeat(BEAT)


async def test_a_held_question_names_what_is_known_and_how_long_to_wait() -> None:
    hub = Hub(reply(304, etag='"1-a"', gridcore_heartbeat="now"))
    answer = await HubClient(hub).task("linux/arm64", "n", '"1-a"', 25)
    assert (answer.changed, answer.etag, answer.heartbeat_now) == (False, '"1-a"', True)
    assert hub.asked[0].headers == {"If-None-Match": '"1-a"', "Prefer": "wait=25"}
    assert hub.asked[0].timeout > 25


async def test_no_task_and_a_bad_task_are_told_apart() -> None:
    hub = Hub(reply(200, None), reply(200, {"task_name": "x", "image": "-v"}))
    nothing = await HubClient(hub).task("linux/amd64", "n")
    assert (nothing.changed, nothing.task, nothing.etag, nothing.invalid) == (True, None, None, None)
    bad = await HubClient(hub).task("linux/amd64", "n")
    assert bad.task is None
    assert bad.invalid is not None
    assert bad.invalid.startswith("image")


async def test_a_hub_without_deregister_is_no_error() -> None:
    await HubClient(Hub(reply(404))).deregister("n")
    with pytest.raises(HubRefused):
        await HubClient(Hub(reply(422))).deregister("n")


@pytest.mark.parametrize("nonsense", [{"hello": 1}, {}, [], "x", 7, {"task_name": None}])
async def test_what_is_no_task_at_all_says_nothing_about_what_is_current(nonsense: object) -> None:
    """Else a stranger on the hub's address would end the work of the whole fleet."""
    with pytest.raises(HubUnreachable, match="not of the protocol"):
        await HubClient(Hub(reply(200, nonsense))).task("linux/amd64", "n")


async def test_a_hub_that_wants_to_be_left_alone_says_how_long_and_why() -> None:
    hub = Hub(reply(503, {"detail": "Redis is away"}, retry_after="7"), reply(503, None, retry_after="999"))
    with pytest.raises(HubUnreachable, match="answered 503: Redis is away") as caught:
        await HubClient(hub).heartbeat(BEAT)
    assert caught.value.retry_after == 7
    with pytest.raises(HubUnreachable) as caught:
        await HubClient(hub).heartbeat(BEAT)
    assert caught.value.retry_after == 60


@pytest.mark.parametrize("text", ["", "soon", "-1", "1.5", "²", "Wed, 21 Oct 2026 07:28:00 GMT"])
async def test_a_retry_after_that_is_no_number_is_none(text: str) -> None:
    with pytest.raises(HubUnreachable) as caught:
        await HubClient(Hub(reply(503, None, retry_after=text))).heartbeat(BEAT)
    assert caught.value.retry_after is None


async def test_a_redirection_is_not_followed_but_told() -> None:
    hub = Hub(reply(301, None, location="https://hub/gridnode/heartbeat"))
    with pytest.raises(HubUnreachable, match="points to https://hub/gridnode/heartbeat; is server_url right"):
        await HubClient(hub).heartbeat(BEAT)


async def test_the_token_of_one_call_counts_for_it_alone_and_is_in_no_repr() -> None:
    hub = Hub(reply(200, {"node_id": "n", "token": "0wn-token"}), reply(200, {}), reply(200, {}))
    client = HubClient(hub, "j0in-token")
    register = RegisterRequest(hostname="h", architecture="arm", cpu_count=1)
    assert (await client.register(register, "0ther-token")).token == "0wn-token"
    await client.heartbeat(BEAT)
    client.token = "0wn-token"
    await client.heartbeat(BEAT)
    assert [request.token for request in hub.asked] == ["0ther-token", "j0in-token", "0wn-token"]
    assert "-token" not in repr(hub.asked)


async def test_a_task_with_text_that_nothing_can_hold_is_told_as_one_and_not_by_each_slot() -> None:
    wire = {"task_name": "a", "image": "a:1", "command": ["sh", "\ud800"]}
    answer = await HubClient(Hub(reply(200, wire))).task("linux/amd64", "n")
    assert answer.task is None
    assert (answer.invalid or "").startswith("command.1: holds half a character")
    fine = await HubClient(Hub(reply(200, {**wire, "command": ["sh"], "later": "\ud800"}))).task("p", "n")
    assert fine.task is not None
