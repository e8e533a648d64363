"""How calls to the engine take turns."""

from __future__ import annotations

import asyncio

from agent.engine_calls import Turns

SOON = 0.05
NEVER = 60.0


class Calls:
    """Calls that run until they are let go; `running` in the order in which they began."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.running: list[str] = []
        self.ends: dict[str, asyncio.Event] = {}
        self.tasks: list[asyncio.Task[None]] = []

    async def begin(self, name: str, *, first: bool = False) -> None:
        self.ends[name] = asyncio.Event()

        async def call() -> None:
            async with self.turns.next() if first else self.turns.queued():
                self.running.append(name)
                await self.ends[name].wait()
                self.running.remove(name)

        self.tasks.append(asyncio.create_task(call()))
        await self.settle()

    async def end(self, name: str) -> None:
        self.ends[name].set()
        await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def end_all(self) -> None:
        for event in self.ends.values():
            event.set()
        await asyncio.gather(*self.tasks)


async def test_one_at_a_time_in_the_order_in_which_they_came() -> None:
    calls = Calls(Turns(NEVER))
    for name in ("a", "b", "c"):
        await calls.begin(name)
    assert calls.running == ["a"]
    await calls.end("a")
    assert calls.running == ["b"]
    await calls.end("b")
    assert calls.running == ["c"]
    await calls.end_all()


async def test_who_is_next_waits_for_no_more_than_two_of_the_queue() -> None:
    calls = Calls(Turns(NEVER))
    for name in ("a", "b", "c", "d"):
        await calls.begin(name)
    await calls.begin("list", first=True)
    await calls.end("a")
    await calls.end("b")
    assert calls.running == ["list"]
    await calls.end_all()


async def test_a_call_that_takes_long_lets_others_go_on_beside_it_but_not_any_number() -> None:
    calls = Calls(Turns(SOON, at_once=2))
    await calls.begin("hung")
    await calls.begin("b")
    assert calls.running == ["hung"]
    await asyncio.sleep(2 * SOON)
    assert calls.running == ["hung", "b"]
    await calls.begin("c")
    await asyncio.sleep(3 * SOON)
    assert calls.running == ["hung", "b"]
    await calls.end("b")
    assert calls.running == ["hung", "c"]
    await calls.end_all()


async def test_a_call_that_is_given_up_gives_its_turn_back() -> None:
    calls = Calls(Turns(NEVER))
    await calls.begin("a")
    await calls.begin("b")
    calls.tasks[0].cancel()
    await calls.settle()
    assert calls.running == ["a", "b"], "`a` was cancelled while it ran, and `b` has its turn"
    calls.tasks.pop(0)
    await calls.end_all()
