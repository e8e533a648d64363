"""Where operators wait and nodes bring: nobody waits for ever, and nobody gets another one's log."""

from __future__ import annotations

import asyncio

import pytest
from pydantic import ValidationError

from gridcore.protocol import HeartbeatAnswer, LogOrder, LogsMessage
from hub.errors import NodeSilent, Stopping, TooManyOrders
from hub.logdesk import MOST, LogDesk, new_order_id
from hub.waiters import Waiters


@pytest.fixture
def waiters() -> Waiters:
    return Waiters()


@pytest.fixture
def desk(waiters: Waiters) -> LogDesk:
    return LogDesk(waiters, patience=30)


async def asked(desk: LogDesk, node_id: str = "n", instance: int = 0) -> asyncio.Task[LogsMessage]:
    asking = asyncio.create_task(desk.ask(node_id, instance, lines=200, previous=0))
    await asyncio.sleep(0)
    return asking


def bring(order: LogOrder, text: str, node_id: str = "n") -> LogsMessage:
    return LogsMessage(node_id=node_id, id=order.id, text=text)


async def test_a_question_goes_out_once_and_its_answer_comes_back(desk: LogDesk) -> None:
    asking = asyncio.create_task(desk.ask("n", 3, lines=50, previous=2))
    await asyncio.sleep(0)
    (order,) = await desk.take("n")
    assert (order.instance, order.lines, order.previous) == (3, 50, 2)
    assert await desk.take("n") == []
    assert await desk.answer(bring(order, "text"))
    assert (await asking).text == "text"
    assert len(desk) == 0
    assert not await desk.answer(bring(order, "again"))


async def test_of_several_who_ask_at_once_each_gets_the_own_answer(desk: LogDesk) -> None:
    asking = [await asked(desk, instance=instance) for instance in range(5)]
    orders = await desk.take("n")
    for order in reversed(orders):
        await desk.answer(bring(order, f"log of {order.instance}"))
    assert [message.text for message in await asyncio.gather(*asking)] == [f"log of {i}" for i in range(5)]


async def test_only_the_node_that_was_asked_can_answer(desk: LogDesk) -> None:
    asking = await asked(desk)
    assert await desk.take("other") == []
    (order,) = await desk.take("n")
    assert not await desk.answer(bring(order, "forged", node_id="other"))
    assert not asking.done()
    await desk.answer(bring(order, "real"))
    assert (await asking).text == "real"


async def test_an_answer_that_nobody_waits_for_is_ignored(desk: LogDesk) -> None:
    assert not await desk.answer(bring(LogOrder(id="x", instance=0), "text"))


async def test_a_silent_node_ends_the_wait(waiters: Waiters) -> None:
    desk = LogDesk(waiters, patience=0.05)
    asking = await asked(desk)
    (order,) = await desk.take("n")
    with pytest.raises(NodeSilent, match=r"0\.05 s"):
        await asking
    assert len(desk) == 0
    assert not await desk.answer(bring(order, "late"))


async def test_an_operator_who_goes_away_leaves_no_question_behind(desk: LogDesk) -> None:
    asking = await asked(desk)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert len(desk) == 0
    assert await desk.take("n") == []


async def test_a_hub_that_stops_ends_all_waits_and_begins_none(desk: LogDesk, waiters: Waiters) -> None:
    asking = await asked(desk)
    waiters.close()
    with pytest.raises(Stopping):
        await asyncio.wait_for(asking, 1)
    with pytest.raises(Stopping):
        await asyncio.wait_for(desk.ask("n", 0, 1, 0), 1)
    assert len(desk) == 0


async def test_only_so_many_wait_for_one_node(desk: LogDesk) -> None:
    asking = [await asked(desk) for _ in range(MOST)]
    with pytest.raises(TooManyOrders):
        await desk.ask("n", 0, 1, 0)
    other = await asked(desk, "m")
    orders = await desk.take("n")
    assert len(orders) == MOST
    # Those that the node was told of count until they are answered.
    with pytest.raises(TooManyOrders):
        await desk.ask("n", 0, 1, 0)
    for order in orders:
        await desk.answer(bring(order, ""))
    await asyncio.gather(*asking)
    again = await asked(desk)
    assert not again.done()
    for task in (other, again):
        task.cancel()
    await asyncio.gather(other, again, return_exceptions=True)
    assert len(desk) == 0


async def test_a_question_wakes_its_node_and_ends_one_held_request(desk: LogDesk, waiters: Waiters) -> None:
    with waiters.holding("n") as waiter:
        asking = await asked(desk)
        await asyncio.wait_for(waiter.wait(asyncio.get_running_loop().time() + 30), 1)
    assert [await desk.take_nudge("n"), await desk.take_nudge("n")] == [True, False]
    assert not await desk.take_nudge("m")
    second = await asked(desk)
    assert [await desk.take_nudge("n"), await desk.take_nudge("n")] == [True, False]
    third = await asked(desk)
    await desk.take("n")
    assert not await desk.take_nudge("n")
    for task in (asking, second, third):
        task.cancel()
    await asyncio.gather(asking, second, third, return_exceptions=True)


def test_what_may_wait_fits_into_one_heartbeats_answer() -> None:
    orders = [LogOrder(id=new_order_id(), instance=0) for _ in range(MOST + 1)]
    assert len(HeartbeatAnswer.model_validate({"logs": orders[:MOST]}).logs) == MOST
    with pytest.raises(ValidationError):
        HeartbeatAnswer.model_validate({"logs": orders})
