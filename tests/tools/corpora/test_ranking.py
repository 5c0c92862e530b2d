"""The best of many scores."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.corpora.ranking import GROUPS, best_places, thread_buffer


def test_the_highest_first_and_of_equal_ones_the_first() -> None:
    scores = np.array([1, 5, 0, 5, 3], np.float32)
    assert best_places(scores, 2, above=0.0) == [1, 3]
    assert best_places(scores, 9, above=0.0) == [1, 3, 4, 0]
    assert best_places(scores, 9, above=-np.inf) == [1, 3, 4, 0, 2]


def test_the_best_in_one_group() -> None:
    # Place i is in group i % 1,024: the three best are all in group 7, so the third maximum of groups is far lower.
    scores = np.zeros(4 * GROUPS, np.float32)
    scores[[7, GROUPS + 7, 3 * GROUPS + 7, 8, 9]] = [5, 6, 4, 1, 2]
    assert best_places(scores, 3, above=0.0) == [GROUPS + 7, 7, 3 * GROUPS + 7]


SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=40)


@given(SCORES, st.integers(1, 50), st.sampled_from([0.0, -np.inf]), st.booleans())
def test_best_places(values: list[float], top_k: int, above: float, padded: bool) -> None:
    order = sorted((place for place in range(len(values)) if values[place] > above), key=lambda place: -values[place])
    size = 3 * GROUPS if padded else len(values)
    scores = np.full(size, above, np.float32)
    scores[: len(values)] = values
    assert best_places(scores, top_k, above) == order[:top_k]


def test_buffers_hold_whole_groups_and_come_clean() -> None:
    assert [len(thread_buffer(size, 0.0)) for size in (0, 1, 1_024, 1_025, 2_049)] == [0, 1, 1_024, 2_048, 3_072]
    thread_buffer(1_500, 0.0)[:] = 7
    assert set(thread_buffer(1_025, 0.0).tolist()) == {0.0}
    assert set(thread_buffer(3, -np.inf).tolist()) == {-np.inf}
