"""The agent's side of the wire: registers, sends heartbeats, watches the task.

Two loops. `heartbeats` keeps the node known and brings orders; `watch` holds a request open for the current
task, or asks every 10 s at a hub that gives no ETag. Neither ever ends because of the hub: while it is away
they ask again, further and further apart, and what runs keeps running.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import structlog

from agent import spec
from agent.contact import Contact
from agent.machine import Identity
from agent.membership import Membership
from agent.reasons import BAD_TASK, DRAINED, NOTHING_GIVEN, UNSUPPORTED, Reason
from agent.report import Board, clip
from agent.settings import Settings
from gridcore import __version__
from gridcore.client import HubClient
from gridcore.errors import HubError, HubRejectedToken
from gridcore.protocol import (
    MAX_WARNINGS,
    HeartbeatAnswer,
    HeartbeatRequest,
    LogOrder,
    LogsMessage,
    RegisterRequest,
    TaskConfig,
)

log = structlog.get_logger()

POLL = 10.0
"""Seconds between questions at a hub without instant switching."""
WAIT = 25.0
"""Seconds that the hub is asked to hold the question for the task."""
MOST_BEATS_PER_SECOND = 1.0
REGISTER_GAP = 5.0
"""Seconds: a hub that forgets this node sooner after it registered is not asked again at once."""
ENGINE_HEAD_START = 5.0
"""Seconds that the first registration waits for the engine to tell its platform."""
BEATS, WATCH = "heartbeats", "watch"
"""The two loops, as they ask."""
FAREWELL = 5.0
"""Seconds for the last words to the hub."""


class HubLink:
    """Keeps the hub informed, and turns what it says into what is wanted of the reconciler."""

    def __init__(
        self,
        client: HubClient,
        settings: Settings,
        config: Path,
        facts: spec.NodeFacts,
        identity: Identity,
        board: Board,
        *,
        on_wanted: Callable[[spec.Wanted], None],
        on_stop: Callable[[], None],
        on_prefetch: Callable[[str | None], None] = lambda _image: None,
        read_log: Callable[[LogOrder], Awaitable[tuple[str, str | None]]] | None = None,
    ) -> None:
        self._client = client
        self._settings = settings
        self._config = config
        self._facts = facts
        self._identity = identity
        self._board = board
        self._on_wanted = on_wanted
        self._on_stop = on_stop
        self._on_prefetch = on_prefetch
        self._read_log = read_log
        self._errands: set[asyncio.Task[None]] = set()
        self.contact = Contact()
        """Whether the hub answers, and since when it does not."""
        self._membership = Membership(settings, config, board)
        self._credentials = self._membership.credentials
        client.token = self._credentials.current
        self._registered = asyncio.Event()
        self._platform_known = asyncio.Event()
        self._beat_now = asyncio.Event()
        self._fresh_token = asyncio.Event()
        self._finishing = asyncio.Event()
        self._told_to_stop = False
        self._draining = False
        self._nothing: str | None = None
        self._task: TaskConfig | None = None
        self._task_known = False
        self._task_invalid: str | None = None
        self._interval = settings.heartbeat_interval
        self._registered_at = 0.0
        if identity.platform is not None:
            self._platform_known.set()

    def know_platform(self, identity: Identity) -> None:
        """The engine has told its platform: from now on tasks can be asked for."""
        if identity != self._identity:
            self._registered.clear()
        self._identity = identity
        self._platform_known.set()
        self._beat_now.set()

    async def heartbeats(self) -> None:
        """Register, then say every interval, and at once when there is news, how the node does."""
        failures = 0
        await self._until(self._platform_known, self._finishing, timeout=ENGINE_HEAD_START)
        while not self._finishing.is_set():
            if self.contact.pause:
                await self._until(self._finishing, timeout=self.contact.pause)
                continue
            try:
                if not self._registered.is_set() and not self._told_to_stop:
                    await self._register()
                await self._beat()
            except HubError as error:
                failures += 1
                await self._until(self._finishing, timeout=self._lost(BEATS, error, failures))
            else:
                failures = 0
                if self._registered.is_set() or self._told_to_stop:
                    await self._until_next_beat()
                elif time.monotonic() - self._registered_at < REGISTER_GAP:
                    await self._until(self._finishing, timeout=REGISTER_GAP)

    async def watch(self) -> None:
        """Follow the hub's current task."""
        etag: str | None = None
        failures = 0
        while True:
            await self._registered.wait()
            await self._platform_known.wait()
            if self.contact.pause:
                await asyncio.sleep(self.contact.pause)
                continue
            platform, node_id = self._identity.platform, self.node_id
            if platform is None or node_id is None:
                raise AssertionError("registered without an id or a platform")
            asked, token = time.monotonic(), self._client.token
            # After a failure no hub is to hold it: whether it answers must show at once. What is known goes
            # along: by that a hub with a new list sees that this node may have work of another.
            wait = WAIT if etag and not failures else None
            try:
                answer = await self._client.task(platform, node_id, etag, wait)
            except HubError as error:
                if isinstance(error, HubRejectedToken) and token != self._client.token:
                    continue  # it has been replaced meanwhile
                failures += 1
                self._fresh_token.clear()
                await self._until(self._fresh_token, timeout=self._lost(WATCH, error, failures))
                continue
            failures = 0
            self.contact.find(WATCH)
            etag = answer.etag
            if answer.heartbeat_now:
                self._beat_now.set()
            if answer.changed:
                self._task, self._task_known, self._task_invalid = answer.task, True, answer.invalid
                self._nothing = None  # which was about what was given before
                if answer.invalid:
                    self._board.error(BAD_TASK, _unusable(answer.invalid))
                self._apply()
            if etag is None:
                await asyncio.sleep(POLL)
            elif wait and not answer.changed and not answer.heartbeat_now and time.monotonic() - asked < 1.0:
                await asyncio.sleep(POLL)  # this hub has ETags but does not hold requests

    async def finish(self, heartbeats: asyncio.Task[None]) -> None:
        """End the heartbeats, the one under way included, so that nothing follows the farewell."""
        self._finishing.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL):
                await asyncio.shield(heartbeats)
        heartbeats.cancel()

    async def farewell(self) -> None:
        """Deregister: the hub then knows at once that this node is gone."""
        if self.node_id is None:
            return
        try:
            async with asyncio.timeout(FAREWELL):
                await self._client.deregister(self.node_id)
        except (HubError, TimeoutError) as error:
            log.warning("could not deregister; the hub will notice in 60 s", error=str(error))

    async def _register(self) -> None:
        known = self.node_id
        identity = self._identity
        request = RegisterRequest(
            node_id=known,
            hostname=identity.hostname,
            architecture=identity.architecture,
            cpu_count=identity.cpu_count,
            platform=identity.platform,
            agent_version=__version__,
            labels=self._settings.labels,
            machine=identity.machine,
            gpu_count=self._facts.gpus,
        )
        try:
            answer = await self._client.register(request, self._credentials.for_registration)
        except HubRejectedToken:
            self._credentials.refuse(registering=True)
            raise
        self._credentials.accept(registered=True)
        self._take(answer.node_id, answer.token)
        if identity != self._identity:
            return  # the engine told its platform meanwhile: once more, with that
        self._draining = answer.drain
        self._registered.set()
        self._registered_at = time.monotonic()
        self.contact.find(BEATS)
        self.contact.mend()
        log.info("registered", node_id=self.node_id, architecture=identity.architecture)
        self._apply()

    def _take(self, node_id: str, token: str | None) -> None:
        self._membership.take(node_id, token)
        if self._client.token != self._credentials.current:
            self._client.token = self._credentials.current
            self._fresh_token.set()

    async def _beat(self) -> None:
        if self.node_id is None:
            return
        self._board.news.clear()
        self._beat_now.clear()
        report, errors = self._board.report, self._board.take_errors()
        was_lost = self.contact.was_lost
        try:
            answer = await self._client.heartbeat(
                HeartbeatRequest(
                    node_id=self.node_id,
                    status=report.status,
                    active_containers=report.active_containers,
                    task=report.task,
                    generation=report.generation,
                    reason=clip(report.reason.text) if report.reason else None,
                    reason_kind=report.reason.kind if report.reason else None,
                    containers=report.containers(time.time()),
                    errors=errors,
                    warnings=[clip(warning) for warning in report.warnings][:MAX_WARNINGS],
                    paused=report.paused,
                )
            )
        except HubError as error:
            self._board.keep_errors(errors)
            if isinstance(error, HubRejectedToken):
                self._credentials.refuse()
                if self._credentials.has_other:
                    self._registered.clear()
            raise
        self.contact.find(BEATS)
        if was_lost:
            self.contact.mend()
        if answer.known is not False:
            self.contact.note_heartbeat()
        self._credentials.accept()
        if answer.token is not None:
            self._take(self.node_id, answer.token)
        self._interval = answer.heartbeat_interval or self._settings.heartbeat_interval
        self._run_errands(answer)
        if answer.stop_requested and not self._told_to_stop:
            log.info("the hub asks this node to stop")
            self._told_to_stop = True
            self._on_stop()
        # A hub that never says `known` may have been replaced while it was away.
        if answer.known is False or (answer.known is None and was_lost):
            self._board.keep_errors(errors)
            self._registered.clear()
        elif answer.known and (answer.drain, answer.nothing) != (self._draining, self._nothing):
            self._draining, self._nothing = answer.drain, answer.nothing
            self._apply()

    def _run_errands(self, answer: HeartbeatAnswer) -> None:
        wanted = answer.prefetch
        if wanted is not None and not spec.is_allowed(wanted, self._settings.allowed_images):
            wanted = None
        self._on_prefetch(wanted)
        for order in answer.logs if self._read_log else ():
            errand = asyncio.ensure_future(self._bring_log(order))
            self._errands.add(errand)
            errand.add_done_callback(self._errands.discard)

    async def _bring_log(self, order: LogOrder) -> None:
        assert self._read_log is not None  # noqa: S101 # the caller looked
        assert self.node_id is not None  # noqa: S101 # a heartbeat was answered
        text, error = await self._read_log(order)
        message = LogsMessage(
            node_id=self.node_id, id=order.id, text=text, error=clip(error) if error else None
        )
        with suppress(HubError):  # the operator's request ends by itself
            await self._client.logs(message)

    @property
    def node_id(self) -> str | None:
        """What the hub calls this node; None before it has registered for the first time."""
        return self._membership.node_id

    def _apply(self) -> None:
        if self._identity.refusal:
            self._on_wanted(spec.Wanted(reason=Reason(UNSUPPORTED, self._identity.refusal)))
        elif self._draining:
            text = "drained: the hub wants no containers here"
            self._on_wanted(spec.Wanted(reason=Reason(DRAINED, text)))
        elif self._task_known and self.node_id is not None:
            self._on_wanted(self._wanted_now(self.node_id))

    def _wanted_now(self, node_id: str) -> spec.Wanted:
        if self._task_invalid:
            return spec.Wanted(reason=Reason(BAD_TASK, _unusable(self._task_invalid)))
        if self._task is None:
            # A hub that does not say why may have none, be held, or lack an image for us.
            nothing = f"the hub gives {self._identity.platform} nodes nothing to run now"
            return spec.Wanted(reason=Reason(NOTHING_GIVEN, self._nothing or nothing), is_word=True)
        return spec.want(self._task, self._facts, node_id, self._settings)

    async def _until_next_beat(self) -> None:
        # The fixed cadence, or news, but never more than one a second.
        due = time.monotonic() + self._interval
        await self._until(self._finishing, self._beat_now, timeout=1 / MOST_BEATS_PER_SECOND)
        await self._until(
            self._finishing, self._beat_now, self._board.news, timeout=max(0.0, due - time.monotonic())
        )

    async def _until(self, *events: asyncio.Event, timeout: float) -> None:  # noqa: ASYNC109 # one wait for several events
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            await asyncio.wait(waits, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()

    def _lost(self, asker: str, error: HubError, failures: int) -> float:
        text = None
        if isinstance(error, HubRejectedToken):
            text = self._credentials.explain(self._config)
        return self.contact.lose(asker, error, failures, text)


def _unusable(why: str) -> str:
    return f"the hub's task cannot be used: {why}"
