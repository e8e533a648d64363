"""Hiding in what nodes send the secrets that the hub itself handed out with its tasks.

Messages and logs are written by programs that know the tasks' passwords. In URLs they are found by their
place; elsewhere only by what they are, and the hub knows that, since all of it came through here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from urllib.parse import unquote

from gridcore.masking import SHORTEST_SECRET, mask_text, url_password
from gridcore.protocol import MASK, TaskDefinition
from hub.tasklist import TaskList

Hide = Callable[[str], str]


def hiding(tasks: TaskList) -> Hide:
    """What hides the secrets of all tasks in a text; of completed ones and of former definitions, too, since
    their logs are kept."""
    definitions = (definition for task in tasks.tasks for definition in (task.definition, *task.earlier))
    known = {secret for definition in definitions for secret in secrets_of(definition)}
    known |= set(_passwords(tasks.fleet_redis))
    # A list of nodes has very many texts, so what is the same for all is done once. The longest first: a
    # secret may begin with another one.
    secrets = sorted((secret for secret in known if len(secret) >= SHORTEST_SECRET), key=len, reverse=True)

    def hide(text: str) -> str:
        for secret in secrets:
            if secret in text:
                text = text.replace(secret, MASK)
        return mask_text(text)

    return hide


def secrets_of(definition: TaskDefinition) -> Iterator[str]:
    """All values of `env`, and the passwords in its URLs, as they stand there and as programs get them."""
    yield from (definition.env or {}).values()
    yield from _passwords(definition.input_redis, definition.output_redis)


def _passwords(*urls: str | None) -> Iterator[str]:
    for url in urls:
        password = url_password(url) if url else None
        if password:
            yield password
            yield unquote(password)
