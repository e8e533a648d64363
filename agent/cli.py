"""The command `gridnode`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

import click

from agent.settings import FILE_NAME, Settings, example
from gridcore import __version__, config
from gridcore.errors import EXIT_CONFIG, ConfigError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

CONFIG_OPTION = click.option(
    "--config",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    help=f"The configuration file. Without it: ${config.CONFIG_VARIABLE}, then "
    f"~/.config/idm-gridcore/{FILE_NAME}, then /etc/idm-gridcore/{FILE_NAME}.",
)


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Signals: TERM and INT stop gracefully (a second one hastens); USR1 hands over to the next agent.",
)
@CONFIG_OPTION
@click.option("--check", is_flag=True, help="Say whether the file is good, and exit.")
@click.version_option(__version__, prog_name="gridnode")
@click.pass_context
def cli(context: click.Context, path: Path | None, check: bool) -> None:
    """Let this machine take part in a grid: keep containers of the hub's current task running.

    \b
    First steps:
      gridnode init                  write a commented gridnode.toml
      (put the hub's address and token into it)
      gridnode --check               is it good?
      gridnode                       run, until Ctrl-C

    """
    if context.invoked_subcommand is not None:
        context.obj = path
        return
    found = config.find(FILE_NAME, path)
    if found is None or (path is None and not found.exists()):
        _explain_missing(found)
    assert found is not None  # noqa: S101 # _explain_missing does not return
    settings = config.load(Settings, found)
    if check:
        click.echo(f"{found}: good")
        return
    _run(settings, found)


@cli.command()
@CONFIG_OPTION
@click.option("--server", default="http://192.168.1.100:8080", show_default=True, help="The hub's address.")
@click.pass_context
def init(context: click.Context, path: Path | None, server: str) -> None:
    """Write a first gridnode.toml (mode 0600), never over an existing one.

    The token is not asked for here, since command lines can be read by others: put it into the file.
    """
    path = path or context.obj or config.default_path(FILE_NAME)
    config.init_file(path, example(server=server))
    click.echo(f"{path}: written. Put the hub's address and token into it, then: gridnode --check")


def _explain_missing(found: Path | None) -> None:
    places = [found] if found else config.candidates(FILE_NAME)
    click.echo("gridnode: there is no configuration file. It is looked for at:", err=True)
    for place in places:
        click.echo(f"  {place}", err=True)
    click.echo("`gridnode init` writes this one; put the hub's address and token into it:\n", err=True)
    click.echo(example(), err=True)
    sys.exit(EXIT_CONFIG)


def _run(settings: Settings, path: Path) -> None:
    # Held back until the service listens: a stop in the first second is a graceful stop too.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    # Imported late: --help and --check need none of it.
    import structlog

    from agent.service import Service, only_agent
    from gridcore import logs

    logs.configure(settings.log_format)
    with only_agent(path):
        try:
            code = asyncio.run(Service(settings, path).run())
        except BaseExceptionGroup as errors:
            structlog.get_logger().exception("a defect in gridnode; containers keep running", exc_info=errors)
            code = 1
    sys.exit(code)


def main() -> None:
    """Entry point: configuration errors are told one a line and end with exit code 78."""
    try:
        cli()
    except ConfigError as error:
        for line in str(error).splitlines():
            click.echo(f"gridnode: {line}", err=True)
        sys.exit(EXIT_CONFIG)


if __name__ == "__main__":
    main()
