"""The hub as a process: its socket, its loops, its end.

One stop event, ours, and every wait waits for it too. One loop that crashes ends the process with its error;
the service manager starts it again.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import structlog

from gridcore import __version__, systemd
from gridcore.errors import ConfigError
from hub import task_operations, token_operations
from hub.app import build_app
from hub.crier import STEP_INTERVAL, Crier
from hub.errors import StoreUnavailable
from hub.http_server import BACKLOG, answer_requests
from hub.insight import Insight
from hub.journal_sqlite import open_sqlite
from hub.lanes import Lanes
from hub.logdesk import Desk, LogDesk
from hub.logdesk_redis import SharedLogDesk
from hub.loop_errors import LoopErrors
from hub.metrics import Counts
from hub.news import News, log_nodes, tell
from hub.outlook import Outlook
from hub.pace import Pace
from hub.refusals import Refusals, tell_refusals
from hub.retention import EVENTS, TOKENS, look_back
from hub.settings import HubSettings
from hub.state import ids_of
from hub.store import Store
from hub.store_local import open_memory
from hub.store_redis import RedisStore, open_redis
from hub.tls import LOOK_INTERVAL, Tls
from hub.waiters import Waiters

if TYPE_CHECKING:
    from hub.notify import Messenger

WATCH_INTERVAL = 1.0
"""Seconds after which it is asked again whether it is time for a look at the current task's queues."""

SWEEP_INTERVAL = 5.0
"""Seconds between two looks for nodes that fell silent."""

FLUSH_INTERVAL = 300.0
"""Seconds between two writes of what heartbeats reported."""

CLEAN_INTERVAL = 3600.0
"""Seconds between two looks for what has been kept long enough."""

SURE = 86_400.0
"""Seconds for which it must have been late enough, before a token is taken for over for good."""

log = structlog.get_logger()


async def open_store(settings: HubSettings) -> Store:
    """The store that the settings name. Raises ConfigError."""
    if settings.redis is not None:
        return await open_redis(settings.redis)
    return open_memory() if settings.database is None else await open_sqlite(settings.database)


def open_desk(store: Store, waiters: Waiters) -> Desk:
    """The log desk that belongs to a store."""
    return SharedLogDesk(store, waiters) if isinstance(store, RedisStore) else LogDesk(waiters)


def messengers_for(settings: HubSettings, store: Store, outlook: Outlook, counts: Counts) -> list[Messenger]:
    """One for each [[notify]]. Raises ConfigError where a file that one names cannot be read."""
    if not settings.notify:
        return []
    from hub.notify import open_messengers  # with it comes an HTTP client: time at start, and memory

    return open_messengers(settings.notify, store, outlook, counts)


