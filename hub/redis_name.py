"""What a connection of ours is called in Redis' list of clients: for people who look there, no condition."""

from __future__ import annotations

from contextlib import suppress

from redis import exceptions
from redis.asyncio import Connection, SSLConnection


async def name_connection(connection: Connection | SSLConnection, name: str) -> None:
    """Tell Redis who it is. A login that may not is as good without. Raises OSError, ConnectionError."""
    if name:
        await connection.send_command("CLIENT", "SETNAME", name)
        with suppress(exceptions.ResponseError):
            await connection.read_response()
