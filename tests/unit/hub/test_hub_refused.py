"""Failed attempts: whose they are, how long their answers take, what the audit trail tells of them."""

from __future__ import annotations

import asyncio

import pytest

from hub import failures
from hub.events import Actor
from hub.failures import LONGEST_DELAY, MOST_ADDRESSES, MOST_HELD, QUIET, Failures, delay_of
from hub.proxies import Proxies
from hub.refusals import INTERVAL, MOST_GATHERED, MOST_TOLD, Refusals

TRUSTED = Proxies(["10.0.0.0/8", "192.0.2.1", "2001:db8::/32"])


@pytest.mark.parametrize(
    ("peer", "forwarded", "source"),
    [
        # Who is no trusted proxy may write what he likes.
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["1.1.1.1"], "203.0.113.9"),
        ("192.0.2.2", ["1.1.1.1"], "192.0.2.2"),
        # A trusted proxy says whom it speaks for; the rest of the header its client wrote.
        ("10.0.0.1", ["1.1.1.1"], "1.1.1.1"),
        ("192.0.2.1", ["6.6.6.6, 1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", ["6.6.6.6", "1.1.1.1"], "1.1.1.1"),
        ("10.0.0.1", ["6.6.6.6,1.1.1.1, 10.9.9.9 ,192.0.2.1"], "1.1.1.1"),
        # All are trusted: the farthest.
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", [""], "10.0.0.1"),
        # What is no address ends the search at who is known.
        ("10.0.0.1", ["unknown"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, <script>, 10.0.0.2"], "10.0.0.2"),
        ("10.0.0.1", ["1.1.1.1,"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1, 999.1.1.1"], "10.0.0.1"),
        ("10.0.0.1", ["1.1.1.1:port"], "10.0.0.1"),
        ("10.0.0.1", ["[::1"], "10.0.0.1"),
        ("10.0.0.1", ["\xff\x00"], "10.0.0.1"),
        ("10.0.0.1", [", " * 5_000], "10.0.0.1"),
        ("10.0.0.1", ["10.0.0.2, " * 5_000 + "10.0.0.2"], "10.0.0.2"),
        # Ports, brackets, IPv6, and IPv4 that comes as IPv6.
        ("10.0.0.1", ["1.1.1.1:4711"], "1.1.1.1"),
        ("10.0.0.1", ["[2001:db9::1]:4711"], "2001:db9::1"),
        ("10.0.0.1", ["2001:DB9:0::1"], "2001:db9::1"),
        ("2001:db8::7", ["[2001:db9::1]"], "2001:db9::1"),
        ("::ffff:10.0.0.1", ["::ffff:1.1.1.1"], "1.1.1.1"),
        ("fe80::1%eth0", ["1.1.1.1"], "fe80::1"),
        # Not from the network at all.
        ("<local>", ["1.1.1.1"], "<local>"),
        (None, ["1.1.1.1"], None),
    ],
)
def test_a_header_counts_as_far_as_trusted_proxies_wrote_it(
    peer: str | None, forwarded: list[str], source: str | None
) -> None:
    headers = [(b"X-Forwarded-For", value.encode("latin-1")) for value in forwarded]
    assert TRUSTED.source(peer, [(b"host", b"hub"), *headers]) == source


def test_without_trusted_proxies_the_header_counts_for_nothing() -> None:
    assert Proxies().source("10.0.0.1", [(b"x-forwarded-for", b"1.1.1.1")]) == "10.0.0.1"


def test_a_network_with_an_address_in_it_is_refused_with_the_one_that_was_meant() -> None:
    with pytest.raises(
        ValueError, match=r"such as 127\.0\.0\.1 or 10\.0\.0\.0/8; did you mean 10\.0\.0\.0/8\?$"
    ):
        Proxies(["10.1.2.3/8"])
    with pytest.raises(ValueError, match=r"or 10\.0\.0\.0/8$"):
        Proxies(["host bits"])


class Pauses:
    """A clock and a pause that are only written down, unless they are told to hold."""

    def __init__(self) -> None:
        self.now = 0.0
        self.taken: list[float] = []
        self.gate: asyncio.Event | None = None

    async def pause(self, seconds: float) -> None:
        self.taken.append(seconds)
        if self.gate is not None:
            await self.gate.wait()

    def make(self) -> Failures:
        return Failures(self.pause, lambda: self.now)


async def test_each_further_attempt_from_an_address_takes_longer_but_never_very_long() -> None:
    pauses = Pauses()
    held = pauses.make()
    for _ in range(40):
        assert await held.slow_down("1.1.1.1")
    assert pauses.taken == sorted(pauses.taken)
    assert pauses.taken[0] < 0.1
    assert pauses.taken[-1] == LONGEST_DELAY
    await held.slow_down("1.1.1.2")
    assert pauses.taken[-1] == pauses.taken[0]
    assert delay_of(10**9) == LONGEST_DELAY


async def test_after_a_quiet_time_an_address_begins_anew() -> None:
    pauses = Pauses()
    held = pauses.make()
    await held.slow_down("1.1.1.1")
    pauses.now = QUIET - 1
    await held.slow_down("1.1.1.1")
    pauses.now += QUIET
    await held.slow_down("1.1.1.1")
    assert pauses.taken[1] > pauses.taken[0] == pauses.taken[2]


async def test_an_ipv6_network_is_one_address() -> None:
    pauses = Pauses()
    held = pauses.make()
    await held.slow_down("2001:db8::1")
    await held.slow_down("2001:db8::2")
    assert pauses.taken[1] > pauses.taken[0]
    assert len(held) == 1


async def test_the_addresses_that_are_remembered_are_bounded_and_fade() -> None:
    pauses = Pauses()
    held = pauses.make()
    for number in range(MOST_ADDRESSES + 50):
        await held.slow_down(f"10.{number >> 16}.{(number >> 8) & 255}.{number & 255}")
    assert len(held) == MOST_ADDRESSES
    pauses.now = QUIET
    await held.slow_down("1.1.1.1")
    assert len(held) == 1


async def test_beyond_so_many_held_answers_the_next_is_refused_at_once() -> None:
    pauses = Pauses()
    pauses.gate = asyncio.Event()
    held = pauses.make()
    waiting = [asyncio.create_task(held.slow_down("1.1.1.1")) for _ in range(MOST_HELD)]
    await asyncio.sleep(0)
    assert await held.slow_down("2.2.2.2") is False
    waiting[0].cancel()  # who goes away makes room
    await asyncio.gather(waiting[0], return_exceptions=True)
    pauses.gate.set()
    assert await held.slow_down("2.2.2.2") is True
    assert all(await asyncio.gather(*waiting[1:]))


ALICE = Actor("alice", "1.1.1.1")


def test_a_flood_of_one_actor_is_one_event_a_minute() -> None:
    refusals = Refusals()
    for _ in range(500):
        refusals.note(ALICE, 403)
    (event,) = refusals.take(1_000.0)
    assert (event.kind, event.who, event.source) == ("access-refused", "alice", "1.1.1.1")
    assert (event.result, event.detail) == ("refused", {"status": 403, "count": 500})
    refusals.note(ALICE, 403)
    assert refusals.take(1_000.0 + INTERVAL - 1) == []
    assert refusals.take(1_000.0 + INTERVAL)[0].detail["count"] == 1
    assert refusals.take(1_000.0 + 3 * INTERVAL) == []


def test_a_flood_from_everywhere_is_a_few_events_that_count_all() -> None:
    refusals = Refusals()
    for number in range(MOST_GATHERED + 500):
        refusals.note(Actor("nobody", f"a{number}"), 401)
    events = refusals.take(1_000.0)
    assert len(events) == MOST_TOLD + 1
    assert sum(event.detail["count"] for event in events) == MOST_GATHERED + 500


def test_the_slowest_answer_comes_before_agents_give_up() -> None:
    assert failures.LONGEST_DELAY < 10
