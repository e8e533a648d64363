"""`gridnode status`: everything an owner asks for, no secret, and nothing that commands a terminal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from agent.reasons import Reason
from agent.report import Report, SlotReport
from agent.runs import Run
from agent.settings import Settings
from agent.status import render, span, status_of
from agent.terms import Permit

NOW = 1_800_000_000.0
FAILED = Run(
    instance=11,
    task="squares",
    generation="7-9f3c",
    container="c0ffee",
    image="squares:1",
    kind="failed",
    exit_code=3,
    message="exit code 3: redis://u:hunter2@q/0 refused\n\x1b[31mred\x07",
    started=NOW - 200,
    ended=NOW - 180,
)
REPORT = Report(
    status="Running",
    active_containers=2,
    task="squares",
    generation="7-9f3c",
    reason=None,
    slots=(
        SlotReport(0, 0, "running", 0, NOW - 7500),
        SlotReport(11, 3, "waiting", 12, None, FAILED),
    ),
    warnings=("memory limits are not enforced",),
)


def settings_of(**values: object) -> Settings:
    return Settings.model_validate(
        {"server_url": "http://me:hunter2@hub:8080", "token": "t0ken-of-the-fleet", **values}
    )


def test_an_owner_reads_what_his_node_does() -> None:
    status = status_of(
        REPORT,
        settings_of(hours="22:00-07:00", allowed_images=["a/*", "b/*"], cpus=2, yield_load=1.5),
        Permit(),
        node_id="n1",
        away=None,
        errors=[(90, "failed", "exit code 3", 11), (5, "registry-away", "no route\n to it", None)],
        now=NOW,
    )
    text = render(status)
    for part in (
        "http://me:***@hub:8080 answers",
        "Running, 2 containers at work",
        "squares",
        "22:00-07:00",
        "a/*, b/*",
        "2 of them",
        "frozen while others' load is above 1.5",
        "memory limits are not enforced",
        "2 h 5 min",
        "failed 3 min ago, after 20 s: exit code 3: redis://u:***@q/0 refused ?[31mred?",
        "5 s ago  registry-away: no route to it",
        "90 s ago  slot 11: failed: exit code 3",
    ):
        assert part in text
    rows = [line for line in text.splitlines() if line.startswith(("slot", "0 ", "11"))]
    assert (
        len({line.index(word) for line, word in zip(rows, ("state", "running", "waiting"), strict=True)}) == 1
    )
    assert text.index("registry-away") < text.index("slot 11: failed")


def test_why_nothing_runs_is_said() -> None:
    idle = replace(
        REPORT,
        status="Idle",
        active_containers=0,
        slots=(),
        paused=True,
        reason=Reason("owner", "paused by its owner"),
    )
    permit = Permit(freeze="paused by its owner", paused=True)
    status = status_of(
        idle,
        settings_of(),
        permit,
        node_id=None,
        away="no connection",
        away_for=7200,
        paused_for=130,
        now=NOW,
    )
    assert (status["reason"], status["reason_kind"]) == ("paused by its owner", "owner")
    text = render(status)
    for part in (
        "not registered yet",
        "does not answer for 2 h: no connection",
        "Idle, 0 containers at work",
        "why         paused by its owner",
        "yes for 2 min; `gridnode resume` goes on",
        "containers are frozen: paused by its owner",
        "always",
        "any",
    ):
        assert part in text


def test_what_the_owner_loosened_shows() -> None:
    assert "loosened" not in render(
        status_of(Report(), settings_of(), Permit(), node_id="n", away=None, now=NOW)
    )
    settings = settings_of(
        network="host", mounts=["/data:/data:ro"], capabilities=["NET_RAW"], new_privileges=True
    )
    text = render(status_of(Report(), settings, Permit(refuse="x"), node_id="n", away=None, now=NOW))
    for part in ("network: host", "mounts: /data:/data:ro", "capabilities: NET_RAW", "new_privileges: True"):
        assert part in text
    assert "no containers: x" in text


def test_no_secret_is_in_it_and_it_is_json(tmp_path: Path) -> None:
    status = status_of(
        replace(REPORT, reason=Reason("failed", "redis://u:hunter2@q is away")),
        settings_of(),
        Permit(),
        node_id="n1",
        away="http://me:hunter2@hub:8080: refused",
        errors=[(1, "k", "redis://u:hunter2@q", 0)],
        now=NOW,
    )
    text = json.dumps(status) + render(status)
    assert "hunter2" not in text
    assert "t0ken-of-the-fleet" not in text
    slot = json.loads(json.dumps(status))["slots"][1]
    assert (slot["instance"], slot["last_exit"]["exit_code"], slot["last_exit"]["ago"]) == (11, 3, 180)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (99, "99 s"),
        (100, "1 min"),
        (5999, "99 min"),
        (6000, "1 h 40 min"),
        (7200, "2 h"),
        (200_000, "2 d 7 h"),
        (86_400 * 3, "3 d"),
    ],
)
def test_spans_are_as_exact_as_people_want(seconds: float, text: str) -> None:
    assert span(seconds) == text
