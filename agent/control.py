"""How the machine's owner talks to the running agent: a socket in the state directory.

One JSON line in, `{"do": "status"}`, and one out. Whoever may open the socket may ask: its mode is 0600.
Both sides go through an opened directory, since a socket's path may have no more than 107 bytes.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import structlog

from gridcore.errors import GridCoreError

log = structlog.get_logger()

SOCKET_NAME = "control.sock"
MAX_QUESTION = 64 * 1024
MAX_ANSWER = 1024 * 1024
"""Bytes of a line."""
PATIENCE = 5.0
"""Seconds that a client has for its question, and again for taking the answer."""
MAX_CLIENTS = 16

Handler = Callable[[], dict[str, Any]]


class AgentError(GridCoreError):
    """The running agent could not be asked, or did not do what was asked."""


class AgentAway(AgentError):
    """No agent runs there."""


class Control:
    """The agent's end; `handlers` answer each question by its name with what JSON can say."""

    def __init__(self, directory: Path, handlers: Mapping[str, Handler]) -> None:
        self._directory = directory
        self._handlers = handlers
        self._clients: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled. Without a socket the agent works on: one warning, and this returns."""
        try:
            directory = _opened(self._directory, make=True)
        except OSError as error:
            self._warn(error)
            return
        try:
            await self._listen(directory)
        except OSError as error:
            self._warn(error)
        finally:
            os.close(directory)

    async def _listen(self, directory: int) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            os.fchmod(listener.fileno(), 0o600)  # before it has a name: nobody else gets in between
            with suppress(FileNotFoundError):
                # Left by an agent that was killed: the lock beside the configuration says that none runs.
                os.unlink(SOCKET_NAME, dir_fd=directory)
            listener.bind(_path(directory))
            listener.setblocking(False)
            server = await asyncio.start_unix_server(self._serve, sock=listener, limit=MAX_QUESTION)
            try:
                await asyncio.Event().wait()
            finally:
                server.close()
                for client in self._clients:
                    client.cancel()
                with suppress(OSError):
                    os.unlink(SOCKET_NAME, dir_fd=directory)

    def _warn(self, error: OSError) -> None:
        log.warning(
            "no gridnode status, pause and resume",
            directory=str(self._directory),
            error=error.strerror or str(error),
        )

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 # asyncio runs this callback in a task of its own
        self._clients.add(task)
        try:
            if len(self._clients) > MAX_CLIENTS:
                answer = _line({"error": "too many ask at once"})
            else:
                answer = await self._answer(reader)
            writer.write(answer)
            async with asyncio.timeout(PATIENCE):
                await writer.drain()
        except (OSError, TimeoutError, asyncio.CancelledError):
            pass  # the client has gone, or the agent goes
        finally:
            self._clients.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader) -> bytes:
        try:
            async with asyncio.timeout(PATIENCE):
                question = await reader.readline()
            asked = json.loads(question)
        except TimeoutError:
            return _line({"error": f"no question came within {PATIENCE:g} s"})
        except (ValueError, RecursionError):  # longer than the limit, or not JSON
            return _line({"error": 'expected one line such as {"do": "status"}'})
        what = asked.get("do") if isinstance(asked, dict) else None
        handler = self._handlers.get(what) if isinstance(what, str) else None
        if handler is None:
            return _line({"error": f"expected one of {', '.join(self._handlers)} in `do`"})
        try:
            answer = _line(handler())
        except Exception:
            # The owner's question must not end the work.
            log.exception("a defect in gridnode: a question was not answered", asked=what)
            return _line({"error": f"a defect in gridnode: {what} failed, see the agent's log"})
        return answer if len(answer) <= MAX_ANSWER else _line({"error": "the answer is too long"})


def ask(directory: Path, what: str, timeout: float = 10.0, *, config: Path | None = None) -> dict[str, Any]:
    """Ask the running agent; `config` is its configuration file, for the error's text. `timeout` in seconds.

    Raises:
        AgentAway: none runs.
        AgentError: no permission, no answer in time, or it says why it did not.
    """
    name = f"with {config}" if config else f"in {directory}"
    try:
        with _connected(directory, timeout) as channel:
            channel.sendall(_line({"do": what}))
            text = _received(channel)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        start = "start it with `systemctl start gridnode` or `gridnode`"
        raise AgentAway(f"no gridnode runs {name}; {start}") from None
    except PermissionError:
        raise AgentError(f"{directory}: no permission; run it as the agent's user, or with sudo") from None
    except TimeoutError:
        raise AgentError(f"the gridnode that runs {name} does not answer within {timeout:g} s") from None
    except OSError as error:
        raise AgentError(f"the gridnode that runs {name} cannot be asked: {error.strerror}") from None
    try:
        answer = json.loads(text)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise AgentError(f"the gridnode that runs {name} ended without an answer; ask again")
    if "error" in answer:
        raise AgentError(f"the gridnode that runs {name}: {answer['error']}")
    return answer


@contextmanager
def _connected(directory: Path, timeout: float) -> Iterator[socket.socket]:
    handle = _opened(directory, make=False)
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
            channel.settimeout(timeout)
            channel.connect(_path(handle))
            yield channel
    finally:
        os.close(handle)


def _received(channel: socket.socket) -> bytes:
    text = bytearray()
    while not text.endswith(b"\n") and len(text) <= MAX_ANSWER:
        part = channel.recv(65_536)
        if not part:
            break
        text += part
    return bytes(text)


def _opened(directory: Path, *, make: bool) -> int:
    if make:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def _path(directory: int) -> str:
    return f"/proc/self/fd/{directory}/{SOCKET_NAME}"


def _line(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode() + b"\n"
