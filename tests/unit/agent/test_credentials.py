"""Which token is shown when, and what is said of one that is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.credentials import Credentials


def test_a_join_token_alone_is_shown_until_the_hub_gives_an_own() -> None:
    both = Credentials(None, "join")
    assert (both.current, both.for_registration, both.own) == ("join", "join", None)
    both.accept(registered=True)
    both.take("own")
    assert (both.current, both.for_registration, both.own) == ("own", "own", "own")


def test_at_a_hub_that_gives_none_the_join_token_goes_on() -> None:
    both = Credentials(None, "shared")
    both.accept(registered=True)
    assert (both.current, both.for_registration, both.own) == ("shared", "shared", None)


def test_a_refused_token_lets_the_next_registration_try_the_other_in_turn() -> None:
    both = Credentials("own", "join")
    tried = []
    both.refuse()
    for _ in range(4):
        tried.append(both.for_registration)
        both.refuse(registering=True)
    assert tried == ["join", "own", "join", "own"]
    assert both.current == "own"  # a join token is for registrations


def test_a_token_that_is_accepted_again_is_the_one_to_stay_with() -> None:
    both = Credentials("own", "join")
    both.refuse()
    assert both.has_other
    both.accept()
    assert (both.for_registration, both.has_other) == ("own", False)


def test_what_the_join_token_brought_replaces_what_was_refused() -> None:
    both = Credentials("old", "join")
    both.refuse()
    both.accept(registered=True)
    both.take("new")
    assert (both.current, both.for_registration) == ("new", "new")


@pytest.mark.parametrize(
    ("token", "join", "refusals", "said"),
    [
        ("own", None, 1, "does not accept `token` of F; put the hub's shared token there, or"),
        (None, "join", 1, "does not accept `join_token` of F, which may have expired; get a new one"),
        ("own", "join", 1, "does not accept `token` of F; `join_token` is tried next"),
        ("own", "join", 2, "accepts neither `token` nor `join_token` of F; get a new one"),
        ("own", "join", 5, "accepts neither `token` nor `join_token` of F; get a new one"),
    ],
)
def test_it_is_said_which_was_refused_and_what_to_do(
    token: str | None, join: str | None, refusals: int, said: str
) -> None:
    both = Credentials(token, join)
    for _ in range(refusals):
        both.refuse(registering=True)
    text = both.explain(Path("F"))
    assert text.startswith(f"the hub {said}")
    assert "tried next" in text or "computehub token create --role join --ttl 24h" in text
