"""What the hub knows to be secret is hidden in what nodes send."""

from __future__ import annotations

from typing import Any

from gridcore.protocol import TaskDefinition
from hub.redaction import hiding
from hub.tasklist import TaskList


def tasks(**fields: Any) -> TaskList:
    definition = TaskDefinition.model_validate({"name": "a", "image": "x:1", **fields})
    return TaskList.empty(0).add(definition, 0, 0)[0]


def test_values_of_env_are_hidden_wherever_they_stand() -> None:
    hide = hiding(tasks(env={"KEY": "hunter2-hunter2", "LONGER": "hunter2-hunter2-and-more"}))
    assert hide("KEY=hunter2-hunter2;") == "KEY=***;"
    assert hide("'hunter2-hunter2-and-more'") == "'***'"


def test_short_values_stand_since_they_are_ordinary_words() -> None:
    assert hiding(tasks(env={"DEBUG": "true", "LEVEL": "3", "EMPTY": ""}))("true, 3") == "true, 3"


def test_the_passwords_of_the_tasks_urls_are_hidden_as_they_stand_and_as_programs_get_them() -> None:
    hide = hiding(tasks(input_redis="redis://me:p%40ss-word@h/0", output_redis="redis://h/1"))
    assert hide("AUTH p@ss-word") == "AUTH ***"
    assert hide("AUTH p%40ss-word") == "AUTH ***"
    assert hide("no route to redis://h/1") == "no route to redis://h/1"


def test_passwords_of_any_url_are_hidden_without_any_task() -> None:
    assert hiding(TaskList.empty(0))("amqp://me:secret@h") == "amqp://me:***@h"


def test_a_completed_task_still_has_secrets() -> None:
    done = tasks(env={"KEY": "hunter2"}).start_next(None, 0, 0)[0].finish(None, 0, 0)[0]
    assert hiding(done)("hunter2") == "***"
