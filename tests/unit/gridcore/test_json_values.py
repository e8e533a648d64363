"""What JSON can say and nothing can hold is found, wherever it stands, and told in valid text."""

from __future__ import annotations

import json

import pytest

from gridcore.json_values import HALF, LONGEST_PLACE, MOST_FAULTS, TWICE, find_faults, printable, read_json

DEEP = 900


@pytest.mark.parametrize(
    ("text", "faults"),
    [
        ('{"a": "\\ud83d\\ude00", "b": "ä", "c": [1, null, "x"]}', []),
        ('{"a": "\\ud83d"}', [("a", HALF)]),
        ('{"a": "x\\udc00y"}', [("a", HALF)]),
        ('{"env": {"A": "\\ud800"}, "command": ["", "\\ud800"]}', [("env.A", HALF), ("command.1", HALF)]),
        ('{"env": {"\\ud800": "x"}}', [("env.\\ud800", f"the name {HALF}")]),
        ('["\\ud800"]', [("0", HALF)]),
        ('"\\ud800"', [("(body)", HALF)]),
        ('{"a": 1, "a": 1}', [("a", TWICE)]),
        ('{"a": {"b": 1, "b": 2, "b": 3, "c": 1}, "a\\u0062": 1}', [("a.b", TWICE)]),
        ('{"a": 1, "\\u0061": 2}', [("a", TWICE)]),
        ('[{"x": [{"y": 1, "y": 2}]}]', [("0.x.0.y", TWICE)]),
    ],
)  # fmt: skip
def test_faults_are_found_where_they_are(text: str, faults: list[tuple[str, str]]) -> None:
    found = find_faults(read_json(text))
    assert found == faults
    json.dumps([fault._asdict() for fault in found], ensure_ascii=False).encode()


def test_of_a_name_given_twice_the_last_one_counts_where_it_may() -> None:
    value = read_json('{"a": 1, "a": 2}')
    assert (value, find_faults(value, may_repeat=True)) == ({"a": 2}, [])


def test_depth_costs_no_stack_and_there_is_an_end_to_what_is_told() -> None:
    (deep,) = find_faults(read_json("[" * DEEP + '"\\ud800"' + "]" * DEEP))
    assert (deep.message, len(deep.field) <= LONGEST_PLACE + 81) == (HALF, True)
    assert len(find_faults(["\ud800"] * 1_000)) == MOST_FAULTS


def test_half_a_character_is_shown_as_it_was_written() -> None:
    assert printable("a\ud800ä") == "a\\ud800ä"
