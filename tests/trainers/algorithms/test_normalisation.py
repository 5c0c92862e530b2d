"""What a token's term is divided by, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from forkgym.trainers.algorithms.normalisation import token_weights
from forkgym.trainers.algorithms.table import Normalisation

LENGTHS = [2, 6]


@pytest.mark.parametrize(
    ("kind", "plain", "weighted"),
    [
        # weights 1 and 1; then 3 and 1
        ("tokens", [1 / 8, 1 / 8], [3 / 12, 1 / 12]),  # 3 * 2 + 1 * 6 = 12
        ("trajectories", [1 / 4, 1 / 12], [3 / 4, 1 / 12]),
        ("length", [1 / 20, 1 / 20], [3 / 20, 1 / 20]),  # 2 trajectories of 10 tokens at most
        ("sum", [1 / 2, 1 / 2], [3 / 2, 1 / 2]),
    ],
)
def test_weights_by_hand(kind: Normalisation, plain: list[float], weighted: list[float]) -> None:
    assert token_weights(kind, LENGTHS, [1.0, 1.0], 10) == pytest.approx(plain)
    assert token_weights(kind, LENGTHS, [3.0, 1.0], 10) == pytest.approx(weighted)


def test_a_mean_over_all_tokens_is_a_mean() -> None:
    # however trees are weighted, the weights of all tokens add up to 1
    shares = token_weights("tokens", LENGTHS, [0.3, 1.7], 10)
    assert sum(share * length for share, length in zip(shares, LENGTHS, strict=True)) == pytest.approx(1.0)


def test_no_trajectory_has_no_weight() -> None:
    kinds: tuple[Normalisation, ...] = ("tokens", "trajectories", "length", "sum")
    assert [token_weights(kind, [], [], 10) for kind in kinds] == [[], [], [], []]


def test_what_cannot_be_divided_by_is_refused() -> None:
    with pytest.raises(ValueError, match="trajectory 1 has no policy token"):
        token_weights("sum", [3, 0], [1.0, 1.0], 10)
    with pytest.raises(ValueError, match="most_tokens is 0, expected a positive number"):
        token_weights("length", LENGTHS, [1.0, 1.0], 0)
