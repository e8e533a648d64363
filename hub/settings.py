"""The hub's settings: `computehub.toml`, read once at the start and never changed after."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import unquote

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gridcore.config import PLACEHOLDER_TOKENS
from gridcore.logs import LogFormat

FILE_NAME = "computehub.toml"
SHORT_TOKEN = 16
"""Characters below which a token is warned about: it can be guessed."""

MEMORY = "memory:"
_SQLITE = re.compile(r"sqlite:///(?P<path>[^?#]+)")
_BIND = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]+):(?P<port>\d{1,5})", re.ASCII)


def _check_token(token: str) -> str:
    if not token.strip():
        raise ValueError("empty: everybody could use this hub. `computehub init` writes a good one")
    if token.strip().lower() in PLACEHOLDER_TOKENS:
        raise ValueError("a placeholder out of documentation. `computehub init` writes a good one")
    if not all("!" <= character <= "~" for character in token):
        raise ValueError("only printable ASCII without blanks can stand in an Authorization header")
    return token


def _check_bind(bind: str) -> str:
    match = _BIND.fullmatch(bind)
    if not match or int(match["port"]) > 65_535:
        raise ValueError("expected HOST:PORT, such as 0.0.0.0:8080, hub.lan:8080 or [::]:8080")
    return bind


def _check_state(state: str) -> str:
    if state != MEMORY and not _SQLITE.fullmatch(state):
        raise ValueError(
            "expected sqlite:////absolute/path/hub.db, sqlite:///relative.db, "
            "or memory: (which forgets everything at the end)"
        )
    return state


class HubSettings(BaseModel):
    """All keys of `computehub.toml`; each can also be given as `IDM_GRIDCORE_<KEY>`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    token: Annotated[str, AfterValidator(_check_token)] = Field(repr=False)
    """The secret that nodes and operators share with the hub; printable ASCII."""

    bind: Annotated[str, AfterValidator(_check_bind)] = "0.0.0.0:8080"
    """HOST:PORT to listen on; port 0 takes a free one and logs it."""

    state: Annotated[str, AfterValidator(_check_state)] = "sqlite:////var/lib/idm-gridcore/hub.db"
    """Where tasks and nodes are kept: `sqlite:///…` or `memory:`."""

    log_format: LogFormat = "text"
    """`text` for people and the journal, `json` for machines; on standard error."""

    node_retention_days: float = Field(default=30, gt=0, le=36_500)
    """Days after which a node that was not seen any more is forgotten."""

    event_retention_days: float = Field(default=90, gt=0, le=36_500)
    """Days after which the audit trail forgets an event."""

    prefetch: bool = False
    """Whether nodes fetch the first pending task's image while they still work on the current one."""

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of `bind`."""
        host, _, port = self.bind.rpartition(":")
        return host.strip("[]"), int(port)

    @property
    def database(self) -> Path | None:
        """The SQLite file, or None for `memory:`."""
        match = _SQLITE.fullmatch(self.state)
        return Path(unquote(match["path"])) if match else None

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

# Where to listen: HOST:PORT. Use 127.0.0.1:8080 behind a proxy on this machine.
bind = "0.0.0.0:8080"

# Where tasks and nodes are kept: an SQLite file (its directory must exist), or "memory:" to try things out.
state = "sqlite:////var/lib/idm-gridcore/hub.db"

# "text" for people and the journal, "json" for machines.
# log_format = "text"

# Days after which a node that was not seen any more is forgotten.
# node_retention_days = 30

# Days after which the audit trail forgets an event.
# event_retention_days = 90

# Whether nodes fetch the next task's image early, so that a switch does not wait for the network.
# prefetch = false
"""
"""What `computehub init` writes, with `{token}` to be filled in."""
