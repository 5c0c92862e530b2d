"""Bounds of an entropy of which only the most likely tokens are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.agents.entropies import entropy_bounds


def logs(*probabilities: float) -> np.ndarray:
    with np.errstate(divide="ignore"):
        return np.log(np.array([probabilities], np.float32))


def test_the_tail_is_bounded_from_both_sides() -> None:
    # known = 0.5 ln 2 + 0.25 ln 4 = ln 2; two tokens share 0.25: one has all of it, or both have 0.125.
    low, high = entropy_bounds(logs(0.5, 0.25), 4)
    assert low[0] == pytest.approx(math.log(2) + 0.25 * math.log(4), abs=1e-6)
    assert high[0] == pytest.approx(math.log(2) + 0.25 * math.log(8), abs=1e-6)


def test_a_token_of_the_tail_is_no_likelier_than_the_last_known() -> None:
    # 0.4 is left to three tokens of at most 0.2 each: two of 0.2 add 0.4 ln 5, three equal ones 0.4 ln 7.5.
    low, high = entropy_bounds(logs(0.4, 0.2), 5)
    known = -0.4 * math.log(0.4) - 0.2 * math.log(0.2)
    assert low[0] == pytest.approx(known + 0.4 * math.log(5), abs=1e-6)
    assert high[0] == pytest.approx(known + 0.4 * math.log(7.5), abs=1e-6)


def test_where_all_tokens_are_known_it_is_exact() -> None:
    low, high = entropy_bounds(logs(0.5, 0.5, 0.0), 3)
    assert low[0] == high[0] == pytest.approx(math.log(2), abs=1e-6)


def test_a_certain_token_has_no_entropy() -> None:
    low, high = entropy_bounds(logs(1.0, 0.0), 1000)
    assert (low[0], high[0]) == (0.0, 0.0)


@given(st.lists(st.floats(-20, 5), min_size=2, max_size=30), st.integers(1, 29))
def test_the_entropy_lies_between_the_bounds(logits: list[float], known: int) -> None:
    scores = np.sort(np.array(logits))[::-1]
    log_p = scores - np.log(np.exp(scores).sum())
    entropy = -(np.exp(log_p) * log_p).sum()
    low, high = entropy_bounds(log_p[None, : min(known, len(log_p))].astype(np.float32), len(log_p))
    assert low[0] - 1e-4 <= entropy <= high[0] + 1e-4
