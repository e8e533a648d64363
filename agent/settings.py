"""The agent's settings: `gridnode.toml`, read once, and the one value that is written back to it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import tomlkit
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from gridcore.config import read_text, write_private
from gridcore.platforms import is_known_architecture
from gridcore.protocol import NodeId

FILE_NAME = "gridnode.toml"
PASTE_HERE = "paste-the-token-of-the-hub-here"


def _hub_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected an address such as http://192.168.1.100:8080")
    return value.rstrip("/")


def _token(value: str) -> str:
    if not value.strip() or value == PASTE_HERE:
        raise ValueError("is not set; copy the token from the hub's computehub.toml")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("expected printable ASCII without spaces, as in the hub's computehub.toml")
    return value


def _architecture(value: str) -> str:
    if not is_known_architecture(value):
        raise ValueError("expected x86_64, aarch64 or arm")
    return value


class Settings(BaseModel):
    """Everything that `gridnode.toml` may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server_url: Annotated[str, AfterValidator(_hub_address)]
    """The hub, `http://` or `https://`."""
    token: Annotated[str, AfterValidator(_token)] = Field(repr=False)
    """The secret shared with the hub."""
    node_id: NodeId | None = None
    """Assigned by the hub at the first start and written here."""
    hostname: str | None = Field(default=None, min_length=1, max_length=255)
    """What the hub shows; detected."""
    architecture: Annotated[str, AfterValidator(_architecture)] | None = None
    """`x86_64`, `aarch64` or `arm`; detected from the container engine."""
    parallelism: int | None = Field(default=None, ge=1, le=4096)
    """Containers; default: the CPUs that this process may use."""
    heartbeat_interval: float = Field(default=30, ge=1, le=45)
    """Seconds; the hub calls a node Offline after 60."""
    stop_timeout: float = Field(default=30, ge=0, le=86_400)
    """Seconds between SIGTERM and SIGKILL, where the task does not say."""
    max_stop_timeout: float = Field(default=600, ge=0, le=86_400)
    """Seconds; the most that a task may ask for."""
    container_memory: int = Field(default=1024, ge=6, le=16_777_216)
    """MB for each container, where the task does not say."""
    max_container_memory: int | None = Field(default=None, ge=6, le=16_777_216)
    """MB; the most that a task may ask for; default: RAM ÷ slots."""
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    """Shown with the node in `GET /api/nodes`."""
    pull_timeout: float = Field(default=3600, ge=10, le=86_400)
    """Seconds that pulling an image may take."""
    log_format: Literal["text", "json"] = "text"
    """How the agent's own log is written."""


def write_node_id(path: Path, node_id: str) -> None:
    """Put the node id into the file, everything else as it stands, comments too. Atomic, mode 0600.

    Raises:
        OSError: the directory cannot be written.
        ConfigError: the file cannot be read.
    """
    document = tomlkit.parse(read_text(path))
    document["node_id"] = node_id
    write_private(path, tomlkit.dumps(document))


def example(server: str = "http://192.168.1.100:8080") -> str:
    """A commented first configuration file."""
    return f"""\
# GridNode: this machine's part of the grid. `gridnode --check` tells whether this file is good.

server_url = "{server}"   # the hub
token = "{PASTE_HERE}"   # the same as in the hub's computehub.toml

# node_id = "…"            # assigned by the hub at the first start and written here
# hostname = "…"           # what the hub shows; detected
# architecture = "…"       # x86_64, aarch64 or arm; detected from the container engine
# parallelism = 4          # containers; default: the CPUs that this process may use
heartbeat_interval = 30    # s, 1 to 45
stop_timeout = 30          # s between SIGTERM and SIGKILL
# max_stop_timeout = 600   # s, the most that a task may ask for
container_memory = 1024    # MB for each container
# max_container_memory = … # MB, the most that a task may ask for; default: RAM ÷ slots
# pull_timeout = 3600      # s that pulling an image may take
# log_format = "json"      # the agent's own log: "text" or "json"

# [labels]                 # shown with this node in GET /api/nodes
# room = "cellar"
"""
