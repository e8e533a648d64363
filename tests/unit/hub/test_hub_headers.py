"""If-None-Match and Prefer, as clients write them and as they should not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.longpoll import MAX_WAIT, Known, parse_wait


@pytest.mark.parametrize(
    ("prefer", "seconds"),
    [
        ("wait=25", 25),
        ("respond-async, wait=10", 10),
        ("Wait = 7", 7),
        ('wait="5"', 5),
        ("wait=5; strict", 5),
        ("wait=3, wait=9", 3),
        ("wait=500", MAX_WAIT),
        ("", 0),
        ("wait", 0),
        ("wait=", 0),
        ("wait=soon", 0),
        ("wait=-1", 0),
        ("wait=1e9", 0),
        ("wait=\u0663", 0),
        ("await=5", 0),
        ("wait=" + "9" * 5_000, 0),
    ],
)
def test_wait_is_read_cut_and_ignored_where_it_makes_no_sense(prefer: str, seconds: float) -> None:
    assert parse_wait(prefer) == seconds


@given(st.text())
def test_no_preference_is_ever_more_than_the_maximum(prefer: str) -> None:
    assert 0 <= parse_wait(prefer) <= MAX_WAIT


@pytest.mark.parametrize(
    ("header", "is_known"),
    [
        ('"1-a"', True),
        ('W/"1-a"', True),
        ('"0-b", "1-a"', True),
        ("1-a", True),
        ('"0-b"', False),
        ("", False),
        ('"1-a', False),
    ],
)
def test_a_revision_is_compared_weakly_and_in_lists(header: str, is_known: bool) -> None:
    assert ("1-a" in Known(header, arrival="1-a")) is is_known


def test_a_star_knows_what_was_current_at_arrival_and_nothing_later() -> None:
    known = Known("*", arrival="1-a")
    assert "1-a" in known
    assert "2-b" not in known


@given(st.text())
def test_no_header_breaks_the_comparison(header: str) -> None:
    assert ("1-a" in Known(header, arrival="1-a")) in (True, False)
