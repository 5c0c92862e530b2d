"""Attention on a forest as pieces, each a dense or causal product of two slices of the row of unique tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from forkgym.trainers.forward.layout import Forest

# Queries of one piece under a sliding window, tokens: bounds the masks.
WINDOW_BLOCK = 256


@dataclass(frozen=True, slots=True)
class Piece:
    """Queries of one slice attending to keys of another.

    Attributes:
        query_start: First query.
        key_start: First key.
        queries: How many queries; of each of the ``count``.
        keys: How many keys; of each of the ``count``.
        count: Slices of this kind that follow one another, each with its own keys.
        causal: Query i sees keys up to i; otherwise all queries see all keys, but for the window.
        lead: Under a window that bites: positions from the first key to the first query, else None.
    """

    query_start: int
    key_start: int
    queries: int
    keys: int
    count: int = 1
    causal: bool = False
    lead: int | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """Stretches that follow one another without a branch between them; fields as in `Node`."""

    parent: int
    start: int
    end: int
    exit: int
    depth: int


def segments_of(forest: Forest) -> list[Segment]:
    """Merge each node with its only child."""
    children = [0] * len(forest.nodes)
    for node in forest.nodes:
        if node.parent >= 0:
            children[node.parent] += 1
    segments = list[Segment]()
    segment_of = list[int]()
    for node in forest.nodes:
        parent = segment_of[node.parent] if node.parent >= 0 else -1
        if node.parent >= 0 and children[node.parent] == 1:
            known = segments[parent]
            segments[parent] = Segment(known.parent, known.start, node.end, known.exit, known.depth)
            segment_of.append(parent)
        else:
            segment_of.append(len(segments))
            segments.append(Segment(parent, node.start, node.end, node.exit, node.depth))
    return segments


def full_pieces(segments: Sequence[Segment]) -> list[Piece]:
    """The pieces of attention to the whole path.

    First each token's attention within its own segment, in which every token is a query exactly once: segments of
    equal length that follow one another are one batch. Then, for each segment, that of all tokens below it, which are
    one slice and see all of it: keys are never copied, nor gathered.
    """
    pieces = list[Piece]()
    for length, alike in groupby(segments, key=lambda one: one.end - one.start):
        run = list(alike)
        pieces.append(Piece(run[0].start, run[0].start, length, length, len(run), causal=True))
    pieces += [
        Piece(one.end, one.start, one.exit - one.end, one.end - one.start) for one in segments if one.exit > one.end
    ]
    return pieces


def window_pieces(segments: Sequence[Segment], window: int) -> list[Piece]:
    """The pieces where a token sees only the last ``window`` tokens of its path, itself among them.

    Blocks of queries, at most as long as the window, first attend within themselves; then to what all of them see
    before the block; then to the band of keys that only the first of them still see.
    """
    size = min(window, WINDOW_BLOCK)
    blocks = [(one, first) for one in segments for first in range(one.start, one.end, size)]
    pieces = [
        Piece(first, first, length, length, causal=True)
        for one, first in blocks
        for length in [min(size, one.end - first)]
    ]
    for segment, first in blocks:
        pieces += earlier_pieces(segments, segment, first, (min(size, segment.end - first), window))
    return pieces


def earlier_pieces(
    segments: Sequence[Segment], segment: Segment, first: int, sizes: tuple[int, int]
) -> Iterator[Piece]:
    """The pieces of one block with the keys before it; ``sizes`` are the block's and the window's."""
    queries, window = sizes
    position = segment.depth + first - segment.start
    seen_by_all = position + queries - window  # the first position that the block's last query sees
    holder, end = segment, position
    while True:
        begin = max(holder.depth, position - window + 1)
        middle = max(begin, min(seen_by_all, end))
        offset = holder.start - holder.depth
        if middle < end:
            yield Piece(first, offset + middle, queries, end - middle)
        if begin < middle:
            # A query that sees none of the band is left out: a softmax over nothing is undefined.
            some = min(queries, middle - 1 + window - position)
            yield Piece(first, offset + begin, some, middle - begin, lead=position - begin)
        if holder.parent < 0 or holder.depth <= position - window + 1:
            return
        holder, end = segments[holder.parent], holder.depth
