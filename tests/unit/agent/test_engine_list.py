"""What of the engine's list is ours: labels and name together tell."""

from __future__ import annotations

import json

import pytest

from agent.engine_list import MOST_NAMED, Row, _signal, twin_warning


def row(name: str, task: str = "squares", instance: str = "1", owner: str = "us") -> Row:
    return Row.of(json.dumps(["c1", name, "running", owner, task, instance]))


@pytest.mark.parametrize(
    "name", ["idm-squares-n1-1", "idm-squares-an-older-id-1", "other/x,idm-squares-n1-1"]
)
def test_labels_and_name_that_agree_make_a_container_ours(name: str) -> None:
    assert row(name).is_of("us")
    assert not row(name).is_of("them")


@pytest.mark.parametrize(
    "name", ["my-debugging", "idm-squares-n1-0", "idm-cubes-n1-1", "idm-squares--1", "idm-squares-1", ""]
)
def test_inherited_labels_alone_do_not(name: str) -> None:
    assert not row(name).is_of("us")


def test_a_container_without_all_labels_is_nobodys() -> None:
    assert not row("idm--n1-1", task="").is_of("us")
    assert not row("idm-squares-n1-", instance="").is_of("us")


@pytest.mark.parametrize(
    ("named", "sent"),
    [
        ("SIGINT", "INT"),
        ("QUIT", "QUIT"),
        ("SIGRTMIN+3", "RTMIN+3"),
        ("2", "2"),
        ("sigint", "INT"),
        ("015", "15"),
        ("rtmin+3", "RTMIN+3"),
        ("65", "TERM"),
        ("0", "TERM"),
        ("9" * 40, "TERM"),
        ("FOO", "TERM"),
        ("RTMIN+40", "TERM"),
        ("", "TERM"),
        (None, "TERM"),
        ("--help", "TERM"),
        ("INT; rm", "TERM"),
    ],
)
def test_a_container_is_stopped_by_what_its_image_names(named: str | None, sent: str) -> None:
    assert _signal(named) == sent


def test_another_agents_containers_are_told_of_where_they_carry_this_nodes_id() -> None:
    others = [row("idm-squares-n1-1", owner="them"), row("idm-squares-n2-1", owner="them")]
    (told,) = twin_warning(others, "n1")
    assert told.endswith("docker rm -f idm-squares-n1-1")
    assert twin_warning(others, "n3") == twin_warning(others, None) == twin_warning([], "n1") == ()


def test_a_warning_names_some_of_many() -> None:
    many = [row(f"idm-squares-n1-{i}", instance=str(i), owner="them") for i in range(MOST_NAMED + 1)]
    (told,) = twin_warning(many, "n1")
    assert told.count("idm-squares") == MOST_NAMED
    assert told.endswith("…")
