"""The engine's log stream, taken apart as it comes. Pure.

Each entry of the log is a frame: one byte says stdout or stderr, three are zero, four give its length.
The log of a container with a terminal comes as it is.
"""

from __future__ import annotations

from collections.abc import Iterator

ENTRY_OVERHEAD = 72
"""Bytes that the engine's log file holds for an entry besides its text: stream, time, punctuation."""
_HEAD = 8


class Frames:
    """Bytes in, bytes of the log out; holds no more than a frame's head, however long frames are."""

    def __init__(self) -> None:
        self.entries = 0
        """Entries that have begun; lines of a log without frames."""
        self.text = 0
        """Bytes of the log so far."""
        self._head = bytearray()
        self._left = 0
        self._raw: bool | None = None

    @property
    def written(self) -> int:
        """Bytes that these entries take in the engine's log file."""
        return self.text + ENTRY_OVERHEAD * self.entries

    def feed(self, chunk: bytes) -> Iterator[bytes]:
        """The log's bytes in the next piece of the stream."""
        if self._raw:
            yield self._plain(chunk)
            return
        at = 0
        while at < len(chunk):
            if self._left:
                piece = chunk[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self.text += len(piece)
                yield piece
                continue
            taken = chunk[at : at + _HEAD - len(self._head)]
            self._head += taken
            at += len(taken)
            if self._raw is None and not _may_be_head(self._head):
                self._raw = True
                yield self._plain(bytes(self._head) + chunk[at:])
                return
            if len(self._head) == _HEAD:
                self._raw = False
                self._left = int.from_bytes(self._head[4:], "big")
                self._head.clear()
                self.entries += 1

    def _plain(self, chunk: bytes) -> bytes:
        self.text += len(chunk)
        self.entries += chunk.count(b"\n")
        return chunk


def _may_be_head(start: bytes | bytearray) -> bool:
    return start[0] <= 2 and not any(start[1:4])