async def serve(settings: HubSettings) -> None:
    """Run the hub until SIGTERM or SIGINT.

    Raises:
        ConfigError: the address, the certificate or the state cannot be used.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    tls = open_tls(settings)
    loop.add_signal_handler(signal.SIGHUP, tls.reload if tls else _nothing_to_reload)
    loop.set_exception_handler(LoopErrors())
    allow_connections()
    listener = bind(settings)
    try:
        store = await open_store(settings)
    except BaseException:
        listener.close()
        raise
    try:
        await _run(settings, store, listener, tls, stopping)
    finally:
        try:
            await store.close()
        except StoreUnavailable as error:
            log.warning("what nodes reported last could not be written", error=str(error))
    log.info("stopped")


async def name_fleet_redis(url: str, store: Store, stopping: asyncio.Event) -> None:
    """Have nodes be given this URL from now on. Once: of several hubs the one that started last is right."""
    while not stopping.is_set():
        try:
            await store.run(task_operations.name_fleet_redis(url))
        except StoreUnavailable:  # told elsewhere
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), 1)
        else:
            return


async def _run(
    settings: HubSettings, store: Store, listener: socket.socket, tls: Tls | None, stopping: asyncio.Event
) -> None:
    waiters = Waiters()
    news = News()
    refusals = Refusals()
    insight = Insight(store, waiters, certificate_ends=(lambda: tls.ends) if tls else None)
    counts = insight.metrics.counts
    outlook = Outlook(store, insight)
    messengers = messengers_for(settings, store, outlook, counts)
    crier = Crier(store, outlook, messengers)
    pace = Pace()
    app = build_app(
        settings,
        store,
        waiters,
        desk=open_desk(store, waiters),
        news=news,
        refusals=refusals,
        insight=insight,
        pace=pace,
    )
    lanes = Lanes(app.calls, app.bearers, app.rights, app.requests)

    async def sweep() -> None:
        await tell(store, news)
        await tell_refusals(store, refusals)
        pace.take(len(waiters))
        swept = await store.sweep(settings.node_retention)
        counts.sweep(len(swept.silent), len(swept.forgotten))
        if swept.forgotten:
            ended = token_operations.bound_to(ids_of(swept.forgotten), await store.tokens())
            await store.run(token_operations.revoke_tokens(ended))
        log_nodes("offline", swept.silent)
        log_nodes("forgotten", swept.forgotten)
        await look_at_canary(store)

    async def clean_up() -> None:
        before = await store.run(look_back(EVENTS, settings.event_retention))
        if before is not None:
            await store.forget_events(before)
        past = await store.run(look_back(TOKENS, SURE))
        if past is not None:
            await store.run(token_operations.drop_expired(await store.tokens(), past))

    async def repeat(step: Callable[[], Awaitable[None]], interval: float) -> None:
        await _repeat(step, interval, stopping, counts)

    log.info("listening", address=address_of(listener), version=__version__)
    # Thousands of held requests are long-lived objects: looking through them often costs more than it frees.
    gc.set_threshold(50_000, 20, 100)
    async with asyncio.TaskGroup() as loops:
        loops.create_task(answer_requests(app.quart, lanes, listener, tls, stopping), name="http")
        loops.create_task(repeat(sweep, SWEEP_INTERVAL), name="sweep")
        if settings.fleet_redis is not None:
            loops.create_task(name_fleet_redis(settings.fleet_redis, store, stopping), name="fleet's Redis")
        loops.create_task(repeat(insight.step, WATCH_INTERVAL), name="watch")
        if messengers:
            loops.create_task(repeat(crier.step, STEP_INTERVAL), name="notify")
        for messenger in messengers:
            loops.create_task(messenger.run(stopping), name=f"notify {messenger.target.name}")
        loops.create_task(repeat(clean_up, CLEAN_INTERVAL), name="clean-up")
        loops.create_task(repeat(store.flush, FLUSH_INTERVAL), name="flush")
        if tls is not None:
            loops.create_task(repeat(tls.look, LOOK_INTERVAL), name="certificate")
        systemd.notify("READY=1")
        await stopping.wait()
        systemd.notify("STOPPING=1")
        waiters.close()
    await insight.eyes.close()


async def _repeat(
    step: Callable[[], Awaitable[None]], interval: float, stopping: asyncio.Event, counts: Counts
) -> None:
    """Do a step every `interval` seconds until `stopping`; a disk that is full now may not be next time."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(interval):
                await stopping.wait()
        if stopping.is_set():
            return
        try:
            await step()
        except StoreUnavailable:  # the store has told the log, once
            counts.store_failures += 1


async def look_at_canary(store: Store) -> None:
    """See how the task that is tried does, if one is, and act on it. Raises StoreUnavailable."""
    canary = store.latest_tasks.canary
    if canary is None:
        return
    outcome = await store.run(task_operations.judge_canary(canary))
    if outcome is not None:
        log.info(outcome.replace("-", " "), task=canary.task)


def allow_connections() -> None:
    """Have as many file descriptors as this process may: each node holds a connection, and soft limits are
    made for programs that hold a few."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def open_tls(settings: HubSettings) -> Tls | None:
    """The certificate and key that the settings name, or None where they name none. Raises ConfigError."""
    if settings.tls_certificate is None or settings.tls_key is None:
        return None
    return Tls(settings.tls_certificate, settings.tls_key)


def _nothing_to_reload() -> None:
    log.info("SIGHUP changes nothing: no certificate is configured, and other settings need a restart")


def address_of(listener: socket.socket) -> str:
    """Where it listens: HOST:PORT, of a link-local address with its interface."""
    host, port, *more = listener.getsockname()
    if ":" not in host:
        return f"{host}:{port}"
    zone = f"%{socket.if_indextoname(more[1])}" if more[1] and "%" not in host else ""
    return f"[{host}{zone}]:{port}"


def bind(settings: HubSettings) -> socket.socket:
    """The listening socket. Raises ConfigError with what is wrong with the address."""
    host, port = settings.address
    try:
        family, _, _, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"bind: {host} is no address of this machine: {error}") from None
    try:
        listener = socket.create_server(
            address, family=family, backlog=BACKLOG, dualstack_ipv6=address[0] == "::"
        )
    except OSError as error:
        raise ConfigError(
            f"bind: cannot listen on {settings.bind}: {error.strerror}. "
            "Stop what listens there, or choose another address"
        ) from None
    # Connections inherit it. Else the second part of an answer, its body, waits until the client has
    # confirmed the first, which it puts off for 40 ms on a connection that is kept.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
