"""What docker writes to standard error, told as what the operator can do."""

from __future__ import annotations

import pytest

from agent.engine_errors import translate
from agent.errors import EngineTimeout, EngineUnreachable

DAEMON = "Error response from daemon: "


@pytest.mark.parametrize(
    ("stderr", "kind", "permanent"),
    [
        ("manifest for r:5000/x:1 not found: manifest unknown", "image-not-found", True),
        ("no matching manifest for linux/amd64 in the manifest list entries", "wrong-platform", True),
        ("pull access denied for x, repository does not exist or may require login", "image-not-found", True),
        ("Head http://r/v2/x/manifests/1: no basic auth credentials", "image-denied", True),
        ("dial tcp 10.0.0.1:5000: connect: connection refused", "registry-away", False),
        ("Get https://r/v2/: net/http: TLS handshake timeout", "registry-away", False),
        ("failed to register layer: write /x: no space left on device.", "disk-full", False),
        ('Conflict. The container name "/a" is already in use by container "b".', "name-taken", False),
        ("something new", "failed", False),
    ],
)
def test_kinds(stderr: str, kind: str, permanent: bool) -> None:
    error = translate(1, DAEMON + stderr, "pulling x")
    assert (error.kind, error.permanent) == (kind, permanent)
    assert str(error).startswith("pulling x: ")
    assert "Error response from daemon" not in str(error)


def test_a_daemon_that_is_away_is_told_apart_from_one_that_hangs() -> None:
    away = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    assert isinstance(translate(1, away, "listing"), EngineUnreachable)
    denied = "permission denied while trying to connect to the Docker daemon socket"
    assert "group `docker`" in str(translate(1, denied, "listing"))
    assert isinstance(translate(124, "", "listing"), EngineTimeout)
