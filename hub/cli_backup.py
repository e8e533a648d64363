"""The commands `computehub backup`, `computehub restore` and `computehub accept-loss`."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click

from gridcore import config
from gridcore.errors import ConfigError
from gridcore.files import resolve
from hub.cli_errors import plain_errors
from hub.settings import FILE_NAME, HubSettings

TELL_EVERY = 2.0
"""Seconds between two words on how far it has come."""

_config = click.option(
    "--config", "config_path", type=click.Path(path_type=Path, dir_okay=False), hidden=True
)
_file = click.argument("file", type=click.Path(path_type=Path, dir_okay=False))


@click.command("backup")
@_config
@_file
@click.option("--force", is_flag=True, help="Replace FILE if it exists.")
@click.pass_obj
def backup(group_path: Path | None, config_path: Path | None, file: Path, force: bool) -> None:
    """Write all that the hub keeps to FILE, while it runs or not.

    FILE has the secrets of all tasks and the keys that sign tokens; it is made with mode 0600. It can be
    restored into the same kind of state or another one (SQLite, Redis).
    """
    # Slow, and other commands do not need it.
    from hub.backup import BackupError, refuse_own_files, write_backup
    from hub.restoring import COMPANIONS, take_contents

    with plain_errors((BackupError,)):
        found, settings = _settings(config_path or group_path)
        kept = settings.database
        own = [resolve(kept).with_name(resolve(kept).name + end) for end in COMPANIONS] if kept else []
        refuse_own_files(file, [found, *own, settings.tls_certificate, settings.tls_key])
        contents = asyncio.run(take_contents(settings))
        write_backup(contents, file, _Teller("written").tell, force=force)
        click.echo(f"{file}: {_count(contents.counts)}")


@click.command("restore")
@_config
@_file
@click.pass_obj
def restore(group_path: Path | None, config_path: Path | None, file: Path) -> None:
    """Make FILE, a backup, the state of the hub, which must not run.

    With a state in Redis, hubs may run where that state is lost; they take the restored one at once. Of an
    SQLite file, what was there is kept beside it. Tokens that were revoked since stay revoked. Nodes follow
    as soon as the hub runs again.
    """
    from hub.backup import BackupError, read_backup
    from hub.restoring import restore as put_back

    with plain_errors((BackupError,)):
        _found, settings = _settings(config_path or group_path)
        contents = read_backup(file, _Teller("read").tell)
        tasks, aside = asyncio.run(put_back(settings, contents))
        current = tasks.current.name if tasks.current else "nothing"
        click.echo(f"{_count(contents.counts)} restored; {current} is current")
        if aside is not None:
            click.echo(f"{aside}: what was there before")


@click.command("accept-loss")
@_config
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def accept_loss(group_path: Path | None, config_path: Path | None, yes: bool) -> None:
    """Go on with what Redis holds now, after it lost what the hubs kept there; hubs may run.

    They refuse a state that cannot be what became of the one that they knew: an empty Redis, an older copy.
    This is how to say that it counts all the same. Where there is no task list any more they begin with
    none, and nodes stop what they compute. `computehub restore` is the other way.
    """
    from hub.backup import BackupError
    from hub.redis_repair import Rest, accept_rest, see_rest

    def tell(rest: Rest) -> None:
        if rest.tasks is None:
            click.echo("Redis holds no task list: hubs begin with none, and nodes stop what they compute")
            return
        current = rest.tasks.current.name if rest.tasks.current else "nothing"
        click.echo(
            f"Redis holds {len(rest.tasks.tasks)} tasks and {rest.nodes} nodes; {current} is current"
            + (f"; gone: {rest.missing}" if rest.missing else "")
        )

    with plain_errors((BackupError,)):
        _found, settings = _settings(config_path or group_path)
        rest = asyncio.run(see_rest(settings))
        tell(rest)
        if not yes and not click.confirm("Go on with that?"):
            raise BackupError("nothing has changed")
        asyncio.run(accept_rest(settings, rest))
        click.echo("hubs that run take it within seconds")


class _Teller:
    """Says now and then how far a long command has come."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._next = time.monotonic() + TELL_EVERY

    def tell(self, lines: int) -> None:
        if lines % 1_000 == 0 and time.monotonic() >= self._next:
            self._next = time.monotonic() + TELL_EVERY
            click.echo(f"{lines} lines {self._what}", err=True)


def _settings(path: Path | None) -> tuple[Path, HubSettings]:
    """The configuration file and what it says."""
    found = config.find(FILE_NAME, path)
    if found is None:
        raise ConfigError("There is no configuration file; name the hub's with --config")
    return found, config.load(HubSettings, found)


def _count(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in counts.items())
