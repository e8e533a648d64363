"""A store for several hubs: the state in a Redis, decided by whichever hub was asked.

Operations are read for, decided and written many at a time, as in the store of one hub: one round trip to
look, one to write (`redis_script.py` says how they stay apart from those of other hubs). Whoever lost a race
decides again. What a hub keeps in memory is a copy, for those who are held and for judging tokens
(`redis_sight.py`).
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import structlog

from hub import codec, operations
from hub.access import Access, Role, TokenRecord
from hub.batcher import Batcher
from hub.errors import OutcomeUnknown, StoreAway, StoreFull, StoreUnavailable, UnknownNode
from hub.events import HUB, NODES_NAMED, Actor, Event, EventQuery, Recorded, name_nodes
from hub.operations import Swept
from hub.redis_events import read_events
from hub.redis_rows import DAMAGED, Entries, Entry, Looking
from hub.redis_script import SWEEP, TOUCH
from hub.redis_sight import Sight
from hub.redis_url import RedisTarget
from hub.redis_write import WRITE, WRITE_ANYWAY
from hub.registry import OFFLINE_AFTER, Node
from hub.state import AUDIT, Change, Draft, Moment, Operation, Outcome, View
from hub.store import Wake
from hub.store_local import new_entropy, new_node_id
from hub.tasklist import TaskList

T = TypeVar("T")

log = structlog.get_logger()

CONFIRM_TIME = 1.0
"""Seconds that replicas get to confirm an operator's change."""

MOST_ROUNDS = 10
"""Times that an operation is decided, should another hub be faster each time."""

PAUSE = 0.005
"""Seconds that operations wait for company right after others were done."""

MOST_TOUCHES = 500
NODES_AT_ONCE = 500
"""What one script or answer holds at most: Redis does one thing at a time."""


@dataclass(frozen=True, slots=True)
class _Asked:
    operation: Operation[Any]
    by: Actor


@dataclass(slots=True)
class _Decided:
    outcome: Outcome[Any] | Exception
    entry: int | None = None
    """Its place among those that are written."""


async def open_redis(target: RedisTarget, **replaced: Any) -> RedisStore:
    """A store over this Redis, which may be away: then it answers as soon as it is there.

    Raises:
        ConfigError: it refuses us, is too old, or holds what a newer hub wrote.
    """
    store = RedisStore(target, **replaced)
    await store.sight.link.open(store.sight)
    return store


