"""Whether the hub answers, since when it does not, and when it may be asked again."""

from __future__ import annotations

import time
from random import Random

from agent.slots import doubled, jittered
from gridcore.condition import Condition
from gridcore.errors import HubError, HubRejectedToken

RETRY_FIRST, RETRY_MOST = 1.0, 10.0
"""Seconds: a hub that is back must be found within a tick."""
TOKEN_RETRY = 60.0
SPREAD = 0.2
"""Of a hub's Retry-After, on top of it, so that a fleet does not come back in step."""


class Contact:
    """What both loops of the hub link share about the hub's being there."""

    def __init__(self) -> None:
        self._random = Random()  # noqa: S311 # jitter, not a secret
        self._away: str | None = None
        self._kind: str | None = None
        self._absence = Condition("hub", "hub answers again")
        self._not_before = 0.0
        self._heard_at: float | None = None

    @property
    def away(self) -> str | None:
        """Why the hub does not answer; None while it does."""
        return self._away

    @property
    def kind(self) -> str | None:
        """What kind of `HubError` it is (its `kind`); None while the hub answers."""
        return self._kind

    @property
    def away_for(self) -> float | None:
        """Seconds since the hub was last heard; None while it answers."""
        return self._absence.lasted

    @property
    def heard(self) -> float | None:
        """Seconds since the hub answered a heartbeat of a node that it knows; None before the first."""
        return None if self._heard_at is None else time.monotonic() - self._heard_at

    def note_heartbeat(self) -> None:
        """The hub has answered a heartbeat, and knows the node."""
        self._heard_at = time.monotonic()

    @property
    def pause(self) -> float:
        """Seconds for which the hub has asked to be left alone, still."""
        return max(0.0, self._not_before - time.monotonic())

    def lose(self, error: HubError, failures: int, text: str | None = None) -> float:
        """A question failed, the `failures`th of its kind in a row; the seconds until the next.

        `text` says it better than the error.
        """
        now, text = time.monotonic(), text or str(error)
        # Both loops ask, and may each hear something else, again and again: each reason is told once.
        self._absence.meet(text, error=text, meanwhile="what runs keeps running")
        self._away, self._kind = text, error.kind
        if error.retry_after:
            pause = error.retry_after * (1 + SPREAD * self._random.random())
            self._not_before = max(self._not_before, now + pause)
        is_token = isinstance(error, HubRejectedToken)
        return jittered(TOKEN_RETRY if is_token else doubled(RETRY_FIRST, RETRY_MOST, failures), self._random)

    def find(self) -> None:
        """The hub has answered."""
        self._absence.over()
        self._away = self._kind = None
