"""Tokens and keys in every store: made once, kept over restarts, ended at once."""

from __future__ import annotations

import asyncio

import pytest

from gridcore.protocol import RegisterRequest
from hub.access import Grant, Role
from hub.errors import LastKey, UnknownKey, UnknownToken
from hub.events import Actor, EventQuery
from hub.store import Store
from hub.token_operations import (
    MARGIN,
    Issued,
    bound_to,
    create_token,
    drop_expired,
    register,
    renew,
    retire_key,
    revoke_token,
    revoke_tokens,
    rotate_key,
)
from hub.tokens import Verifier
from tests.contract.store_kinds import KINDS, StoreKind

ALICE = Actor("alice", "192.0.2.7")
SURVIVING = [kind for kind in KINDS if kind.survives]
survives = pytest.mark.parametrize("kind", SURVIVING, indirect=True, ids=lambda kind: kind.__name__)


def node(node_id: str | None = None, machine: str | None = None) -> RegisterRequest:
    return RegisterRequest(
        node_id=node_id, hostname="pi", architecture="aarch64", cpu_count=4, machine=machine
    )


def judge(kind: StoreKind, store: Store, token: str | None) -> Grant | None:
    assert token is not None
    return Verifier().verify(token.encode(), store.access, kind.clock.read().wall)


async def grant_of(kind: StoreKind, store: Store, role: Role, ttl: float = 3600) -> Grant:
    grant = judge(kind, store, (await store.run(create_token(role, ttl), ALICE)).token)
    assert grant is not None
    return grant


async def told(store: Store, *kinds: str) -> int:
    return len(await store.events(EventQuery(kinds=frozenset(kinds))))


async def test_a_token_counts_until_its_end_and_is_told_of_without_itself(
    kind: StoreKind, store: Store
) -> None:
    issued = await store.run(create_token(Role.OPERATOR, 60, "bob"), ALICE)
    grant = judge(kind, store, issued.token)
    assert grant is not None
    assert (grant.role, grant.name, grant.id) == (Role.OPERATOR, "bob", issued.record.id)
    assert [record.created_by for record in await store.tokens()] == ["alice"]
    (made,) = await store.events(EventQuery())
    assert (made.event.kind, made.event.who, made.event.detail["name"]) == ("token-created", "alice", "bob")
    assert issued.token not in str(made)
    kind.clock.advance(61)
    assert judge(kind, store, issued.token) is None


async def test_the_first_tokens_made_at_once_are_signed_with_one_key(kind: StoreKind, store: Store) -> None:
    made: list[Issued] = await asyncio.gather(*(store.run(create_token(Role.VIEWER, 60)) for _ in range(8)))
    assert len(store.access.keys) == 1
    assert all(judge(kind, store, issued.token) for issued in made)
    assert len({issued.record.id for issued in made}) == 8


async def test_a_revoked_token_ends_at_once_and_only_once(kind: StoreKind, store: Store) -> None:
    issued = await store.run(create_token(Role.VIEWER, 60))
    await store.run(revoke_token(issued.record.id), ALICE)
    revoked = await store.tokens()
    assert judge(kind, store, issued.token) is None
    kind.clock.advance(5)
    await store.run(revoke_token(issued.record.id), ALICE)
    assert await store.tokens() == revoked
    assert await told(store, "token-revoked") == 1
    with pytest.raises(UnknownToken):
        await store.run(revoke_token("nothing"))


