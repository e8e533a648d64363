"""Beginning a state in Redis on purpose, while hubs run: after a loss, or with what a backup holds.

Hubs refuse a state that cannot be what became of the one that they saw. What begins here has a later epoch,
and says that somebody wanted it: they take it, within a second. While it is made they go on refusing.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Literal

from gridcore.errors import ConfigError
from hub import codec
from hub.backup import BackupError
from hub.contents import Contents, carry_over, fill, read_store
from hub.errors import StoreUnavailable
from hub.redis_beginning import BEGIN, SCHEMA_VERSION
from hub.redis_rows import DAMAGED, next_version, order_of
from hub.redis_succession import Found, Standing
from hub.redis_url import RedisTarget
from hub.settings import HubSettings
from hub.state import EVERYONE, Change, Moment, Operation, Outcome, View
from hub.store_local import new_entropy
from hub.store_redis import RedisStore, open_redis
from hub.tasklist import Task, TaskList

CHANGED = "state: what Redis holds has changed meanwhile, and nothing was done to it: look at it again"
UNDER_WAY = "a backup is being restored, or that was broken off"


@asynccontextmanager
async def open_for_repair(target: RedisTarget) -> AsyncIterator[RedisStore]:
    """The store over what this Redis holds, whatever that is. Raises ConfigError, StoreUnavailable."""
    store = await open_redis(target, repairs=True)
    try:
        store.sight.link.check()
        yield store
    finally:
        await store.close()


@dataclass(frozen=True, slots=True)
class Rest:
    """What there is; `tasks` is None where there is no list."""

    tasks: TaskList | None
    nodes: int
    missing: str
    """What of it is gone, in words."""
    standing: Standing
    """How far it had come when it was looked at."""


async def look_at_rest(store: RedisStore) -> Rest:
    """What a Redis still holds. Raises StoreUnavailable."""
    sight, found = store.sight, _found_by(store)
    answers = await sight.link.call(
        ("HGET", sight.key("state"), "head"),
        ("HVALS", sight.key("tasks")),
        ("HLEN", sight.key("nodes")),
    )
    head, texts, nodes = answers
    if head is None or not found.standing.list_version:
        return Rest(None, nodes, found.missing or "everything", found.standing)
    tasks = {task.name: task for task in filter(None, map(_read_task, texts))}
    try:
        values = json.loads(head)
        order = dict(zip(values["order"], values.get("revisions") or values["order"], strict=False))
        codec.load_list(values, ())
    except DAMAGED:
        return Rest(None, nodes, "the list of tasks", found.standing)
    kept = (replace(tasks[name], revision=revision) for name, revision in order.items() if name in tasks)
    whole = codec.load_list(values, tuple(kept))
    if len(whole.tasks) == len(order):
        return Rest(whole, nodes, found.missing, found.standing)
    tried = whole.canary if whole.canary and whole.canary.task in tasks else None
    anew = replace(whole, canary=tried)
    anew = replace(anew, revision=anew.fresh_revision(new_entropy()))
    return Rest(anew, nodes, "some tasks of the list", found.standing)


def _read_task(text: str) -> Task | None:
    """None where it is damaged, which is as if it were gone."""
    try:
        return codec.load_task(json.loads(text))
    except DAMAGED:
        return None


async def see_rest(settings: HubSettings) -> Rest:
    """What the Redis of these settings still holds. Raises BackupError, ConfigError."""
    try:
        async with open_for_repair(_redis_of(settings)) as store:
            return await look_at_rest(store)
    except StoreUnavailable as error:
        raise BackupError(f"state: {error}") from None


async def accept_rest(settings: HubSettings, seen: Rest) -> None:
    """Have hubs go on with what was seen. Raises BackupError, also if there is something else by now, and
    ConfigError."""
    try:
        async with open_for_repair(_redis_of(settings)) as store:
            rest = await look_at_rest(store)
            if _versions(rest.standing) != _versions(seen.standing) or rest.missing != seen.missing:
                raise BackupError(CHANGED)
            await accept(store, rest)
    except StoreUnavailable as error:
        raise BackupError(f"state: {error}") from None


def _redis_of(settings: HubSettings) -> RedisTarget:
    if settings.redis is None:
        raise ConfigError(
            "state: is no Redis. A hub with a file takes what is in it when it starts: stop the hub, put the "
            "file back or move it away, and start it"
        )
    return settings.redis


async def accept(store: RedisStore, rest: Rest) -> None:
    """Have hubs go on with what there is, or with nothing. Raises BackupError, StoreUnavailable."""
    if rest.tasks is None:
        empty = TaskList.empty(new_entropy())
        # Not the first revision of a new list, on which nobody has decided anything yet.
        anew = replace(empty, revision=empty.fresh_revision(new_entropy()))
        await _begin(store, "empty", anew, rest.standing)
    else:
        await _begin(store, "kept", rest.tasks, rest.standing)

    def decide(view: View, at: Moment) -> Outcome[None]:
        current = view.tasks.current.name if view.tasks.current else None
        detail = {"tasks": len(view.tasks.tasks), "nodes": rest.nodes if rest.tasks else 0}
        return Outcome(None, Change(events=at.tell("loss-accepted", task=current, detail=detail)), EVERYONE)

    await store.run(Operation(decide))


async def restore_redis(target: RedisTarget, backup: Contents) -> TaskList:
    """Make a backup the state of the hubs, which may run if they have none.

    Raises:
        BackupError: there is a state, and hubs may work with it.
        ConfigError, StoreUnavailable: it cannot be done now; what was begun, hubs do not take.
    """
    async with open_for_repair(target) as store:
        found = _found_by(store)
        # What is not whole is not read: a restore is for just that.
        present = await read_store(store) if store.sight.has_seen else None
        if present is not None and not present.is_empty and not found.lost:
            raise BackupError(
                "state: this Redis holds tasks, nodes or tokens, and hubs may run on it. Stop them, and "
                "restore into an empty one (another database number will do)"
            )
        await _begin(store, "empty", TaskList.empty(new_entropy()), found.standing, lost=UNDER_WAY)
        tasks = await fill(store, carry_over(backup, present) if present is not None else backup)
        known = store.sight.known
        filled = Standing(list_version=known.list_version, access_version=known.access_version)
        await _begin(store, "as it is", tasks, filled)
        return tasks


async def _begin(
    store: RedisStore,
    how: Literal["empty", "kept", "as it is"],
    tasks: TaskList,
    seen: Standing,
    *,
    lost: str = "",
) -> None:
    """Raises BackupError where there is something else by now than what was seen."""
    sight = store.sight
    head = json.dumps({**codec.dump_head(tasks), **order_of(tasks)})
    about = (how, SCHEMA_VERSION, head, next_version(seen.list_version), secrets.token_hex(8), lost)
    (epoch,) = await sight.link.call(sight.script(BEGIN, sight.at, *about, *_versions(seen)), changes=True)
    if not epoch:
        raise BackupError(CHANGED)
    await sight.take()


def _found_by(store: RedisStore) -> Found:
    """What there was when the store's session began."""
    return store.sight.found or Found(Standing())


def _versions(standing: Standing) -> tuple[str, str]:
    return standing.list_version, standing.access_version
