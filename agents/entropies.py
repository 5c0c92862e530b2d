"""Entropies of distributions of which only the most likely tokens are known."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def entropy_bounds(top_logprobs_RK: NDArray[np.floating], vocabulary_size: int) -> tuple[Floats, Floats]:
    """Bound the entropy of each row from the log-probs of its most likely tokens.

    The K known tokens give ``known = -sum p log p`` and leave the mass ``rest = 1 - sum p`` to the V - K others. Each
    of those has at most ``q = min(p_K, rest)``, so they add at least ``-rest log q``; they add most where they are
    equal, ``rest log((V - K) / rest)``. With V = 4 and p = 0.5, 0.25: known = ln 2 and rest = 0.25, so the entropy is
    between ln 2 + 0.25 ln 4 = 1.040 and ln 2 + 0.25 ln 8 = 1.213 nats.

    Args:
        top_logprobs_RK: Log-probs of the K most likely tokens, the largest first, nats; -inf for a token that can't
            come.
        vocabulary_size: V, at least K; where it is K, nothing is unknown and both bounds are the entropy.

    Returns:
        Lower and upper bounds, nats, each [R].
    """
    # So that 0 log 0 is 0; in single precision, since with a small vocabulary this is a part of a rollout's time.
    logprobs_RK = np.maximum(top_logprobs_RK, np.finfo(np.float32).min, dtype=np.float32)
    p_RK = np.exp(logprobs_RK)
    known_R = -np.einsum("rk,rk->r", p_RK, logprobs_RK).astype(np.float64)
    others = vocabulary_size - p_RK.shape[1]
    if others == 0:
        return known_R, known_R
    # Rounding can leave a little less than nothing.
    rest_R = np.clip(1.0 - p_RK.sum(axis=1, dtype=np.float64), 0.0, 1.0)
    some_R = np.where(rest_R > 0, rest_R, 1.0)
    largest_R = np.maximum(np.minimum(p_RK[:, -1], some_R), some_R / others)
    low_R = known_R - rest_R * np.log(largest_R)
    high_R = known_R + rest_R * np.log(others / some_R)
    return low_R, high_R
