"""The best of many scores, and memory to work them out in."""

from __future__ import annotations

import threading
from typing import cast

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

GROUPS = 1_024  # of scores; where there are no more scores than this, groups bring nothing
BUFFERS = threading.local()


def best_places(scores: Floats, top_k: int, above: float) -> list[int]:
    """The places of the ``top_k`` highest scores that are > ``above``, the highest first; of equal ones, the first."""
    hits: npt.NDArray[np.int64] | None = None
    if top_k <= GROUPS < len(scores):
        # The k-th highest maximum of disjoint groups is at most the k-th highest score, and far quicker to find.
        maxima = scores.reshape(-1, GROUPS).max(axis=0)
        bound = np.partition(maxima, -top_k)[-top_k]
        if bound > above:
            hits = np.flatnonzero(scores >= bound)
    if hits is None:
        hits = np.flatnonzero(scores > above)
    if len(hits) > top_k:
        lowest = np.partition(scores[hits], -top_k)[-top_k]
        hits = hits[scores[hits] >= lowest]
    return cast(list[int], hits[np.argsort(-scores[hits], kind="stable")[:top_k]].tolist())


def thread_buffer(size: int, value: float) -> Floats:
    """Memory for ``size`` scores or a few more, a multiple of `GROUPS` where there are more than that, all ``value``.

    Fresh memory of this size would come from the operating system page by page for every query, which takes longer
    than the rest of it; so each thread keeps its own.
    """
    padded = size if size <= GROUPS else -(-size // GROUPS) * GROUPS
    buffer: Floats | None = getattr(BUFFERS, "scores", None)
    if buffer is None or len(buffer) < padded:
        buffer = BUFFERS.scores = np.empty(padded, np.float32)
    scores = buffer[:padded]
    scores.fill(value)
    return scores
