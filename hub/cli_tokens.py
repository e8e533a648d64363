"""The commands `computehub token` and `computehub key`. They ask the running hub, as any admin could."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import update_wrapper
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from gridcore.errors import HubError, HubUnreachable
from hub.access import Role
from hub.cli_errors import plain_errors
from hub.running_hub import TOKEN_VARIABLE, RunningHub, find_hub

_UNITS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_SPAN = re.compile(r"(\d{1,9})([smhdw]?)", re.ASCII)
_SOME_TOKEN = re.compile(r"ey[\w-]+\.[\w-]+\.[\w-]*", re.ASCII)


def _read_span(_context: click.Context, _param: click.Parameter, text: str) -> int:
    """Seconds."""
    match = _SPAN.fullmatch(text)
    if match is None:
        raise click.BadParameter(f"expected a span such as 90m, 12h, 30d or 2w, got {text!r}")
    return int(match[1]) * _UNITS[match[2] or "s"]


def _refuse_tokens(
    _context: click.Context, _param: click.Parameter, given: str | tuple[str, ...]
) -> str | tuple[str, ...]:
    """An id is expected, and a token has no place on a command line."""
    if any(_SOME_TOKEN.fullmatch(text) for text in ([given] if isinstance(given, str) else given)):
        raise click.BadParameter(
            "that is a token and not its id, and others can read command lines: find its id with "
            "`computehub token list`, and revoke it"
        )
    return given


def asks_the_hub(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options that say which hub, and `hub` in their place."""

    @click.option("--config", "config_path", type=click.Path(path_type=Path, dir_okay=False), hidden=True)
    @click.option("--url", help="The hub's address; by default that of the hub's own configuration.")
    @click.option(
        "--token-file",
        metavar="FILE",
        help=f"A file with the token to show; - reads standard input. Otherwise ${TOKEN_VARIABLE}, then the "
        "token in the hub's configuration.",
    )
    @click.option(
        "--ca-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="The CA, or the self-signed certificate, of a hub at an https address.",
    )
    @click.option("--json", "as_json", is_flag=True, help="JSON, for machines.")
    @click.pass_context
    def asking(
        context: click.Context,
        /,
        config_path: Path | None,
        url: str | None,
        token_file: str | None,
        ca_file: Path | None,
        **rest: Any,
    ) -> None:
        with plain_errors((HubError,), _tell):
            command(find_hub(config_path or context.obj, url, token_file, ca_file), **rest)

    return update_wrapper(asking, command)


def _tell(error: Exception) -> str:
    is_silent = isinstance(error, HubUnreachable) and error.silent
    return f"{error}. Is computehub running?" if is_silent else str(error)


@click.group()
def token() -> None:
    """Make, list and revoke tokens, each with a role and an end.

    \b
    Roles:
      viewer     reads: tasks, nodes, problems, events, metrics
      operator   and adds, switches and edits tasks, stops and drains nodes, reads logs
      admin      and makes tokens and keys, forgets nodes
      node       is a node: nothing but /gridnode/…; with --node that one only
      join       is exchanged by a new node for a token of its own

    \b
    Examples:
      computehub token create --role operator --ttl 30d --name alice > alice.token
      computehub token create --role join --ttl 24h > join.token
      computehub token list --status valid
      computehub token revoke 4f0c9d2ab81e7735

    They ask the running hub: that of computehub.toml on this machine, or that of --url. No token is taken
    from the command line, since others can read that.
    """


