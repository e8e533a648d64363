"""What the agent reads from the engine's own socket: ends of logs, sizes, events.

No child process: a docker client costs 24 MiB for each of these small questions. Everything is streamed, so
that memory stays small whatever a container spews. What changes something goes through agent.engine.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp

from agent import spec
from agent.engine_errors import is_busy
from agent.engine_frames import Frames
from agent.errors import EngineError, EngineTimeout, EngineUnreachable

T = TypeVar("T")

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
TIMEOUT = 30.0
"""Seconds for a whole call, its answer included."""
WALK_TIMEOUT = 600.0
"""Seconds for a call that makes the engine walk directories, which is slow on an SD card."""
BODY_MOST = 32 * 2**20
"""Bytes of an answer that is read as a whole."""
NEWEST_API = (1, 51)
"""Answers of `system/df` have another form in later versions."""
LOOK_LINES, LOOK_AGE = 20, 5.0
"""A log is quiet when the oldest of its last 20 lines is more than 5 s old."""

_VERSION = re.compile(r"(\d{1,3})\.(\d{1,3})")


class EngineApi:
    """Questions to one engine; each raises an EngineError when it is not answered.

    `address`: `unix:///path` or `tcp://host:port`; default: where the docker command would go.
    """

    def __init__(self, address: str | None = None, *, timeout: float = TIMEOUT) -> None:
        self._address = address or engine_address()
        self._timeout = timeout
        self._opened: aiohttp.ClientSession | None = None
        self._prefix: str | None = None
        self._listening = False
        self._heard = 0.0

    @property
    def reachable(self) -> bool:
        """False where the docker command reaches the engine in a way that this does not (ssh, TLS)."""
        return self._address.startswith(("unix://", "tcp://"))

    @property
    def local(self) -> bool:
        """Whether the engine's directories are on this machine."""
        return self._address.startswith("unix://")

    async def log_tail(self, container_id: str, *, lines: int, max_bytes: int) -> bytes:
        """The end of a container's log, stdout and stderr as they were written: at most `max_bytes`.

        It begins with a line's begin where it can: half a line could show half a secret.
        """
        frames, tail, cut = Frames(), bytearray(), False
        async with self._logs(container_id, tail=lines) as response:
            async for chunk in response.content.iter_any():
                for piece in frames.feed(chunk):
                    tail += piece
                cut = cut or len(tail) > max_bytes
                del tail[: max(0, len(tail) - max_bytes)]
        return (cut and bytes(tail).partition(b"\n")[2]) or bytes(tail)

    async def log_rate(self, container_id: str, seconds: float, enough: float) -> float:
        """Bytes per second that a container makes the engine write to its log right now.

        A quiet log is told by its last lines alone; any other is followed for `seconds`, or until it is
        certain that these have `enough` bytes per second.
        """
        slow = await self._slow_rate(container_id)
        if slow is not None:
            return slow
        clock = asyncio.get_running_loop().time
        frames, started = Frames(), clock()
        try:
            async with (
                asyncio.timeout(seconds),
                self._logs(container_id, tail=0, follow=True) as response,
            ):
                async for chunk in response.content.iter_any():
                    for _piece in frames.feed(chunk):
                        pass
                    if frames.written >= enough * seconds:
                        return frames.written / max(clock() - started, 0.001)
        except TimeoutError:
            pass
        return frames.written / seconds

    async def sizes(self, owner: str) -> dict[str, int]:
        """Container id → bytes of its writable layer, of every container of this owner."""
        query = {"all": "1", "size": "1", "filters": _filters(label=[f"{spec.OWNER}={owner}"])}

        def pick(found: Any) -> dict[str, int]:
            return {str(one["Id"]): int(one.get("SizeRw") or 0) for one in found}

        return await self._json("/containers/json", query, "measuring containers", pick)

    async def volume_sizes(self, owner: str) -> dict[str, int]:
        """Volume name → bytes, of every volume of this owner."""

        def pick(found: Any) -> dict[str, int]:
            ours = [v for v in found["Volumes"] or () if (v.get("Labels") or {}).get(spec.OWNER) == owner]
            sizes = {str(v["Name"]): int((v.get("UsageData") or {}).get("Size", -1)) for v in ours}
            return {name: size for name, size in sizes.items() if size >= 0}

        # Engines before API 1.42 do not know `type` and look at images and containers too.
        return await self._json("/system/df", {"type": "volume"}, "measuring volumes", pick)

    async def root(self) -> Path:
        """The engine's own directory, on its machine."""
        doing = "asking for the engine's directory"
        return await self._json("/info", {}, doing, lambda info: Path(info["DockerRootDir"]))

    async def events(self, filters: Mapping[str, Sequence[str]]) -> AsyncIterator[bytes]:
        """The engine's events, in pieces of any length: those that it remembers, then each as it comes."""
        query = {"filters": _filters(**filters), "since": "1"}
        try:
            async with self._get("/events", query, "listening for events", None) as response:
                self._listening, self._heard = True, time.monotonic()
                async for chunk in response.content.iter_any():
                    self._heard = time.monotonic()
                    yield chunk
        finally:
            self._listening = False

    def quiet_since(self, moment: float) -> bool:
        """Whether events are listened to, and none came since (monotonic clock): then nothing has changed."""
        return self._listening and self._heard < moment

    async def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        if self._opened is not None:
            await self._opened.close()
        self._opened = None

    async def _slow_rate(self, container_id: str) -> float | None:
        """The rate of a log that is short or was slow of late, or None."""
        frames, head = Frames(), bytearray()
        async with self._logs(container_id, tail=LOOK_LINES, timestamps=True) as response:
            date = response.headers.get("Date", "")
            async for chunk in response.content.iter_any():
                for piece in frames.feed(chunk):
                    head += piece[: 64 - len(head)]
        if frames.entries < LOOK_LINES:
            return 0.0
        # Both times are the engine's: its clock need not be ours.
        try:
            oldest = datetime.fromisoformat(head.split(b" ", 1)[0].decode("ascii"))
            age = (parsedate_to_datetime(date) - oldest).total_seconds()
        except (ValueError, TypeError):
            return None
        return frames.written / age if age > LOOK_AGE else None

    def _logs(
        self, container_id: str, *, tail: int, follow: bool = False, timestamps: bool = False
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        query = {"stdout": "1", "stderr": "1", "tail": str(tail)}
        query |= {"follow": "1"} if follow else {}
        query |= {"timestamps": "1"} if timestamps else {}
        return self._get(f"/containers/{container_id}/logs", query, "reading a log", self._timeout)

    async def _json(self, path: str, query: dict[str, str], doing: str, pick: Callable[[Any], T]) -> T:
        body = bytearray()
        async with self._get(path, query, doing, WALK_TIMEOUT) as response:
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > BODY_MOST:
                    raise EngineError("engine", f"{doing}: the answer is over {BODY_MOST >> 20} MB")
        try:
            return pick(json.loads(body))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise EngineError("engine", f"{doing}: the engine's answer is not what was expected") from None

    @asynccontextmanager
    async def _get(
        self, path: str, query: dict[str, str], doing: str, seconds: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """An answer to be read within `seconds`; what goes wrong meanwhile becomes an EngineError."""
        if not self.reachable:
            raise EngineError("engine", f"{doing}: not possible over {self._address.partition(':')[0]}")
        try:
            async with asyncio.timeout(seconds):
                prefix = await self._version_prefix()
                async with self._session().get(f"{prefix}{path}", params=query) as response:
                    if response.status >= 400:
                        raise await self._refusal(response, doing)
                    yield response
        except TimeoutError:
            raise EngineTimeout("engine", f"{doing}: the container engine did not answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            self._prefix = None  # whatever answers next may be another version
            hint = "add this user to the group `docker`" if _denied(error) else "is dockerd running?"
            text = f"{doing}: the container engine cannot be reached ({hint}): {error}"
            raise EngineUnreachable("engine", " ".join(text.split())[:600]) from None

    async def _version_prefix(self) -> str:
        if self._prefix is None:
            async with self._session().get("/_ping") as response:
                version = _VERSION.fullmatch(response.headers.get("Api-Version", ""))
            if version is None:
                return ""
            major, minor = min((int(version[1]), int(version[2])), NEWEST_API)
            self._prefix = f"/v{major}.{minor}"
        return self._prefix

    async def _refusal(self, response: aiohttp.ClientResponse, doing: str) -> EngineError:
        raw = (await response.content.read(4096)).decode("utf-8", "replace")
        try:
            text = str(json.loads(raw)["message"])
        except (ValueError, KeyError, TypeError):
            text = raw
        text = f"{doing}: {' '.join(text.split())[:500] or response.reason}"
        if response.status == 400:  # among others: the engine no longer speaks this version
            self._prefix = None
        of_container = "/containers/" in response.url.path
        # 409: it is being removed.
        if is_busy(text):
            return EngineError("busy", text)
        return EngineError("gone" if of_container and response.status in (404, 409) else "engine", text)

    def _session(self) -> aiohttp.ClientSession:
        if self._opened is None:
            # A connection a call: a local one costs next to nothing, and none outlives the engine.
            connector: aiohttp.BaseConnector
            if self.local:
                path = self._address.removeprefix("unix://")
                connector, base = aiohttp.UnixConnector(path, force_close=True), "http://engine"
            else:
                parts = urlsplit(self._address)
                base = f"http://{parts.hostname}:{parts.port or 2375}"
                connector = aiohttp.TCPConnector(force_close=True)
            self._opened = aiohttp.ClientSession(
                base, connector=connector, timeout=aiohttp.ClientTimeout(total=None)
            )
        return self._opened


def engine_address(env: Mapping[str, str] = os.environ) -> str:
    """Where the docker command would go: $DOCKER_HOST, else its current context, else the usual socket."""
    if host := env.get("DOCKER_HOST"):
        secured = host.startswith("tcp://") and env.get("DOCKER_TLS_VERIFY")
        return f"tls{host.removeprefix('tcp')}" if secured else host
    home = Path(env.get("DOCKER_CONFIG") or Path(env.get("HOME", "/")) / ".docker")
    try:
        name = env.get("DOCKER_CONTEXT") or json.loads((home / "config.json").read_bytes())["currentContext"]
        folder = home / "contexts" / "meta" / hashlib.sha256(name.encode()).hexdigest()
        return str(json.loads((folder / "meta.json").read_bytes())["Endpoints"]["docker"]["Host"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return DEFAULT_ADDRESS  # no context, or the one named "default", which has no file


def _filters(**filters: Sequence[str]) -> str:
    return json.dumps({name: list(values) for name, values in filters.items()})


def _denied(error: Exception) -> bool:
    return isinstance(error, PermissionError) or isinstance(getattr(error, "os_error", None), PermissionError)
