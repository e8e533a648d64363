"""The owner's terms: when containers may run, freeze or must go."""

from __future__ import annotations

import asyncio
import math
import os
import time
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import terms
from agent.settings import Settings
from agent.terms import PAUSE_FILE, Courtesy, Owner, OwnLoad, Permit, decide, within
from tests.unit.agent.until import until

NOON = datetime(2026, 5, 4, 12, 0).astimezone()


def settings_of(**values: object) -> Settings:
    return Settings.model_validate({"server_url": "http://hub:8080", "token": "t0ken", **values})


@pytest.mark.parametrize(
    ("hours", "time_of_day", "inside"),
    [
        ("22:00-07:00", "22:00", True),
        ("22:00-07:00", "03:30", True),
        ("22:00-07:00", "06:59", True),
        ("22:00-07:00", "07:00", False),
        ("22:00-07:00", "21:59", False),
        ("08:30-17:00", "08:29", False),
        ("08:30-17:00", "08:30", True),
        ("08:30-17:00", "17:00", False),
    ],
)
def test_hours_may_span_midnight(hours: str, time_of_day: str, inside: bool) -> None:
    hour, minute = map(int, time_of_day.split(":"))
    assert within(hours, NOON.replace(hour=hour, minute=minute)) is inside


def test_outside_of_the_hours_nothing_is_wanted_and_a_pause_still_shows() -> None:
    settings = settings_of(hours="22:00-07:00")
    reason = "outside of the owner's hours 22:00-07:00"
    assert decide(settings, NOON, None, None, None) == Permit(refuse=reason)
    assert decide(settings, NOON, 5, None, None) == Permit(refuse=reason, paused=True)
    assert decide(settings, NOON.replace(hour=23), None, None, None) == Permit()


def test_a_pause_freezes_first_and_stops_then() -> None:
    settings = settings_of(freeze_max=600)
    reason = "paused by its owner"
    assert decide(settings, NOON, 0, None, None) == Permit(freeze=reason, paused=True)
    assert decide(settings, NOON, 599.9, None, None) == Permit(freeze=reason, paused=True)
    assert decide(settings, NOON, 600, None, None) == Permit(refuse=reason, paused=True)
    assert decide(settings_of(freeze_max=0), NOON, 0, None, None) == Permit(refuse=reason, paused=True)


def test_containers_yield_to_others_load_until_it_is_well_below() -> None:
    settings = settings_of(yield_load=1.5, freeze_max=600)
    text = "yields: others' load is 3.2, above 1.5"
    assert decide(settings, NOON, None, 3.2, None) == Permit(freeze=text)
    assert decide(settings, NOON, None, 3.2, 599) == Permit(freeze=text)
    assert decide(settings, NOON, None, 3.2, 600) == Permit(refuse=text)
    assert decide(settings, NOON, None, 1.4, None) == Permit()
    assert decide(settings, NOON, None, 1.4, 10).freeze
    assert decide(settings, NOON, None, 1.1, 10) == Permit()
    assert decide(settings_of(), NOON, None, 99, None) == Permit()
    assert decide(settings, NOON, 1, 3.2, 1) == Permit(freeze="paused by its owner", paused=True)


@given(
    st.sampled_from([None, "22:00-07:00", "07:00-22:00"]),
    st.datetimes(),
    st.none() | st.floats(0, 1e6),
    st.none() | st.floats(0, 1e3),
    st.none() | st.floats(0, 1e6),
)
def test_a_permit_never_asks_for_two_things(
    hours: str | None, local: datetime, paused: float | None, load: float | None, yielding: float | None
) -> None:
    permit = decide(settings_of(hours=hours, yield_load=1.5), local, paused, load, yielding)
    assert permit.refuse is None or permit.freeze is None
    assert permit.paused is (paused is not None)
    assert not permit.paused or permit.refuse or permit.freeze


class Machine:
    """A kernel that samples every 5 s, and an agent that looks every 2 s and hears of containers 1 s late."""

    def __init__(self, slots: int, limit: float, phase: int = 0) -> None:
        self.slots, self.phase = slots, phase
        self.load, self.second, self.shown = float(slots), 0, slots
        self.courtesy = Courtesy(limit, 0)

    @property
    def yielding(self) -> bool:
        return self.courtesy.since is not None

    def run(self, seconds: int, *, others: int = 0, frozen: bool = False) -> list[tuple[int, bool]]:
        seen = []
        for _ in range(seconds):
            self.second += 1
            ours = 0 if self.yielding or frozen else self.slots
            if self.second % 5 == self.phase:
                keep = math.exp(-5 / 60)
                self.load = self.load * keep + (ours + others) * (1 - keep)
            if self.second % 2 == 0:
                self.courtesy.look(self.second, self.shown, self.load)
                seen.append((self.second, self.yielding))
            self.shown = ours
        return seen


