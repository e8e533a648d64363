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
                for error in errors:
                    contact.lose(error, failures)
            contact.find()
            contact.find()
        assert [entry.get("error") for entry in logs] == [str(errors[0]), str(errors[1]), None]
        assert "seconds" in logs[-1]
