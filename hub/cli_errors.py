"""How the hub's commands end when they cannot do what they were asked: a sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from gridcore.errors import EXIT_CONFIG, ConfigError


@contextmanager
def plain_errors(
    failures: tuple[type[Exception], ...] = (), say: Callable[[Exception], str] = str
) -> Iterator[None]:
    """A bad configuration ends the program with EX_CONFIG, one of `failures` with 1; never a traceback."""
    try:
        yield
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(EXIT_CONFIG)
    except failures as error:
        click.echo(say(error), err=True)
        sys.exit(1)
