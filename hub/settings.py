"""The hub's settings: `computehub.toml`, read once at the start and never changed after."""

from __future__ import annotations

import os
import re
from ipaddress import IPv6Address
from pathlib import Path
from typing import Annotated, Self
from urllib.parse import quote, unquote, unquote_to_bytes

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gridcore.config import FilePath, new_token
from gridcore.files import resolve
from gridcore.logs import LogFormat
from gridcore.weak_tokens import MAKE_ONE, weakness
from hub.notify_target import NotifyTarget
from hub.proxies import parse_network
from hub.redis_url import RedisTarget, parse_redis

FILE_NAME = "computehub.toml"
GUIDE = "docs/security.md says how a fleet moves to another token"

MEMORY = "memory:"
_SQLITE = re.compile(r"sqlite:///(?P<path>[^?#]+)")
_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9]([a-z0-9.-]*[a-z0-9])?)(:\d{1,5})?", re.ASCII)
_BIND = re.compile(
    r"(?P<host>\[(?P<v6>[0-9A-Fa-f:.]+(%[^\[\]/%\s]{1,15})?)\]|[^\[\]:/%\s]+):(?P<port>\d{1,5})", re.ASCII
)


def _check_token(token: str) -> str:
    if not token.strip():
        raise ValueError(f"empty: everybody could use this hub; {MAKE_ONE}")
    if not all("!" <= character <= "~" for character in token):
        raise ValueError("only printable ASCII without blanks can stand in an Authorization header")
    if why := weakness(token):
        raise ValueError(f"can be guessed, since it {why}; {MAKE_ONE} ({GUIDE})")
    return token


def _check_bind(bind: str) -> str:
    match = _BIND.fullmatch(bind)
    if not match or int(match["port"]) > 65_535:
        raise ValueError("expected HOST:PORT, such as 0.0.0.0:8080, hub.lan:8080 or [::]:8080")
    if match["v6"]:
        try:
            address = IPv6Address(match["v6"])
        except ValueError:
            raise ValueError(f"{match['host']} is no IPv6 address; expected one such as [::]:8080") from None
        if address.is_link_local and not address.scope_id:
            raise ValueError(f"a link-local address needs its interface, as [{address}%eth0]:{match['port']}")
    return bind


def _check_origin(origin: str) -> str:
    if not _ORIGIN.fullmatch(origin):
        raise ValueError("expected exact origins, such as https://grid.example or http://localhost:3000")
    return origin


def _check_proxy(text: str) -> str:
    parse_network(text)
    return text


def _check_state(state: str) -> str:
    if "\0" in unquote(state):
        raise ValueError("expected no null character: no path has one")
    if state != MEMORY and not _SQLITE.fullmatch(state) and parse_redis(state) is None:
        raise ValueError(
            "expected sqlite:////absolute/path/hub.db, sqlite:///relative.db, redis://host:6379/0 (also "
            "rediss, redis+sentinel, redis+cluster), or memory: (which forgets everything at the end)"
        )
    return state


def _check_fleet_redis(url: str) -> str:
    target = parse_redis(url)
    if target is None or not url.lower().startswith(("redis://", "rediss://")):
        raise ValueError("expected redis://:password@host:6379/0 or rediss://…, as containers reach it")
    return url


