"""Every route, for every role, with every kind of token that is none: made from the application's own routes,
so that a new one is asked here by itself."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from quart import Quart

from gridcore.protocol import RegisterRequest
from hub.access import Role, SigningKey
from hub.app import create_app
from hub.events import Event, EventQuery
from hub.failures import Failures
from hub.logdesk import LogDesk
from hub.operations import register
from hub.refusals import Refusals, tell_refusals
from hub.roles import ADMINISTER, OPEN_PATHS, RIGHTS, Rights, plain
from hub.settings import HubSettings
from hub.state import Change, Operation, Outcome
from hub.store_local import LocalStore, open_memory
from hub.token_operations import create_token, retire_key, revoke_token, rotate_key
from hub.tokens import sign
from hub.waiters import Waiters

TOKEN = "an-example-secret-of-some-length"
OLD_TOKEN = "the-secret-of-before-of-some-length"

VIEWER_MAY = re.compile(r"GET (/openapi\.json|/metrics|/api/(?!tokens|keys|nodes/{}/logs).*)")
OPERATOR_MAY_NOT = re.compile(r"\S+ /api/(tokens|keys).*|DELETE /api/nodes/{}|\S+ /gridnode/.*")


def expected(method: str, rule: str) -> set[Role]:
    """Who may, said in another way than the table of the application says it."""
    roles = set[Role]()
    text = f"{method} {rule}"
    if VIEWER_MAY.fullmatch(text):
        roles |= {Role.VIEWER, Role.OPERATOR, Role.ADMIN}
    if not OPERATOR_MAY_NOT.fullmatch(text):
        roles |= {Role.OPERATOR, Role.ADMIN}
    if not rule.startswith("/gridnode/"):
        roles |= {Role.ADMIN}
    if rule.startswith("/gridnode/"):
        roles |= {Role.NODE}
    if text == "POST /gridnode/register":
        roles |= {Role.JOIN}
    return roles


@dataclass
class Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Hub:
    """The application in memory, asked as a server would ask it, but for the time that failures take."""

    def __init__(self) -> None:
        self.store: LocalStore = open_memory()
        self.refusals = Refusals()
        self.pauses: list[float] = []
        waiters = Waiters()

        async def pause(seconds: float) -> None:
            self.pauses.append(seconds)

        settings = HubSettings(
            token=TOKEN, previous_token=OLD_TOKEN, state="memory:", trusted_proxies=("10.0.0.1",)
        )
        self.app: Quart = create_app(
            settings,
            self.store,
            waiters,
            LogDesk(waiters, patience=0.001),
            refusals=self.refusals,
            failures=Failures(pause),
        )
        waiters.close()  # whatever could be held or followed ends at once: only its beginning is of interest

    @property
    def routes(self) -> list[tuple[str, str]]:
        """Method and rule of all that needs a token."""
        return sorted(
            (method, plain(rule.rule))
            for rule in self.app.url_map.iter_rules()
            for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
            if rule.rule not in OPEN_PATHS and not rule.websocket
        )

    async def ask(
        self, method: str, path: str, token: str | None, body: bytes = b"", client: str = "192.0.2.7"
    ) -> Answer:
        headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode("latin-1"))]
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path,
            "raw_path": b"", "query_string": b"", "root_path": "", "headers": headers,
            "client": (client, 1), "server": ("127.0.0.1", 2), "extensions": {},
        }  # fmt: skip
        messages: list[dict[str, Any]] = [
            {"type": "http.disconnect"},
            {"type": "http.request", "body": body, "more_body": False},
        ]
        sent: list[dict[str, Any]] = []
        answered = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if len(messages) == 1:  # a client that stays until it is answered
                await answered.wait()
            return messages.pop()

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered.set()

        await self.app.asgi_app(scope, receive, send)  # type: ignore[arg-type]  # plain dicts
        start = next(message for message in sent if message["type"] == "http.response.start")
        content = b"".join(message.get("body", b"") for message in sent)
        return Answer(start["status"], dict(start["headers"]), content)

    async def token(self, role: Role, ttl: float = 3600, node: str | None = None) -> str:
        return (await self.store.run(create_token(role, ttl, node=node))).token

    async def told(self) -> list[Event]:
        await tell_refusals(self.store, self.refusals)
        found = await self.store.events(EventQuery(kinds=frozenset({"access-refused"})))
        return [recorded.event for recorded in found]


@pytest.fixture
async def hub() -> AsyncIterator[Hub]:
    made = Hub()
    yield made
    await made.store.close()


def path_of(rule: str) -> str:
    return rule.replace("{}", "nothing-has-this-name")


def test_every_route_stands_in_the_table() -> None:
    missing = [route for route in Hub().routes if route not in RIGHTS]
    assert missing == [], "put these into hub/roles.py"


def test_the_table_is_as_the_roles_are_described() -> None:
    wrong = {route: roles for route, roles in RIGHTS.items() if roles != expected(*route)}
    assert wrong == {}


@pytest.mark.parametrize("role", list(Role))
async def test_each_role_may_ask_for_what_the_table_says_and_for_nothing_else(hub: Hub, role: Role) -> None:
    token = await hub.token(role)
    for method, rule in hub.routes:
        answer = await hub.ask(method, path_of(rule), token)
        assert answer.status != 401, (method, rule)
        assert (answer.status != 403) is (role in expected(method, rule)), (method, rule, answer)
        if answer.status == 403:
            assert json.loads(answer.body)["type"].endswith(":forbidden")
            assert b"nothing-has-this-name" not in answer.body
    assert hub.pauses == []


@pytest.mark.parametrize("token", [TOKEN, OLD_TOKEN])
async def test_the_shared_token_may_do_all_as_may_the_one_of_before(hub: Hub, token: str) -> None:
    for method, rule in hub.routes:
        answer = await hub.ask(method, path_of(rule), token)
        assert answer.status not in (401, 403, 429), (method, rule)
        assert answer.status < 500, (method, rule, answer)


def by_hand(header: Any, payload: str, secret: str) -> str:
    head = base64.urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()
    digest = hmac.new(secret.encode(), f"{head}.{payload}".encode(), hashlib.sha256).digest()
    return f"{head}.{payload}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


async def invalid_tokens(hub: Hub, role: Role) -> dict[str, str | None]:
    """What looks like a token of this role, and is none."""
    revoked = await hub.store.run(create_token(role, 3600))
    await hub.store.run(revoke_token(revoked.record.id))
    retired = await hub.store.run(create_token(role, 3600))
    await hub.store.run(rotate_key())
    assert retired.record.key is not None
    await hub.store.run(retire_key(retired.record.key))
    issued = await hub.store.run(create_token(role, 3600))
    key = hub.store.access.signing_key
    assert key is not None
    assert (await hub.ask("GET", "/nothing", issued.token)).status != 401
    header, payload, signature = issued.token.split(".")
    claims = json.loads(base64.urlsafe_b64decode(payload + "=="))

    def with_claims(**changed: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps({**claims, **changed}).encode()).rstrip(b"=").decode()

    good = {"alg": "HS256", "kid": key.id, "typ": "JWT"}
    none = base64.urlsafe_b64encode(json.dumps({**good, "alg": "none"}).encode()).rstrip(b"=").decode()
    stranger = SigningKey(key.id, "0123456789abcdef" * 4)
    return {
        "no": None,
        "empty": "",
        "wrong": "wrong",
        "nearly the shared one": TOKEN[:-1],
        "revoked": revoked.token,
        "of a retired key": retired.token,
        "expired": by_hand(good, with_claims(exp=int(time.time()) - 1), key.secret),
        "of another key": sign(issued.record, stranger),
        "changed": f"{header}.{with_claims(role='admin', sub='x')}.{signature}",
        "alg none": f"{none}.{payload}.",
        "alg none, signed": by_hand({**good, "alg": "none"}, payload, key.secret),
        "signed with a public text": by_hand(good, payload, "computehub"),
        "signed with the key's id": by_hand(good, payload, key.id),
        "of another issuer": by_hand(good, with_claims(iss="somebody"), key.secret),
        "not ASCII": "t\xf6ken",
    }


@pytest.mark.parametrize("role", list(Role))
async def test_whatever_is_no_token_gets_the_same_answer_everywhere(hub: Hub, role: Role) -> None:
    tokens = await invalid_tokens(hub, role)
    answers = [
        await hub.ask(method, path_of(rule), token)
        for token in tokens.values()
        for method, rule in [*hub.routes, ("GET", "/nothing"), ("PUT", "/api/tasks")]
    ]
    assert {answer.status for answer in answers} == {401}
    # What browsers are told goes by where a path would be, and so says nothing of what there is.
    assert len({(answer.body, answer.headers[b"www-authenticate"]) for answer in answers}) == 1
    assert len(hub.pauses) == len(answers)


async def test_a_valid_token_never_waits_wherever_else_its_address_failed(hub: Hub) -> None:
    token = await hub.token(Role.VIEWER)
    for _ in range(30):
        assert (await hub.ask("GET", "/api/tasks", "wrong")).status == 401
    assert hub.pauses[-1] > hub.pauses[0]
    waited = len(hub.pauses)
    for valid in (token, TOKEN):
        assert (await hub.ask("GET", "/api/tasks", valid)).status == 200
        await hub.ask("POST", "/api/tasks/next", valid)
    assert (await hub.ask("GET", "/health", "wrong")).status == 200
    assert len(hub.pauses) == waited


async def test_too_many_failed_attempts_at_once_are_told_so_at_once(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hub.failures.MOST_HELD", 0)
    answer = await hub.ask("GET", "/api/tasks", "wrong")
    assert answer.status == 429
    assert answer.headers[b"retry-after"] == b"5"
    assert json.loads(answer.body)["type"].endswith(":too-many-attempts")
    assert (await hub.ask("GET", "/api/tasks", TOKEN)).status == 200


async def test_what_is_in_no_rule_is_for_admins_alone(hub: Hub) -> None:
    for role in Role:
        token = await hub.token(role)
        answer = await hub.ask("GET", "/api/nothing", token)
        assert answer.status == (404 if role is Role.ADMIN else 403)
    assert (await hub.ask("GET", "/api/nothing", TOKEN)).status == 404


@pytest.mark.parametrize(
    "path", ["//api/tokens", "///api/tokens", "/api/tokens/", "/api//tokens", "/API/tokens"]
)
async def test_no_way_of_writing_a_path_opens_it(hub: Hub, path: str) -> None:
    token = await hub.token(Role.OPERATOR)
    assert (await hub.ask("GET", path, token)).status == 403
    assert (await hub.ask("HEAD", path, token)).status == 403
    assert (await hub.ask("POST", path, token)).status == 403


@pytest.mark.parametrize("path", ["//api/tasks", "///api/tasks", "http://hub//api/tasks", "//health"])
async def test_a_path_that_is_not_right_is_none_and_nobody_keeps_its_answer(hub: Hub, path: str) -> None:
    for token, status in ((None, 401), (TOKEN, 404)):
        answer = await hub.ask("GET", path, token)
        assert (answer.status, answer.headers[b"cache-control"]) == (status, b"no-store")


async def test_nobody_keeps_an_answer_however_its_path_is_written(hub: Hub) -> None:
    answer = await hub.ask("GET", "http://hub/api/tasks", TOKEN)
    assert (answer.status, answer.headers[b"cache-control"]) == (200, b"no-store")


async def test_a_method_that_a_path_does_not_take_is_told_as_such(hub: Hub) -> None:
    token = await hub.token(Role.VIEWER)
    answer = await hub.ask("PUT", "/api/tasks", token)
    assert (answer.status, answer.headers[b"allow"]) == (405, b"GET, HEAD, OPTIONS, POST")
    assert (await hub.ask("OPTIONS", "/api/tasks", token)).status == 200
    assert (await hub.ask("OPTIONS", "/api/tokens", token)).status == 403
    assert (await hub.ask("HEAD", "/api/tasks", token)).status == 200


def test_a_route_that_somebody_forgets_is_closed() -> None:
    app = Quart("x")
    app.add_url_rule("/api/forgotten/<name>", view_func=lambda name: name)
    rights = Rights(app.url_map)
    allowed = {role for role in Role if rights.allow(role, "GET", "/api/forgotten/a")}
    assert allowed == set(ADMINISTER)


# --- Tokens that are bound to a node -----------------------------------------------------------------------

BEAT = {"status": "Idle", "active_containers": 0}
NODE = {"hostname": "h", "architecture": "arm", "cpu_count": 1}


async def acts_for(hub: Hub, node_id: str, token: str) -> list[Answer]:
    bodies = {
        "/gridnode/heartbeat": {**BEAT, "node_id": node_id},
        "/gridnode/register": {**NODE, "node_id": node_id},
        "/gridnode/logs": {"node_id": node_id, "id": "x"},
        "/gridnode/deregister": {"node_id": node_id},
    }
    return [await hub.ask("POST", path, token, json.dumps(body).encode()) for path, body in bodies.items()]


async def test_a_bound_token_speaks_for_its_node_and_says_nothing_of_others(hub: Hub) -> None:
    for node_id in ("mine", "other"):
        await hub.store.run(register(RegisterRequest(node_id=node_id, **NODE)))
    token = await hub.token(Role.NODE, node="mine")
    refused = await acts_for(hub, "other", token)
    assert {answer.status for answer in refused} == {403}
    assert refused == await acts_for(hub, "nobody", token)
    assert (await hub.store.node("other")).is_online
    assert [answer.status for answer in await acts_for(hub, "mine", token)] == [200, 200, 204, 204]
    assert [answer.status for answer in await acts_for(hub, "other", await hub.token(Role.NODE))] == [
        200, 200, 204, 204,
    ]  # fmt: skip


async def test_floods_of_refusals_are_told_once_with_who_and_how_many(hub: Hub) -> None:
    viewer = await hub.store.run(create_token(Role.VIEWER, 3600, "wall"))
    bound = await hub.store.run(create_token(Role.NODE, 3600, node="mine"))
    for _ in range(20):
        await hub.ask("POST", "/api/tasks/next", viewer.token)
        await hub.ask("GET", "/api/tasks", "wrong")
        await acts_for(hub, "other", bound.token)
    seen = {(event.who, event.source, *event.detail.values()) for event in await hub.told()}
    assert seen == {
        ("wall", "192.0.2.7", 403, 20),
        ("nobody", "192.0.2.7", 401, 20),
        ("node mine", "192.0.2.7", 403, 80),
    }
    for _ in range(20):
        await hub.ask("POST", "/api/tasks/next", viewer.token)
    assert len(await hub.told()) == 3


async def test_acts_are_told_with_the_name_of_the_token_and_never_with_the_token(hub: Hub) -> None:
    admin = await hub.store.run(create_token(Role.ADMIN, 3600, "alice"))
    body = json.dumps({"role": "viewer", "ttl": 60, "name": "wall"}).encode()
    made = json.loads((await hub.ask("POST", "/api/tokens", admin.token, body)).body)
    await hub.ask("DELETE", f"/api/tokens/{made['id']}", admin.token)
    await hub.ask("POST", "/api/keys", admin.token)
    await hub.ask("DELETE", f"/api/keys/{admin.record.key}", admin.token)
    events = [recorded.event for recorded in await hub.store.events(EventQuery(who="alice"))]
    kinds = [event.kind for event in events]
    assert kinds == ["key-retired", "key-rotated", "token-revoked", "token-created"]
    assert {event.source for event in events} == {"192.0.2.7"}
    created = events[-1].detail
    assert {created["id"], created["role"], created["name"]} == {made["id"], "viewer", "wall"}
    assert not any(made["token"] in str(event) for event in events)
    key = hub.store.access.signing_key
    assert key is not None
    assert not any(key.secret in str(event) for event in events)


async def test_a_record_that_nobody_revoked_but_lost_its_key_shows_as_revoked(hub: Hub) -> None:
    issued = await hub.store.run(create_token(Role.VIEWER, 3600, "wall"))

    def drop(*_: object) -> Outcome[None]:
        return Outcome(None, Change(keys={issued.record.key or "": None}))

    await hub.store.run(Operation(drop))
    listed = json.loads((await hub.ask("GET", "/api/tokens", TOKEN)).body)
    assert [(view["name"], view["status"]) for view in listed] == [("wall", "revoked")]


def test_whoever_lists_tokens_and_nobody_else_may_have_a_node_forgotten() -> None:
    """The playbook node_forget asks for the one before it does what belongs to the other."""
    assert RIGHTS["GET", "/api/tokens"] == RIGHTS["DELETE", "/api/nodes/{}"]