async def test_a_new_key_signs_whatever_the_clock_says_and_a_retired_one_vouches_for_nothing(
    kind: StoreKind, store: Store
) -> None:
    before = await store.run(create_token(Role.VIEWER, 7200))
    old = before.record.key
    assert old is not None
    with pytest.raises(LastKey):
        await store.run(retire_key(old))
    kind.clock.step_wall(-600)  # another hub's clock
    key = await store.run(rotate_key())
    after = await store.run(create_token(Role.VIEWER, 7200))
    assert after.record.key == key.id == (store.access.signing_key and store.access.signing_key.id)
    assert judge(kind, store, before.token)
    await store.run(retire_key(old))
    await store.run(retire_key(old))
    assert (judge(kind, store, before.token), await told(store, "key-retired")) == (None, 1)
    assert judge(kind, store, after.token)
    with pytest.raises(LastKey):
        await store.run(retire_key(key.id))
    with pytest.raises(UnknownKey):
        await store.run(retire_key("nothing"))


async def test_of_two_who_retire_the_last_two_keys_at_once_one_is_refused(store: Store) -> None:
    keys = [await store.run(rotate_key()) for _ in range(2)]
    results = await asyncio.gather(*(store.run(retire_key(key.id)) for key in keys), return_exceptions=True)
    assert sorted(type(result).__name__ for result in results) == ["LastKey", "NoneType"]


# --- Nodes -------------------------------------------------------------------------------------------------


async def test_with_a_join_token_a_node_gets_one_of_its_own(kind: StoreKind, store: Store) -> None:
    join = await grant_of(kind, store, Role.JOIN)
    joined = await store.run(register(node(), join, 1000))
    node_id = joined.registration.node.record.id
    grant = judge(kind, store, joined.token)
    assert grant is not None
    assert (grant.role, grant.node) == (Role.NODE, node_id)
    assert grant.expires == int(kind.clock.read().wall + 1000)
    again = await store.run(register(node(node_id), join, 1000))
    assert again.token == joined.token
    assert len(await store.tokens()) == 2


async def test_the_shared_token_and_a_nodes_own_one_get_no_other(kind: StoreKind, store: Store) -> None:
    assert (await store.run(register(node("a"), None, 1000))).token is None
    assert (await store.run(register(node("b"), await grant_of(kind, store, Role.NODE), 1000))).token is None
    own = judge(kind, store, (await store.run(create_token(Role.NODE, 60, node="c"))).token)
    joined = await store.run(register(node(), own, 1000))
    assert (joined.registration.node.record.id, joined.token) == ("c", None)


async def test_a_copied_disk_gets_a_token_for_its_new_id_that_ends_with_the_other_one(
    kind: StoreKind, store: Store
) -> None:
    await store.run(register(node("a", machine="one"), None, 1000))
    own = judge(kind, store, (await store.run(create_token(Role.NODE, 60, node="a"))).token)
    assert own is not None
    copy = await store.run(register(node("a", machine="two"), own, 1000))
    grant = judge(kind, store, copy.token)
    assert grant is not None
    assert copy.registration.clone_of == "a"
    assert (grant.node, grant.expires) == (copy.registration.node.record.id, own.expires)


async def test_after_its_own_token_was_revoked_a_node_with_a_join_token_gets_another_one(
    kind: StoreKind, store: Store
) -> None:
    join = await grant_of(kind, store, Role.JOIN)
    first = await store.run(register(node("a"), join, 1000))
    grant = judge(kind, store, first.token)
    assert grant is not None
    await store.run(revoke_token(grant.id))
    second = await store.run(register(node("a"), join, 1000))
    assert second.token != first.token
    assert judge(kind, store, first.token) is None
    assert judge(kind, store, second.token) is not None


async def test_a_renewal_is_the_same_token_however_often_it_is_asked_for(
    kind: StoreKind, store: Store
) -> None:
    own = judge(kind, store, (await store.run(create_token(Role.NODE, 60, node="a"))).token)
    assert own is not None
    tokens = await asyncio.gather(*(store.run(renew(own, 1000)) for _ in range(5)))
    assert len(set(tokens)) == 1
    fresh = judge(kind, store, tokens[0])
    assert fresh is not None
    assert (fresh.node, fresh.name) == ("a", own.name)
    assert fresh.expires > own.expires
    assert len(await store.tokens()) == 2
    await store.run(revoke_token(fresh.id))
    assert await store.run(renew(own, 1000)) is None


