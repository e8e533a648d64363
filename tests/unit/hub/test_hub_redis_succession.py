"""Which state a hub takes for what became of the one that it saw."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hub.redis_succession import FIRST, LAST_SECONDS, ON_PURPOSE, Found, Standing, Verdict, judge

KNOWN = Standing("1700.aa", "7.here", "3.here", clock=1000.0)
NOTHING = Standing()
NEW = Standing("1800.bb", "1.there", "0", clock=0.0)


def verdict(found: Found, known: Standing | None = KNOWN, *, promoted: bool = False) -> Verdict:
    return judge(known, found, is_promoted=promoted).verdict


@pytest.mark.parametrize(
    "later",
    [
        KNOWN,
        replace(KNOWN, list_version="8.other", clock=1001.0),
        replace(KNOWN, access_version="4.other"),
        replace(KNOWN, clock=1000.0 - LAST_SECONDS),
    ],
)
def test_what_came_after_it_is_taken(later: Standing) -> None:
    assert verdict(Found(later)) is Verdict.TAKE
    assert verdict(Found(later), promoted=True) is Verdict.TAKE


@pytest.mark.parametrize(
    "earlier",
    [
        replace(KNOWN, list_version="6.here"),
        replace(KNOWN, list_version="7.other"),
        replace(KNOWN, access_version="2.here"),
        replace(KNOWN, access_version="3.other"),
        replace(KNOWN, clock=900.0),
        NEW,
        replace(NEW, list_version="90.there"),
        replace(KNOWN, epoch="1699.cc"),
        NOTHING,
    ],
)
@pytest.mark.parametrize("began", ["", FIRST])
def test_what_cannot_have_come_after_it_is_refused(earlier: Standing, began: str) -> None:
    assert verdict(Found(earlier, began)) is Verdict.REFUSE


def test_what_somebody_began_later_on_purpose_is_taken_and_an_older_purpose_is_not() -> None:
    assert verdict(Found(NEW, ON_PURPOSE)) is Verdict.TAKE
    assert verdict(Found(replace(NEW, epoch="1600.bb"), ON_PURPOSE)) is Verdict.REFUSE
    assert verdict(Found(NEW, ON_PURPOSE, lost="being restored")) is Verdict.REFUSE


def test_of_what_is_refused_the_others_are_told_unless_they_work_with_it() -> None:
    assert judge(KNOWN, Found(NOTHING), is_promoted=False).tells
    assert judge(KNOWN, Found(NEW, FIRST), is_promoted=False).tells
    in_use = replace(NEW, list_version="5.there")
    assert not judge(KNOWN, Found(in_use, FIRST), is_promoted=False).tells
    assert judge(KNOWN, Found(replace(in_use, epoch="1.old"), FIRST), is_promoted=False).tells


def test_what_others_refuse_or_what_is_not_whole_is_refused_by_a_hub_that_knows_nothing() -> None:
    for known in (None, KNOWN):
        assert judge(known, Found(KNOWN, lost="why"), is_promoted=False).why == "why"
        assert verdict(Found(KNOWN, missing="nodes"), known) is Verdict.REFUSE


def test_a_hub_that_saw_nothing_of_worth_begins_or_takes_what_there_is() -> None:
    for known in (None, Standing("1.a", "1.x", "0", clock=50.0)):
        assert verdict(Found(NOTHING), known) is Verdict.BEGIN
        assert verdict(Found(NEW, FIRST), known) is Verdict.TAKE


def test_the_last_seconds_that_a_failover_lost_are_written_again_where_it_is_the_list() -> None:
    behind = replace(KNOWN, list_version="6.here", clock=990.0)
    assert verdict(Found(behind), promoted=True) is Verdict.WRITE_AGAIN
    # Another hub has written meanwhile: what was seen here was acknowledged to nobody.
    assert verdict(Found(replace(KNOWN, list_version="7.other")), promoted=True) is Verdict.TAKE
    assert verdict(Found(replace(behind, clock=900.0)), promoted=True) is Verdict.REFUSE


def test_a_state_without_an_epoch_is_the_one_that_was_seen_if_its_list_is() -> None:
    assert verdict(Found(replace(KNOWN, epoch=""))) is Verdict.TAKE
    assert verdict(Found(replace(KNOWN, epoch="", list_version="9.x"))) is Verdict.REFUSE
