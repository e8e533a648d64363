"""What can be done with tokens and the keys that sign them, each as an Operation.

A key is made when the first token needs one, in the same transaction, so hubs that share a state share their
keys, too. Ids of tokens that follow from another one (a node's own from the join token that it came with, a
fresh one from that which ends soon) follow from it as well: who asks again gets the same token again, and no
record more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from gridcore.protocol import RegisterRequest
from hub import operations
from hub.access import Access, Grant, Role, SigningKey, TokenRecord
from hub.errors import LastKey, UnknownKey, UnknownToken
from hub.events import Event
from hub.registry import Registration
from hub.state import Change, Moment, Operation, Outcome, View
from hub.tokens import sign

MARGIN = 3600.0
"""Seconds for which records are kept after they have lost their meaning: hubs' clocks differ."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A token that was made, and what is kept of it; the token itself is told once and not kept."""

    record: TokenRecord
    token: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Joined:
    """The outcome of a registration, and the node's own token if it gets one."""

    registration: Registration
    token: str | None = field(default=None, repr=False)


# --- Operators' acts ---------------------------------------------------------------------------------------


def create_token(
    role: Role, ttl: float, name: str | None = None, node: str | None = None
) -> Operation[Issued]:
    """A token of this role for `ttl` seconds; a node's may be bound to one node."""

    def decide(view: View, at: Moment) -> Outcome[Issued]:
        token_id = _new_id(at)
        called = name or (node_name(node) if node else f"{role.value}-{token_id[:6]}")
        record = _record(at, token_id, role, called, at.now.wall + ttl, node)
        return _issue(view, at, record)

    return Operation(decide)


def revoke_token(token_id: str) -> Operation[None]:
    """End a token now; nothing changes if it was revoked before. Raises UnknownToken."""

    def decide(view: View, at: Moment) -> Outcome[None]:
        record = view.token(token_id)
        if record is None:
            raise UnknownToken
        if record.revoked is not None:
            return Outcome(None)
        return Outcome(None, Change(tokens=_revoked((record,), at), events=_tell_revoked((record,), at)))

    return Operation(decide, tokens=(token_id,))


def rotate_key() -> Operation[SigningKey]:
    """A new key, which signs from now on; the others still vouch for what they signed."""

    def decide(view: View, at: Moment) -> Outcome[SigningKey]:
        key = _new_key(view, at)
        return Outcome(key, Change(keys={key.id: key}, events=at.tell("key-rotated", detail={"key": key.id})))

    return Operation(decide)


def retire_key(key_id: str) -> Operation[None]:
    """Let a key vouch for nothing any more: its tokens end now. Raises UnknownKey, LastKey."""

    def decide(view: View, at: Moment) -> Outcome[None]:
        key = view.keys.get(key_id)
        if key is None:
            raise UnknownKey
        if key.retired is not None:
            return Outcome(None)
        if sum(other.retired is None for other in view.keys.values()) == 1:
            raise LastKey
        events = at.tell("key-retired", detail={"key": key_id})
        return Outcome(None, Change(keys={key_id: replace(key, retired=at.now.wall)}, events=events))

    return Operation(decide)


# --- What nodes get ----------------------------------------------------------------------------------------


def register(request: RegisterRequest, grant: Grant | None, ttl: float) -> Operation[Joined]:
    """Take a node in, and give it a token of its own for `ttl` seconds if it came with a join token.

    One that came with its own token keeps it and the id in it. If that id is in use on another machine, it
    gets a new id, and a token for that which ends when the other one does.
    """
    if grant is not None and grant.node is not None:
        request = request.model_copy(update={"node_id": grant.node})
    taking_in = operations.register(request)
    derived = _derived(grant, request.node_id) if grant and request.node_id else None

    def decide(view: View, at: Moment) -> Outcome[Joined]:
        outcome = taking_in.decide(view, at)
        node_id = outcome.answer.node.record.id
        if grant is None or grant.node == node_id or (grant.role is Role.NODE and grant.node is None):
            return Outcome(Joined(outcome.answer), outcome.change)
        expires = at.now.wall + ttl if grant.node is None else grant.expires
        # Under another id than it asked for, the node is new, and so is its token.
        token_id = _derived(grant, node_id)
        kept = view.token(token_id) if token_id == derived else None
        if kept is not None and kept.revoked is not None:
            token_id, kept = _new_id(at), None
        issued = _reissue(view, at, kept) or _issue(
            view, at, _record(at, token_id, Role.NODE, node_name(node_id), expires, node_id)
        )
        change = replace(
            issued.change,
            nodes=outcome.change.nodes,
            events=(*outcome.change.events, *issued.change.events),
        )
        return Outcome(Joined(outcome.answer, issued.answer.token), change, outcome.wake)

    return Operation(
        decide, nodes=taking_in.nodes, tokens=(derived,) if derived is not None else taking_in.tokens
    )


def renew(grant: Grant, ttl: float) -> Operation[str | None]:
    """The token that follows a node's own one, for `ttl` seconds; None if it was revoked already."""
    token_id = _derived(grant, "renewal")

    def decide(view: View, at: Moment) -> Outcome[str | None]:
        kept = view.token(token_id)
        if kept is not None and kept.revoked is not None:
            return Outcome(None)
        issued = _reissue(view, at, kept) or _issue(
            view, at, _record(at, token_id, Role.NODE, grant.name, at.now.wall + ttl, grant.node)
        )
        return Outcome(issued.answer.token, issued.change)

    return Operation(decide, tokens=(token_id,))