class HubSettings(BaseModel):
    """All keys of `computehub.toml`; each can also be given as `IDM_GRIDCORE_<KEY>`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: Annotated[str, AfterValidator(_check_token)] = Field(repr=False)
    """The secret that nodes and operators share with the hub: printable ASCII that cannot be guessed."""

    previous_token: Annotated[str, AfterValidator(_check_token)] | None = Field(default=None, repr=False)
    """The shared secret of before, which is still accepted while a fleet moves to `token`."""

    bind: Annotated[str, AfterValidator(_check_bind)] = "0.0.0.0:8080"
    """HOST:PORT to listen on; port 0 takes a free one and logs it."""

    state: Annotated[str, AfterValidator(_check_state)] = Field(
        default="sqlite:////var/lib/idm-gridcore/hub.db", repr=False
    )
    """Where tasks and nodes are kept: `sqlite:///…`, `redis://…` (`redis_url.py`) or `memory:`."""

    fleet_redis: Annotated[str, AfterValidator(_check_fleet_redis)] | None = Field(default=None, repr=False)
    """The Redis that tasks name `fleet`, as the nodes' containers reach it; they are given this URL."""

    log_format: LogFormat = "text"
    """`text` for people and the journal, `json` for machines; on standard error."""

    node_retention_days: float = Field(default=30, gt=0, le=36_500)
    """Days after which a node that is Offline is forgotten; only time in which a hub ran counts."""

    event_retention_days: float = Field(default=90, gt=0, le=36_500)
    """Days after which the audit trail forgets an event."""

    prefetch: bool = False
    """Whether nodes fetch the first pending task's image while they still work on the current one."""

    node_token_days: float = Field(default=365, gt=0, le=3_660)
    """Days that a token counts which a node gets for a join token; it is renewed well before."""

    trusted_proxies: tuple[Annotated[str, AfterValidator(_check_proxy)], ...] = ()
    """Addresses and networks of proxies whose X-Forwarded-For says where a request came from."""

    tls_certificate: FilePath | None = None
    """A PEM file with the hub's certificate and the chain after it; with `tls_key` the hub speaks TLS."""

    tls_key: FilePath | None = None
    """The PEM file of its private key, without a passphrase."""

    cors_origins: tuple[Annotated[str, AfterValidator(_check_origin)], ...] = ()
    """Origins whose pages may call `/api` from a browser: exact, lower case, without a path."""

    notify: tuple[NotifyTarget, ...] = ()
    """Who is told when the queue is empty, a task fails, nodes are gone, or of a canary."""

    @model_validator(mode="after")
    def _check_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            given, missing = (
                ("tls_certificate", "tls_key") if self.tls_certificate else ("tls_key", "tls_certificate")
            )
            raise ValueError(f"{missing}: missing, and {given} is given: TLS needs both, or neither for HTTP")
        return self

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `bind`."""
        host, _, port = self.bind.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def database(self) -> Path | None:
        """The SQLite file, or None for another kind of state."""
        match = _SQLITE.fullmatch(self.state)
        return Path(os.fsdecode(unquote_to_bytes(match["path"]))) if match else None

    @property
    def redis(self) -> RedisTarget | None:
        """The Redis that several hubs share, or None for another kind of state."""
        return parse_redis(self.state)

    @property
    def shared_tokens(self) -> tuple[str, ...]:
        """The shared secrets that are accepted: `token`, and `previous_token` if there is one."""
        return (self.token,) if self.previous_token is None else (self.token, self.previous_token)

    @property
    def node_token_ttl(self) -> float:
        """`node_token_days` in seconds."""
        return self.node_token_days * 86_400

    @property
    def node_retention(self) -> float:
        """`node_retention_days` in seconds."""
        return self.node_retention_days * 86_400

    @property
    def event_retention(self) -> float:
        """`event_retention_days` in seconds."""
        return self.event_retention_days * 86_400


EXAMPLE = """\
# Configuration of the ComputeHub. It holds a secret: keep it readable for the hub's user only (mode 0600).

# The secret that nodes and operators share with this hub.
token = "{token}"

# While nodes and operators move to a new `token`: the one of before, which is still accepted.
# previous_token = "..."

# Where to listen: HOST:PORT. Use 127.0.0.1:8080 behind a proxy on this machine.
bind = "0.0.0.0:8080"

# Where tasks and nodes are kept: an SQLite file (its directory must exist), a Redis that several hubs share
# ("redis://:password@host:6379/0", see docs/configuration-hub.md), or "memory:" to try things out.
state = "{state}"

# The Redis that tasks may name `fleet`, as containers reach it. A new password goes here, and into no task.
# fleet_redis = "redis://:password@192.168.1.100:6379/0"

# "text" for people and the journal, "json" for machines.
# log_format = "text"

# Days after which a node that was not seen any more is forgotten.
# node_retention_days = 30

# Days after which the audit trail forgets an event.
# event_retention_days = 90

# Days that a token counts which a node gets for a join token; it is renewed well before.
# node_token_days = 365

# Proxies in front of this hub whose X-Forwarded-For is believed.
# trusted_proxies = ["127.0.0.1"]

# Speak TLS: PEM files, the certificate with its chain. `kill -HUP` (systemctl reload) reads them again.
# tls_certificate = "/etc/idm-gridcore/hub.pem"
# tls_key = "/etc/idm-gridcore/hub.key"

# Whether nodes fetch the next task's image early, so that a switch does not wait for the network.
# prefetch = false

# Tell somebody: a POST of JSON that chats understand. One table for each receiver.
# [[notify]]
# url = "https://chat.example/hooks/..."
# events = ["queue-empty", "task-failing", "nodes-gone", "canary"]
# secret = "..."
"""
"""What `computehub init` writes, with `{token}` and `{state}` to be filled in."""

SERVICE_CONFIG, SERVICE_STATE = Path("/etc/idm-gridcore"), Path("/var/lib/idm-gridcore/hub.db")
"""The directory of a service's configuration, and where the service keeps its state."""


def first_state(config: Path) -> Path:
    """Where a hub with this first configuration file keeps its state: beside it, unless it is the service."""
    try:
        real = resolve(config)
    except OSError:  # writing it will say why
        real = config.absolute()
    return SERVICE_STATE if real.parent == SERVICE_CONFIG else real.with_name(f"{real.stem}.state.db")


def example(config: Path) -> str:
    """A first configuration file to be written there, with a fresh token."""
    return EXAMPLE.format(token=new_token(), state=f"sqlite:///{quote(os.fsencode(first_state(config)))}")
