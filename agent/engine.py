"""The container engine through python-on-whales: the only module that knows it.

Every call is one short-lived `docker` child with a deadline, on a thread of its own, one at a time beside a
pull (agent/engine_calls.py says why). `timeout` ends a child that a hung daemon keeps, `setpriv --pdeathsig`
one whose agent died. The threads are daemons, so that a call under way never keeps the agent from exiting.
After a deadline the outcome is unknown: list before acting.
"""

from __future__ import annotations

import asyncio
import errno
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from pathlib import Path
from typing import TypeVar

from python_on_whales import DockerClient
from python_on_whales.client_config import ClientNotFoundError, ParsingError
from python_on_whales.exceptions import DockerException, NoSuchImage
from python_on_whales.utils import run

from agent import engine_errors, spec
from agent.engine_api import EngineApi
from agent.engine_calls import Turns, on_a_thread, within
from agent.engine_list import ROW, SEEN, Row, frozen, is_unchanged
from agent.errors import EngineError, EngineTimeout, EngineUnreachable
from agent.planner import Container
from agent.run_options import run_options
from gridcore.platforms import canonical_platform, runs_on

T = TypeVar("T")

DEADLINE = 60
"""Seconds for every call but a pull."""
TAILS_AT_ONCE = 4
"""Ends of logs: 64 containers may end together, and each end is up to 64 KiB on its way here."""
NOT_FOR_DOCKER = ("DOCKER_DEFAULT_PLATFORM", "DOCKER_CONTENT_TRUST", "DOCKER_API_VERSION")
"""Variables of a person's shell that can make every start fail.

The agent decides the platform, tasks name images without asking who signed them, and client and engine agree
on a version by themselves. Where the engine is (`DOCKER_HOST` and others) stays the machine's to say.
"""
AT_NAME = (
    '{"status":{{json .State.Status}},"owner":{{json (index .Config.Labels "'
    + spec.OWNER
    + '")}},"spec":{{json (index .Config.Labels "'
    + spec.SPEC
    + '")}}}'
)
"""What tells of a container by its name whether it is the one that was just made."""


