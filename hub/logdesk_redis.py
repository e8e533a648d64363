"""The log desk of several hubs: an operator asks one, the node speaks to another.

A question lies in Redis for as long as an operator waits at most, and goes out with the node's next
heartbeat, wherever that arrives. The answer is told to the hub that asked, over a channel on which only that
one listens. It is never stored: no file of Redis ever holds a line of a log.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable
from contextlib import suppress

from pydantic import ValidationError

from gridcore.protocol import LogOrder, LogsMessage
from hub.errors import NodeSilent, Stopping, StoreUnavailable, TooManyOrders
from hub.logdesk import MOST, PATIENCE, new_order_id
from hub.redis_script import ANSWER, ASK
from hub.store_redis import RedisStore
from hub.waiters import Waiters


class SharedLogDesk:
    """A Desk over the Redis of a store."""

    def __init__(
        self,
        store: RedisStore,
        waiters: Waiters,
        patience: float = PATIENCE,
        order_id: Callable[[], str] = new_order_id,
    ) -> None:
        self._store = store
        self._sight = store.sight
        self._waiters = waiters
        self._patience = patience
        self._order_id = order_id
        self._waiting: dict[str, asyncio.Future[LogsMessage]] = {}
        self._sight.hear_answer = self._hear

    async def ask(self, node_id: str, instance: int, lines: int, previous: int) -> LogsMessage:
        order = LogOrder(id=self._order_id(), instance=instance, lines=lines, previous=previous)
        answer: asyncio.Future[LogsMessage] = asyncio.get_running_loop().create_future()
        self._waiting[order.id] = answer  # before the question is out: its answer may come at once
        try:
            async with self._waiters.limit(self._patience):
                await self._put(node_id, order)
                return await answer
        except TimeoutError:
            raise (Stopping() if self._waiters.is_closed else NodeSilent(node_id, self._patience)) from None
        finally:  # also when the operator went away; if this fails, the question ends by itself
            del self._waiting[order.id]
            if not answer.done() or answer.cancelled():
                with suppress(StoreUnavailable):
                    await asyncio.shield(self._withdraw(node_id, order.id))

    async def take(self, node_id: str) -> list[LogOrder]:
        try:
            orders = await self._store.touch("take", node_id)
        except StoreUnavailable:
            return []  # the heartbeat was taken: no reason to send it again
        return [LogOrder.model_validate_json(order) for order in orders]

    async def take_nudge(self, node_id: str) -> bool:  # noqa: ARG002  # the port's
        return False  # a question is a reason for a nudge like an order: the store's own covers it

    async def answer(self, message: LogsMessage) -> bool:
        command = self._sight.script(ANSWER, message.node_id, message.id, json.dumps(message.model_dump()))
        (told,) = await self._sight.link.call(command, changes=True)
        return bool(told)

    async def _put(self, node_id: str, order: LogOrder) -> None:
        values = (node_id, order.id, order.model_dump_json(), MOST, math.ceil(self._patience) + 1)
        (is_put,) = await self._sight.link.call(
            self._sight.script(ASK, self._sight.hub_id, *values), changes=True
        )
        if not is_put:
            raise TooManyOrders(node_id, MOST)
        self._sight.wake(node_id)

    async def _withdraw(self, node_id: str, order_id: str) -> None:
        await self._sight.link.call(("HDEL", self._sight.key(f"asked:{node_id}"), order_id))

    def _hear(self, text: str) -> None:
        with suppress(ValidationError):
            message = LogsMessage.model_validate(json.loads(text))  # JSON can carry halves of characters
            waiting = self._waiting.get(message.id)
            if waiting is not None and not waiting.done():
                waiting.set_result(message)
