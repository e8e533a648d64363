"""`[[notify]]` in `computehub.toml`: who is told of what."""

from __future__ import annotations

import re
import ssl
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from gridcore.config import FilePath
from gridcore.errors import ConfigError
from gridcore.weak_tokens import MAKE_ONE, weakness

_URL = re.compile(r"https?://[!-~]+", re.ASCII | re.IGNORECASE)


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = bool(_URL.fullmatch(url) and parts.hostname and (parts.port is None or parts.port > 0))
    except ValueError:
        usable = False
    if not usable:
        raise ValueError("expected http://… or https://… with a host")
    return url


def _check_signing(secret: str) -> str:
    if why := weakness(secret):
        raise ValueError(f"can be guessed, since it {why}; {MAKE_ONE}")
    return secret


class NotifyTarget(BaseModel):
    """One table: a URL that gets a POST for each of these events."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: Annotated[str, AfterValidator(_check_url)] = Field(repr=False)
    """`http` or `https`. It may hold a secret, as those of chats do: it is shown nowhere."""

    events: tuple[Literal["queue-empty", "task-failing", "nodes-gone", "canary", "*"], ...] = Field(
        default=("*",), min_length=1
    )
    """Which; `*` is all of them."""

    min_interval: float = Field(default=300, ge=0, le=604_800)
    """Seconds between two messages of the same kind; what comes sooner waits, and becomes one message."""

    share: float = Field(default=0.2, ge=0, lt=1)
    """For `task-failing`: the part of the Online nodes above which a task is failing."""

    secret: Annotated[str, AfterValidator(_check_signing)] | None = Field(default=None, repr=False)
    """Signs each message, so that the receiver knows who sent it."""

    secret_file: FilePath | None = None
    """A file with the secret, in its place."""

    ca_file: FilePath | None = None
    """PEM file of the authority behind the receiver's certificate, where the machine does not know it."""

    @model_validator(mode="after")
    def _check_secret(self) -> Self:
        if self.secret is not None and self.secret_file is not None:
            raise ValueError("secret and secret_file: give one of them, not both")
        return self

    @property
    def name(self) -> str:
        """The URL as far as it is no secret: scheme, host and port."""
        parts = urlsplit(self.url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")

    def wants(self, event: str, share: float | None) -> bool:
        """Whether this event is for this target; `share` is the one that was exceeded, if one was."""
        return ("*" in self.events or event in self.events) and share in (None, self.share)

    def key(self) -> bytes | None:
        """The secret, from wherever it is. Raises ConfigError."""
        if self.secret_file is None:
            return self.secret.encode() if self.secret is not None else None
        try:
            key = self.secret_file.read_bytes().strip()
        except OSError as error:
            raise ConfigError(
                f"notify: secret_file: {self.secret_file} cannot be read: {error.strerror}"
            ) from None
        if why := weakness(key.decode("latin-1")):
            raise ConfigError(f"notify: secret_file: what {self.secret_file} holds {why}; {MAKE_ONE}")
        return key

    def context(self) -> ssl.SSLContext | None:
        """Whom to trust, where that is not the machine's default. Raises ConfigError."""
        if self.ca_file is None:
            return None
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            reason = error.strerror if not isinstance(error, ssl.SSLError) else "no certificate in PEM form"
            raise ConfigError(f"notify: ca_file: {self.ca_file} cannot be read: {reason}") from None
