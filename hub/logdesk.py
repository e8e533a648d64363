"""Where operators wait for a container's log, and nodes fetch what they are asked for.

Only nodes call hubs. So an operator's question is left here, goes out with the node's next heartbeat (which
a held request that ends early makes come at once), and the node's own request brings the answer. Questions
live as long as somebody waits for them, and nothing of a log is ever kept. The desk of one hub is its memory;
that of several is in `logdesk_redis.py`.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from gridcore.protocol import LogOrder, LogsMessage
from hub.errors import NodeSilent, Stopping, TooManyOrders
from hub.waiters import Waiters

PATIENCE = 10.0
"""Seconds that an operator waits for a log."""

MOST = 16
"""Questions that may wait for one node: as many as the answer of one heartbeat carries."""


def new_order_id() -> str:
    """An id that nobody guesses."""
    return secrets.token_hex(16)


class Desk(Protocol):
    """The questions of operators to nodes. With a shared one, all may raise StoreUnavailable."""

    async def ask(self, node_id: str, instance: int, lines: int, previous: int) -> LogsMessage:
        """What the node answers.

        Raises:
            TooManyOrders: MOST others wait for this node.
            NodeSilent: no answer came in time.
            Stopping: the hub ends.
        """

    async def take(self, node_id: str) -> list[LogOrder]:
        """What this node is to be asked, each question once."""

    async def take_nudge(self, node_id: str) -> bool:
        """Whether a question waits that has ended no held request yet; True only once a question."""

    async def answer(self, message: LogsMessage) -> bool:
        """Hand an answer to who waits for it; False if nobody waits, or another node was asked."""


@dataclass(slots=True)
class _Question:
    order: LogOrder
    answer: asyncio.Future[LogsMessage]
    is_told: bool = False
    nudged: bool = False


class LogDesk:
    """The Desk of one hub."""

    def __init__(
        self, waiters: Waiters, patience: float = PATIENCE, order_id: Callable[[], str] = new_order_id
    ) -> None:
        self._waiters = waiters
        self._patience = patience
        self._order_id = order_id
        self._questions: dict[str, dict[str, _Question]] = {}

    def __len__(self) -> int:
        return sum(len(questions) for questions in self._questions.values())

    async def ask(self, node_id: str, instance: int, lines: int, previous: int) -> LogsMessage:
        order = LogOrder(id=self._order_id(), instance=instance, lines=lines, previous=previous)
        questions = self._questions.setdefault(node_id, {})
        if len(questions) >= MOST:
            raise TooManyOrders(node_id, MOST)
        question = _Question(order, asyncio.get_running_loop().create_future())
        questions[order.id] = question
        try:
            self._waiters.wake(node_id)
            async with self._waiters.limit(self._patience):
                return await question.answer
        except TimeoutError:
            raise (Stopping() if self._waiters.is_closed else NodeSilent(node_id, self._patience)) from None
        finally:  # also when the operator went away
            del questions[order.id]
            if not questions:
                self._questions.pop(node_id, None)

    async def take(self, node_id: str) -> list[LogOrder]:
        untold = self._untold(node_id)
        for question in untold:
            question.is_told = True
        return [question.order for question in untold]

    async def take_nudge(self, node_id: str) -> bool:
        waiting = [question for question in self._untold(node_id) if not question.nudged]
        for question in waiting:
            question.nudged = True
        return bool(waiting)

    async def answer(self, message: LogsMessage) -> bool:
        question = self._questions.get(message.node_id, {}).get(message.id)
        if question is None or question.answer.done():
            return False
        question.answer.set_result(message)
        return True

    def _untold(self, node_id: str) -> list[_Question]:
        return [question for question in self._questions.get(node_id, {}).values() if not question.is_told]
