"""What counts as a plain request, and what is left to a real server."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hub.plain_http import (
    HEARTBEAT,
    INCOMPLETE,
    MOST_BODY,
    MOST_HEAD,
    OTHER,
    TASK,
    PlainRequest,
    read_request,
)

HEAD = b"Host: hub:8080\r\nAuthorization: Bearer t\r\n"
ASK = b"GET /gridnode/task?platform=linux%2Famd64&node_id=a HTTP/1.1\r\n" + HEAD
BEAT = b"POST /gridnode/heartbeat HTTP/1.1\r\n" + HEAD + b"Content-Type: application/json\r\n"


def beat(body: bytes, length: bytes | None = None) -> bytes:
    return BEAT + b"Content-Length: %s\r\n\r\n" % (length or b"%d" % len(body)) + body


def plain(data: bytes) -> PlainRequest:
    request = read_request(data)
    assert isinstance(request, PlainRequest)
    return request


def test_a_question_is_read_with_its_query_and_headers() -> None:
    request = plain(ASK + b'If-None-Match: "7-ab"\r\nPREFER:wait=25 \r\n\r\n')
    assert (request.path, request.query, request.body) == (TASK, b"platform=linux%2Famd64&node_id=a", b"")
    assert request.header(b"if-none-match") == b'"7-ab"'
    assert request.header(b"prefer") == b"wait=25"
    assert request.header(b"accept") == b""


def test_a_heartbeat_is_read_with_its_body_and_what_follows_is_left() -> None:
    data = beat(b'{"a": 1}')
    request = plain(data + b"GET /next")
    assert (request.path, request.body, request.size) == (HEARTBEAT, b'{"a": 1}', len(data))


@pytest.mark.parametrize("data", [ASK + b"\r\n", beat(b'{"a": 1}')])
def test_every_beginning_of_a_request_is_incomplete(data: bytes) -> None:
    assert {read_request(data[:size]) for size in range(len(data))} == {INCOMPLETE}


@pytest.mark.parametrize(
    "header",
    [
        b"Transfer-Encoding: chunked",
        b"Expect: 100-continue",
        b"Upgrade: h2c",
        b"Connection: close",
        b"Connection: upgrade",
        b"TE: trailers",
        b"Content-Encoding: gzip",
        b"Host: another",
        b"Authorization: Bearer u",
        b" folded: line",
        b"no colon",
        b"space in name: x",
        b"name : x",
        b": x",
        b"x: \x00",
        b"x: caf\xc3\xa9",
        b"x: a\nb: c",
        b"x: a\rb",
    ],
)
def test_what_would_change_the_meaning_is_for_a_real_server(header: bytes) -> None:
    assert read_request(ASK + header + b"\r\n\r\n") is OTHER
    assert read_request(BEAT + header + b"\r\nContent-Length: 0\r\n\r\n") is OTHER


@pytest.mark.parametrize(
    "first",
    [
        b"GET /gridnode/tasks HTTP/1.1",
        b"GET /gridnode/task HTTP/1.0",
        b"GET /gridnode/task?a=b HTTP/2",
        b"GET /gridnode/task?a=b  HTTP/1.1",
        b"GET /gridnode/task?a=\x80 HTTP/1.1",
        b"GET /gridnode/task?a=b#c HTTP/1.1",
        b"GET /gridnode/task/ HTTP/1.1",
        b"get /gridnode/task HTTP/1.1",
        b"HEAD /gridnode/task HTTP/1.1",
        b"POST /gridnode/heartbeat?x=1 HTTP/1.1",
        b"POST /gridnode/heartbeat HTTP/1.0",
        b"PRI * HTTP/2.0",
        b"\x16\x03\x01\x02\x00",
        b"",
    ],
)
def test_another_first_line_is_for_a_real_server(first: bytes) -> None:
    assert read_request(first + b"\r\n" + HEAD + b"\r\n") is OTHER


@pytest.mark.parametrize("length", [b"", b"-1", b"+3", b"3.0", b"0x3", b"3, 3", b"999999", b"65537"])
def test_a_length_that_is_no_plain_number_or_too_large_is_for_a_real_server(length: bytes) -> None:
    assert read_request(BEAT + b"Content-Length: %s\r\n\r\nabc" % length) is OTHER


def test_a_heartbeat_without_a_length_and_a_question_with_a_body_are_for_a_real_server() -> None:
    assert read_request(BEAT + b"\r\n{}") is OTHER
    assert read_request(ASK + b"Content-Length: 3\r\n\r\nabc") is OTHER


def test_a_request_without_a_host_is_for_a_real_server() -> None:
    assert read_request(b"GET /gridnode/task HTTP/1.1\r\nAuthorization: Bearer t\r\n\r\n") is OTHER


def test_a_head_without_end_is_for_a_real_server_once_it_is_long() -> None:
    assert read_request(ASK + b"x: " + b"y" * MOST_HEAD) is OTHER


def test_a_body_may_be_as_large_as_the_hub_allows() -> None:
    assert plain(beat(b"x" * MOST_BODY)).size > MOST_BODY


@given(st.binary(max_size=60), st.integers(0, 200))
def test_no_bytes_make_it_fail(noise: bytes, place: int) -> None:
    data = ASK + b"\r\n"
    read_request(noise)
    read_request(data[:place] + noise + data[place:])
