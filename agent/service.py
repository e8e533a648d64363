"""One agent process: its parts put together, its signals, and how it ends.

SIGTERM, SIGINT and SIGHUP stop: containers gracefully ended and removed, deregistered, exit 0; a second
signal hastens. SIGHUP tells that the terminal was closed; ignored at the start (nohup), it stays ignored.
SIGUSR1 hands over: the calls under way are finished, no container is touched, exit 75, and the next agent
adopts what runs. A stop told by the hub is a stop like any other.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import structlog

from agent import container_logs, machine
from agent.accounts import Accounts
from agent.control import Control
from agent.disk import DiskWatch
from agent.engine import Engine
from agent.engine_events import listen
from agent.engine_list import stray_warning, twin_warning
from agent.errors import EngineError
from agent.hub_link import HubLink
from agent.image_cleanup import PulledImages
from agent.images import Images
from agent.machine import Identity
from agent.memory_kills import MemoryKills, machine_kills
from agent.reconciler import Reconciler
from agent.report import Board
from agent.runs import Runs
from agent.settings import Settings
from agent.status import status_of
from agent.terms import Owner
from gridcore.client import AiohttpTransport, HubClient
from gridcore.errors import EXIT_HANDOVER, ConfigError
from gridcore.files import FileInUse, FileLock
from gridcore.platforms import architecture_of, platform_of
from gridcore.systemd import notify
from gridcore.trust import Trust

log = structlog.get_logger()

ENGINE_RETRY = 5.0
"""Seconds between questions for the engine's platform."""
EXTEND_EVERY, EXTEND_BY = 5.0, 20.0
"""Seconds: while stopping, systemd is asked for more time this often, and for this much."""


@contextmanager
def only_agent(config: Path, settings: Settings) -> Iterator[None]:
    """Hold configuration file and state directory, whatever they are called: one agent for each.

    Raises:
        ConfigError: another agent has one of them, or the file cannot be locked.
    """
    state = machine.state_directory(config, settings.state_directory)
    with ExitStack() as held:
        held.callback(_lock(config, f"{config}: another gridnode runs with this file").close)
        with suppress(OSError):  # without one the agent works on, and says so
            state.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _is_directory(state):
            text = f"{config}: state_directory: another gridnode keeps its state in {state}"
            held.callback(_lock(state, text).close)
        yield


def _is_directory(path: Path) -> bool:
    """Whether it is one that this user may see: in Python 3.11 `is_dir` raises some of what hinders."""
    try:
        return path.is_dir()
    except OSError:
        return False


def _lock(path: Path, in_use: str) -> FileLock:
    try:
        return FileLock(path)
    except FileInUse:
        raise ConfigError(f"{in_use}; stop it first") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be locked: {error.strerror}") from None


def _trust_of(settings: Settings, config: Path) -> Trust:
    try:
        return Trust(settings.ca_file)
    except ValueError as error:  # it was good a moment ago
        raise ConfigError(f"{config}: ca_file: {error}") from None


