"""The command `computehub notify-test`."""

from __future__ import annotations

import asyncio
import sys
import time
import uuid
from pathlib import Path

import click

from gridcore import config
from hub.cli_errors import plain_errors
from hub.settings import FILE_NAME, HubSettings


@click.command("notify-test")
@click.option("--config", "config_path", type=click.Path(path_type=Path, dir_okay=False), hidden=True)
@click.pass_obj
def notify_test(group_path: Path | None, config_path: Path | None) -> None:
    """Send one test message to each [[notify]] of the configuration, and say how that went.

    Exit codes: 0 all took it, 1 one did not, 78 the configuration cannot be used.
    """
    with plain_errors():
        explicit = config_path or group_path
        path = config.find(FILE_NAME, explicit) or config.default_path(FILE_NAME)
        settings = config.load(HubSettings, path)
        problems = asyncio.run(_tell_all(settings))
    if not settings.notify:
        click.echo(f"{path}: there is no [[notify]], so nobody is told; see docs/monitoring.md")
    for target, problem in zip(settings.notify, problems, strict=True):
        click.echo(f"{target.name}: {problem or 'took it'}")
    sys.exit(1 if any(problems) else 0)


async def _tell_all(settings: HubSettings) -> list[str | None]:
    """What went wrong with each target, None where nothing did. Raises ConfigError."""
    from hub.metrics import Counts  # slow, and nobody else on the command line needs them
    from hub.notify import Messenger, NotDelivered
    from hub.notify_rules import TEST, Notification

    text = "This is a test message of the ComputeHub. All is well."
    note = Notification(f"test-{uuid.uuid4()}", TEST, time.time(), None, text)
    messengers = [Messenger(target, Counts()) for target in settings.notify]

    async def tell(messenger: Messenger) -> str | None:
        try:
            await messenger.send(note)
        except NotDelivered as problem:
            return str(problem)
        return None

    return list(await asyncio.gather(*map(tell, messengers)))
