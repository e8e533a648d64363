"""Hiding in what nodes send the secrets that the hub itself handed out with its tasks.

Messages and logs are written by programs that know the tasks' passwords. In URLs they are found by their
place; elsewhere only by what they are, and the hub knows that, since all of it came through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from urllib.parse import unquote

from gridcore.masking import mask_values, url_password
from gridcore.protocol import TaskDefinition
from hub.tasklist import TaskList

Hide = Callable[[str], str]


def hiding(tasks: TaskList) -> Hide:
    """What hides the secrets of all tasks in a text; of completed ones, too, since their logs are kept."""
    secrets = {secret for task in tasks.tasks for secret in secrets_of(task.definition)}
    return partial(mask_values, secrets=secrets)


def secrets_of(definition: TaskDefinition) -> Iterator[str]:
    """All values of `env`, and the passwords in its URLs, as they stand there and as programs get them."""
    yield from (definition.env or {}).values()
    for url in (definition.input_redis, definition.output_redis):
        password = url_password(url) if url else None
        if password:
            yield password
            yield unquote(password)
