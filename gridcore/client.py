"""The HTTP client of a hub, for the agent and the command line.

`HubClient` speaks the protocol over a `Transport`: one function from Request to Response. The real one is
`AiohttpTransport`; a test's may be any coroutine function.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
from pydantic import BaseModel, TypeAdapter, ValidationError

from gridcore.errors import HubRefused, HubRejectedToken, HubUnreachable
from gridcore.protocol import (
    DeregisterRequest,
    HeartbeatAnswer,
    HeartbeatRequest,
    LogsMessage,
    RegisterAnswer,
    RegisterRequest,
    TaskConfig,
)

CONNECT_TIMEOUT = 5.0
ANSWER_TIMEOUT = 15.0
"""Seconds; a long poll has its wait on top."""
MAX_ANSWER = 4 * 1024 * 1024
HEARTBEAT_NOW = "GridCore-Heartbeat"

M = TypeVar("M", bound=BaseModel)


@dataclass(frozen=True)
class Request:
    """What is asked of a hub; `timeout` is in seconds and covers the whole exchange."""

    method: str
    path: str
    body: Any = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    timeout: float = ANSWER_TIMEOUT


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
    """Requests over one aiohttp session, with the token in the header where only the hub sees it."""

    def __init__(self, base_url: str, token: str) -> None:
        self._base = base_url.rstrip("/")
        self._token = token
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> AiohttpTransport:
        self._session = aiohttp.ClientSession(headers={"Authorization": f"Bearer {self._token}"})
        return self

    async def __aexit__(self, *_exc: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def __call__(self, request: Request) -> Response:
        """One exchange; HubUnreachable when no whole answer arrives."""
        assert self._session is not None, "use it in `async with`"  # noqa: S101 # a programming error
        timeout = aiohttp.ClientTimeout(total=request.timeout, connect=CONNECT_TIMEOUT)
        try:
            async with self._session.request(
                request.method,
                self._base + request.path,
                json=request.body,
                params=dict(request.query),
                headers=dict(request.headers),
                timeout=timeout,
                allow_redirects=False,
            ) as answer:
                body = await answer.content.read(MAX_ANSWER)
                while len(body) < MAX_ANSWER and (more := await answer.content.read(MAX_ANSWER - len(body))):
                    body += more
                headers = {name.lower(): value for name, value in answer.headers.items()}
                return Response(answer.status, headers, body)
        except TimeoutError:
            raise HubUnreachable(f"{self._base} did not answer within {request.timeout:g} s") from None
        except aiohttp.ClientConnectorError as error:
            reason = error.os_error.strerror or str(error.os_error)
            raise HubUnreachable(f"{self._base} cannot be reached: {reason}") from None
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise HubUnreachable(f"{self._base}: {error or type(error).__name__}") from None


class HubClient:
    """The calls of the wire protocol; each raises an error of gridcore.errors when it does not succeed."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def call(self, request: Request, *, again: bool = True) -> Response:
        """Send a request; 2xx and 304 come back, all else is raised.

        `again`: repeat it once at once when the connection failed, since a kept-alive connection may have
        been closed by the hub just then.
        """
        try:
            answer = await self._transport(request)
        except HubUnreachable:
            if not again:
                raise
            await asyncio.sleep(0)
            answer = await self._transport(request)
        if answer.status in (401, 403):
            raise HubRejectedToken(f"the hub answered {answer.status}: it does not accept this token")
        if answer.status == 304 or 200 <= answer.status < 300:
            return answer
        if 400 <= answer.status < 500:
            problem = _json_or_none(answer.body)
            problem = problem if isinstance(problem, dict) else {}
            detail = str(problem.get("detail") or problem.get("title") or f"the hub answered {answer.status}")
            raise HubRefused(answer.status, detail, problem)
        raise HubUnreachable(f"the hub answered {answer.status} to {request.method} {request.path}")

    async def register(self, message: RegisterRequest) -> RegisterAnswer:
        """Make this node known; the answer's node id is the one to use from now on."""
        wire = message.model_dump(mode="json", exclude_none=True) | {"node_id": message.node_id}
        answer = await self.call(Request("POST", "/gridnode/register", wire), again=False)
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
