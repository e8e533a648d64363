"""Structured logs on standard error: readable on a terminal or in the journal, JSON by option.

What cannot be written (the disk of the log is full, who read it has gone, there is no standard error) is
lost, and ends nothing; the next line that can be written says how many were.
"""

from __future__ import annotations

import logging
import sys
from typing import IO, Literal, TextIO

import structlog

LogFormat = Literal["text", "json"]


def configure(form: LogFormat = "text", level: int = 20) -> None:
    """Set up structlog for this process; `level` as in `logging` (20 is INFO)."""
    lines = _Lines(sys.stderr)
    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=lines.on_a_terminal, exception_formatter=structlog.dev.plain_traceback
        )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            lines.tell_lost,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info if form == "json" else _as_it_is,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_Bridge()], level=logging.WARNING, force=True)


class _Lines:
    """Writes whole lines, unbuffered: what failed is not tried again later, in the middle of others."""

    def __init__(self, stream: TextIO | None) -> None:
        self._lost = 0
        self._out = _unbuffered(stream) if stream is not None else None
        self.on_a_terminal = stream is not None and stream.isatty()

    def msg(self, line: str) -> None:
        """Write a line, or lose it."""
        if self._out is None:
            return
        rest = f"{line}\n".encode(errors="backslashreplace")
        try:
            while rest:
                written = self._out.write(rest)
                if written is None:  # somebody else has made it non-blocking, and it is full
                    raise BlockingIOError
                rest = rest[written:]
        except (OSError, ValueError):  # ValueError: it was closed
            self._lost += 1
        else:
            self._lost = 0

    debug = info = warning = warn = error = critical = exception = fatal = log = msg

    def tell_lost(
        self, _logger: object, _method: str, event: structlog.typing.EventDict
    ) -> structlog.typing.EventDict:
        """Say with the next line how many before it were lost."""
        return {**event, "lines_lost_before": self._lost} if self._lost else event


def _unbuffered(stream: TextIO) -> IO[bytes]:
    try:
        return open(stream.fileno(), "wb", buffering=0, closefd=False)  # it is not ours to close
    except (OSError, ValueError):  # no file at all, as a test's
        return stream.buffer


class _Bridge(logging.Handler):
    """What libraries have to say through `logging`, in the same form as the rest."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger().log(
            record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info
        )


def _as_it_is(_logger: object, _method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return event
