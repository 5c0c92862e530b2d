"""Frames between the trainer's side and the server: a length, a JSON header, bytes.

``uint32 length of the rest | uint32 length of the header | header (JSON) | body``, big-endian. Code and output travel
in the body as bytes that neither side interprets; the header is read with ``json.loads`` and nothing stronger.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from typing import Any, cast

PREFIX = struct.Struct("!II")
MAX_FRAME_BYTES = 2**26


class FrameError(Exception):
    """What arrived is no frame: the other side is broken, or not a sandbox server at all."""


def encode(header: Mapping[str, Any], body: bytes = b"") -> bytes:
    """Make a frame."""
    text = json.dumps(header).encode()
    return PREFIX.pack(len(text) + len(body), len(text)) + text + body


class FrameBuffer:
    """Cuts a stream of bytes into frames."""

    def __init__(self) -> None:
        self.pending = bytearray()

    def feed(self, data: bytes) -> list[tuple[dict[str, Any], bytes]]:
        """Take some bytes and return the frames that are complete now, header and body.

        Raises:
            FrameError: The bytes are no frame.
        """
        self.pending += data
        frames: list[tuple[dict[str, Any], bytes]] = []
        while len(self.pending) >= PREFIX.size:
            length, header_length = PREFIX.unpack_from(self.pending)
            if length > MAX_FRAME_BYTES or header_length > length:
                raise FrameError(f"a frame of {length} bytes with a header of {header_length}")
            end = PREFIX.size + length
            if len(self.pending) < end:
                break
            content = bytes(self.pending[PREFIX.size : end])
            del self.pending[:end]
            try:
                header: Any = json.loads(content[:header_length])
            except ValueError as error:
                raise FrameError(f"a frame whose header is no JSON: {content[:60]!r}") from error
            if not isinstance(header, dict):
                raise FrameError(f"a frame whose header is no object: {content[:60]!r}")
            frames.append((cast("dict[str, Any]", header), content[header_length:]))
        return frames
