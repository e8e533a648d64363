"""Measuring requests: the layer before the door, which sees all of them, those that are refused too.

A request takes from its arrival until its answer begins, less what it was held on purpose. So neither a held
request nor a stream of events looks slow. The hot paths pay about a microsecond for it.
"""

from __future__ import annotations

from collections.abc import Awaitable
from time import perf_counter

from hub.door import Asgi, Message, Receive, Scope, Send
from hub.tallies import Requests
from hub.waiters import HELD

PROBLEM = b"application/problem+json"


class Measured:
    """An ASGI application in front of another one."""

    def __init__(self, inner: Asgi, requests: Requests) -> None:
        self._inner = inner
        self._requests = requests

    # Plain functions that hand on what is to be awaited: each coroutine between would cost its share.
    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        if scope["type"] != "http":
            return self._inner(scope, receive, send)
        held = [0.0]
        HELD.set(held)
        path, requests, began = scope["path"], self._requests, perf_counter()
        is_problem = False

        def measured(message: Message) -> Awaitable[None]:
            nonlocal is_problem
            if message["type"] == "http.response.start":
                status = message["status"]
                requests.add(path, status, perf_counter() - began - held[0])
                if status >= 400:
                    is_problem = any(value == PROBLEM for _, value in message["headers"])
            elif is_problem and message.get("body"):
                is_problem = False
                requests.add_problem(message["body"])
            return send(message)

        return self._inner(scope, receive, measured)
