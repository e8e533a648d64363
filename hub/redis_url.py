"""Where the state's Redis is: the URL that `state` holds, and what can stand in it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote, urlsplit

Form = Literal["direct", "sentinel", "cluster"]

PORTS: dict[Form, int] = {"direct": 6379, "sentinel": 26379, "cluster": 6379}
"""Where nothing else is said."""

_SCHEME = re.compile(r"redis(?P<tls>s?)(?:\+(?P<form>sentinel|cluster))?")
_HOST = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%]+\]|[^\[\]:/\s]+)(?::(?P<port>\d{1,5}))?", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OPTIONS = ("ca", "password_file", "sentinel_password_file", "prefix", "replicas")

EXPECTED = (
    "redis://host:6379/0, redis+sentinel://host:26379,host:26379/service or "
    "redis+cluster://host:6379,host:6379 (rediss… for TLS)"
)


@dataclass(frozen=True, slots=True)
class RedisTarget:
    """A Redis that several hubs share."""

    form: Form
    hosts: tuple[tuple[str, int], ...]
    """The server, the sentinels, or some nodes of the cluster."""
    tls: bool = False
    service: str = ""
    """The name by which sentinels know the master."""
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    password_file: Path | None = None
    sentinel_password_file: Path | None = None
    ca: Path | None = None
    """Certificates to trust; the system's where there is none."""
    prefix: str = "{gridcore}:"
    replicas: int = 0
    """Replicas that must have an operator's change before it is acknowledged."""

    @property
    def name(self) -> str:
        """For logs: without what is secret."""
        hosts = ",".join(f"{host}:{port}" for host, port in self.hosts)
        return f"{self.service} of {hosts}" if self.service else hosts


def parse_redis(url: str) -> RedisTarget | None:
    """What a URL names, or None if it is no Redis'.

    Raises:
        ValueError: it is one, but wrong; the text never holds what could be secret.
    """
    scheme, separator, rest = url.partition("://")
    match = _SCHEME.fullmatch(scheme.lower())
    if match is None or not separator:
        return None
    form: Form = match["form"] or "direct"  # type: ignore[assignment]  # the expression has these two
    try:
        parts = urlsplit(f"redis://{rest}")
    except ValueError:
        raise ValueError(f"no URL; expected {EXPECTED}") from None
    login, _, hosts = parts.netloc.rpartition("@")
    username, _, password = login.partition(":")
    service, database = _path(form, parts.path)
    options = _options(form, parts.query)
    if parts.fragment:
        raise ValueError("a # in the password or elsewhere must be written as %23")
    ca = options.get("ca")
    if ca and not match["tls"]:
        raise ValueError("ca is for TLS: write rediss://")
    if password and "password_file" in options:
        raise ValueError("give the password or password_file, not both")
    prefix = options.get("prefix", "gridcore")
    if not _NAME.fullmatch(prefix):
        raise ValueError("prefix: expected letters, digits, _, . and -")
    return RedisTarget(
        form,
        _hosts(form, hosts),
        tls=bool(match["tls"]),
        service=service,
        database=database,
        username=unquote(username) or None,
        password=unquote(password) or None,
        password_file=_path_of(options, "password_file"),
        sentinel_password_file=_path_of(options, "sentinel_password_file"),
        ca=Path(ca) if ca else None,
        prefix=f"{{{prefix}}}:",
        replicas=_replicas(form, options),
    )


def _hosts(form: Form, text: str) -> tuple[tuple[str, int], ...]:
    found = []
    for part in text.split(","):
        match = _HOST.fullmatch(part)
        if match is None or not 0 < int(match["port"] or PORTS[form]) < 65_536:
            raise ValueError(f"expected HOST:PORT after the :// and the @; that is, {EXPECTED}")
        found.append((match["host"].strip("[]"), int(match["port"] or PORTS[form])))
    if form == "direct" and len(found) > 1:
        raise ValueError(f"redis:// names one server; for several, expected {EXPECTED}")
    return tuple(found)


def _path(form: Form, path: str) -> tuple[str, int]:
    """The service and the database."""
    words = [word for word in path.split("/") if word]
    service = words.pop(0) if form == "sentinel" and words else ""
    if form == "sentinel" and not _NAME.fullmatch(service):
        raise ValueError("expected the master's name after the sentinels: redis+sentinel://host:26379/NAME")
    if form == "cluster" and words and words != ["0"]:
        raise ValueError("a Redis Cluster has no databases: leave the path away")
    if len(words) > 1 or not all(word.isascii() and word.isdigit() and len(word) < 6 for word in words):
        raise ValueError("expected the number of a database as the path's last part, such as /0")
    return service, int(words[0]) if words else 0


def _options(form: Form, query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise ValueError(f"unknown option {unknown[0][:40]}; known are {', '.join(_OPTIONS)}")
    empty = [name for name, value in options.items() if not value]
    if empty:
        raise ValueError(f"option {empty[0]} is empty")
    if form != "sentinel" and "sentinel_password_file" in options:
        raise ValueError("sentinel_password_file is for redis+sentinel://")
    return options


def _replicas(form: Form, options: dict[str, str]) -> int:
    text = options.get("replicas", "1" if form == "sentinel" else "0")
    if not (text.isascii() and text.isdigit() and int(text) <= 9):
        raise ValueError("replicas: expected a number from 0 to 9")
    return int(text)


def _path_of(options: dict[str, str], name: str) -> Path | None:
    return Path(options[name]) if name in options else None
