"""Taking turns by weight: cycles that fit on paper, and shares that hold."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.envs.shares import LONGEST_CYCLE, shares_of

POSITIVE = st.floats(min_value=0.01, max_value=100.0)


def sequence(weights: tuple[float, ...], length: int) -> list[tuple[int, int]]:
    shares = shares_of(weights)
    return [shares.at(index) for index in range(length)]


def test_two_to_one() -> None:
    # Times of the first are 1/4 and 3/4, of the second 1/2. The second number counts what a source had before.
    assert sequence((2, 1), 6) == [(0, 0), (1, 0), (0, 1), (0, 2), (1, 1), (0, 3)]


def test_equal_weights_go_round() -> None:
    assert sequence((0.2, 0.2, 0.2), 4) == [(0, 0), (1, 0), (2, 0), (0, 1)]


def test_weights_are_read_as_they_are_written() -> None:
    # 7 and 3 of ten: times 1/14, 3/14, 5/14, 7/14, 9/14, 11/14, 13/14 and 1/6, 3/6, 5/6; of equal ones the first first.
    assert [source for source, _ in sequence((0.7, 0.3), 10)] == [0, 1, 0, 0, 0, 1, 0, 0, 1, 0]
    assert shares_of((0.7, 0.3)).counts == (7, 3)
    assert shares_of((70, 30)).counts == (7, 3)


@given(st.lists(POSITIVE, min_size=1, max_size=4).map(tuple))
def test_every_source_has_its_share_and_every_number_once(weights: tuple[float, ...]) -> None:
    shares = shares_of(weights)
    assert len(shares.cycle) <= LONGEST_CYCLE + len(weights)
    places = [shares.at(index) for index in range(2 * len(shares.cycle))]
    for source, weight in enumerate(weights):
        numbers = [number for found, number in places if found == source]
        assert numbers == list(range(2 * shares.counts[source]))
        share = shares.counts[source] / len(shares.cycle)
        assert math.isclose(share, weight / sum(weights), abs_tol=(1 + len(weights)) / LONGEST_CYCLE)


@pytest.mark.parametrize("weights", [(), (1.0, 0.0), (-1.0,), (math.nan,), (math.inf, 1.0)])
def test_what_is_no_weight(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match=r"weights are '.*', expected one or more, each above 0"):
        shares_of(weights)
