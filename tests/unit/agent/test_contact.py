"""What the log says of a hub that is away."""

from __future__ import annotations

from structlog.testing import capture_logs

from agent.contact import Contact
from gridcore.errors import HubUnreachable


def test_a_hub_that_is_away_is_told_of_once_for_each_reason_and_once_when_it_is_back() -> None:
    contact, errors = Contact(), [HubUnreachable(text) for text in ("no answer in 15 s", "no answer in 40 s")]
    for _ in range(2):
        with capture_logs() as logs:
            for failures in range(1, 50):  # two loops ask, each with a time limit of its own
                for asker, error in zip("ab", errors, strict=True):
                    contact.lose(asker, error, failures)
            for asker in "aabb":
                contact.find(asker)
        assert [entry.get("error") for entry in logs] == [str(errors[0]), str(errors[1]), None]
        assert "seconds" in logs[-1]


def test_a_hub_that_answers_one_of_both_loops_is_not_back() -> None:
    contact, error = Contact(), HubUnreachable("not JSON")
    with capture_logs() as logs:
        for failures in range(1, 50):
            contact.lose("watch", error, failures)
            contact.find("heartbeats")
            assert (contact.away, contact.kind) == ("not JSON", "unreachable")
        contact.find("watch")
    assert [entry["event"] for entry in logs] == ["hub", "hub answers again"]
    assert contact.away is None
