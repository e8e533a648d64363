"""The engine's log stream, cut anywhere."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agent.engine_frames import ENTRY_OVERHEAD, Frames


def framed(entries: list[tuple[int, bytes]]) -> bytes:
    return b"".join(bytes([s, 0, 0, 0]) + len(text).to_bytes(4, "big") + text for s, text in entries)


@given(
    st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=300)), min_size=1, max_size=20),
    st.lists(st.integers(1, 200), max_size=40),
)
def test_wherever_the_stream_is_cut_the_log_is_the_same(
    entries: list[tuple[int, bytes]], lengths: list[int]
) -> None:
    stream, frames, log = framed(entries), Frames(), b""
    for length in [*lengths, len(stream)]:
        piece, stream = stream[:length], stream[length:]
        log += b"".join(frames.feed(piece))
    assert log == b"".join(text for _, text in entries)
    assert frames.entries == len(entries)
    assert frames.written == len(log) + ENTRY_OVERHEAD * len(entries)


def test_a_frame_of_any_length_is_not_held() -> None:
    frames = Frames()
    assert list(frames.feed(b"\x01\0\0\0\xff\xff\xff\xff" + b"x" * 100)) == [b"x" * 100]
    assert list(frames.feed(b"y" * 1000)) == [b"y" * 1000]


def test_the_log_of_a_terminal_comes_as_it_is() -> None:
    frames = Frames()
    assert b"".join([*frames.feed(b"he"), *frames.feed(b"llo\r\nthere\r\n")]) == b"hello\r\nthere\r\n"
    assert frames.entries == 2
