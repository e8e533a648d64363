"""What a hub sees of a state that it shares: a copy of what everybody looks at, and whom to wake for what.

The copy is the task list and what it takes to judge tokens, each with a version. Notices of other hubs only
say that something changed: it is read, and only then are those woken whom it concerns. They are numbered
without a gap; a hub that missed one, or was without Redis, reads everything and wakes everybody.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from gridcore.errors import ConfigError
from hub import codec
from hub.batcher import Batcher
from hub.errors import StoreUnavailable
from hub.observed import Instant
from hub.redis_link import Command, RedisLink
from hub.redis_rows import Known, Snapshot, number_of, read_access, read_list, read_row
from hub.redis_script import OPEN, READ, SCHEMA_VERSION, Script
from hub.redis_url import RedisTarget
from hub.state import AUDIT, EVERYONE
from hub.store import Wake
from hub.tasklist import Task, TaskList

NOTICE_DELAY = 0.05
"""Seconds that a notice may take longer than an answer."""


class Sight:
    """The copy, the link that it comes over, and who is woken. It is the link's Session."""

    def __init__(
        self, target: RedisTarget, hub_id: str, clock: Callable[[], float] | None, empty: str
    ) -> None:
        """`clock` stands for Redis' own time; `empty` is the revision of a list that is made now."""
        self.known = Known()
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

    async def _read(
        self, nodes: Sequence[str] = (), tokens: Sequence[str] = (), marks: Sequence[str] = ()
    ) -> tuple[Snapshot, Instant, int]:
        """Also the number of the last notice."""
        wanted = json.dumps({"nodes": nodes, "tokens": tokens, "marks": marks})
        read, session = replace(self.known), self.link.number
        command = self.script(READ, self.at, read.list_version, read.access_version, wanted)
        (answer,) = await self.link.ask(command)
        clock, wall, since, notices, version, head, tasks, access_version, keys, revoked, *found = answer
        rows, token_texts, mark_texts = found
        if version is None:
            self.link.lose("what it kept is gone")
            raise StoreUnavailable("Redis has lost what it kept")
        if head is not None:
            read.list_version, read.tasks = version, read_list(head, version, tasks, self._kept_tasks)
        if keys is not None:
            read.access_version, read.access = access_version, read_access(keys, revoked)
        if session == self.link.number:  # what an earlier server said is no measure for this one
            self.learn_list(read.list_version, read.tasks)
            if number_of(read.access_version) >= number_of(self.known.access_version):
                self.known.access_version, self.known.access = read.access_version, read.access
        snapshot = Snapshot(read, dict(map(read_row, rows)), dict(token_texts), dict(mark_texts))
        return snapshot, Instant(float(clock), float(wall), float(since)), int(notices)

    # --- The link's session --------------------------------------------------------------------------------

    async def begin(self) -> None:
        head = json.dumps({**codec.dump_head(self._empty), "order": []})
        opening = self.script(OPEN, self.at, SCHEMA_VERSION, head, f"1.{self.hub_id}")
        (schema,) = await self.link.ask(opening, changes=True)
        if not str(schema).isdecimal() or int(schema) > SCHEMA_VERSION:
            raise ConfigError(
                f"state: what is in Redis was written by a newer GridCore (schema {schema}, this one knows "
                f"{SCHEMA_VERSION}); install that version again"
            )
        before = self.known.tasks, self._notices
        self.known.list_version = self.known.access_version = ""
        _, _, self._notices = await self._read()
        self.has_seen = True
        if before != (self.known.tasks, self._notices):
            self._wake_all()

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
