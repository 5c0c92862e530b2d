"""Advantages, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from forkgym.trainers.advantages import calibrated_advantages, group_advantages, group_correction
from tests.trainers.small_trees import three_leaves


def test_group_advantages_subtract_the_mean() -> None:
    # mean(1, 0, 0, 0) = 1/4
    assert group_advantages([1.0, 0.0, 0.0, 0.0]) == [0.75, -0.25, -0.25, -0.25]


def test_group_advantages_divided_by_the_deviation() -> None:
    # mean 1/2; squares 4 * 1/4 = 1; deviation sqrt(1 / 3)
    expected = 0.5 / (math.sqrt(1 / 3) + 1e-6)
    assert group_advantages([1.0, 0.0, 1.0, 0.0], divide_by_deviation=True) == pytest.approx(
        [expected, -expected, expected, -expected], abs=1e-12
    )


def test_equal_rewards_have_no_advantage() -> None:
    assert group_advantages([0.7, 0.7], divide_by_deviation=True) == [0.0, 0.0]
    assert group_advantages([2.0], divide_by_deviation=True) == [0.0]


def test_a_shared_turn_gets_the_mean_over_its_leaves() -> None:
    # rewards 1, 0, 0: advantages 2/3 (t0d1), -1/3 (t1d1), -1/3 (t2d1); t0d0 is shared by t0d1 and t2d1
    group = three_leaves()
    advantages = calibrated_advantages(group, group_advantages(group.rewards))
    assert advantages == pytest.approx(
        {"t0d0": 1 / 6, "t1d0": -1 / 3, "t0d1": 2 / 3, "t1d1": -1 / 3, "t2d1": -1 / 3}, abs=1e-12
    )


def test_correction_counts_trajectories_of_valid_groups() -> None:
    assert group_correction(8, 8) == 1.0  # two mixed groups of 4: the paper's alpha is 1, however few are right
    assert group_correction(4, 8) == 2.0  # one mixed, one all wrong or all right
    assert group_correction(4, 8, "damp") == 0.5
    assert group_correction(4, 8, "none") == 1.0


@pytest.mark.parametrize(("valid", "total", "kind"), [(0, 8, "rescale"), (9, 8, "rescale"), (4, 8, "other")])
def test_correction_refuses_what_makes_no_sense(valid: int, total: int, kind: str) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        group_correction(valid, total, kind)
