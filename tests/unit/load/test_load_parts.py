"""What the fleet simulator reads and writes, and how its figures are made of many times."""

from __future__ import annotations

import json

import pytest

from gridcore.protocol import HeartbeatRequest, RegisterRequest
from tests.load.figures import percentile
from tests.load.fleet import node_interval
from tests.load.wire import CONTAINERS, NotOurs, Requests, split_answer

ANSWER = b'HTTP/1.1 200 \r\nContent-Length: 4\r\nETag: "7-9F3C"\r\n\r\nnull'
NOTHING_NEW = b'HTTP/1.1 304 \r\netag: "7-9f3c"\r\nGridCore-Heartbeat: now\r\n\r\n'


def test_an_answer_is_read_only_once_all_of_it_is_there() -> None:
    assert all(split_answer(ANSWER[:size]) is None for size in range(len(ANSWER)))
    found = split_answer(ANSWER + NOTHING_NEW)
    assert found is not None
    answer, rest = found
    assert (answer.status, answer.body, rest) == (200, b"null", NOTHING_NEW)
    assert answer.header(b"etag") == b'"7-9f3c"'
    assert answer.header(b"gridcore-heartbeat") is None


def test_an_answer_without_a_body_needs_no_length() -> None:
    found = split_answer(NOTHING_NEW)
    assert found is not None
    answer, rest = found
    assert (answer.status, rest) == (304, b"")
    assert answer.header(b"gridcore-heartbeat") == b"now"


@pytest.mark.parametrize("data", [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n"])
def test_what_this_client_cannot_read_is_an_error_and_no_endless_wait(data: bytes) -> None:
    with pytest.raises(NotOurs):
        split_answer(data)


def test_simulated_nodes_send_what_the_protocol_asks_for() -> None:
    requests = Requests(8080, "secret")
    register = RegisterRequest.model_validate(json.loads(_body(requests.register("node-1"))))
    assert (register.node_id, register.platform) == ("node-1", "linux/amd64")
    beat = HeartbeatRequest.model_validate(json.loads(_body(requests.beat("node-1", b'"7-9f3c"', 90.0))))
    assert (beat.node_id, beat.generation, beat.active_containers) == ("node-1", "7-9f3c", CONTAINERS)
    assert [container.instance for container in beat.containers or []] == list(range(CONTAINERS))


def test_only_a_node_that_knows_an_etag_asks_to_be_held() -> None:
    requests = Requests(8080, "secret")
    assert b"Prefer" not in requests.ask("node-1", None, 25)
    assert b'If-None-Match: "7-9f3c"\r\nPrefer: wait=25\r\n' in requests.ask("node-1", b'"7-9f3c"', 25)


def test_a_node_obeys_the_hubs_interval_and_keeps_its_own_without_one() -> None:
    assert node_interval({"known": True, "heartbeat_interval": 12}, 30.0) == 12
    assert node_interval({"known": True}, 30.0) == 30


def test_a_percentile_is_a_value_that_was_measured() -> None:
    values = [float(number) for number in range(200, 0, -1)]
    assert [percentile(values, percent) for percent in (50, 99, 100)] == [100, 198, 200]
    assert percentile([0.5], 99) == 0.5


def _body(request: bytes) -> bytes:
    head, _, body = request.partition(b"\r\n\r\n")
    assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"
    return body
