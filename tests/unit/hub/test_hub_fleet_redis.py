"""The fleet's Redis by its name: which names there are, and what stands in their place."""

from __future__ import annotations

from typing import Any

import pytest

from gridcore.protocol import TaskDefinition
from hub import fleet_redis
from hub.errors import InvalidFields
from hub.redaction import hiding
from hub.tasklist import TaskList

URL = "redis://me:p%2Fw-of-the-fleet@10.0.0.1:6380/1"


def task(**fields: Any) -> TaskDefinition:
    return TaskDefinition(name="t", image="x:1", **fields)


@pytest.mark.parametrize(
    ("value", "url"),
    [
        ("fleet", URL),
        ("fleet:/12", "redis://me:p%2Fw-of-the-fleet@10.0.0.1:6380/12"),
        ("redis://10.0.0.2/0", "redis://10.0.0.2/0"),
        (None, None),
    ],
)
def test_a_name_is_replaced_and_a_url_stays(value: str | None, url: str | None) -> None:
    definition = task(input_redis=value, output_redis="redis://other")
    given = fleet_redis.resolve(definition, URL)
    assert (given.input_redis, given.output_redis) == (url, "redis://other")
    assert fleet_redis.uses(definition) == (value != url)
    assert fleet_redis.resolve(definition, None).input_redis != "fleet"


@pytest.mark.parametrize("value", ["fleet:", "fleet:2", "fleet:/x", "fleet://host"])
def test_what_only_looks_like_a_name_is_refused(value: str) -> None:
    with pytest.raises(InvalidFields) as caught:
        fleet_redis.check(task(output_redis=value), URL)
    assert [error["field"] for error in caught.value.errors] == ["output_redis"]


def test_its_password_is_hidden_in_what_nodes_say() -> None:
    tasks = TaskList.empty(1).with_fleet_redis(URL, 2, 0.0)
    assert hiding(tasks)("AUTH p/w-of-the-fleet and p%2Fw-of-the-fleet") == "AUTH *** and ***"
