"""The command `gridnode`."""

from __future__ import annotations

import asyncio
import faulthandler
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import click
from pydantic import BaseModel, ConfigDict

from agent.errors import EngineError
from agent.settings import FILE_NAME, Settings, example
from gridcore import __version__, config
from gridcore.errors import EXIT_CONFIG, ConfigError, GridCoreError

ANY_SERVER = "http://192.168.1.100:8080"
"""What a first file names until somebody writes the hub's address."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)

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
    epilog="Signals: TERM, INT and HUP (a closed terminal, but not under nohup) stop gracefully, "
    "a second one hastens; USR1 hands over to the next agent.",
)
@CONFIG_OPTION
@click.option("--check", is_flag=True, help="Say whether the file is good, and exit; `check` does more.")
@click.version_option(__version__, prog_name="gridnode")
@click.pass_context
def cli(context: click.Context, path: Path | None, check: bool) -> None:
    """Let this machine take part in a grid: keep containers of the hub's current task running.

    \b
    First steps:
      gridnode init                  write a commented gridnode.toml
      (put the hub's address, and a token or join token, into it)
      gridnode --check               is it good?
      gridnode check                 does a container run here?
      gridnode                       run, until Ctrl-C

    \b
    While it runs, beside it (as the agent's user, or with sudo):
      gridnode status                what it is doing, and why
      gridnode pause                 your machine is yours again, at once
      gridnode resume                go on

    """
    if context.invoked_subcommand is not None:
        context.obj = path
        return
    found = config.find(FILE_NAME, path)
    if found is None or (path is None and not config.is_written(found)):
        _explain_missing(found)
    assert found is not None  # noqa: S101 # _explain_missing does not return
    settings = config.load(Settings, found)
    if check:
        _check(settings, found)
        return
    _run(settings, found)


@cli.command()
@CONFIG_OPTION
@click.option("--server", help="The hub's address, such as http://192.168.1.100:8080.")
@click.option(
    "--join-token-file",
    type=click.File(encoding="utf-8"),
    help="A file with a join token; - reads it from standard input.",
)
@click.pass_context
def init(
    context: click.Context, path: Path | None, server: str | None, join_token_file: TextIO | None
) -> None:
    """Write a first gridnode.toml (mode 0600), never over an existing one.

    No token is taken from the command line, since others can read that: put it into the file, or give a join
    token (`computehub token create --role join --ttl 24h` on the hub) in a file or by standard input.
    """
    path = path or context.obj or config.default_path(FILE_NAME)
    join_token = None if join_token_file is None else _first_line(join_token_file)
    config.init_file(path, example(ANY_SERVER if server is None else server, join_token))
    missing = [
        *(["address"] if server is None else []),
        *(["token"] if join_token is None else []),
    ]
    first = f"Put the hub's {' and '.join(missing)} into it, then: " if missing else "Try it: "
    click.echo(f"{path}: written. {first}gridnode --check && gridnode check, and run it with: gridnode")


def _first_line(file: TextIO) -> str:
    try:
        return file.readline(8192).strip()
    except (OSError, UnicodeDecodeError):
        raise ConfigError("join token: the file cannot be read as text") from None


@cli.command()
@CONFIG_OPTION
@click.option("--json", "as_json", is_flag=True, help="For programs: everything, as one JSON object.")
@click.pass_context
def status(context: click.Context, path: Path | None, as_json: bool) -> None:
    """Say what the running agent is doing, and why.

    Shows the hub and whether it answers, the task, your terms as they stand, each slot with its container and
    how the last one ended, and the last errors. Exit code 1: no agent answers.
    """
    answer = _ask(path or context.obj, "status")
    if as_json:
        click.echo(json.dumps(answer, indent=2))
        return
    from agent.status import render

    with _one_version():
        text = render(answer)
    click.echo(text)


@cli.command()
@CONFIG_OPTION
@click.pass_context
def pause(context: click.Context, path: Path | None) -> None:
    """Take your machine back at once: freeze the containers.

    Frozen containers use no CPU, but keep their memory. After `freeze_max` seconds (600 unless gridnode.toml
    says otherwise) they are stopped gracefully, which frees it. The node stays paused, over restarts and
    reboots too, until `gridnode resume`. The hub shows that its owner has paused it.
    """
    answer = _ask(path or context.obj, "pause")
    with _one_version():
        begin = "already paused" if answer["already"] else "paused"
        if why := answer["permit"]["refuse"]:
            text = f"containers are stopped gracefully ({why})"
        else:
            left = max(0.0, answer["freeze_max"] - answer["paused_for"])
            text = f"containers are frozen for up to {left:.0f} s, then stopped gracefully"
        _say(answer, f"{begin}: {text}; `gridnode resume` goes on")


@cli.command()
@CONFIG_OPTION
@click.pass_context
def resume(context: click.Context, path: Path | None) -> None:
    """Let containers go on after `gridnode pause`."""
    answer = _ask(path or context.obj, "resume")
    with _one_version():
        permit = answer["permit"]
        begin = "was not paused" if answer["already"] else "resumed"
        if permit["refuse"]:
            _say(answer, f"{begin}; no containers run yet ({permit['refuse']})")
        elif permit["freeze"]:
            _say(answer, f"{begin}; containers stay frozen ({permit['freeze']})")
        else:
            _say(answer, f"{begin}: containers may run")


@cli.command()
@CONFIG_OPTION
@click.pass_context
def check(context: click.Context, path: Path | None) -> None:
    """Say whether this machine can run containers: the file, and one real container.

    `gridnode --check` looks at the file alone. This also makes a tiny image, starts one container of it just
    as a task's is started (your terms, limits, network, mounts), sees it end well, and removes all of it. No
    registry and no hub is asked, and an agent that runs here is not disturbed. Exit code 1: it did not work.
    """
    from agent import machine, probe

    path = path or context.obj
    found = config.find(FILE_NAME, path)
    if found is None:
        raise ConfigError("there is no configuration file; `gridnode init` writes one")
    settings = config.load(Settings, found)
    _check(settings, found)
    try:
        seconds = asyncio.run(probe.run_one(machine.facts(found, settings), settings))
    except EngineError as error:
        raise GridCoreError(f"this machine's container engine does not run containers: {error}") from None
    click.echo(f"one container started, ran and ended in {seconds:.1f} s: good")


class _StatePlace(BaseModel):
    """Of a configuration only what leads to the agent: no other key must hinder its owner."""

    model_config = ConfigDict(extra="ignore")

    state_directory: config.FilePath | None = None


def _ask(explicit: Path | None, what: str) -> dict[str, Any]:
    from agent.control import ask
    from agent.machine import state_directory

    found = config.find(FILE_NAME, explicit)
    for path in [found] if found else config.candidates(FILE_NAME):
        _refuse_hidden(path)
    if found is None:
        raise ConfigError("there is no configuration file, and so no agent; `gridnode init` writes one")
    place = config.load(_StatePlace, found)
    return ask(state_directory(found, place.state_directory), what, config=found)


@contextmanager
def _one_version() -> Iterator[None]:
    try:
        yield
    except (KeyError, TypeError):
        raise GridCoreError(
            "the running agent is of another version; restart it, or use `status --json`"
        ) from None


def _refuse_hidden(path: Path) -> None:
    try:
        with path.open("rb"):
            pass
    except PermissionError:
        raise GridCoreError(f"{path}: no permission; run it as the agent's user, or with sudo") from None
    except OSError:
        pass  # told by whoever needs it


def _say(answer: dict[str, Any], text: str) -> None:
    click.echo(f"gridnode: {text}")
    if answer["warning"]:
        click.echo(f"gridnode: warning: {answer['warning']}", err=True)


def _check(settings: Settings, found: Path) -> None:
    from agent import machine

    cpus = machine.usable_cpus()
    for warning in (
        *_file_warnings(settings, found),
        *(machine.misfits(settings, cpus) + machine.missing_mounts(settings) + machine.limit_warnings()),
    ):
        click.echo(f"gridnode: warning: {warning}", err=True)
    click.echo(f"{found}: good")


def _file_warnings(settings: Settings, path: Path) -> list[str]:
    """What both the check and a start say of the configuration file."""
    return [text for text in (settings.token_warning, config.open_warning(path)) if text is not None]


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
    for warning in _file_warnings(settings, path):
        structlog.get_logger().warning(warning)
    # systemd's watchdog ends a hung agent with SIGABRT: where it hung then stands in the journal.
    if sys.stderr is not None:  # as mypy does not know: without a standard error there is none
        faulthandler.enable()
    with only_agent(path, settings):
        try:
            code = asyncio.run(Service(settings, path).run())
        except BaseExceptionGroup as errors:
            structlog.get_logger().exception("a defect in gridnode; containers keep running", exc_info=errors)
            code = 1
    sys.exit(code)


def main() -> None:
    """Entry point: configuration errors are told one a line and end with exit code 78, others with 1."""
    try:
        cli()
    except ConfigError as error:
        for line in str(error).splitlines():
            click.echo(f"gridnode: {line}", err=True)
        sys.exit(EXIT_CONFIG)
    except GridCoreError as error:
        click.echo(f"gridnode: {error}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
