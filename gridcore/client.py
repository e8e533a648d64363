"""The HTTP client of a hub, for the agent and the command line.

`HubClient` speaks the protocol over a `Transport`: one function from Request to Response. The real one is
`AiohttpTransport`; a test's may be any coroutine function.
"""

from __future__ import annotations

import asyncio
import json
import re
import ssl
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import aiohttp
from pydantic import BaseModel, TypeAdapter, ValidationError

from gridcore.errors import HubError, HubRefused, HubRejectedToken, HubUnreachable
from gridcore.json_values import find_faults
from gridcore.masking import mask_text
from gridcore.protocol import (
    DeregisterRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    LogsMessage,
    RegisterAnswer,
    RegisterRequest,
    TaskConfig,
)
from gridcore.trust import Trust

CONNECT_TIMEOUT = 5.0
ANSWER_TIMEOUT = 15.0
"""Seconds; a long poll has its wait on top."""
KEPT, KEPT_WITH_TLS = 15.0, 60.0
"""Seconds that an idle connection is kept; a hub of ours closes it after 75."""
MAX_ANSWER = 4 * 1024 * 1024
MAX_DETAIL = 300
"""Characters of a hub's own words in an error of ours."""
LONGEST_PAUSE = 60.0
"""Seconds; a hub's Retry-After above that counts as this, since it may be back sooner."""
TOO_MANY_ATTEMPTS = "too-many-attempts"
HEARTBEAT_NOW = "GridCore-Heartbeat"
# The interface of a link-local address (`%eth0`, in URLs also `%25eth0`) means nothing to another machine.
_ZONED = re.compile(r"(https?://\[)([0-9A-Fa-f:.]+)%(?:25)?([^\]/?#]+)\](:\d+)?(.*)", re.IGNORECASE)
# What nginx, Go and Apache answer to plain HTTP at a port with TLS; others only close the connection.
_WANTS_TLS = re.compile(rb"sent to HTTPS port|to an HTTPS server|SSL-enabled server")

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Request:
    """What is asked of a hub; `timeout` is in seconds and covers the whole exchange.

    `token` is the bearer token, none where it is empty.
    """

    method: str
    path: str
    body: Any = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = ANSWER_TIMEOUT
    token: str = field(default="", repr=False)


@dataclass(frozen=True)
class Response:
    """What came back: header names in lower case, the body as bytes."""

    status: int
    headers: Mapping[str, str]
    body: bytes


Transport = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True)
class TaskAnswer:
    """The answer of `GET /gridnode/task`.

    `changed` is False for 304 (nothing else is set then but the flags). `etag` is None at a hub that does
    not know instant switching. `invalid` says why a task that did arrive cannot be used.
    """

    changed: bool
    task: TaskConfig | None = None
    etag: str | None = None
    heartbeat_now: bool = False
    invalid: str | None = None


