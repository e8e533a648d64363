"""What docker writes to standard error, told as what the operator can do."""

from __future__ import annotations

import pytest

from agent.engine_errors import Stage, not_pulled, not_started, translate
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
        ("dial tcp 10.0.0.1:5000: connect: no route to host", "registry-away", False),
        (
            'Get "https://r:5000/v2/": http: server gave HTTP response to HTTPS client',
            "registry-not-trusted",
            False,
        ),
        (
            'Get "https://r:5000/v2/": tls: failed to verify certificate: x509: certificate signed by unknown'
            " authority",
            "registry-not-trusted",
            False,
        ),
        ("failed to register layer: write /x: no space left on device.", "disk-full", False),
        ("something new", "failed", False),
    ],
)
def test_kinds(stderr: str, kind: str, permanent: bool) -> None:
    error = not_pulled(1, DAEMON + stderr, "pulling x")
    assert (error.kind, error.permanent) == (kind, permanent)
    assert str(error).startswith("pulling x: ")
    assert "Error response from daemon" not in str(error)


NO_PARSER = (
    "docker: Error response from daemon: AppArmor enabled on system but the docker-default profile could not "
    "be loaded: error: exec: \"apparmor_parser\": executable file not found in $PATH.\n\nRun 'docker run'"
)


@pytest.mark.parametrize(
    ("stage", "stderr", "kind", "says"),
    [
        (Stage.START, NO_PARSER, "not-started", "install the package `apparmor` on this node"),
        (Stage.START, "OCI runtime create failed", "not-started", "`gridnode check` on the node"),
        (Stage.START, "fork/exec runc: no such file or directory: unknown", "not-started", "fork/exec runc"),
        (Stage.START, "exec format error", "not-started", "exec format error"),
        (Stage.START, "unable to find user x: no matching entries", "not-started", "unable to find user x"),
        (Stage.START, 'could not select device driver "" with [[gpu]]', "no-gpu", "gpu_count = 0"),
        (Stage.START, "write /x: no space left on device", "disk-full", "free some disk space"),
        (Stage.CREATE, "Requested CPUs are not available", "not-created", "Requested CPUs"),
        (Stage.COMMAND, "No command specified", "no-command", "set the task's `command`"),
        (Stage.IMAGE, "anything at all", "no-image", "it is fetched again"),
        (Stage.NAME, 'Conflict. The container name "/a" is in use', "name-taken", "remove or rename it"),
    ],
)
def test_a_start_is_told_by_how_far_it_came(stage: Stage, stderr: str, kind: str, says: str) -> None:
    error = not_started(125, DAEMON + stderr, "starting x", stage)
    assert error.kind == kind
    assert says in str(error)
    assert str(error).startswith("starting x: ")


def test_a_daemon_that_is_away_is_told_apart_from_one_that_hangs() -> None:
    away = "Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?"
    assert isinstance(translate(1, away, "listing"), EngineUnreachable)
    denied = "permission denied while trying to connect to the Docker daemon socket"
    assert "group `docker`" in str(translate(1, denied, "listing"))
    for killed in (124, 137, -9):  # the last is what timeout(1) dies of with the client
        assert isinstance(translate(killed, "", "listing"), EngineTimeout)
    # What docker says when timeout(1) ends it while the daemon hangs.
    cut_off = 'error during connect: Get "http://%2Frun%2Fd.sock/v1.41/containers/x/json": '
    assert isinstance(translate(124, cut_off, "listing"), EngineTimeout)
    for said in ("\nRun 'docker run --help' for more information\n", "Error: failed to start containers: x"):
        assert isinstance(not_started(124, said, "starting x", Stage.START), EngineTimeout)


def test_what_the_engine_refuses_of_its_own_is_no_failed_container() -> None:
    said = "Error response from daemon: layer does not exist\n" * 2
    assert (translate(1, said, "listing").kind, str(translate(1, said, "listing"))) == (
        "engine",
        "listing: layer does not exist",
    )
