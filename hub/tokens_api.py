"""Tokens and the keys that sign them, under `/api/tokens` and `/api/keys`: for admins and the shared token.

A token is in one answer only, that which made it. Lists have its record, and of keys their ids and dates.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import structlog
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    RootModel,
    StringConstraints,
    field_validator,
    model_validator,
)
from quart import Blueprint, Response, request
from quart_schema import document_querystring, document_request, document_response, tag

from gridcore.protocol import NodeId
from hub import token_operations
from hub.access import Access, Role, SigningKey, TokenRecord
from hub.bodies import read_message, read_query
from hub.description import document_empty, document_example
from hub.door import actor
from hub.events import HUB
from hub.operators import NoQuery, answer, document_problems, no_content, read_nothing
from hub.refusals import NOBODY
from hub.store import Store

DAY = 86_400
SHORTEST_TTL = 60
LONGEST_TTL: Mapping[Role, int] = {
    Role.VIEWER: 1_830 * DAY,
    Role.OPERATOR: 366 * DAY,
    Role.ADMIN: 366 * DAY,
    Role.NODE: 3_660 * DAY,
    Role.JOIN: 31 * DAY,
}
"""Seconds that a token of each role may count: short where it can do much, or makes other tokens."""

RESERVED_NAMES = frozenset({HUB.who, NOBODY})
"""What the audit trail calls others. The rest of those have blanks, which names of tokens have not."""

NO_STORE = {"Cache-Control": "no-store"}

RoleName = Literal["viewer", "operator", "admin", "node", "join"]
TokenName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}$")]
Status = Literal["valid", "expired", "revoked"]

log = structlog.get_logger()


class TokenRequest(BaseModel):
    """A token to be made: its role and how long it counts, in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: RoleName
    ttl: int = Field(ge=SHORTEST_TTL, le=max(LONGEST_TTL.values()))
    """Seconds."""
    name: TokenName | None = None
    """What the audit trail calls who shows it."""
    node: NodeId | None = None
    """The only node that it may act for; for the role `node`."""

    @field_validator("name")
    @classmethod
    def _is_free(cls, name: str | None) -> str | None:
        if name is not None and name.lower() in RESERVED_NAMES:
            raise ValueError("the audit trail calls others so; choose another name")
        return name

    @model_validator(mode="after")
    def _fits_its_role(self) -> TokenRequest:
        longest = LONGEST_TTL[Role(self.role)]
        if self.ttl > longest:
            raise ValueError(
                f"`ttl` of a token of role {self.role} is at most {longest} s ({longest // DAY} days)"
            )
        if self.node is not None and self.role != "node":
            raise ValueError("`node` is for tokens of role node")
        return self


