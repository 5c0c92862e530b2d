"""Frames: what goes in comes out however it is cut, and what is no frame is refused."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.sandbox.frames import FrameBuffer, FrameError, encode


def test_the_layout_of_a_frame() -> None:
    assert encode({"a": 1}, b"xy") == b"\x00\x00\x00\x0a" + b"\x00\x00\x00\x08" + b'{"a": 1}' + b"xy"


@given(st.lists(st.tuples(st.dictionaries(st.text(), st.integers()), st.binary(max_size=300))), st.integers(1, 40))
def test_frames_come_out_however_the_stream_is_cut(frames: list[tuple[dict[str, int], bytes]], size: int) -> None:
    stream = b"".join(encode(header, body) for header, body in frames)
    buffer = FrameBuffer()
    found = [frame for start in range(0, len(stream), size) for frame in buffer.feed(stream[start : start + size])]
    assert found == frames


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("!II", 2**26 + 1, 0),  # too long
        struct.pack("!II", 4, 5),  # a header longer than the frame
        struct.pack("!II", 4, 4) + b"{...",
        struct.pack("!II", 2, 2) + b"[]",
        b"Permission denied, please try again.",
    ],
)
def test_what_is_no_frame_is_refused(data: bytes) -> None:
    with pytest.raises(FrameError):
        FrameBuffer().feed(data)
