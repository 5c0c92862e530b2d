"""The pieces of attention against a dense mask of who sees whom."""

from __future__ import annotations

import pytest
import torch

from forkgym.trainers.forward.layout import Forest, grow_forest
from forkgym.trainers.forward.pieces import Piece, full_pieces, segments_of, window_pieces
from tests.trainers.forward.small_rows import paper_rows, random_rows, row


def dense_mask(forest: Forest, window: int | None = None) -> torch.Tensor:
    """True where a token (row) sees another (column): the oracle, from the paths alone."""
    mask_UU = torch.zeros(forest.num_tokens, forest.num_tokens, dtype=torch.bool)
    for path in forest.paths:
        places = [place for node in path for place in range(forest.nodes[node].start, forest.nodes[node].end)]
        for position, place in enumerate(places):
            first = 0 if window is None else max(0, position + 1 - window)
            mask_UU[place, places[first : position + 1]] = True
    return mask_UU


def count_seen(pieces: list[Piece], size: int, window: int | None = None) -> torch.Tensor:
    """How many pieces cover each pair."""
    seen_UU = torch.zeros(size, size, dtype=torch.long)
    for piece in pieces:
        for number in range(piece.count):
            for query in range(piece.queries):
                for key in range(piece.keys):
                    visible = not piece.causal or key <= query
                    if piece.lead is not None:
                        assert window is not None
                        visible &= piece.lead + query - key < window
                    row_ = piece.query_start + number * piece.queries + query
                    seen_UU[row_, piece.key_start + number * piece.keys + key] += visible
    return seen_UU


def test_pieces_on_paper() -> None:
    # Segments: 1 2, 3 4, 5, 6, 7, and 9 8 7; those of equal length that follow one another are one batch.
    pieces = full_pieces(segments_of(grow_forest(paper_rows())))
    assert pieces == [
        Piece(0, 0, 2, 2, count=2, causal=True),
        Piece(4, 4, 1, 1, count=3, causal=True),
        Piece(7, 7, 3, 3, causal=True),
        Piece(2, 0, 5, 2),  # all below the prompt, to the prompt
        Piece(5, 4, 2, 1),  # 6 and 7, to 5
    ]


def test_rows_that_share_nothing_are_one_batch() -> None:
    rows = [row([prompt, 1], ([2, 3], [4])) for prompt in range(10, 14)]
    assert full_pieces(segments_of(grow_forest(rows))) == [Piece(0, 0, 5, 5, count=4, causal=True)]


@pytest.mark.parametrize("seed", range(4))
def test_each_pair_is_in_one_piece(seed: int) -> None:
    forest = grow_forest(random_rows(seed, depth=3))
    seen_UU = count_seen(full_pieces(segments_of(forest)), forest.num_tokens)
    assert torch.equal(seen_UU, dense_mask(forest).long())


@pytest.mark.parametrize("window", [1, 2, 3, 8, 20])
@pytest.mark.parametrize("seed", range(3))
def test_each_pair_within_the_window_is_in_one_piece(seed: int, window: int) -> None:
    forest = grow_forest(random_rows(seed, depth=3))
    pieces = window_pieces(segments_of(forest), window)
    assert torch.equal(count_seen(pieces, forest.num_tokens, window), dense_mask(forest, window).long())


def test_under_a_window_every_query_of_a_piece_sees_a_key() -> None:
    forest = grow_forest(random_rows(1, depth=3))
    edges = [piece for piece in window_pieces(segments_of(forest), 6) if piece.lead is not None]
    assert edges
    for piece in edges:
        assert piece.lead is not None
        last_query, last_key = piece.lead + piece.queries - 1, piece.keys - 1
        assert last_query - last_key < 6
