"""What the hub knows this node by: its id and its token, kept in gridnode.toml for the next start."""

from __future__ import annotations

from pathlib import Path

import structlog

from agent.credentials import Credentials
from agent.report import Board
from agent.settings import Settings, write_back
from gridcore.errors import ConfigError

log = structlog.get_logger()


class Membership:
    """Begins with what the file (or the environment) says, and writes there what the hub hands out."""

    def __init__(self, settings: Settings, config: Path, board: Board) -> None:
        self.node_id = settings.node_id
        self.credentials = Credentials(settings.token, settings.join_token)
        self._config = config
        self._board = board
        self._in_file = (settings.node_id, settings.token)
        self._told_unwritten = False

    def take(self, node_id: str, token: str | None) -> None:
        """Be this node, with this token if there is one, now and after the next start."""
        if self.node_id not in (None, node_id):
            log.warning(
                "the hub gave this node another id: its old one is in use by another machine "
                "(was this disk cloned?)",
                old=self.node_id,
                new=node_id,
            )
        self.node_id = node_id
        if token is not None:
            if token != self.credentials.own:
                log.info("the hub gave this node a token of its own")
            self.credentials.take(token)
        wanted = (node_id, self.credentials.own)
        if wanted != self._in_file:
            self._write(*wanted)

    def _write(self, node_id: str, token: str | None) -> None:
        is_new = token != self._in_file[1]
        try:
            write_back(self._config, node_id, token if is_new else None)
        except (OSError, ConfigError) as error:
            what = "token that the hub gave this node" if is_new else "node id"
            text = f"the {what} could not be written to {self._config}, so that only this run knows it"
            # Once is enough: each new token tries again.
            if not self._told_unwritten:
                log.warning(text, error=str(error))
                self._board.error("config", f"{text}: {error}")
            self._told_unwritten = True
        else:
            self._in_file, self._told_unwritten = (node_id, token), False