def node_name(node_id: str) -> str:
    """What the audit trail calls a node that shows its own token; no operator's token is called so."""
    return f"node {node_id}"


# --- What ends ---------------------------------------------------------------------------------------------


def bound_to(node_ids: Iterable[str], tokens: Iterable[TokenRecord]) -> tuple[str, ...]:
    """Of these tokens, the ids of those that are bound to one of these nodes, and not revoked."""
    wanted = frozenset(node_ids)
    return tuple(token.id for token in tokens if token.node in wanted and token.revoked is None)


def revoke_all(view: View, at: Moment, token_ids: Iterable[str]) -> Change:
    """What ends these tokens, for an operation that names them; those that ended before stay as they are."""
    found = [token for token in map(view.token, token_ids) if token is not None and token.revoked is None]
    return Change(tokens=_revoked(found, at), events=_tell_revoked(found, at))


def revoke_tokens(token_ids: tuple[str, ...]) -> Operation[None]:
    """End these tokens, such as those of a node that was forgotten."""
    return Operation(lambda view, at: Outcome(None, revoke_all(view, at, token_ids)), tokens=token_ids)


def drop_expired(tokens: Sequence[TokenRecord], now: float) -> Operation[tuple[int, int]]:
    """Drop the records of tokens that ended by themselves, and the keys that vouch for nothing any more; how
    many of each. `tokens` are all that there are, `now` is seconds since the epoch."""
    ended = tuple(token.id for token in tokens if token.expires + MARGIN < now)
    in_use = frozenset(token.key for token in tokens if token.id not in frozenset(ended))

    def decide(view: View, at: Moment) -> Outcome[tuple[int, int]]:
        found = [token for token in map(view.token, ended) if token is not None]
        dropped = [token.id for token in found if token.expires + MARGIN < at.now.wall]
        signing = Access(view.keys).signing_key
        # A token that was made since the list was read has the key that signs, or did an hour ago.
        is_settled = signing is not None and signing.created + MARGIN < at.now.wall
        keys = [
            key.id
            for key in view.keys.values()
            if key is not signing
            and (is_settled and key.id not in in_use if key.retired is None else _is_long_ago(key, at))
        ]
        return Outcome(
            (len(dropped), len(keys)), Change(tokens=dict.fromkeys(dropped), keys=dict.fromkeys(keys))
        )

    return Operation(decide, tokens=ended)


def _is_long_ago(key: SigningKey, at: Moment) -> bool:
    return key.retired is not None and key.retired + MARGIN < at.now.wall


# --- Parts of them -----------------------------------------------------------------------------------------


def _new_id(at: Moment) -> str:
    return f"{at.entropy():016x}"


def _derived(grant: Grant, purpose: str) -> str:
    return hashlib.sha256(f"{grant.id}/{purpose}".encode()).hexdigest()[:32]


def _new_key(view: View, at: Moment) -> SigningKey:
    # Later than all others, whichever hub's clock made those: the newest one signs.
    created = max([at.now.wall, *(key.created + 0.001 for key in view.keys.values())])
    secret = "".join(f"{at.entropy():016x}" for _ in range(4))
    return SigningKey(_new_id(at), secret, created)


def _record(
    at: Moment, token_id: str, role: Role, name: str, expires: float, node: str | None
) -> TokenRecord:
    created = float(int(at.now.wall))
    return TokenRecord(token_id, role, name, created, float(int(expires)), at.by.who, node)


def _issue(view: View, at: Moment, record: TokenRecord) -> Outcome[Issued]:
    """Keep this record, and its token; a key as well if there is none."""
    key, keys = Access(view.keys).signing_key, {}
    if key is None:
        key = _new_key(view, at)
        keys = {key.id: key}
    record = replace(record, key=key.id)
    detail = {"id": record.id, "role": record.role.value, "name": record.name, "expires": record.expires}
    events = at.tell("token-created", node=record.node, detail=detail)
    change = Change(tokens={record.id: record}, keys=keys, events=events)
    return Outcome(Issued(record, sign(record, key)), change)


def _reissue(view: View, at: Moment, record: TokenRecord | None) -> Outcome[Issued] | None:
    """The token of a record that is kept already, if it still counts."""
    key = view.keys.get(record.key) if record is not None and record.key is not None else None
    if record is None or key is None or key.retired is not None or record.expires <= at.now.wall:
        return None
    return Outcome(Issued(record, sign(record, key)))


def _revoked(tokens: Iterable[TokenRecord], at: Moment) -> Mapping[str, TokenRecord]:
    return {token.id: replace(token, revoked=at.now.wall) for token in tokens}


def _tell_revoked(tokens: Sequence[TokenRecord], at: Moment) -> tuple[Event, ...]:
    """One event about one token, and one about however many."""
    if not tokens:
        return ()
    first = tokens[0]
    about = {"id": first.id, "role": first.role.value, "name": first.name}
    if len(tokens) == 1:
        return at.tell("token-revoked", node=first.node, detail=about)
    return at.tell("tokens-revoked", detail={"count": len(tokens), "example": about})