@pytest.mark.parametrize("phase", range(5))
@pytest.mark.parametrize("slots", [1, 4, 64])
def test_the_load_of_containers_just_frozen_or_thawed_is_not_taken_for_somebody_elses(
    slots: int, phase: int
) -> None:
    machine = Machine(slots, limit=0.5, phase=phase)
    seen = machine.run(61) + machine.run(100, frozen=True) + machine.run(7) + machine.run(3, frozen=True)
    seen += machine.run(300)
    assert not [second for second, yielding in seen if yielding]


@pytest.mark.parametrize("slots", [1, 4, 64])
def test_others_load_is_seen_beside_our_own_and_seen_to_go(slots: int) -> None:
    machine = Machine(slots, limit=1.5)
    during = machine.run(600, others=3)
    after = machine.run(600)
    begins = next(second for second, yielding in during if yielding)
    assert begins < 75
    assert all(yielding for second, yielding in during if second >= begins)
    ends = next(second for second, yielding in after if not yielding)
    assert ends < 600 + 90
    assert not any(yielding for second, yielding in after if second >= ends)


def test_an_agent_that_finds_running_containers_takes_their_load_for_its_own() -> None:
    own = OwnLoad()
    assert own.step(0, 20) == (0, 0)
    assert own.step(3, 20) == pytest.approx((3, 3))
    low, high = own.step(0, 2)
    assert low < 3 * math.exp(-2 / 60) < 3 == pytest.approx(high)


class Seen(list[Permit]):
    """Collects the permits that an owner tells."""

    def owner(self, directory: Path, **values: object) -> Owner:
        return Owner(settings_of(**values), directory, lambda: 0, self.append)


def test_pause_and_resume_are_told_at_once_and_only_once(tmp_path: Path) -> None:
    seen = Seen()
    owner = seen.owner(tmp_path / "state", freeze_max=600)
    answer = owner.pause()
    assert (answer["already"], answer["warning"], answer["freeze_max"]) == (False, None, 600)
    assert answer["permit"] == {"refuse": None, "freeze": "paused by its owner", "paused": True}
    assert owner.pause()["already"] is True
    assert owner.permit.paused
    assert owner.resume()["already"] is False
    assert owner.resume()["already"] is True
    assert seen == [Permit(freeze="paused by its owner", paused=True), Permit()]
    assert (tmp_path / "state").stat().st_mode & 0o777 == 0o700


def test_a_pause_survives_the_agent_with_its_age(tmp_path: Path) -> None:
    Seen().owner(tmp_path).pause()
    assert Seen().owner(tmp_path).permit.freeze
    (tmp_path / PAUSE_FILE).write_text(f"{time.time() - 700}\n")
    later = Seen().owner(tmp_path, freeze_max=600)
    assert later.permit.refuse == "paused by its owner"
    assert later.paused_for == pytest.approx(700, abs=5)
    later.resume()
    assert Seen().owner(tmp_path).permit == Permit()


@pytest.mark.parametrize("text", ["", "nonsense", "nan", "inf", "\0\0\0", f"{time.time() + 86_400}"])
def test_a_pause_that_cannot_be_understood_or_lies_ahead_begins_now(tmp_path: Path, text: str) -> None:
    (tmp_path / PAUSE_FILE).write_text(text)
    owner = Seen().owner(tmp_path)
    assert owner.permit == Permit(freeze="paused by its owner", paused=True)
    assert owner.paused_for == pytest.approx(0, abs=5)


def test_a_pause_that_cannot_be_written_holds_and_says_so(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    owner = Seen().owner(tmp_path / "state")
    assert "does not survive a restart" in owner.pause()["warning"]
    assert owner.permit.paused


async def test_the_loop_tells_the_first_permit_and_then_each_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "LOOK_EVERY", 0.01)
    seen = Seen()
    owner = seen.owner(tmp_path, freeze_max=0.2)
    task = asyncio.create_task(owner.run())
    await until(lambda: seen)
    assert seen == [Permit()]
    owner.pause()
    await until(lambda: len(seen) > 2)
    reason = "paused by its owner"
    assert seen[1:] == [Permit(freeze=reason, paused=True), Permit(refuse=reason, paused=True)]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def test_others_load_freezes_with_one_steady_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(terms, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(terms, "SETTLE", 0.1)
    monkeypatch.setattr(terms, "UNSURE", 0.02)
    load = [9.0, 0.0, 0.0]
    monkeypatch.setattr(os, "getloadavg", lambda: tuple(load))
    seen = Seen()
    task = asyncio.create_task(seen.owner(tmp_path, yield_load=1.5).run())
    await until(lambda: seen)
    assert seen == [Permit()]  # not before it can know its own containers
    await until(lambda: len(seen) > 1)
    load[0] = 5.0
    await asyncio.sleep(0.05)
    assert seen[1:] == [Permit(freeze="yields: others' load is 9.0, above 1.5")]
    load[0] = 1.0
    await until(lambda: len(seen) > 2)
    assert seen[2:] == [Permit()]
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
