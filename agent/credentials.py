"""Which of its two tokens the agent shows to the hub, and what to say when one is refused. Pure.

`token` is the node's own, or the secret that all share; `join_token` gets the node its own at a registration.
A refusal makes the next registration try the other one, so that neither an expired join token nor a lost
node token is for ever.
"""

from __future__ import annotations

from pathlib import Path

OWN, JOIN = "token", "join_token"
_ANOTHER = "get a new one with `computehub token create --role join --ttl 24h`"


class Credentials:
    """Remembers what the hub has accepted and refused; at least one of both tokens is given."""

    def __init__(self, token: str | None, join_token: str | None) -> None:
        self._values = {name: value for name, value in ((OWN, token), (JOIN, join_token)) if value}
        if not self._values:
            raise ValueError("neither a token nor a join token")
        self._shown = self._next = next(iter(self._values))
        self._refused: set[str] = set()

    @property
    def own(self) -> str | None:
        """The node's own token, or None while it has none."""
        return self._values.get(OWN)

    @property
    def current(self) -> str:
        """For all but registrations: what has worked last."""
        return self._values[self._shown]

    @property
    def for_registration(self) -> str:
        """For the next registration."""
        return self._values[self._next]

    @property
    def has_other(self) -> bool:
        """Whether a registration can be tried with another token than the current one."""
        return self._next != self._shown

    def accept(self, *, registered: bool = False) -> None:
        """The hub has taken the current token, or when `registered` that of the registration."""
        if registered:
            self._shown = self._next
        self._next = self._shown
        self._refused.clear()

    def take(self, token: str) -> None:
        """The hub has given this node a token of its own."""
        self._values[OWN] = token
        self._shown = self._next = OWN
        self._refused.clear()

    def refuse(self, *, registering: bool = False) -> None:
        """The hub has refused the current token, or when `registering` that of the registration."""
        name = self._next if registering else self._shown
        self._refused.add(name)
        self._next = next((other for other in self._values if other != name), name)

    def explain(self, config: Path) -> str:
        """Which token of the file `config` was refused, and what to do: one line."""
        refused = self._refused or {self._shown}
        if refused == {OWN, JOIN}:
            return f"the hub accepts neither `token` nor `join_token` of {config}; {_ADVICE}"
        (name,) = refused
        text = f"the hub does not accept `{name}` of {config}"
        if name == JOIN:
            return f"{text}, which may have expired; {_ADVICE}"
        if JOIN in self._values:
            return f"{text}; `join_token` is tried next"
        return f"{text}; put the hub's shared token there, or a `join_token`: {_ANOTHER}"


_ADVICE = f"{_ANOTHER}, put it there as `join_token`, and restart the agent"
