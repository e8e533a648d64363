"""What can go wrong between a program of ours and its surroundings.

GridCoreError
├── ConfigError          a configuration file, key or value is bad        (exit code 78)
└── HubError             the hub did not do what was asked
    ├── HubUnreachable   no connection, a time-out, 5xx, or not our protocol: try again later
    ├── HubRejectedToken 401 or 403: try again, slowly, and say so
    └── HubRefused       any other 4xx: asking again the same way will not help
"""

from __future__ import annotations

EXIT_CONFIG = 78
"""EX_CONFIG of sysexits.h: systemd does not restart a service that ends with it."""

EXIT_HANDOVER = 75
"""EX_TEMPFAIL: the agent left its containers running for the next agent to adopt."""


class GridCoreError(Exception):
    """The root of our errors; its text is one line, made for the person who reads it."""


class ConfigError(GridCoreError):
    """A configuration that cannot be used: the text names the file, the key and what was expected."""


class HubError(GridCoreError):
    """The hub did not do what was asked."""

    kind = "hub"
    """What went wrong, for programs: `unreachable`, `token-rejected`, `refused`."""
    retry_after: float | None = None
    """Seconds that the hub wants to be left alone, where it says so."""


class HubUnreachable(HubError):
    """Nothing useful came back: no connection, a time-out, a 5xx, or an answer that is not the protocol.

    `silent`: no connection was made, so perhaps no hub runs there.
    """

    def __init__(self, text: str, *, silent: bool = False) -> None:
        super().__init__(text)
        self.silent = silent

    kind = "unreachable"


class HubRejectedToken(HubError):
    """The hub does not accept this token."""

    kind = "token-rejected"


class HubRefused(HubError):
    """The hub understood the request and said no.

    `status` is the HTTP status; `problem` the decoded problem+json body, `{}` where there is none.
    """

    kind = "refused"

    def __init__(self, status: int, detail: str, problem: dict[str, object] | None = None) -> None:
        super().__init__(detail)
        self.status = status
        self.problem = problem or {}
