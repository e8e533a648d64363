"""No input makes a 500: whatever is sent, the hub answers with something that it means."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from hub.app import create_app
from hub.failures import Failures
from hub.logdesk import LogDesk
from hub.settings import HubSettings
from hub.store_local import open_memory
from hub.waiters import Waiters

TOKEN = "an-example-secret-of-some-length"

PATHS = (
    "/health",
    "/openapi.json",
    "/api/tasks",
    "/api/tasks/next",
    "/api/tasks/finish",
    "/api/tasks/promote",
    "/api/tasks/abort",
    "/api/tasks/hold",
    "/api/tasks/release",
    "/api/tasks/a",
    "/api/tasks/a/requeue",
    "/api/tasks/a/move",
    "/api/tasks/a/revert",
    "/api/nodes",
    "/api/nodes/drain",
    "/api/nodes/resume",
    "/api/nodes/n",
    "/api/nodes/n/stop",
    "/api/nodes/n/drain",
    "/api/nodes/n/resume",
    "/api/nodes/n/logs",
    "/api/nodes/new/drain",
    "/api/nodes/new/resume",
    "/api/nodes/new/logs",
    "/api/problems",
    "/api/tokens",
    "/api/tokens/a",
    "/api/keys",
    "/api/keys/a",
    "/gridnode/register",
    "/gridnode/heartbeat",
    "/gridnode/deregister",
    "/gridnode/logs",
    "/gridnode/task",
)
METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "TRACE", "BREW")
FIELDS = (
    "name", "image", "images", "input_redis", "input_queue", "env", "command", "memory", "stop_timeout",
    "task", "generation", "node_id", "hostname", "architecture", "cpu_count", "platform", "labels", "machine",
    "status", "active_containers", "errors", "reason", "containers", "warnings", "paused", "id", "text",
    "error", "agent_version", "pull_policy", "role", "ttl", "node",
    "canary", "healthy_after", "before", "after", "to", "all", "nodes",
)  # fmt: skip

any_text = st.text(st.characters(codec=None, exclude_categories=()), max_size=40)  # lone surrogates too
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | any_text
    | st.sampled_from(("a", "n", "x:1", "Idle")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=8,
)
objects = st.dictionaries(st.sampled_from(FIELDS) | any_text, values, max_size=10)
bodies = st.binary(max_size=300) | objects.map(lambda value: json.dumps(value).encode())
targets = st.sampled_from(PATHS) | st.text(max_size=300).map(lambda text: "/" + text) | st.just("") | any_text
queries = st.binary(max_size=60) | st.sampled_from(
    (
        b"platform=%00",
        b"platform=linux/arm64&node_id=n",
        b"node_id=%ff",
        b"status=Online",
        b"label=a=b&label=&platform=",
        b"status=%ed%a0%80",
        b"&=;",
        b"instance=0&lines=200&previous=3",
        b"instance=-1&lines=9e9&previous=",
        b"lines=" + b"9" * 5_000,
        b"lines=1&lines=2",
    )
)
headers = st.lists(
    st.tuples(
        st.sampled_from(
            (
                b"content-type",
                b"content-length",
                b"host",
                b"if-none-match",
                b"if-match",
                b"prefer",
                b"cookie",
                b"accept",
                b"x",
            )
        ),
        st.lists(st.sampled_from([*range(0x20, 0x7F), *range(0x80, 0x100)]), max_size=60).map(bytes)
        | st.sampled_from(
            (b"application/json", b"wait=0", b"*", b'"1"', b"multipart/form-data; boundary=a", b"-1")
        ),
    ),
    max_size=5,
)


async def no_pause(_seconds: float) -> None:
    """For those who have no token, too."""


class Subject:
    """A hub that has a node, a current task and pending ones; it outlives the examples, for speed."""

    def __init__(self, runner: asyncio.Runner) -> None:
        self._runner = runner
        waiters = Waiters()
        configured = HubSettings(token=TOKEN, state="memory:", prefetch=True)
        self._app = create_app(
            configured,
            open_memory(),
            waiters,
            LogDesk(waiters, patience=0.001),
            failures=Failures(no_pause),
        )
        for name in ("a", "b"):
            self.ask("POST", "/api/tasks", body=json.dumps({"name": name, "image": "x:1"}).encode())
        self.ask("POST", "/api/tasks/next")
        node = {"node_id": "n", "hostname": "h", "architecture": "arm", "cpu_count": 1}
        self.ask("POST", "/gridnode/register", body=json.dumps(node).encode())
        node |= {"node_id": "new", "agent_version": "1"}
        self.ask("POST", "/gridnode/register", body=json.dumps(node).encode())

    def ask(
        self,
        method: str,
        path: str,
        query: bytes = b"",
        headers: Sequence[tuple[bytes, bytes]] = (),
        body: bytes = b"",
        token: str = TOKEN,
    ) -> tuple[int, dict[bytes, bytes], bytes]:
        """One request, as an ASGI server hands it over: status, headers, body."""
        scope = {
            "type": "http", "http_version": "1.1", "method": method, "scheme": "http", "path": path,
            "raw_path": b"", "query_string": query, "root_path": "",
            "headers": [(b"authorization", b"Bearer " + token.encode()), *headers],
            "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "extensions": {},
        }  # fmt: skip
        messages = [{"type": "http.request", "body": body, "more_body": False}]
        sent: list[dict[str, Any]] = []
        answered = asyncio.Event()

        async def receive() -> dict[str, Any]:
            if messages:
                return messages.pop()
            await answered.wait()
            return {"type": "http.disconnect"}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered.set()

        self._runner.run(self._app.asgi_app(scope, receive, send))  # type: ignore[arg-type]
        start = next(message for message in sent if message["type"] == "http.response.start")
        content = b"".join(message.get("body", b"") for message in sent)
        return start["status"], dict(start["headers"]), content


@pytest.fixture(scope="module")
def hub() -> Iterator[Subject]:
    with capture_logs(), asyncio.Runner() as runner:
        yield Subject(runner)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(method=st.sampled_from(METHODS), path=targets, query=queries, given_headers=headers, body=bodies)
@example(method="GET", path="", query=b"a=b", given_headers=[], body=b"")
@example(method="GET", path="//", query=b"", given_headers=[], body=b"")
@example(method="GET", path="http://[", query=b"", given_headers=[], body=b"")
@example(method="GET", path="/api/tasks", query=b"", given_headers=[(b"host", b"a b:c")], body=b"")
@example(method="GET", path="/health", query=b"", given_headers=[(b"host", b".a..")], body=b"")
@example(method="GET", path="/health", query=b"", given_headers=[(b"host", b"a" * 300)], body=b"")
@example(method="GET", path="/api/tasks", query=b"", given_headers=[(b"host", b"\xff")], body=b"")
@example(
    method="POST", path="/api/tasks", query=b"", given_headers=[], body=b'{"\\ud800": 1, "name": "\\udfff"}'
)
@example(method="POST", path="/api/tasks", query=b"", given_headers=[(b"content-length", b"x")], body=b"{}")
@example(method="GET", path="/api/nodes/\x00/stop", query=b"", given_headers=[], body=b"")
@example(method="GET", path="/api/tasks/" + unquote("%ed%a0%80"), query=b"", given_headers=[], body=b"")
@example(method="GET", path="/api/tasks/" + "a" * 5_000, query=b"", given_headers=[], body=b"")
def test_no_request_makes_a_500(
    hub: Subject,
    method: str,
    path: str,
    query: bytes,
    given_headers: list[tuple[bytes, bytes]],
    body: bytes,
) -> None:
    check(*hub.ask(method, path, query, given_headers, body))


valid = st.fixed_dictionaries(
    {
        "name": st.just("c"), "image": st.just("x"), "node_id": st.just("n"), "hostname": any_text,
        "architecture": any_text, "cpu_count": st.integers(0, 9), "status": st.just("Idle"),
        "active_containers": st.integers(0, 9), "id": st.just("x"),
    },
    optional=dict.fromkeys(("images", "env", "command", "memory", "stop_timeout"), values)
    | dict.fromkeys(("labels", "errors", "reason", "machine", "warnings", "paused", "text", "error"), values),
)  # fmt: skip
spans = st.none() | st.floats(min_value=0, allow_nan=False) | values
reports = st.fixed_dictionaries(
    {"node_id": st.sampled_from(("n", "new")), "status": st.sampled_from(("Error", "Idle"))}
    | {"active_containers": st.integers(0, 9), "reason": st.none() | any_text},
    optional={
        "paused": st.booleans(),
        "warnings": st.lists(any_text, max_size=3),
        "errors": st.lists(st.fixed_dictionaries({"kind": any_text, "message": any_text}), max_size=3),
        "containers": st.lists(
            st.fixed_dictionaries(
                {"instance": st.integers(), "state": any_text},
                optional={
                    "cpu": st.none() | st.integers(),
                    "age": spans,
                    "restarts": st.integers(),
                    "last_exit": st.none()
                    | st.fixed_dictionaries(
                        {"kind": any_text},
                        optional={
                            "ago": spans,
                            "ran": spans,
                            "message": any_text,
                            "exit_code": st.integers(),
                        },
                    ),
                },
            ),
            max_size=3,
        ),
    },
)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    path=st.sampled_from([path for path in PATHS if path.startswith(("/api/tasks", "/gridnode/"))]),
    message=objects | valid,
)
def test_no_message_makes_a_500(hub: Subject, path: str, message: dict[str, Any]) -> None:
    check(*hub.ask("POST", path, body=json.dumps(message).encode()))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(report=reports)
@example(
    report={
        "node_id": "n", "status": "Error", "active_containers": 0, "reason": "\ud800",
        "containers": [
            {"instance": 1, "state": "", "age": float("inf"), "last_exit": {"kind": "", "ran": 1e308}}
        ],
    }
)  # fmt: skip
def test_whatever_a_node_reports_it_can_be_shown(hub: Subject, report: dict[str, Any]) -> None:
    sent = json.dumps(report).replace("Infinity", "1e999").encode()
    check(*hub.ask("POST", "/gridnode/heartbeat", body=sent))
    for path in ("/api/nodes", f"/api/nodes/{report['node_id']}", "/api/problems"):
        status, _, body = hub.ask("GET", path)
        assert status == 200
        json.loads(body, parse_constant=pytest.fail)


@pytest.mark.parametrize("path", PATHS[1:])
def test_no_path_can_be_told_from_another_without_the_token(hub: Subject, path: str) -> None:
    status, _, body = hub.ask("GET", path, token="wrong")
    other_status, _, other_body = hub.ask("GET", "/nothing", token="wrong")
    assert (status, body) == (other_status, other_body)
    assert status == 401


def check(status: int, answered: dict[bytes, bytes], body: bytes) -> None:
    assert status < 500 or status == 504, body  # 504: here no node brings a log
    if status >= 400:
        assert answered[b"content-type"] == b"application/problem+json"
        problem = json.loads(body)
        assert problem["status"] == status
        assert problem["detail"]
