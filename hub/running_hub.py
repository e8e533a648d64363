"""The hub that runs, as its own command line finds it: by the configuration that it was started with."""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gridcore import config
from gridcore.errors import ConfigError, HubRefused, HubRejectedToken, HubUnreachable
from gridcore.trust import Names, Trust
from hub.certificates import first_of
from hub.settings import FILE_NAME, HubSettings

if TYPE_CHECKING:
    from gridcore.client import Request, Response

TOKEN_VARIABLE = config.variable_of("token")

_ANY_ADDRESS = {"0.0.0.0": "127.0.0.1", "::": "127.0.0.1"}  # noqa: S104  the hub's, not ours to listen on


OPTIONS = Names("--url", "--ca-file")


class OwnCertificate(Trust):
    """Believes the hub's own certificate and no other, whatever name is in it: it is asked by address."""

    def __init__(self, certificate: Path) -> None:
        super().__init__(names=OPTIONS)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        text = config.read_text(certificate)
        try:
            context.load_verify_locations(cadata=first_of(text))
        except (ssl.SSLError, ValueError):
            raise ConfigError(f"tls_certificate: {certificate} holds no certificate") from None
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        self._own = context

    @property
    def context(self) -> ssl.SSLContext:
        return self._own


@dataclass(frozen=True, slots=True)
class RunningHub:
    """Where the hub is, and what opens it."""

    url: str
    token: str = field(repr=False)
    trust: Trust = field(default_factory=Trust, repr=False)

    def ask(self, method: str, path: str, body: Any = None, query: Mapping[str, str] | None = None) -> Any:
        """The answer's JSON, or None where it has no body.

        Raises:
            HubUnreachable: nothing useful came back.
            HubRejectedToken: the hub does not take the token, or the token does not allow this.
            HubRefused: the hub said no.
        """
        from gridcore.client import Request  # slow, and whoever asks nothing does without

        answer = asyncio.run(self._exchange(Request(method, path, body, query or {}, token=self.token)))
        value = _json(answer)
        if 200 <= answer.status < 300:
            return value
        problem = value if isinstance(value, dict) else {}
        detail = " ".join(
            [str(problem.get("detail") or f"the hub answered {answer.status}"), *_fields(problem)]
        )
        if answer.status in (401, 403):
            raise HubRejectedToken(f"{self.url} answered {answer.status}: {detail}")
        if 400 <= answer.status < 500:
            raise HubRefused(answer.status, detail, problem)
        raise HubUnreachable(f"{self.url}: {detail}")

    async def _exchange(self, request: Request) -> Response:
        from gridcore.client import AiohttpTransport

        async with AiohttpTransport(self.url, self.trust) as transport:
            return await transport(request)


def find_hub(
    config_path: Path | None, url: str | None, token_file: str | None, ca_file: Path | None
) -> RunningHub:
    """The hub of these options; what they leave out says the configuration file. Raises ConfigError."""
    token = _read_token(token_file) if token_file else _token_of_environment()
    settings = None if url and token else _load(config_path)
    if not token:
        assert settings is not None  # noqa: S101  else there was a token
        token = settings.token
    try:
        given = Trust(ca_file, OPTIONS)
    except ValueError as error:
        raise ConfigError(f"--ca-file: {ca_file}: {error}") from None
    if url is not None:
        if not url.startswith(("http://", "https://")):
            raise ConfigError("--url: expected http://HOST:PORT or https://HOST:PORT")
        return RunningHub(url, token, given)
    assert settings is not None  # noqa: S101  else there was a URL
    certificate = settings.tls_certificate
    trust = OwnCertificate(certificate) if certificate is not None and ca_file is None else given
    return RunningHub(url_of(settings), token, trust)


def url_of(settings: HubSettings) -> str:
    """Where a hub with these settings can be asked from its own machine. Raises ConfigError."""
    host, port = settings.address
    if port == 0:
        raise ConfigError("bind: port 0 is another one each time; say with --url where the hub is")
    host = _ANY_ADDRESS.get(host, host)
    scheme = "http" if settings.tls_certificate is None else "https"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def _load(config_path: Path | None) -> HubSettings:
    path = config.find(FILE_NAME, config_path)
    if path is None:
        raise ConfigError(
            f"There is no {FILE_NAME} that says where the hub is. Run this as the hub's user on its machine, "
            f"or give --url and --token-file (or {TOKEN_VARIABLE} in the environment)."
        )
    return config.load(HubSettings, path)


def _read_token(file: str) -> str:
    text = sys.stdin.readline() if file == "-" else config.read_text(Path(file))
    token = text.strip()
    if not token or not _can_be_sent(token):
        raise ConfigError(f"--token-file: {file} holds no token: expected one line of printable ASCII")
    return token


def _token_of_environment() -> str | None:
    token: str | None = config.read_variable(HubSettings, "token")
    if token is not None and not _can_be_sent(token):
        raise ConfigError(f"{TOKEN_VARIABLE} (environment): expected printable ASCII without blanks")
    return token


def _can_be_sent(token: str) -> bool:
    return all("!" <= character <= "~" for character in token)


def _json(answer: Response) -> Any:
    if not answer.body:
        return None
    try:
        return json.loads(answer.body)
    except (ValueError, RecursionError):
        raise HubUnreachable("what answers there is no ComputeHub; is the address right?") from None


def _fields(problem: Mapping[str, Any]) -> list[str]:
    """What an `invalid-fields` says of each field."""
    errors = problem.get("errors")
    found = [error for error in errors if isinstance(error, dict)] if isinstance(errors, list) else []
    return [f"{error.get('field')}: {error.get('message')}." for error in found]
