"""What a hub sees of a state that it shares: a copy of what everybody looks at, and whom to wake for what.

The copy is the task list and what it takes to judge tokens, each with a version. Notices of other hubs only
say that something changed: it is read, and only then are those woken whom it concerns. They are numbered
without a gap; a hub that missed one, or was without Redis, reads everything and wakes everybody.

What cannot be what became of the state that was seen is not looked at: the copy stays as it was, and every
call fails with StateLost until there is such a state, or somebody began another one on purpose
(`redis_succession.py`).
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import structlog

from gridcore.errors import ConfigError
from hub import codec
from hub.batcher import Batcher
from hub.errors import StateLost
from hub.events import HUB, Event
from hub.observed import Instant
from hub.redis_beginning import FOUND, OPEN, REFUSE, SCHEMA_VERSION
from hub.redis_link import Command, RedisLink
from hub.redis_place import RIGHTS
from hub.redis_rows import (
    DAMAGED,
    Entries,
    Entry,
    Known,
    Looking,
    Snapshot,
    is_version,
    next_version,
    number_of,
    read_access,
    read_list,
    read_rows,
)
from hub.redis_script import READ, Script
from hub.redis_succession import Found, Judgement, Standing, Verdict, judge
from hub.redis_url import RedisTarget
from hub.redis_write import WRITE_ANYWAY
from hub.state import AUDIT, EVERYONE, Change
from hub.store import Wake
from hub.tasklist import Task, TaskList

NOTICE_DELAY = 0.05
"""Seconds that a notice may take longer than an answer."""

DO = (
    "Nothing of it is taken, and nodes go on computing. Put the last backup back with "
    "`computehub restore FILE`, or go on with what Redis holds now with `computehub accept-loss`: on a hub's "
    "machine, while hubs run"
)
"""What to do about a state that is lost."""

log = structlog.get_logger()


class Sight:
    """The copy, the link that it comes over, and who is woken. It is the link's Session."""

    def __init__(
        self,
        target: RedisTarget,
        hub_id: str,
        clock: Callable[[], float] | None,
        empty: str,
        *,
        repairs: bool = False,
    ) -> None:
        """`clock` stands for Redis' own time; `empty` is the revision of a list that is made now. What
        `repairs` takes whatever it finds, begins nothing, and writes also what hubs refuse."""
        self.known = Known()
        self.repairs = repairs
        self.epoch = ""
        """Of the state that is known."""
        self.found: Found | None = None
        """What there was when this session began."""
        self._seen_until = 0.0  # the logical clock
        self._history = ""
        self.has_seen = False
        """Whether the copy is one of anything."""
        self.hub_id = hub_id
        self.wake: Wake = _wake_nobody
        self.hear_answer: Callable[[str], None] = _wake_nobody
        self._target = target
        self._clock = clock
        self._empty = TaskList(empty)
        self._kept_tasks: dict[str, Task] = {}
        self._notices = 0
        self._answers = f"{target.prefix}answers:{hub_id}"
        self._looks: Batcher[None, Known] = Batcher(self._look_once, most=1_000_000)
        self.link = RedisLink(target, f"computehub-{hub_id}", (f"{target.prefix}notices", self._answers))

    def script(self, script: Script, *values: Any) -> Command:
        """The command that has Redis do a script."""
        return ("EVALSHA", script.digest, 1, self.key("state"), *values)

    def key(self, name: str) -> str:
        """A key of ours."""
        return f"{self._target.prefix}{name}"

    @property
    def at(self) -> str:
        """The time that scripts go by: empty for Redis' own."""
        return "" if self._clock is None else repr(self._clock())

    async def look(self) -> Known:
        """The copy, from a look that began after this was asked for. Raises StoreUnavailable."""
        self.link.check()
        return await self._looks.do(None)

    async def read(
        self, nodes: Sequence[str] = (), tokens: Sequence[str] = (), marks: Sequence[str] = ()
    ) -> tuple[Snapshot, Instant]:
        """These nodes, tokens and marks, and with them what is new of the copy. Raises StoreUnavailable."""
        self.link.check()
        return (await self._read(nodes, tokens, marks))[:2]

    def learn_list(self, version: str, tasks: TaskList) -> None:
        """What the list is, or was a moment ago: never back to an earlier one."""
        if number_of(version) >= number_of(self.known.list_version):
            self.known.list_version, self.known.tasks = version, tasks

    async def _look_once(self, asked: Sequence[None]) -> Sequence[Known]:
        snapshot, _, _ = await self._read()
        return [snapshot.known] * len(asked)

    def writing(self, script: Script, entries: Sequence[Entry]) -> Command:
        """The command that writes entries into the state that is known, and into no other."""
        return self.script(script, self.hub_id, json.dumps(entries), self.epoch, int(self.repairs))

    async def _read(
        self, nodes: Sequence[str] = (), tokens: Sequence[str] = (), marks: Sequence[str] = ()
    ) -> tuple[Snapshot, Instant, int]:
        """Also the number of the last notice."""
        before, session = replace(self.known), self.link.number
        snapshot, now, notices, epoch = await self._fetch(before, nodes, tokens, marks)
        if session == self.link.number:  # what an earlier server said is no measure for this one
            there = Standing(epoch, snapshot.known.list_version, snapshot.known.access_version, now.monotonic)
            self._insist(Standing(self.epoch, before.list_version, before.access_version), there)
            self._learn(snapshot.known)
            self._seen_until = max(self._seen_until, now.monotonic)
        return snapshot, now, notices

    async def _fetch(
        self,
        before: Known,
        nodes: Sequence[str] = (),
        tokens: Sequence[str] = (),
        marks: Sequence[str] = (),
    ) -> tuple[Snapshot, Instant, int, str]:
        """What there is, upon what is known before; also the last notice and the epoch."""
        read = replace(before)
        wanted = json.dumps({"nodes": nodes, "tokens": tokens, "marks": marks})
        command = self.script(READ, self.at, read.list_version, read.access_version, wanted)
        (answer,) = await self.link.ask(command)
        clock, wall, since, notices, version, head, tasks, access_version, keys, revoked, *found = answer
        rows, token_texts, mark_texts, epoch, lost, missing, count = found
        if version is None or missing or (lost and not self.repairs):
            raise self._lose(lost or f"a part of what Redis kept is gone: {missing or 'the list of tasks'}")
        if not all(map(is_version, (version, access_version, epoch))):
            raise self._lose("what Redis kept is damaged: a version")
        try:
            if head is not None:
                read.list_version, read.tasks = version, read_list(head, version, tasks, self._kept_tasks)
        except KeyError:
            raise self._lose("a part of what Redis kept is gone: tasks of the list") from None
        except DAMAGED:
            raise self._lose("what Redis kept is damaged: the list of tasks") from None
        if count != len(read.tasks.tasks):
            raise self._lose("a part of what Redis kept is gone: tasks of the list")
        try:
            if keys is not None:
                read.access_version, read.access = access_version, read_access(keys, revoked)
            now, told = Instant(float(clock), float(wall), float(since)), int(notices or 0)
        except DAMAGED:
            raise self._lose("what Redis kept is damaged: signing keys, or what it counts") from None
        return read_rows(rows, read, token_texts, mark_texts), now, told, epoch

    def _insist(self, before: Standing, there: Standing) -> None:
        """Raises StateLost: on one and the same server, this does not follow what was there before."""
        judgement = judge(before, Found(there), is_promoted=False)
        if judgement.verdict is Verdict.REFUSE:
            raise self._lose(judgement.why)

    def _lose(self, why: str) -> StateLost:
        """End the session; the next one looks closely at what there is."""
        lost = StateLost(why, DO)
        if not self.repairs:
            self.link.lose(lost)
        return lost

    def _learn(self, read: Known) -> None:
        self.learn_list(read.list_version, read.tasks)
        if number_of(read.access_version) >= number_of(self.known.access_version):
            self.known.access_version, self.known.access = read.access_version, read.access

    # --- The link's session --------------------------------------------------------------------------------

    async def begin(self) -> None:
        found = await self._open()
        if found.standing.list_version and not found.standing.epoch:
            found = await self._found()
        self.found = found
        if self.repairs:
            self.epoch = found.standing.epoch
            with suppress(StateLost):
                await self.take()
            return
        known = (
            Standing(self.epoch, self.known.list_version, self.known.access_version, self._seen_until)
            if self.has_seen
            else None
        )
        place = self.link.place
        judgement = judge(known, found, is_promoted=place.is_promoted_from(self._history))
        if judgement.verdict is Verdict.REFUSE:
            raise await self._refuse(found, judgement)
        if judgement.verdict is Verdict.BEGIN:
            await self._found()
        if judgement.verdict is Verdict.WRITE_AGAIN:
            await self._write_again()
        before = self.known.tasks, self._notices
        await self.take()
        self._history = place.history[0]
        if before != (self.known.tasks, self._notices):
            self._wake_all()

    async def _open(self) -> Found:
        """What there is. Raises ConfigError where the login, or this version, is not fit for it."""
        ((refused, *rest),) = await self.link.ask(self.script(OPEN, self.at, self.hub_id))
        if refused:
            raise ConfigError(f"state: the login may not do what a hub does: {', '.join(refused)}. {RIGHTS}")
        (schema, epoch, began, lost, version, access), clock, missing = rest
        if schema and (not str(schema).isdecimal() or int(schema) > SCHEMA_VERSION):
            raise ConfigError(
                f"state: what is in Redis was written by a newer GridCore (schema {schema}, this one knows "
                f"{SCHEMA_VERSION}); install that version again"
            )
        return Found(Standing(epoch, version, access, float(clock)), began, lost, missing)

    async def _found(self) -> Found:
        """See that there is a state, and that it has an epoch; then what there is."""
        head = json.dumps({**codec.dump_head(self._empty), "order": []})
        first = f"1.{self.hub_id}"
        about = (SCHEMA_VERSION, head, first, secrets.token_hex(8))
        await self.link.ask(self.script(FOUND, self.at, self.hub_id, *about), changes=True)
        found = await self._open()
        if found.standing.list_version == first:
            log.warning("there was no state in Redis: the hub begins with no tasks and no nodes")
        return found

    async def _refuse(self, found: Found, judgement: Judgement) -> StateLost:
        """Tell other hubs, who may not know better, and what to say of it."""
        if judgement.tells:
            version = found.standing.list_version
            about = (version, judgement.why, self.epoch)
            await self.link.ask(self.script(REFUSE, self.hub_id, *about), changes=True)
        return StateLost(judgement.why, DO)

    async def take(self) -> None:
        """Make what there is the copy."""
        snapshot, now, self._notices, self.epoch = await self._fetch(Known())
        self.known, self._seen_until = snapshot.known, now.monotonic
        self.has_seen = True

    async def _write_again(self) -> None:
        """The list that this hub knows, where a server that was promoted has an older one. If another hub is
        faster, its list counts."""
        snapshot, now, _, self.epoch = await self._fetch(Known())
        making, ours = Entries(snapshot), self.known
        detail = {"generation": ours.tasks.revision}
        event = Event(now.wall, "list-written-again", HUB.who, detail=detail)
        change = Change(ours.tasks, events=(event,))
        entry = making.make(Looking(snapshot), change, None)
        entry["new_list"] = next_version(ours.list_version)  # later than what any hub has seen
        await self.link.ask(self.writing(WRITE_ANYWAY, [entry]), changes=True)
        log.warning(
            "Redis lost the last changes of the task list in a failover; this hub has written them again",
            generation=ours.tasks.revision,
        )

    async def look_for_missed(self) -> bool:
        revision = self.known.tasks.revision
        _, _, told = await self._read()
        if told > self._notices:
            await asyncio.sleep(NOTICE_DELAY)
        is_missed = told > self._notices
        if is_missed:
            self._notices = told
            self._wake_all()
        elif self.known.tasks.revision != revision:
            self.wake(EVERYONE)
        return is_missed

    async def hear(self, channel: str, message: str) -> None:
        if channel == self._answers:
            self.hear_answer(message)
            return
        notice = json.loads(message)
        number, is_missed = notice["n"], notice["n"] != self._notices + 1
        if number <= self._notices:
            return
        self._notices = number
        if notice["by"] == self.hub_id and not is_missed:
            return  # who wrote it has woken its own
        if is_missed or notice.get("list") or notice.get("access"):
            await self.look_while_beginning()
        if is_missed:
            self._wake_all()
            return
        for whom in notice["wake"]:
            self.wake(whom)
        if notice.get("audit"):
            self.wake(AUDIT)

    async def look_while_beginning(self) -> None:
        """As `look`, also before calls are let through."""
        await self._looks.do(None)

    def _wake_all(self) -> None:
        self.wake(EVERYONE)
        self.wake(AUDIT)


def _wake_nobody(_whom: str) -> None:
    """Until somebody listens."""