class AiohttpTransport:
    """Requests over one aiohttp session, with the token in the header where only the hub sees it.

    `trust` says which CAs count for https; the system's where there is none.
    """

    def __init__(self, base_url: str, trust: Trust | None = None) -> None:
        self._base = base_url.rstrip("/")
        self._host: str | None = None
        self._server_name: str | None = None
        if zoned := _ZONED.fullmatch(self._base):
            before, self._server_name, zone, port, after = zoned.groups("")
            self._base = f"{before}{self._server_name}%{zone}]{port}{after}"
            self._host = f"[{self._server_name}]{port}"
        self._is_tls = self._base.lower().startswith("https:")
        self._trust = trust or Trust()
        self._failed = False
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AiohttpTransport:
        # A handshake of TLS costs a hub more than twenty heartbeats; without one, a connection that is kept
        # costs it a descriptor for little.
        kept = KEPT_WITH_TLS if self._is_tls else KEPT
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(keepalive_timeout=kept))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def __call__(self, request: Request) -> Response:
        """One exchange; HubUnreachable when no whole answer arrives."""
        if self._failed:  # connections are made anew: perhaps by a CA that has been renewed
            self._failed = False
            self._trust.refresh()
        try:
            answer = await self._exchange(request)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            self._failed = True
            is_tls = isinstance(error, aiohttp.ClientSSLError)  # something did answer
            silent = isinstance(error, aiohttp.ClientConnectorError) and not is_tls
            raise HubUnreachable(self._explain(error, request.timeout), silent=silent) from None
        if not self._is_tls and answer.status == 400 and _WANTS_TLS.search(answer.body):
            text = f"{self._base} speaks TLS: {self._trust.names.url} must begin with https://"
            raise HubUnreachable(text)
        return answer

    async def _exchange(self, request: Request) -> Response:
        assert self._session is not None, "use it in `async with`"  # noqa: S101 # a programming error
        headers = dict(request.headers)
        if request.token:
            headers["Authorization"] = f"Bearer {request.token}"
        if self._host is not None:
            headers["Host"] = self._host
        async with self._session.request(
            request.method,
            self._base + request.path,
            json=request.body,
            params=dict(request.query),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=request.timeout, connect=CONNECT_TIMEOUT),
            allow_redirects=False,
            ssl=self._trust.context or True,
            server_hostname=self._server_name,
        ) as answer:
            body = await answer.content.read(MAX_ANSWER)
            while len(body) < MAX_ANSWER and (more := await answer.content.read(MAX_ANSWER - len(body))):
                body += more
            return Response(
                answer.status, {name.lower(): value for name, value in answer.headers.items()}, body
            )

    def _explain(self, error: Exception, timeout: float) -> str:
        if isinstance(error, TimeoutError):
            return f"{self._base} did not answer within {timeout:g} s"
        if isinstance(error, aiohttp.ClientConnectorCertificateError):
            error = error.certificate_error
        elif isinstance(error, aiohttp.ClientConnectorError):
            error = error.os_error
            if not isinstance(error, ssl.SSLError):
                return f"{self._base} cannot be reached: {error.strerror or error}"
        if isinstance(error, ssl.SSLError):
            return f"{self._base} cannot be reached: {self._trust.explain(error)}"
        if isinstance(error, aiohttp.ClientResponseError):
            # What does not parse as HTTP: the text is aiohttp's, with bytes of a stranger in it.
            return f"{self._base} answers with what is not HTTP{self._hint()}"
        if isinstance(error, aiohttp.ServerDisconnectedError):
            return f"{self._base} closed the connection without an answer{self._hint()}"
        return f"{self._base}: {str(error) or type(error).__name__}"

    def _hint(self) -> str:
        url = self._trust.names.url
        return "" if self._is_tls else f"; if the hub speaks TLS, {url} must begin with https://"


class HubClient:
    """The calls of the wire protocol; each raises an error of gridcore.errors when it does not succeed.

    `token` is shown with every call, and may be replaced at any time.
    """

    def __init__(self, transport: Transport, token: str = "") -> None:
        self._transport = transport
        self.token = token

    async def call(self, request: Request, *, again: bool = True) -> Response:
        """Send a request; 2xx and 304 come back, all else is raised.

        `again`: repeat it once at once when the connection failed, since a kept-alive connection may have
        been closed by the hub just then. A token that the request brings itself counts for it alone.
        """
        request = replace(request, token=request.token or self.token)
        try:
            answer = await self._transport(request)
        except HubUnreachable:
            if not again:
                raise
            await asyncio.sleep(0)
            answer = await self._transport(request)
        if answer.status == 304 or 200 <= answer.status < 300:
            return answer
        error = _failure(answer)
        error.retry_after = _pause(answer)
        raise error

    async def register(self, message: RegisterRequest, token: str = "") -> RegisterAnswer:
        """Make this node known; the answer's node id is the one to use from now on, its token, too.

        `token` is what this one call shows, where it is not the client's.
        """
        wire = message.model_dump(mode="json", exclude_none=True) | {"node_id": message.node_id}
        answer = await self.call(Request("POST", "/gridnode/register", wire, token=token), again=False)
        parsed = _json(answer)
        # A task that we cannot parse must not keep the node from registering; the watch tells about it.
        if isinstance(parsed, dict):
            parsed = parsed | {"current_task": None}
        return _parse(RegisterAnswer, parsed)

    async def heartbeat(self, message: HeartbeatRequest) -> HeartbeatAnswer:
        """Say what this node does, and hear what the hub wants of it."""
        wire = message.model_dump(mode="json", exclude_none=True)
        answer = await self.call(Request("POST", "/gridnode/heartbeat", wire))
        return _parse(HeartbeatAnswer, _json(answer))

    async def task(
        self, platform: str, node_id: str, etag: str | None = None, wait: float | None = None
    ) -> TaskAnswer:
        """The current task; with `etag` and `wait` (seconds) held by the hub until it changes."""
        headers = {}
        if etag is not None:
            headers["If-None-Match"] = etag
            if wait:
                headers["Prefer"] = f"wait={wait:g}"
        timeout = ANSWER_TIMEOUT + (wait or 0.0)
        query = {"platform": platform, "node_id": node_id}
        answer = await self.call(Request("GET", "/gridnode/task", None, query, headers, timeout))
        now = answer.headers.get(HEARTBEAT_NOW.lower(), "").lower() == "now"
        fresh = answer.headers.get("etag")
        if answer.status == 304:
            return TaskAnswer(changed=False, etag=fresh or etag, heartbeat_now=now)
        wire = _json(answer)
        try:
            task = TypeAdapter(TaskConfig | None).validate_python(wire)
        except ValidationError as error:
            if not isinstance(wire, dict) or not isinstance(wire.get("task_name"), str):
                # Not a bad task but no task at all, so nothing is known of what is current.
                raise HubUnreachable(f"the hub's answer is not of the protocol: {_first(error)}") from None
            return TaskAnswer(changed=True, etag=fresh, heartbeat_now=now, invalid=_first(error))
        if task is not None and (faults := find_faults(task.to_wire())):
            invalid = f"{faults[0].field}: {faults[0].message}"
            return TaskAnswer(changed=True, etag=fresh, heartbeat_now=now, invalid=invalid)
        return TaskAnswer(changed=True, task=task, etag=fresh, heartbeat_now=now)

    async def logs(self, message: LogsMessage) -> None:
        """The end of a container's log, as a heartbeat's answer ordered it."""
        await self.call(Request("POST", "/gridnode/logs", message.model_dump(mode="json", exclude_none=True)))

    async def deregister(self, node_id: str) -> None:
        """The last act of a graceful stop; a hub that does not know the call is no error."""
        wire = DeregisterRequest(node_id=node_id).model_dump(mode="json")
        try:
            await self.call(Request("POST", "/gridnode/deregister", wire, timeout=5.0))
        except HubRefused as error:
            if error.status not in (404, 405):
                raise


