"""The command `computehub`."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import click
import structlog

from gridcore import __version__, config, logs
from gridcore.errors import ConfigError
from hub.certificates import KEY_IS_OPEN, read_pair
from hub.cli_backup import accept_loss, backup, restore
from hub.cli_errors import plain_errors
from hub.cli_notify import notify_test
from hub.cli_tokens import key, token
from hub.errors import StoreUnavailable
from hub.settings import FILE_NAME, HubSettings, example, first_state
from hub.state_file import make_place, place_warning

CONFIG_OPTION = click.option(
    "--config",
    "config_path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The configuration file. Without it: ${config.CONFIG_VARIABLE}, then "
    f"~/.config/idm-gridcore/{FILE_NAME}, then /etc/idm-gridcore/{FILE_NAME}.",
)


@click.group(invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="computehub")
@CONFIG_OPTION
@click.option(
    "--check", is_flag=True, help="Check the configuration file, say what is wrong with it, and exit."
)
@click.pass_context
def main(context: click.Context, config_path: Path | None, check: bool) -> None:
    """Run the ComputeHub: the list of tasks, and the nodes that work on the current one.

    \b
    The first time:
      computehub init                 write a configuration with a fresh token
      computehub                      run until Ctrl-C (or SIGTERM)
      curl http://localhost:8080/health

    \b
    While it runs:
      computehub token create --role operator --ttl 30d --name alice
      computehub token --help         who may do what

    Exit codes: 0 stopped as asked, 78 the configuration cannot be used, 1 anything else.
    """
    context.obj = config_path
    if context.invoked_subcommand is not None:
        return
    with plain_errors((StoreUnavailable,)):
        path = _find(config_path)
        settings = config.load(HubSettings, path)
        if check:
            for warning in list(_warnings(settings, path)):  # an error is told alone
                click.echo(f"warning: {warning}", err=True)
            click.echo(f"{path}: valid")
            return
        logs.configure(settings.log_format)
        if open_file := config.open_warning(path):
            structlog.get_logger().warning(open_file)
        from hub.serve import serve  # slow, and neither --check nor init needs it

        try:
            asyncio.run(serve(settings))
        except ExceptionGroup as crash:
            structlog.get_logger().critical("a part of the hub crashed, so all of it ends", exc_info=crash)
            sys.exit(1)


@main.command("init")
@CONFIG_OPTION
@click.pass_obj
def init(group_path: Path | None, config_path: Path | None) -> None:
    """Write a first configuration file with a fresh token, readable by you only (0600)."""
    with plain_errors():
        path = config_path or group_path or config.default_path(FILE_NAME)
        config.init_file(path, example(path))
        make_place(first_state(path).parent)
        click.echo(f"{path}: written. Give its token to nodes and operators, then start computehub.")


def _warnings(settings: HubSettings, path: Path) -> Iterator[str]:
    """What a start would warn of. Raises ConfigError where the certificate or its key cannot be used."""
    if open_file := config.open_warning(path):
        yield open_file
    if settings.tls_certificate is not None and settings.tls_key is not None:
        pair = read_pair(settings.tls_certificate, settings.tls_key)
        if pair.is_key_open:
            yield f"{KEY_IS_OPEN} ({settings.tls_key})"
        if ending := pair.ending(time.time()):
            yield f"{ending} ({settings.tls_certificate}, {pair.ends:%Y-%m-%d %H:%M} UTC)"
    if settings.database is not None and (place := place_warning(settings.database)):
        yield place


def _find(explicit: Path | None) -> Path:
    path = config.find(FILE_NAME, explicit)
    if path is not None and config.is_written(path):
        return path
    looked = [explicit] if explicit else config.candidates(FILE_NAME)
    first = explicit or config.default_path(FILE_NAME)
    raise ConfigError(
        f"There is no configuration file yet. Looked for: {', '.join(map(str, looked))}.\n"
        f"`computehub init` writes one, or save this as {first} (mode 0600):\n\n" + example(first)
    )


main.add_command(token)
main.add_command(key)
main.add_command(notify_test)
main.add_command(backup)
main.add_command(restore)
main.add_command(accept_loss)


if __name__ == "__main__":
    main()