@token.command("create")
@click.option("--role", type=click.Choice([role.value for role in Role]), required=True)
@click.option("--ttl", callback=_read_span, required=True, help="How long it counts: 90m, 12h, 30d, 2w.")
@click.option("--name", help="What the audit trail calls who shows it.")
@click.option("--node", help="The only node that it may act for; with --role node.")
@asks_the_hub
def create(
    hub: RunningHub, *, role: str, ttl: int, name: str | None, node: str | None, as_json: bool
) -> None:
    """Make a token, and write it to standard output, this once.

    \b
    Examples:
      computehub token create --role viewer --ttl 52w --name prometheus > /etc/prometheus/hub.token
      computehub token create --role node --node pi-7 --ttl 365d > pi-7.token
      computehub token create --role join --ttl 2h |
        ssh pi-8 sudo gridnode init --server https://hub.example --join-token-file -
    """
    wanted = {"role": role, "ttl": ttl, "name": name, "node": node}
    made = hub.ask(
        "POST", "/api/tokens", {field: value for field, value in wanted.items() if value is not None}
    )
    if as_json:
        _write(made)
        return
    click.echo(made["token"])
    click.echo(
        f"A token of role {made['role']} for {made['name']}, until {made['expires']}. It is shown this once: "
        f"keep it readable for its user only (mode 0600). To end it: computehub token revoke {made['id']}",
        err=True,
    )


@token.command("list")
@click.option("--role", type=click.Choice([role.value for role in Role]))
@click.option("--name")
@click.option("--node")
@click.option("--status", type=click.Choice(["valid", "expired", "revoked"]))
@asks_the_hub
def list_tokens(hub: RunningHub, *, as_json: bool, **filters: str | None) -> None:
    """The tokens that were made, the newest first; never the tokens themselves."""
    query = {name: value for name, value in filters.items() if value is not None}
    found = hub.ask("GET", "/api/tokens", query=query)
    if as_json:
        _write(found)
        return
    _table(("id", "role", "status", "name", "node", "expires", "created_by"), found)


@token.command("revoke")
@click.argument("ids", metavar="ID…", nargs=-1, required=True, callback=_refuse_tokens)
@asks_the_hub
def revoke(hub: RunningHub, *, ids: tuple[str, ...], as_json: bool) -> None:
    """End tokens now, at every hub; to do it again is no error."""
    for token_id in ids:
        hub.ask("DELETE", f"/api/tokens/{quote(token_id, safe='')}")
        if not as_json:
            click.echo(f"{token_id}: revoked", err=True)
    if as_json:
        _write({"revoked": list(ids)})


@click.group()
def key() -> None:
    """The keys that sign tokens: change them without an outage.

    \b
    As a habit:        computehub key rotate        a new key signs; tokens of the older ones still count
    After a theft of the hub's state:
                       computehub key rotate
                       (give out new tokens)
                       computehub key retire ID     all tokens of the old key end now

    A key that has signed nothing that still counts goes by itself. The shared token of computehub.toml is no
    such key: docs/security.md says how that is changed.
    """


@key.command("rotate")
@asks_the_hub
def rotate(hub: RunningHub, *, as_json: bool) -> None:
    """Make a new key, which signs from now on; the others still vouch for what they signed."""
    made = hub.ask("POST", "/api/keys")
    if as_json:
        _write(made)
        return
    click.echo(made["id"])
    click.echo("New tokens are signed with it; those of older keys still count.", err=True)


@key.command("list")
@asks_the_hub
def list_keys(hub: RunningHub, *, as_json: bool) -> None:
    """The keys, the newest first: ids and dates, never the keys themselves."""
    found = hub.ask("GET", "/api/keys")
    if as_json:
        _write(found)
        return
    _table(("id", "created", "retired", "signs"), found)


@key.command("retire")
@click.argument("key_id", metavar="ID", callback=_refuse_tokens)
@asks_the_hub
def retire(hub: RunningHub, *, key_id: str, as_json: bool) -> None:
    """End a key, and with it all tokens that it signed, nodes' own ones, too.

    Nodes that still have a valid join token in gridnode.toml get a new one by themselves; others need one.
    """
    hub.ask("DELETE", f"/api/keys/{quote(key_id, safe='')}")
    if as_json:
        _write({"retired": key_id})
    else:
        click.echo(f"{key_id}: retired; the tokens that it signed have ended", err=True)


def _write(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _table(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    texts = [columns, *([_cell(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[place]) for line in texts) for place in range(len(columns))]
    for line in texts:
        click.echo("  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else ""
    return "" if value is None else str(value)
