"""What operators may not see."""

from __future__ import annotations

import json
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridcore.masking import is_masked, mask_text, mask_url
from gridcore.protocol import TaskDefinition
from hub.errors import InvalidFields
from hub.tasklist import Task
from hub.views import refuse_masks, task_view


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("redis://:hidden@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://me:hidden@h", "redis://me:***@h"),
        ("rediss://me:hid@den@h", "rediss://me:***@h"),
        ("redis://:hid/den@h", "redis://:***@h"),
        ("redis://:hid den@h", "redis://:***@h"),
        ("me:hidden@h:6379", "me:***@h:6379"),
        ("redis://h:6379/0?password=hidden&db=1", "redis://h:6379/0?password=***&db=1"),
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("h:6379", "h:6379"),
        ("redis://me@h", "redis://me@h"),
    ],
)
def test_the_password_of_a_url_is_masked(url: str, masked: str) -> None:
    assert mask_url(url) == masked
    assert "hidden" not in mask_url(url)


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("no route to redis://:hidden@h:1 (timeout)", "no route to redis://:***@h:1 (timeout)"),
        ("--url=redis://a:hidden@h,redis://b:hidden@i", "--url=redis://a:***@i"),
        ("registry:5000/name:tag@sha256:abc", "registry:5000/name:tag@sha256:abc"),
        ("mail me@home: now", "mail me@home: now"),
    ],
)
def test_passwords_of_urls_in_other_text_are_masked(text: str, masked: str) -> None:
    assert mask_text(text) == masked


def test_no_secret_of_a_definition_is_in_its_view() -> None:
    definition = TaskDefinition(
        name="a",
        image="x:1",
        input_redis="redis://:hidden@h",
        output_redis="me:hidden@h",
        input_queue="amqp://me:hidden@h/queue",
        command=["--from", "redis://:hidden@h", "--verbose"],
        env={"KEY": "hidden", "EMPTY": ""},
    )
    view = task_view(Task(definition, added_at=0))
    assert "hidden" not in json.dumps(view)
    assert view["env"] == {"KEY": "***", "EMPTY": "***"}
    assert view["command"] == ["--from", "redis://:***@h", "--verbose"]
    copy = TaskDefinition.model_validate({name: view[name] for name in TaskDefinition.model_fields})
    with pytest.raises(InvalidFields) as refusal:
        refuse_masks(copy)
    assert {error["field"] for error in refusal.value.errors} == {
        "input_redis",
        "output_redis",
        "input_queue",
        "command.1",
        "env.KEY",
        "env.EMPTY",
    }


@pytest.mark.parametrize("text", ["a *** b", "grep ***", "x:1"])
def test_stars_elsewhere_are_no_mask(text: str) -> None:
    assert not is_masked(text)


@given(st.lists(st.sampled_from(("a://", "b:", "@", " ", "x", "/", ":", "me:pw@h", "\n", "é")), max_size=14))
def test_a_text_is_masked_as_the_pattern_says(pieces: list[str]) -> None:
    text = "".join(pieces)
    assert mask_text(text) == re.sub(r"([A-Za-z][A-Za-z0-9+.-]{0,31}://[^\s/:@]*:)\S*(?=@)", r"\1***", text)


@pytest.mark.parametrize("piece", ["a://b:", "a://b:x@", "x://y", "@", "?token=", "a"])
def test_a_log_of_a_megabyte_without_blanks_is_masked_at_once(piece: str) -> None:
    begun = time.monotonic()
    mask_text(piece * (1024 * 1024 // len(piece)) + "://@")
    assert time.monotonic() - begun < 2