class Service:
    """Wires the reconciler and the hub link together for one run; `run` answers the exit code."""

    def __init__(self, settings: Settings, config: Path) -> None:
        self._settings = settings
        self._config = config
        self._state = machine.state_directory(config, settings.state_directory)
        self._facts = machine.facts(config, settings)
        self._board = Board()
        self._runs = Runs(self._state / "runs")
        self._trust = _trust_of(settings, config)
        configured = platform_of(settings.architecture) if settings.architecture else None
        self._engine = Engine(self._facts.owner, platform=configured, pull_timeout=settings.pull_timeout)
        random = Random()  # noqa: S311 # jitter, not a secret
        # Of an engine on another machine, this one's kernel knows nothing.
        count = machine_kills if self._engine.api.local else lambda: None
        self._kills = MemoryKills(count, time.time())
        self._accounts = Accounts(self._engine, self._runs, self._board, random, self._kills)
        self._reconciler = Reconciler(
            self._engine,
            self._board,
            self._accounts,
            lambda wake: self._make_images(random, wake),
            self._warnings,
        )
        self._owner = Owner(
            settings, self._state, lambda: len(self._reconciler.running), self._reconciler.set_permit
        )
        self._signals = 0
        self._stop_asked = False
        self._handing_over = False

    async def run(self) -> int:
        """Run until stopped or handing over: 0 or 75; 1 when containers may be left behind."""
        notify("READY=1")
        for warning in self._facts.warnings:
            log.warning("this machine", warning=warning)
        # Before the first look: what the owner forbids must not start even once.
        self._reconciler.set_permit(self._owner.permit)
        async with AiohttpTransport(self._settings.server_url, self._trust) as transport:
            self._link = self._make_link(HubClient(transport))
            self._on_signals()
            try:
                await self._work()
            except* EngineError as errors:
                log.error(  # noqa: TRY400 # the text says it all
                    "gave up stopping: containers may be left",
                    error=str(errors.exceptions[0]),
                    containers=len(self._reconciler.containers),
                )
                return_code = 1
            else:
                return_code = EXIT_HANDOVER if self._handing_over else 0
            if not self._handing_over:
                await self._link.farewell()
            await self._engine.api.close()
            log.info("handed over" if self._handing_over else "stopped")
            return return_code

    async def _work(self) -> None:
        disk = DiskWatch(
            self._engine.api,
            self._settings,
            self._facts.owner,
            lambda: self._reconciler.running,
            self._reconciler.condemn,
        )
        control = Control(
            self._state,
            {"status": self._status, "pause": self._owner.pause, "resume": self._owner.resume},
        )
        async with asyncio.TaskGroup() as group:
            heartbeats = group.create_task(self._link.heartbeats())
            others = [
                group.create_task(self._link.watch()),
                group.create_task(self._learn_platform()),
                group.create_task(self._listen()),
                group.create_task(self._kills.watch()),
                group.create_task(self._extend_stopping()),
                group.create_task(self._owner.run()),
                group.create_task(control.run()),
                group.create_task(disk.run()),
                group.create_task(self._reconciler.images.cleaning()),
            ]
            await self._reconciler.run()
            for task in others:
                task.cancel()
            await self._link.finish(heartbeats)

    async def _listen(self) -> None:
        await listen(
            self._facts.owner, self._reconciler.wake, self._engine.api, on_oom=self._accounts.out_of_memory
        )

    def _make_images(self, random: Random, wake: Callable[[], None]) -> Images:
        return Images(
            self._engine,
            self._board,
            PulledImages(self._state / "images.json"),
            random,
            watermark=self._settings.image_watermark,
            on_change=wake,
        )

    def _make_link(self, client: HubClient) -> HubLink:
        architecture = self._settings.architecture
        return HubLink(
            client,
            self._settings,
            self._config,
            self._facts,
            self._identity(platform_of(architecture) if architecture else None),
            self._board,
            on_wanted=self._reconciler.set_wanted,
            on_stop=lambda: self._stop("told to stop by the hub", give_up=False),
            on_prefetch=self._reconciler.images.fetch_ahead,
            read_log=lambda order: container_logs.read(order, self._engine, self._runs),
        )

    def _warnings(self) -> tuple[str, ...]:
        others = self._engine.others
        strays = stray_warning(others, self._facts.owner)
        return (*self._facts.warnings, *twin_warning(others, self._link.node_id), *strays)

    def _status(self) -> dict[str, Any]:
        """What `gridnode status` shows."""
        now, contact = time.monotonic(), self._link.contact
        return status_of(
            self._board.report,
            self._settings,
            self._owner.permit,
            node_id=self._link.node_id,
            away=contact.away,
            away_kind=contact.kind,
            away_for=contact.away_for,
            heard=contact.heard,
            paused_for=self._owner.paused_for,
            errors=[(now - e.at, e.kind, e.message, e.instance) for e in self._board.recent],
        )

    def _identity(self, platform: str | None) -> Identity:
        refusal = None
        architecture = architecture_of(platform) if platform else machine.guessed_architecture()
        if architecture == machine.UNSUPPORTED:
            refusal = "armv6l is not supported: no image is built for it; use an ARMv7 or newer board"
        return Identity(
            hostname=self._settings.hostname or machine.hostname(),
            architecture=architecture,
            platform=platform,
            cpu_count=len(self._facts.cpus),
            machine=machine.fingerprint(),
            refusal=refusal,
        )

    async def _learn_platform(self) -> None:
        while True:
            try:
                platform = await self._engine.platform()
            except EngineError:
                await asyncio.sleep(ENGINE_RETRY)  # the reconciler tells of the trouble
                continue
            break
        try:
            identity = self._identity(platform)
        except KeyError:
            identity = replace(
                self._identity(None), platform=platform, refusal=f"the engine's platform is {platform}"
            )
        self._link.know_platform(identity)

    def _on_signals(self) -> None:
        loop = asyncio.get_running_loop()
        stops = [signal.SIGTERM, signal.SIGINT]
        # Under nohup it is ignored: whoever started it wants it to stay.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            stops.append(signal.SIGHUP)
        for number in stops:
            loop.add_signal_handler(number, self._on_stop_signal, number)
        loop.add_signal_handler(signal.SIGUSR1, self._on_hand_over)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (*stops, signal.SIGHUP, signal.SIGUSR1))

    def _on_stop_signal(self, number: signal.Signals) -> None:
        self._signals += 1
        if self._signals > 1:
            log.warning("a second signal: containers get no more time", signal=number.name)
            self._reconciler.hasten()
        else:
            self._stop(f"stopped by {number.name}", give_up=True)

    def _stop(self, reason: str, *, give_up: bool) -> None:
        if not self._stop_asked:
            log.info("stopping", why=reason)
            notify("STOPPING=1")
        self._stop_asked = True
        self._reconciler.stop(reason, give_up=give_up)

    def _on_hand_over(self) -> None:
        if self._stop_asked:
            log.warning("already stopping: not handed over")
            return
        log.info("handing over: containers keep running for the next agent")
        self._handing_over = True
        self._reconciler.hand_over()

    async def _extend_stopping(self) -> None:
        while True:
            if self._stop_asked:
                notify(f"EXTEND_TIMEOUT_USEC={int(EXTEND_BY * 1e6)}")
            await asyncio.sleep(EXTEND_EVERY)