class TokenQuery(BaseModel):
    """Which tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: RoleName | None = None
    name: str | None = Field(default=None, max_length=200)
    node: NodeId | None = None
    status: Status | None = None


class TokenView(BaseModel):
    """What is known of a token; times in RFC 3339."""

    id: str
    role: RoleName
    name: str
    node: str | None
    created: str
    created_by: str
    expires: str
    revoked: str | None
    status: Status
    """Whether it still counts; `revoked` also where its key is retired."""


class TokenMade(TokenView):
    """A token that was just made; no other answer shows it."""

    token: str


class TokenList(RootModel[list[TokenView]]):
    """Tokens, the newest first."""


class KeyView(BaseModel):
    """A key that signs tokens, without its secret; times in RFC 3339."""

    id: str
    created: str
    retired: str | None
    signs: bool
    """Whether new tokens are signed with it."""


class KeyList(RootModel[list[KeyView]]):
    """Keys, the newest first."""


def tokens_api(store: Store) -> Blueprint:
    """The routes, over this store."""
    api = Blueprint("tokens", __name__, url_prefix="/api")

    @api.post("/tokens")
    @tag(["tokens"])
    @document_request(TokenRequest)
    @document_example({"role": "viewer", "ttl": 86_400, "name": "dashboard"})
    @document_response(TokenMade, 201)
    @document_problems(400, 422, 503)
    async def create_token() -> Response:
        """Make a token; this is the only answer that has it."""
        wanted = await read_message(request, TokenRequest)
        making = token_operations.create_token(Role(wanted.role), wanted.ttl, wanted.name, wanted.node)
        issued = await store.run(making, actor(request))
        record = issued.record
        log.info("token created", id=record.id, role=record.role.value, name=record.name, node=record.node)
        view = token_view(record, store.access, time.time())
        # What this hub has in memory may be a second older than the key.
        made = answer({**view, "status": "valid", "token": issued.token}, 201)
        made.headers.update(NO_STORE)
        return made

    @api.get("/tokens")
    @tag(["tokens"])
    @document_querystring(TokenQuery)
    @document_response(TokenList)
    @document_problems(422)
    async def list_tokens() -> Response:
        """The records of tokens, the newest first; never the tokens."""
        wanted = read_query(request, TokenQuery)
        records, access, now = await store.tokens(), store.access, time.time()

        def views() -> Response:
            newest_first = sorted(records, key=lambda record: record.created, reverse=True)
            shown = (token_view(record, access, now) for record in newest_first if _is_asked(record))
            return answer([view for view in shown if wanted.status in (None, view["status"])])

        def _is_asked(record: TokenRecord) -> bool:
            return (
                wanted.role in (None, record.role.value)
                and wanted.name in (None, record.name)
                and wanted.node in (None, record.node)
            )

        # A fleet has thousands, and heartbeats must not wait for that.
        return await asyncio.to_thread(views)

    @api.delete("/tokens/<token_id>")
    @tag(["tokens"])
    @document_empty(204, "It counts no more.")
    @document_problems(400, 404, 422, 503)
    async def revoke_token(token_id: str) -> Response:
        """End a token now. 204, also if it was revoked before."""
        await read_nothing(request)
        await store.run(token_operations.revoke_token(token_id), actor(request))
        log.info("token revoked", id=token_id)
        return no_content(204)

    @api.get("/keys")
    @tag(["tokens"])
    @document_response(KeyList)
    @document_problems(422)
    async def list_keys() -> Response:
        """The keys that sign tokens, the newest first: ids and dates."""
        read_query(request, NoQuery)
        access = store.access
        keys = sorted(access.keys.values(), key=lambda key: (key.created, key.id), reverse=True)
        return answer([key_view(key, access) for key in keys])

    @api.post("/keys")
    @tag(["tokens"])
    @document_response(KeyView, 201)
    @document_problems(400, 422, 503)
    async def rotate_key() -> Response:
        """A new key signs from now on; tokens of the others still count."""
        await read_nothing(request)
        key = await store.run(token_operations.rotate_key(), actor(request))
        log.info("key rotated", key=key.id)
        return answer({**key_view(key, store.access), "signs": True}, 201)

    @api.delete("/keys/<key_id>")
    @tag(["tokens"])
    @document_empty(204, "It counts no more.")
    @document_problems(400, 404, 409, 422, 503)
    async def retire_key(key_id: str) -> Response:
        """End a key, and with it all tokens that it signed. 204, also if it was retired before."""
        await read_nothing(request)
        await store.run(token_operations.retire_key(key_id), actor(request))
        log.info("key retired", key=key_id)
        return no_content(204)

    return api


def token_view(record: TokenRecord, access: Access, now: float) -> dict[str, Any]:
    """A record as admins see it."""
    key = access.keys.get(record.key or "")
    status = "valid"
    if record.revoked is not None or key is None or key.retired is not None:
        status = "revoked"
    elif record.expires <= now:
        status = "expired"
    return {
        "id": record.id,
        "role": record.role.value,
        "name": record.name,
        "node": record.node,
        "created": _time(record.created),
        "created_by": record.created_by,
        "expires": _time(record.expires),
        "revoked": _time(record.revoked),
        "status": status,
    }


def key_view(key: SigningKey, access: Access) -> dict[str, Any]:
    """A key as admins see it."""
    return {
        "id": key.id,
        "created": _time(key.created),
        "retired": _time(key.retired),
        "signs": key == access.signing_key,
    }


def _time(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
