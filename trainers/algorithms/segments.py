"""Segments: runs of policy tokens that share one advantage and, where there is a ratio, one ratio.

A segmentation says for each turn at which of its tokens a segment begins. ``K``, the number of segments of a
trajectory, is 1 for whole trajectories and the number of tokens for single tokens (the classical policy gradient);
between them are the macro actions of arXiv:2512.10365.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from forkgym.trainers.algorithms.config import SegmentConfig
from forkgym.trainers.algorithms.table import Segmentation
from forkgym.trainers.types import Group, Turn

Begins = NDArray[np.bool_]  # [T], True at the tokens of a turn at which a segment begins

ROUNDING = 1e-9  # tokens: 0.29 of 100 are 28.999999999999996 in floating point


@dataclass(frozen=True, slots=True)
class Marking:
    """What the marker segmentation needs to find markers in tokens.

    Attributes:
        markers: The strings that stand alone as boundaries: a segment begins at an opening one (``<search>``) and after
            a closing one (``</search>``).
        piece: The text of one token.
    """

    markers: tuple[str, ...]
    piece: Callable[[int], str]


def segment_begins(
    group: Group, kind: Segmentation, config: SegmentConfig, rng: np.random.Generator, marking: Marking | None = None
) -> Mapping[str, Begins]:
    """Say where segments begin in each turn of a tree.

    ``trajectory``: nowhere, so that one segment goes through all turns; ``turn``: at each turn's first token;
    ``token``: at every token; ``marker``: at turns and markers; ``random``: at a turn's first token and at each other
    one with probability ``1 / mean_length``; ``entropy``: at a turn's first token and at the share ``entropy_share`` of
    the tree's tokens before which the policy was least certain (`least_certain`; Wang et al. 2025, arXiv:2506.01939,
    call them forking tokens). All trajectories that share a turn have the same segments in it.

    Args:
        group: A tree.
        kind: Which segmentation.
        config: Its numbers. With ``missed`` and ``spurious``, that share of the boundaries within turns is taken out,
            and that share of the other tokens becomes one: what a method loses by bad boundaries can be measured.
        rng: Draws random and disturbed boundaries, by turn in the tree's order.
        marking: For ``marker``.

    Returns:
        By turn uid, bool [T].

    Raises:
        ValueError: ``marker`` without ``marking``.
    """
    if kind == "trajectory":
        return {turn.uid: np.zeros(len(turn.tokens), np.bool_) for turn in group.turns}
    if kind == "marker" and marking is None:
        raise ValueError("segments by marker need the environment's markers and the tokens' texts, got neither")
    found: dict[str, Begins] = {}
    uncertain: Mapping[str, Begins] = {}
    if kind == "entropy":
        uncertain = least_certain(group.turns, config.entropy_share)
    for turn in group.turns:
        size = len(turn.tokens)
        if kind == "token":
            begins = np.ones(size, np.bool_)
        elif kind == "random":
            begins = rng.random(size) < 1.0 / config.mean_length
        elif kind == "entropy":
            begins = uncertain[turn.uid]
        elif kind == "marker":
            assert marking is not None
            begins = marker_begins(turn.tokens, marking)
        else:
            begins = np.zeros(size, np.bool_)
        if config.missed or config.spurious:
            draws = rng.random(size)
            begins = np.where(begins, draws >= config.missed, draws < config.spurious)
        begins[:1] = True
        found[turn.uid] = begins
    return found


def marker_begins(tokens: Sequence[int], marking: Marking) -> Begins:
    """Where markers begin or have just ended in a turn, however the tokenizer splits them.

    A segment begins at the token that holds the first character of an opening marker, and at the token after the one
    that holds the last character of a closing one.

    Example: the tokens ``I``, ``<se``, ``arch>``, ``q``, ``</search>``, ``.`` with the markers ``<search>`` and
    ``</search>`` give ``F T F F F T``.
    """
    pieces = [marking.piece(token) for token in tokens]
    # Parts of one character decode to replacement characters; markers are ASCII, and their places stay right.
    text = "".join(pieces)
    ends = np.cumsum([len(piece) for piece in pieces])
    begins = np.zeros(len(pieces), np.bool_)
    for marker in marking.markers:
        place = text.find(marker)
        while place >= 0:
            closes = marker.startswith("</")
            character = place + len(marker) - 1 if closes else place
            token = int(np.searchsorted(ends, character, side="right")) + int(closes)
            if token < len(begins):
                begins[token] = True
            place = text.find(marker, place + len(marker))
    return begins


def least_certain(turns: Sequence[Turn], share: float) -> Mapping[str, Begins]:
    """The tokens of a tree before which the policy was least certain, as many as the share is, rounded down.

    Of tokens with equal entropies the earlier ones in the tree's order count, so that there are never more.

    Example: turns of entropies ``0.5 0.9`` and ``0.5 0.1 0.5`` and a share of 0.6, which is 3 of 5 tokens, give
    ``T T`` and ``T F F``.

    Args:
        turns: Of a tree.
        share: 0 to 1.

    Returns:
        By turn uid, bool [T].
    """
    entropies = np.array([entropy for turn in turns for entropy in turn.entropies], np.float64)
    count = math.floor(share * len(entropies) + ROUNDING)
    begins = np.zeros(len(entropies), np.bool_)
    begins[np.argsort(-entropies, kind="stable")[:count]] = True
    ends = np.cumsum([len(turn.tokens) for turn in turns], dtype=np.int64)
    return {turn.uid: begins[end - len(turn.tokens) : end] for turn, end in zip(turns, ends, strict=True)}
