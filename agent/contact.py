"""Whether the hub answers, since when it does not, and when it may be asked again.

Two loops ask: one answered does not mean that the other is, where a proxy lets only some requests through. So
the hub answers when both are answered.
"""

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
        self._lost: dict[str, tuple[str, str]] = {}
        """By who asks: why the last question was not answered, and what kind of `HubError` that was."""
        self.was_lost = False
        """A question that had been answered was not; until `mend`."""
        self._absence = Condition("hub", "hub answers again")
        self._not_before = 0.0
        self._heard_at: float | None = None

    @property
    def away(self) -> str | None:
        """Why the hub does not answer; None while it does."""
        return next((text for text, _ in self._lost.values()), None)

    @property
    def kind(self) -> str | None:
        """What kind of `HubError` it is (its `kind`); None while the hub answers."""
        return next((kind for _, kind in self._lost.values()), None)

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

    def mend(self) -> None:
        """What the loss of the hub asked for is done."""
        self.was_lost = False

    def lose(self, asker: str, error: HubError, failures: int, text: str | None = None) -> float:
        """A question failed, the `failures`th in a row of who asks; the seconds until the next.

        `text` says it better than the error.
        """
        now, text = time.monotonic(), text or str(error)
        # Both loops ask, and may each hear something else, again and again: each reason is told once.
        self._absence.meet(text, error=text, meanwhile="what runs keeps running")
        self.was_lost = self.was_lost or asker not in self._lost
        self._lost[asker] = text, error.kind
        if error.retry_after:
            pause = error.retry_after * (1 + SPREAD * self._random.random())
            self._not_before = max(self._not_before, now + pause)
        is_token = isinstance(error, HubRejectedToken)
        return jittered(TOKEN_RETRY if is_token else doubled(RETRY_FIRST, RETRY_MOST, failures), self._random)

    def find(self, asker: str) -> None:
        """The hub has answered who asks."""
        self._lost.pop(asker, None)
        if not self._lost:
            self._absence.over()