class Engine:
    """The calls that the agent makes; each raises an EngineError when it does not succeed."""

    def __init__(
        self,
        owner: str,
        *,
        platform: str | None = None,
        pull_timeout: float = 3600,
        deadline: int = DEADLINE,
    ) -> None:
        self.api = EngineApi()
        self.others: tuple[Row, ...] = ()
        """What had an agent's label at the last look and is not ours: another's, or of a strange name."""
        self._owner = owner
        self._platform = platform
        self._deadline = deadline
        self._pull_timeout = int(pull_timeout)
        self._docker = DockerClient(client_call=_bounded(deadline))
        self._puller = DockerClient(client_call=_bounded(self._pull_timeout))
        self._turns = Turns()
        self._seen: dict[str, Container] = {}
        self._looked = 0.0
        self._tails = asyncio.Semaphore(TAILS_AT_ONCE)
        self._has_quota = True  # until a start shows that it has none

    async def platform(self) -> str:
        """The platform of the engine's images, such as `linux/arm64`; asked once, unless configured."""
        if self._platform is not None:
            return self._platform
        version = await self._call("asking for the version", self._docker.version)
        server = version.server
        if server is None or not server.os or not server.arch:
            raise EngineUnreachable("engine", "the container engine does not tell its platform")
        self._platform = canonical_platform(f"{server.os}/{server.arch}")
        return self._platform

    async def containers(self) -> tuple[Container, ...]:
        """Every container of ours, running or not: one list and one inspect, however many there are."""
        return await self._call("listing containers", self._list, line=self._turns.next)

    async def has_image(self, image: str) -> bool:
        """Whether the image is on this machine, made for a platform that runs here."""
        platform = await self.platform()
        made_for = await self._call("looking for the image", lambda: self._image_platform(image))
        return made_for is not None and runs_on(made_for, platform)

    async def pull(self, image: str) -> None:
        """Fetch the image from its registry."""
        platform = await self.platform()

        def fetch() -> str | None:
            self._puller.image.pull(image, quiet=True, platform=platform)
            return self._image_platform(image)

        made_for = await self._call(
            f"pulling {image}", fetch, self._pull_timeout, line=_nobody, explain=engine_errors.not_pulled
        )
        # A registry gives the only image that it has, for whatever platform that is.
        if made_for is not None and not runs_on(made_for, platform):
            text = f"{image} is made for {made_for}, this node needs {platform}"
            raise EngineError("wrong-platform", text, permanent=True)

    async def start(self, slot: spec.SlotSpec, advice: str = engine_errors.TRY) -> None:
        """Create and start a slot's container. One that was created but did not start stays to be removed.

        `advice`: what to do where the engine starts it not and nothing better is known.
        """
        await self._call(f"starting {slot.name}", lambda: self._start(slot, advice))

    async def signal(self, containers: Sequence[Container], signal: str) -> None:
        """Send a signal; containers that have ended meanwhile make it fail, the others got it."""
        ids = [c.id for c in containers]
        await self._call(
            f"sending {signal}",
            lambda: self._docker.container.kill(ids, signal=signal),
            line=self._turns.next,
        )

    async def freeze(self, containers: Sequence[Container]) -> None:
        """Let containers keep everything but the CPU."""
        ids = [c.id for c in containers]
        await self._call(
            "freezing containers", lambda: self._docker.container.pause(ids), line=self._turns.next
        )

    async def thaw(self, containers: Sequence[Container]) -> None:
        """Let frozen containers go on."""
        ids = [c.id for c in containers]
        await self._call(
            "thawing containers", lambda: self._docker.container.unpause(ids), line=self._turns.next
        )

    async def remove(self, containers: Sequence[Container]) -> None:
        """Remove containers that have ended, with their anonymous volumes."""
        ids = [c.id for c in containers]
        await self._call("removing containers", lambda: self._docker.container.remove(ids, volumes=True))

    async def log_tail(self, container_id: str, lines: int, max_bytes: int) -> bytes:
        """The end of a container's log, both streams."""
        if self.api.reachable:
            async with self._tails:
                return await self.api.log_tail(container_id, lines=lines, max_bytes=max_bytes)
        text = await self._call(
            "reading a log", lambda: self._docker.container.logs(container_id, tail=min(lines, 400))
        )
        return str(text).encode()[-max_bytes:]

    async def import_image(self, archive: Path, image: str) -> None:
        """Make an image of a root file system in a tar file."""
        await self._call(f"importing {image}", lambda: self._docker.image.import_(archive, image))

    async def remove_image(self, image: str) -> None:
        """Remove an image's name, and the image with its last name; one in use makes it fail."""
        await self._call(f"removing {image}", lambda: self._docker.image.remove(image))

    async def scratch(self) -> dict[str, str]:
        """Our /scratch volumes: name → the task key that each belongs to."""
        return await self._call("listing volumes", self._list_scratch)

    async def remove_scratch(self, names: Sequence[str]) -> None:
        """Remove volumes, with what is in them; one in use makes it fail."""
        await self._call("removing scratch", lambda: self._docker.volume.remove(list(names)))

    def _image_platform(self, image: str) -> str | None:
        try:
            seen = self._docker.image.inspect(image)
        except NoSuchImage:
            return None
        return canonical_platform(f"{seen.os}/{seen.architecture}")

    def _list(self) -> tuple[Container, ...]:
        # Not the library's list: its attributes inspect one container a call, and all of each.
        docker = [*self._docker.client_config.docker_cmd, "container"]
        labelled = ["--filter", f"label={spec.OWNER}", "--format", ROW]
        quiet, began = self.api.quiet_since(self._looked), time.monotonic()
        for attempt in (1, 2):
            lines = str(run([*docker, "ls", "-a", "--no-trunc", *labelled])).splitlines()
            listed = [Row.of(line) for line in lines]
            rows = [row for row in listed if row.is_of(self._owner)]
            self.others = tuple(row for row in listed if not row.is_of(self._owner))
            # Idle, nothing needs a second look. After an event all do: a list lags behind it, and shows what
            # has just ended as running.
            known = {row.id: self._seen[row.id] for row in rows if quiet and is_unchanged(row, self._seen)}
            unknown = [row.id for row in rows if row.id not in known]
            try:
                shown = str(run([*docker, "inspect", "--format", SEEN, *unknown])) if unknown else ""
            except DockerException:
                if attempt == 2:  # one that was removed between list and inspect: look again, once
                    raise
            else:
                fresh = [frozen(json.loads(line)) for line in shown.splitlines()]
                seen = known | {container.id: container for container in fresh}
                self._seen, self._looked = seen, began  # a slow look may run beside another
                return tuple(seen[row.id] for row in rows if row.id in seen)
        raise AssertionError

    def _start(self, slot: spec.SlotSpec, advice: str) -> None:
        # A file, since values on a command line can be read by every user of the machine.
        handle, path = tempfile.mkstemp(prefix="gridnode-", dir=os.environ.get("RUNTIME_DIRECTORY"))
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.writelines(f"{name}={value}\n" for name, value in slot.env.items())
            self._run(slot, path)
        except DockerException as error:
            raise self._why_not_started(slot, error, advice) from None
        finally:
            Path(path).unlink(missing_ok=True)

    def _run(self, slot: spec.SlotSpec, env_file: str) -> None:
        try:
            self._run_with(slot, env_file, quota=self._has_quota)
        except DockerException as error:
            reached = not engine_errors.is_unreachable(error.return_code, error.stderr or "")
            may_lack = self._has_quota and slot.scratch is not None and reached
            if not may_lack or self._stage(slot) is not engine_errors.Stage.CREATE:
                raise
            # Where the engine's disk cannot bound a volume it makes no container. That one without a bound is
            # made shows whether it was that.
            self._run_with(slot, env_file, quota=False)
            self._has_quota = False

    def _run_with(self, slot: spec.SlotSpec, env_file: str, *, quota: bool) -> None:
        options = run_options(slot, self._owner, env_file, quota=quota)
        self._docker.container.run(slot.image, slot.command or (), **options)

    def _why_not_started(self, slot: spec.SlotSpec, error: DockerException, advice: str) -> EngineError:
        doing, stderr = f"starting {slot.name}", error.stderr or ""
        reached = not engine_errors.is_unreachable(error.return_code, stderr)
        stage = self._stage(slot) if reached else engine_errors.Stage.CREATE
        return engine_errors.not_started(error.return_code, stderr, doing, stage, advice)

    def _stage(self, slot: spec.SlotSpec) -> engine_errors.Stage:
        """How far a start came that did not succeed: looked for, since the client's words do not tell."""
        docker = [*self._docker.client_config.docker_cmd, "container", "inspect", "--format", AT_NAME]
        with suppress(DockerException):  # there is none
            found = json.loads(str(run([*docker, slot.name])))
            is_ours = (found["owner"], found["spec"]) == (self._owner, slot.digest)
            if is_ours:
                return engine_errors.Stage.START
            is_twins = found["owner"] and found["owner"] != self._owner
            return engine_errors.Stage.TWIN if is_twins else engine_errors.Stage.NAME
        try:
            image = self._docker.image.inspect(slot.image)
        except NoSuchImage:
            return engine_errors.Stage.IMAGE
        except DockerException:
            return engine_errors.Stage.CREATE
        names_command = slot.command or image.config.cmd or image.config.entrypoint
        return engine_errors.Stage.CREATE if names_command else engine_errors.Stage.COMMAND

    def _list_scratch(self) -> dict[str, str]:
        # Not the library's list, which inspects each volume for its labels.
        labels = ",".join(f'{{{{json (.Label "{label}")}}}}' for label in (spec.GENERATION, spec.INSTANCE))
        columns = "[{{json .Name}}," + labels + "]"
        ours = f"label={spec.OWNER}={self._owner}"
        docker = self._docker.client_config.docker_cmd
        lines = str(run([*docker, "volume", "ls", "--filter", ours, "--format", columns])).splitlines()
        volumes = [map(str, json.loads(line)) for line in lines]
        return {name: key for name, key, slot in volumes if spec.is_scratch(name, self._owner, key, slot)}

    async def _in_turn(
        self, function: Callable[[], T], line: Callable[[], AbstractAsyncContextManager[None]]
    ) -> T:
        async with line():
            return await on_a_thread(function)

    async def _call(
        self,
        doing: str,
        function: Callable[[], T],
        deadline: int | None = None,
        *,
        line: Callable[[], AbstractAsyncContextManager[None]] | None = None,
        explain: Callable[[int, str, str], EngineError] = engine_errors.translate,
    ) -> T:
        # The child ends itself; this second clock is for a child that even SIGKILL does not end.
        patience = (deadline or self._deadline) + 5
        try:
            return await within(patience, self._in_turn(function, line or self._turns.queued))
        except TimeoutError:
            raise EngineTimeout("engine", f"{doing}: the container engine did not answer in time") from None
        except NoSuchImage as error:
            raise EngineError("no-image", f"{doing}: {_stderr(error)}") from None
        except DockerException as error:
            raise explain(error.return_code, error.stderr or "", doing) from None
        except ClientNotFoundError:
            raise EngineUnreachable("engine", "there is no `docker` command on this machine") from None
        except (ParsingError, ValueError, OSError) as error:
            text = (
                f"{doing}: {type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
            )
            full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise EngineError("disk-full" if full else "engine", text) from None


def _stderr(error: DockerException) -> str:
    return " ".join((error.stderr or "").split())[:600]


def _bounded(seconds: int) -> list[str]:
    """The docker command with a deadline, ended when the agent dies.

    By SIGKILL, since `docker run` passes any other signal on to the container that it is just starting.
    """
    with_parent = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    without = ["env", *(f"--unset={name}" for name in NOT_FOR_DOCKER)]
    return [*with_parent, "timeout", "--signal", "KILL", str(seconds), *with_parent, *without, "docker"]


def _nobody() -> AbstractAsyncContextManager[None]:
    """The line of a pull, which may take an hour."""
    return nullcontext()
