"""The agent's settings: `gridnode.toml`, read once, and what the hub assigns, which is written back to it."""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from urllib.parse import urlsplit

import tomlkit
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from tomlkit.exceptions import TOMLKitError

from gridcore.config import FilePath, read_text
from gridcore.errors import ConfigError
from gridcore.files import write_private
from gridcore.platforms import is_known_architecture
from gridcore.protocol import NodeId
from gridcore.weak_tokens import weakness

FILE_NAME = "gridnode.toml"
PASTE_HERE = "paste-the-token-of-the-hub-here"


def _hub_address(value: str) -> str:
    try:
        parts = urlsplit(value)
        is_address = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # no port, or no IPv6 address
        is_address = False
    if not is_address:
        raise ValueError("expected an address such as http://192.168.1.100:8080")
    return value.rstrip("/")


def _token(value: str) -> str:
    if not value.strip() or value == PASTE_HERE:
        raise ValueError(
            "is not set; copy it from the hub, or remove this line and set the other of both tokens"
        )
    if not value.isascii() or not value.isprintable() or " " in value:
        raise ValueError("expected printable ASCII without spaces, as the hub has it")
    return value


def _ca_file(value: Path) -> Path:
    from gridcore.trust import read_ca  # only where one is set

    if not value.is_absolute():
        raise ValueError("expected an absolute path")
    read_ca(value)
    return value


def _architecture(value: str) -> str:
    if not is_known_architecture(value):
        raise ValueError("expected x86_64, aarch64 or arm")
    return value


_HOURS = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-3]):([0-5]\d)")
_CPUS = re.compile(r"\d{1,4}(-\d{1,4})?(,\d{1,4}(-\d{1,4})?)*")
_CAPABILITY = re.compile(r"[A-Z][A-Z_]{1,31}")


def _hours(value: str) -> str:
    match = _HOURS.fullmatch(value)
    if not match or match.group(1, 2) == match.group(3, 4):
        raise ValueError('expected a span of local time such as "22:00-07:00"')
    return value