class RedisStore:
    """The Store over a Redis; clock and random sources can be replaced by tests."""

    def __init__(
        self,
        target: RedisTarget,
        *,
        clock: Callable[[], float] | None = None,
        entropy: Callable[[], int] = new_entropy,
        node_id: Callable[[], str] = new_node_id,
        repairs: bool = False,
    ) -> None:
        """`clock` stands for Redis' own time; `repairs` is for what restores (`redis_sight.Sight`)."""
        self.hub_id = secrets.token_hex(8)
        empty = TaskList.empty(entropy()).revision
        self.sight = Sight(target, self.hub_id, clock, empty, repairs=repairs)
        self._link = self.sight.link
        self._replicas = target.replicas
        self._entropy = entropy
        self._new_id = node_id
        self._operations: Batcher[_Asked, Any] = Batcher(self._run_all, pause=PAUSE)
        self._touches: Batcher[tuple[str, str], Any] = Batcher(self._touch_all, MOST_TOUCHES, PAUSE)

    def listen(self, wake: Wake) -> None:
        self.sight.wake = wake

    async def run(self, operation: Operation[T], by: Actor = HUB) -> T:
        self._link.check()
        answer: T = await self._operations.do(_Asked(operation, by))
        return answer

    async def tasks(self) -> TaskList:
        return (await self.sight.look()).tasks

    @property
    def latest_tasks(self) -> TaskList:
        return self.sight.known.tasks

    async def nodes(self) -> Sequence[Node]:
        (ids,) = await self._link.call(("ZRANGE", self.sight.key("joined"), 0, -1))
        return await self._nodes(ids)

    async def node(self, node_id: str) -> Node:
        found = await self._nodes([node_id])
        if not found:
            raise UnknownNode(node_id)
        return found[0]

    async def hear(self, node_id: str) -> bool:
        # While Redis is away nobody is called Offline: no reason to turn a held request away.
        try:
            return bool(await self.touch("hear", node_id))
        except StoreUnavailable:
            return False

    async def take_nudge(self, node_id: str) -> bool:
        try:
            return bool(await self.touch("nudge", node_id))
        except StoreUnavailable:
            return False  # all are woken when Redis is back

    async def touch(self, what: str, node_id: str) -> Any:
        """Do one of the things that `redis_script.TOUCH` does for a node. Raises StoreUnavailable."""
        self._link.check()
        return await self._touches.do((what, node_id))

    async def sweep(self, retention: float) -> Swept:
        template = json.dumps(codec.dump_event(_SILENCE))
        telling = (template, NODES_NAMED, operations.QUIET, operations.LONGEST_SILENCE)
        command = self.sight.script(SWEEP, self.sight.at, self.hub_id, OFFLINE_AFTER, retention, *telling)
        ((silent, old, is_told),) = await self._link.call(command, changes=True)
        if is_told:
            self.sight.wake(AUDIT)
        forgotten: tuple[Node, ...] = ()
        if old:
            forgotten = (await self.run(operations.sweep(tuple(old), retention))).forgotten
        return Swept(tuple(await self._nodes(silent)), forgotten)

    @property
    def access(self) -> Access:
        if not self.sight.has_seen:
            self._link.check()
            raise StoreAway("Redis was never reached")
        return self.sight.known.access

    async def tokens(self) -> Sequence[TokenRecord]:
        (texts,) = await self._link.call(("HVALS", self.sight.key("tokens")))
        tokens = []
        for text in texts:
            with suppress(*DAMAGED):  # costs itself alone
                tokens.append(codec.load_token(json.loads(text)))
        return sorted(tokens, key=lambda token: (token.created, token.id))

    async def events(self, query: EventQuery) -> Sequence[Recorded]:
        return await read_events(self._link.call, self.sight.key("events"), query)

    async def forget_events(self, before: float) -> int:
        command = ("XTRIM", self.sight.key("events"), "MINID", f"{max(0, int(before * 1000))}-0")
        (dropped,) = await self._link.call(command, changes=True)
        return int(dropped)

    async def flush(self) -> None:
        """Nothing waits to be kept."""

    async def close(self) -> None:
        await self._operations.finish()
        await self._touches.finish()
        await self._link.close()

    async def _nodes(self, ids: Sequence[str]) -> list[Node]:
        """Those of them that there are, in this order."""
        found: list[Node] = []
        for first in range(0, len(ids), NODES_AT_ONCE):
            snapshot, _ = await self.sight.read(ids[first : first + NODES_AT_ONCE])
            found.extend(row.node for row in snapshot.rows.values())
        return found

    async def _touch_all(self, touches: Sequence[tuple[str, str]]) -> Sequence[Any]:
        command = self.sight.script(TOUCH, self.sight.at, json.dumps(touches))
        (answers,) = await self._link.call(command, changes=True)
        return list(answers)

    # --- Operations ----------------------------------------------------------------------------------------

    async def _run_all(self, asked: Sequence[_Asked]) -> Sequence[Any]:
        """An answer for each. Who lost a race is decided again, and before all that was asked later."""
        answers: dict[int, Any] = {}
        left = list(range(len(asked)))
        for _ in range(MOST_ROUNDS):
            try:
                await self._run_round({place: asked[place] for place in left}, answers)
            except StoreUnavailable as error:  # what an earlier round has done stays done
                answers |= dict.fromkeys(left, error)
            left = [place for place in left if place not in answers]
            if not left:
                break
        busy = StoreUnavailable("Other hubs were faster each time.")
        if left:
            log.warning("other hubs were faster each time", operations=len(left))
        return [answers.get(place, busy) for place in range(len(asked))]

    async def _run_round(self, asked: dict[int, _Asked], answers: dict[int, Any]) -> None:
        """Decide all of them, one upon the other, and write; add the answers of those that held."""
        nodes = dict.fromkeys(node_id for one in asked.values() for node_id in one.operation.nodes)
        tokens = dict.fromkeys(token_id for one in asked.values() for token_id in one.operation.tokens)
        marks = dict.fromkeys(name for one in asked.values() for name in one.operation.marks)
        snapshot, now = await self.sight.read(tuple(nodes), tuple(tokens), tuple(marks))
        draft, making, entries = Draft(snapshot), Entries(snapshot), list[Entry]()
        decided: dict[int, _Decided] = {}
        for place, one in asked.items():
            looked = Looking(draft)
            outcome = _decide(one, looked, Moment(now, self._entropy, self._new_id, one.by))
            decided[place] = _Decided(outcome)
            change, wake = (
                (outcome.change, outcome.wake) if isinstance(outcome, Outcome) else (Change(), None)
            )
            # What changes nothing is written too where it may rest on what is not written yet.
            if entries or wake is not None or _changes(change):
                decided[place].entry = len(entries)
                entries.append(making.make(looked, change, wake))
                draft.apply(change)
        outcomes = [decision.outcome for decision in decided.values()]
        try:
            done, is_confirmed = await self._write(entries, any(map(_is_order, outcomes)))
        except StoreFull as full:
            for place, decision in decided.items():  # the others are decided again, without these
                if decision.entry is not None and entries[decision.entry]["grows"]:
                    answers[place] = full
            return
        await self._see_own(making, [entry for entry, held in zip(entries, done, strict=True) if held])
        for place, decision in decided.items():
            if decision.entry is None or done[decision.entry]:
                self._wake_for(decision.outcome)
                answers[place] = self._answer(decision.outcome, is_confirmed)

    async def _write(self, entries: list[Entry], is_order: bool) -> tuple[list[int], bool]:
        """Which of the entries held, and whether enough replicas have them."""
        if not entries:
            return [], True
        grows = any(entry["grows"] for entry in entries)
        commands = [self.sight.writing(WRITE if grows else WRITE_ANYWAY, entries)]
        if self._replicas and is_order:
            commands.append(("WAIT", self._replicas, int(CONFIRM_TIME * 1000)))
        done, *confirmed = await self._link.call(*commands, changes=True)
        self._link.conditions.wrote(took_memory=grows)
        is_confirmed = not confirmed or confirmed[0] >= self._replicas
        if confirmed:
            self._link.conditions.is_confirmed(is_confirmed)
        return done, is_confirmed

    async def _see_own(self, making: Entries, written: list[Entry]) -> None:
        """Let the copy show what we wrote before we answer and wake."""
        if any(entry.get("new_list") == making.list_version for entry in written):
            self.sight.learn_list(making.list_version, making.tasks)
        elif not any("new_list" in entry or "new_access" in entry for entry in written):
            return
        if any(
            "new_access" in entry or entry.get("new_list", making.list_version) != making.list_version
            for entry in written
        ):
            with suppress(StoreUnavailable):  # what is written is written; it is seen when Redis is back
                await self.sight.read()

    def _wake_for(self, outcome: Outcome[Any] | Exception) -> None:
        if isinstance(outcome, Outcome):
            if outcome.wake is not None:
                self.sight.wake(outcome.wake)
            if outcome.change.events:
                self.sight.wake(AUDIT)

    def _answer(self, outcome: Outcome[Any] | Exception, is_confirmed: bool) -> Any:
        if isinstance(outcome, Exception):
            return outcome
        if _is_order(outcome) and not is_confirmed:
            return OutcomeUnknown(
                f"It is done, but not {self._replicas} replica(s) confirmed it within {CONFIRM_TIME:g} s."
            )
        return outcome.answer


def _decide(asked: _Asked, view: View, moment: Moment) -> Outcome[Any] | Exception:
    try:
        return asked.operation.decide(view, moment)
    except Exception as refusal:  # told only after the write, as it may rest on what is being written
        return refusal


def _changes(change: Change) -> bool:
    return bool(
        change.tasks is not None
        or change.nodes
        or change.tokens
        or change.keys
        or change.marks
        or change.events
    )


def _is_order(outcome: Outcome[Any] | Exception) -> bool:
    """Whether it is what an operator did: what nodes say they say again."""
    if isinstance(outcome, Exception):
        return False
    change = outcome.change
    return bool(
        outcome.wake is not None
        or change.tasks is not None
        or change.keys
        or any(token is None or token.role is not Role.NODE for token in change.tokens.values())
        or None in change.nodes.values()
    )


_SILENCE = Event(0.0, "nodes-offline", HUB.who, detail=name_nodes([]))
"""What a sweep fills in and tells."""
