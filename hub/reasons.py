"""Why another program could not be spoken to, in words of ours: short, and without what is secret.

Decided by what an exception is and what it holds, never by its text: libraries write theirs for those who
debug them, some with whole objects in it.
"""

from __future__ import annotations

import os
import socket
import ssl

from redis import exceptions

from gridcore.trust import Doubt, doubt_of

LONGEST = 200
"""Characters of a text that is not ours."""

DOUBTS = {
    Doubt.NOT_YET: "its certificate is not valid yet (is this machine's clock right?)",
    Doubt.EXPIRED: "its certificate has expired",
    Doubt.UNKNOWN_SIGNER: "its certificate is not signed by an authority that is trusted here",
    Doubt.OTHER_NAME: "its certificate does not have the name or address by which it was asked",
}

ANSWERS: tuple[tuple[type[Exception], str], ...] = (
    (exceptions.AuthenticationWrongNumberOfArgsError, "it refuses the login"),
    (exceptions.AuthenticationError, "it refuses the login"),
    (exceptions.BusyLoadingError, "it still loads its data"),
    (exceptions.ReadOnlyError, "it is a replica, and cannot be written to"),
    (exceptions.MasterDownError, "it is a replica that has lost its master"),
    (exceptions.MovedError, "its slot has moved to another node of the cluster"),
    (exceptions.AskError, "its slot is moving to another node of the cluster"),
    (exceptions.ClusterDownError, "the cluster is down"),
    (exceptions.MaxConnectionsError, "it has no connection left"),
    (exceptions.NoScriptError, "it lacks the hub's scripts (a restart, or SCRIPT FLUSH)"),
)
"""What a Redis says."""

CODES = {
    "MISCONF": "it cannot save to its disk, and takes no changes until it can (see that disk, and its log)",
    "NOREPLICAS": "it takes no changes while so few replicas follow it (min-replicas-to-write)",
    "BUSY": "somebody's script runs in it for too long (SCRIPT KILL ends it)",
}
"""The same where there is no class: by Redis' code, which is the first word."""


def reason_of(error: BaseException) -> str:
    """Why it failed, in some words that go after a name and a colon."""
    below = cause_of(error)
    for kind, text in ANSWERS:
        if isinstance(error, kind):
            return text
    if isinstance(below, ssl.SSLCertVerificationError):
        doubt = doubt_of(below)
        return DOUBTS.get(doubt) or f"its certificate is refused: {_cut(below.verify_message)}"
    if isinstance(below, ssl.SSLError):
        return f"TLS failed: {_cut(below.reason or type(below).__name__)}"
    if isinstance(below, socket.gaierror):
        return "its name is not known here"
    if isinstance(error, exceptions.TimeoutError | TimeoutError) or isinstance(below, TimeoutError):
        return "it does not answer in time"
    if isinstance(below, OSError) and below.errno:
        return os.strerror(below.errno).lower()
    if isinstance(error, exceptions.RedisClusterException):
        return "no node of the cluster answers"
    if isinstance(error, exceptions.ResponseError):
        text = str(error)
        return CODES.get(text.partition(" ")[0]) or f"it answers: {_cut(text)}"
    if isinstance(error, exceptions.ConnectionError | OSError | EOFError):
        return "no connection, or it was lost"
    return type(error).__name__


def cause_of(error: BaseException) -> BaseException:
    """What is at the bottom of an error."""
    below = error.__cause__ or error.__context__
    return error if below is None else cause_of(below)


def _cut(text: str) -> str:
    line = text.splitlines()[0] if text else ""
    return line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…"