async def test_a_renewal_of_a_retired_key_is_made_anew(kind: StoreKind, store: Store) -> None:
    own = judge(kind, store, (await store.run(create_token(Role.NODE, 60, node="a"))).token)
    assert own is not None
    first = await store.run(renew(own, 1000))
    old = store.access.signing_key
    assert old is not None
    await store.run(rotate_key())
    await store.run(retire_key(old.id))
    second = await store.run(renew(own, 1000))
    assert judge(kind, store, first) is None
    assert judge(kind, store, second) is not None


async def test_forgotten_nodes_lose_their_tokens_in_one_event(kind: StoreKind, store: Store) -> None:
    made = [await store.run(create_token(Role.NODE, 60, node=name)) for name in ("a", "a", "b")]
    ended = bound_to(["a"], await store.tokens())
    await store.run(revoke_tokens(ended))
    assert [bool(judge(kind, store, issued.token)) for issued in made] == [False, False, True]
    assert bound_to(["a"], await store.tokens()) == ()
    assert (await told(store, "tokens-revoked"), await told(store, "token-revoked")) == (1, 0)


# --- What goes by itself -----------------------------------------------------------------------------------


async def clean_up(kind: StoreKind, store: Store) -> tuple[int, int]:
    return await store.run(drop_expired(await store.tokens(), kind.clock.read().wall))


async def test_records_go_after_their_end_and_revoked_ones_not_before(kind: StoreKind, store: Store) -> None:
    short = await store.run(create_token(Role.VIEWER, 60))
    long = await store.run(create_token(Role.VIEWER, 10 * MARGIN))
    await store.run(revoke_token(long.record.id))
    assert await clean_up(kind, store) == (0, 0)
    kind.clock.advance(61 + MARGIN)
    assert await clean_up(kind, store) == (1, 0)
    assert [record.id for record in await store.tokens()] == [long.record.id]
    assert judge(kind, store, short.token) is None
    assert judge(kind, store, long.token) is None


async def test_keys_go_when_nothing_rests_on_them(kind: StoreKind, store: Store) -> None:
    await store.run(create_token(Role.VIEWER, 60))
    old = await store.run(create_token(Role.VIEWER, 10 * MARGIN))
    newer = await store.run(rotate_key())
    await store.run(rotate_key())
    assert await clean_up(kind, store) == (0, 0)  # a moment ago it may still have signed
    kind.clock.advance(61 + MARGIN)
    assert await clean_up(kind, store) == (1, 1)
    assert newer.id not in store.access.keys
    assert judge(kind, store, old.token) is not None
    kind.clock.advance(11 * MARGIN)
    assert await clean_up(kind, store) == (1, 1)
    assert len(store.access.keys) == 1


# --- A restart ---------------------------------------------------------------------------------------------


@survives
async def test_a_restart_keeps_what_tokens_are_good_for(kind: StoreKind, store: Store) -> None:
    join = await grant_of(kind, store, Role.JOIN)
    joined = await store.run(register(node("a"), join, 1000))
    revoked = await store.run(create_token(Role.ADMIN, 1000))
    await store.run(revoke_token(revoked.record.id))
    old = store.access.signing_key
    assert old is not None
    retired = await store.run(create_token(Role.ADMIN, 1000))
    await store.run(rotate_key())
    kept = await store.run(create_token(Role.NODE, 1000, node="a"))
    store = await kind.reopen()
    assert [bool(judge(kind, store, made)) for made in (joined.token, kept.token, retired.token)] == [
        True, True, True,
    ]  # fmt: skip
    assert judge(kind, store, revoked.token) is None
    await store.run(retire_key(old.id))
    store = await kind.reopen()
    assert [bool(judge(kind, store, made)) for made in (joined.token, kept.token, retired.token)] == [
        False, True, False,
    ]  # fmt: skip
    assert (await store.node("a")).is_online