def _cpus(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        if value < 1:
            raise ValueError("expected how many CPUs, at least 1")
    elif value is not None and not _is_cpu_list(value):
        raise ValueError('expected how many CPUs, such as 2, or which, such as "0-3,6"')
    return value


def _is_cpu_list(value: Any) -> bool:
    if not isinstance(value, str) or not _CPUS.fullmatch(value):
        return False
    spans = [part.partition("-") for part in value.split(",")]
    return all(not last or int(first) <= int(last) for first, _, last in spans)


def _capability(value: str) -> str:
    if not _CAPABILITY.fullmatch(value):
        raise ValueError('expected a capability such as "NET_RAW"')
    return value


def _list(value: Any) -> Any:
    if isinstance(value, str):
        raise ValueError(f'expected a list, such as ["{value}"]')  # noqa: TRY004 # pydantic takes no TypeError
    return value


def _mount(value: str) -> str:
    if "\0" in value:
        raise ValueError("expected paths, and no path has a null character")
    parts = value.split(":")
    absolute = len(parts) in (2, 3) and all(part.startswith("/") for part in parts[:2])
    if not absolute or parts[2:] not in ([], ["ro"], ["rw"]):
        raise ValueError('expected "/on/this/machine:/in/the/container", with ":ro" or ":rw" behind it')
    if posixpath.normpath(parts[1]) in ("/", "//", "/scratch", "//scratch"):
        raise ValueError(f"{parts[1]} in the container is not free for a mount")
    return value


T = TypeVar("T")
_Listed = Annotated[tuple[T, ...], BeforeValidator(_list)]


class Settings(BaseModel):
    """Everything that `gridnode.toml` may say."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    server_url: Annotated[str, AfterValidator(_hub_address)]
    """The hub, `http://` or `https://`."""
    token: Annotated[str, AfterValidator(_token)] | None = Field(default=None, repr=False)
    """The secret shared with the hub, or this node's own, handed out by the hub and written here."""
    join_token: Annotated[str, AfterValidator(_token)] | None = Field(default=None, repr=False)
    """Short-lived: shown at a registration to get a token of this node's own."""
    ca_file: Annotated[FilePath, AfterValidator(_ca_file)] | None = None
    """PEM file with the CA, or the self-signed certificate, of an https hub. Unset: the system's CAs."""
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
    gpu_count: int | None = Field(default=None, ge=0, le=1024)
    """GPUs that tasks may use; detected."""

    # The owner's terms: how far this machine trusts its hub. A hub can loosen none of them.
    allowed_images: Annotated[tuple[str, ...] | None, BeforeValidator(_list)] = None
    """Patterns (`*` is any text); an image that matches none is refused. Unset: any image."""
    hours: Annotated[str, AfterValidator(_hours)] | None = None
    """Local time in which containers run, such as `22:00-07:00`. Unset: always."""
    cpus: Annotated[int | str | None, BeforeValidator(_cpus)] = None
    """How many CPUs tasks may use (the first ones), or which, such as `0-3,6`. Unset: all."""
    freeze_max: float = Field(default=600, ge=0, le=604_800)
    """Seconds that `gridnode pause` (or `yield_load`) freezes containers before it stops them."""
    yield_load: float | None = Field(default=None, gt=0, le=4096)
    """Freeze containers while the load average beyond theirs is above this. Unset: never."""
    cpu_shares: int = Field(default=2, ge=2, le=262_144)
    """CPU weight of a container; 2 is the lowest, 1024 what other processes' groups have."""
    oom_score: int = Field(default=500, ge=-1000, le=1000)
    """Added to a container's out-of-memory score: the higher, the sooner it goes when memory is short."""
    pids_limit: int = Field(default=1024, ge=8, le=4_194_304)
    """Processes and threads in a container."""
    container_disk: int = Field(default=2048, ge=16, le=16_777_216)
    """MB that a container may write outside of `/scratch`; above, it is stopped with the reason `disk`."""
    log_rate: float = Field(default=1.0, gt=0, le=10_000)
    """MB per second; a container that goes on writing more to its log is stopped with the reason `disk`."""
    scratch_size: int = Field(default=1024, ge=0, le=16_777_216)
    """MB of `/scratch`, which a slot keeps as long as its task; 0: no `/scratch`."""
    image_watermark: float | None = Field(default=None, gt=0, lt=100)
    """Percent of the disk in use above which images are removed that this agent pulled. Unset: never."""
    capabilities: _Listed[Annotated[str, AfterValidator(_capability)]] = ()
    """Capabilities that containers get back; all are dropped."""
    new_privileges: bool = False
    """Whether setuid programs in containers work."""
    mounts: _Listed[Annotated[str, AfterValidator(_mount)]] = ()
    """Directories of this machine that containers see, as `/here:/there:ro`."""
    network: str = Field(default="bridge", pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$")
    """The engine's network that containers join; `host` is this machine's own."""

    state_directory: FilePath | None = None
    """Where the last runs' logs are kept; default: /var/lib/gridnode for a service, else beside this file."""
    labels: dict[str, str] = Field(default_factory=dict, max_length=64)
    """Shown with the node in `GET /api/nodes`."""
    pull_timeout: float = Field(default=3600, ge=10, le=86_400)
    """Seconds that pulling an image may take."""
    log_format: Literal["text", "json"] = "text"
    """How the agent's own log is written."""

    @model_validator(mode="after")
    def _state_is_absolute(self) -> Self:
        if self.state_directory is not None and not self.state_directory.is_absolute():
            raise ValueError("state_directory: expected an absolute path")
        return self

    @property
    def token_warning(self) -> str | None:
        """What is wrong with a token that can be guessed. No error: it is the hub's to choose."""
        why = weakness(self.token) if self.token is not None else None
        return f"token: can be guessed, since it {why}; hubs of this release refuse it" if why else None

    @model_validator(mode="after")
    def _has_a_token(self) -> Self:
        if self.token is None and self.join_token is None:
            raise ValueError(
                "token: missing; set the hub's shared token here, or a join_token "
                "(`computehub token create --role join --ttl 24h` on the hub makes one)"
            )
        return self


def write_back(path: Path, node_id: str, token: str | None = None) -> None:
    """Put what the hub has assigned into the file, everything else as it stands, comments too.

    One write for both, atomic, mode 0600. Without a token, that line stays as it is.

    Raises:
        OSError: the directory cannot be written.
        ConfigError: the file cannot be read, or is not TOML any more.
    """
    try:
        document = tomlkit.parse(read_text(path))
    except TOMLKitError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    document["node_id"] = node_id
    if token is not None:
        document["token"] = token
    write_private(path, tomlkit.dumps(document))


def example(server: str = "http://192.168.1.100:8080", join_token: str | None = None) -> str:
    """A commented first configuration file; with a join token it needs no other.

    Raises:
        ConfigError: that is none, or the server is no address.
    """
    try:
        address = tomlkit.string(_hub_address(server)).as_string()
    except ValueError as error:
        raise ConfigError(f"--server: {error} (got {server!r:.80})") from None
    if join_token is None:
        tokens = f"""\
token = "{PASTE_HERE}"   # the same as in the hub's computehub.toml
# join_token = "…"         # or, in place of the token, a short-lived one that gets this node its own
"""
    else:
        try:
            _token(join_token)
        except ValueError as error:
            raise ConfigError(f"join token: {error}") from None
        tokens = f"""\
join_token = {json.dumps(join_token)}   # short-lived; gets this node its own
# token = "…"              # this node's own, assigned by the hub and written here
"""
    return f"""\
# GridNode: this machine's part of the grid. `gridnode --check` tells whether this file is good.

server_url = {address}   # the hub
{tokens}# ca_file = "/…/ca.pem"     # for https: the hub's CA, where this system does not know it

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
# gpu_count = 1            # GPUs that tasks may use; detected

# Your terms: the hub cannot loosen any of them.
# allowed_images = ["registry.example.org/*"]   # anything else is refused
# hours = "22:00-07:00"    # local time in which containers run
# cpus = 2                 # how many CPUs tasks may use, or which: "0-3,6"
# freeze_max = 600         # s that `gridnode pause` freezes containers before it stops them
# yield_load = 1.5         # freeze containers while others' load is above this
# container_disk = 2048    # MB that a container may write
# scratch_size = 1024      # MB of /scratch, which a slot keeps as long as its task
# image_watermark = 80     # % of the disk in use above which images that the agent pulled are removed
# What containers may not do unless you say so here: docs/configuration-agent.md.

# log_format = "json"      # the agent's own log: "text" or "json"

# [labels]                 # shown with this node in GET /api/nodes
# room = "cellar"
"""