def _failure(answer: Response) -> HubError:
    problem = _json_or_none(answer.body)
    problem = problem if isinstance(problem, dict) else {}
    # A hub slows bad tokens from one address down, so this one is bad, too.
    is_slowed = answer.status == 429 and str(problem.get("type")).endswith(TOO_MANY_ATTEMPTS)
    if _is_of_a_stranger(answer):
        text = f"the hub's address answers {answer.status}, and not as a hub does"
        return HubUnreachable(f"{text}; does a proxy or a firewall stand between this machine and the hub?")
    if answer.status in (401, 403) or is_slowed:
        return HubRejectedToken(f"the hub answered {answer.status}: it does not accept this token")
    detail = mask_text(str(problem.get("detail") or problem.get("title") or ""))[:MAX_DETAIL]
    text = f"the hub answered {answer.status}"
    if 400 <= answer.status < 500:
        return HubRefused(answer.status, detail or text, problem)
    if 300 <= answer.status < 400 and (where := answer.headers.get("location")):
        return HubUnreachable(f"{text} and points to {mask_text(where)[:MAX_DETAIL]}; is server_url right?")
    return HubUnreachable(f"{text}: {detail}" if detail else text)


def _is_of_a_stranger(answer: Response) -> bool:
    """Whether it is no hub that refuses: it shows a page where hubs have none, or wants another login."""
    if answer.status == 403:
        return answer.headers.get("content-type", "").lower().startswith("text/html")
    wanted = answer.headers.get("www-authenticate", "").lower()
    return answer.status == 401 and bool(wanted) and "bearer" not in wanted


def _pause(answer: Response) -> float | None:
    """Retry-After in seconds. As a date it is not understood, since nodes' clocks are not trusted."""
    text = answer.headers.get("retry-after", "").strip()
    return min(LONGEST_PAUSE, float(text)) if text.isascii() and text.isdecimal() else None


def _json_or_none(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return None


def _json(answer: Response) -> Any:
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise HubUnreachable("the hub's answer is not JSON; is something else at this address?") from None


def _parse(model: type[M], wire: Any) -> M:
    try:
        return model.model_validate(wire)
    except ValidationError as error:
        raise HubUnreachable(f"the hub's answer is not of the protocol: {_first(error)}") from None


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    key = ".".join(str(part) for part in problem["loc"] if not str(part)[:1].isupper())
    return f"{key}: {problem['msg'].removeprefix('Value error, ')}"
