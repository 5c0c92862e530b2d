"""Advantages, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from forkgym.trainers.algorithms.advantages import (
    calibrated,
    constant,
    deviation,
    deviations,
    differences,
    generalized_advantages,
    group_correction,
    mean_baseline,
    others_baseline,
    returns_to_go,
    whole_returns,
)
from forkgym.trainers.types import Group
from tests.trainers.small_trees import three_leaves, trajectory, turn


def paid_on_the_way() -> Group:
    """Three turns and one: the first trajectory is paid 0.5, -0.1 and 1, the second 0.25.

    prompt 1 ─┬─ t0d0 ─── t0d1 ─── t0d2
              └─ t1d0
    """
    return Group(
        env_id="toy",
        task_uid="toy/1",
        question="?",
        answer="!",
        prompt_tokens=(1,),
        turns=(
            turn("t0d0", None, (2,), seen=(3,), reward=0.5),
            turn("t1d0", None, (4, 5), reward=0.25),
            turn("t0d1", "t0d0", (6,), seen=(3,), reward=-0.1),
            turn("t0d2", "t0d1", (7,), reward=1.0),
        ),
        trajectories=(trajectory("t0d2", 1.4), trajectory("t1d0", 0.25)),
    )


def flat(returns_GD: list[tuple[float, ...]]) -> list[float]:
    return [value for returns_D in returns_GD for value in returns_D]


def test_every_turn_has_its_trajectorys_return() -> None:
    assert whole_returns(three_leaves(), [3.0, 4.0, 5.0]) == [(3.0, 3.0), (4.0, 4.0), (5.0, 5.0)]
    assert constant([1.0, 2.0], [(0.0,), (0.0, 0.0)]) == [(1.0,), (2.0, 2.0)]


def test_returns_to_go_leave_out_what_was_paid_before() -> None:
    # 0.5 - 0.1 + 1 = 1.4, -0.1 + 1 = 0.9, 1; 0.25
    returns_GD = returns_to_go(paid_on_the_way())
    assert [len(returns_D) for returns_D in returns_GD] == [3, 1]
    assert flat(returns_GD) == pytest.approx([1.4, 0.9, 1.0, 0.25])
    # a reward at the end alone: everything is still to go at every turn
    assert returns_to_go(three_leaves()) == whole_returns(three_leaves(), three_leaves().rewards)


def test_the_mean_contains_the_trajectory_itself() -> None:
    # (1 + 0 + 0) / 3, once a trajectory, whatever its number of turns
    assert mean_baseline([(1.0, 1.0), (0.0,), (0.0, 0.0)]) == [(1 / 3, 1 / 3), (1 / 3,), (1 / 3, 1 / 3)]


def test_what_has_ended_stands_at_its_last_turn() -> None:
    # depth 0: (1.4 + 0.25) / 2 = 0.825; depth 1: (0.9 + 0.25) / 2; depth 2: (1 + 0.25) / 2
    returns_GD = returns_to_go(paid_on_the_way())
    assert flat(mean_baseline(returns_GD)) == pytest.approx([0.825, 0.575, 0.625, 0.825])


@pytest.mark.parametrize("right", [(0.0, 0.0, 1.0), (1.0, 1.0, 0.0), (1.0, 1.0, 1.0)])
def test_what_is_paid_at_the_end_alone_is_compared_with_the_whole_mean(right: tuple[float, ...]) -> None:
    # One turn, two and three: also the last turns of the longest one are compared with all three.
    returns_GD = [(reward,) * length for reward, length in zip(right, (1, 2, 3), strict=True)]
    mean = sum(right) / 3
    advantages = differences(returns_GD, mean_baseline(returns_GD))
    assert flat(advantages) == pytest.approx([right[0] - mean] + [right[1] - mean] * 2 + [right[2] - mean] * 3)


def test_the_others_share_no_turn() -> None:
    # t0d1 and t2d1 (1 and 0) share their first turn: t1d1 (4) is their only other, and they are its two
    group = three_leaves()
    assert others_baseline(group, [(1.0, 1.0), (4.0, 4.0), (0.0, 0.0)]) == [(4.0, 4.0), (0.5, 0.5), (4.0, 4.0)]


def test_without_branches_the_others_are_rloos() -> None:
    group = replace(
        three_leaves(),
        turns=tuple(turn(f"t{place}d0", None, (2,), reward=paid) for place, paid in enumerate((1.0, 0.0, 0.5, 0.0))),
        trajectories=tuple(trajectory(f"t{place}d0", paid) for place, paid in enumerate((1.0, 0.0, 0.5, 0.0))),
    )
    # 1 - 0.5/3, 0 - 1.5/3, 0.5 - 1/3, 0 - 1.5/3
    returns_GD = whole_returns(group, group.rewards)
    advantages = flat(differences(returns_GD, others_baseline(group, returns_GD)))
    assert advantages == pytest.approx([5 / 6, -1 / 2, 1 / 6, -1 / 2])


def test_the_others_to_go_are_all_others() -> None:
    # the first trajectory: 0.25, which the other was paid for its last turn; the second: 1.4
    returns_GD = returns_to_go(paid_on_the_way())
    assert flat(others_baseline(paid_on_the_way(), returns_GD)) == pytest.approx([0.25] * 3 + [1.4])
    # The first: (2 + 4) / 2, (2 + 3) / 2 twice; the second: (1 + 4) / 2; the third: (1 + 2) / 2, (0.5 + 2) / 2.
    turns = [turn(f"t{place}d0", None, (2,)) for place in range(3)]
    turns += [turn("t0d1", "t0d0", (3,)), turn("t2d1", "t2d0", (3,)), turn("t0d2", "t0d1", (4,))]
    leaves = tuple(trajectory(leaf, 0.0) for leaf in ("t0d2", "t1d0", "t2d1"))
    group = replace(three_leaves(), turns=tuple(turns), trajectories=leaves)
    baseline_GD = others_baseline(group, [(1.0, 0.5, 0.25), (2.0,), (4.0, 3.0)])
    assert flat(baseline_GD) == pytest.approx([3.0, 2.5, 2.5, 2.5, 1.5, 1.25])


def test_where_all_share_a_turn_there_are_no_others() -> None:
    group = replace(
        three_leaves(),
        turns=tuple(one for one in three_leaves().turns if not one.uid.startswith("t1")),
        trajectories=(trajectory("t0d1", 1.0), trajectory("t2d1", 0.0)),
    )
    with pytest.raises(ValueError, match="group toy/0: all 2 trajectories begin with turn t0d0, expected two"):
        others_baseline(group, whole_returns(group, group.rewards))


def test_deviation_is_the_samples_with_a_floor() -> None:
    # mean 1/2; squares 4 * 1/4 = 1; sqrt(1 / 3)
    assert deviation([1.0, 0.0, 1.0, 0.0]) == pytest.approx(math.sqrt(1 / 3) + 1e-6, abs=1e-12)
    assert deviation([5.0]) == 1.0


def test_what_is_to_go_is_divided_by_its_own_deviation() -> None:
    # Totals of 1 and 1.001 that were paid at different turns: to go 1 and 1.001, then 0 and 1.
    # Over the totals' deviation of 7e-4 the second turns would count for 700.
    returns_GD: list[tuple[float, ...]] = [(1.0, 0.0), (1.001, 1.0)]
    first, second = deviations(returns_GD)
    assert first == pytest.approx(0.001 / math.sqrt(2) + 1e-6)
    assert second == pytest.approx(1 / math.sqrt(2) + 1e-6)
    advantages = flat(differences(returns_GD, mean_baseline(returns_GD), [first, second]))
    assert advantages == pytest.approx([-0.0005 / first, -0.5 / second, 0.0005 / first, 0.5 / second])
    # Whole returns have one deviation, whatever the trajectories' lengths.
    assert deviations([(1.0,), (0.0, 0.0), (1.0,), (0.0,)]) == [deviation([1.0, 0.0, 1.0, 0.0])] * 2


def test_differences_by_hand() -> None:
    # (3 - 1) / 4, (0 - 1) / 2; (5 - 2) / 4
    assert differences([(3.0, 0.0), (5.0,)], [(1.0, 1.0), (2.0,)], [4.0, 2.0]) == [(0.5, -0.5), (0.75,)]
    assert differences([(3.0, 0.0), (5.0,)], [(1.0, 1.0), (2.0,)]) == [(2.0, -1.0), (3.0,)]


def test_equal_rewards_have_no_advantage_whatever_they_are_divided_by() -> None:
    # The mean of three times 0.1 is 1.4e-17 above it: over 1e-6 that would be an advantage of 1.4e-11.
    returns_GD: list[tuple[float, ...]] = [(0.1,)] * 3
    advantages = flat(differences(returns_GD, mean_baseline(returns_GD), deviations(returns_GD)))
    assert advantages == pytest.approx([0.0] * 3, abs=1e-15)
    # The mean of nine times 123456.7 is 1.5e-11 above it.
    large_GD: list[tuple[float, ...]] = [(123456.7,)] * 9
    assert flat(mean_baseline(large_GD))[0] > 123456.7
    assert flat(differences(large_GD, mean_baseline(large_GD))) == [0.0] * 9
    # Without a baseline it would be 1e5.
    assert flat(differences(returns_GD, constant([0.0] * 3, returns_GD), deviations(returns_GD))) == [0.1] * 3


def test_a_shared_turn_gets_the_mean_over_its_leaves() -> None:
    # advantages 2/3 (t0d1), -1/3 (t1d1), -1/3 (t2d1); t0d0 is shared by t0d1 and t2d1: (2/3 - 1/3) / 2 = 1/6
    advantages = calibrated(three_leaves(), [(2 / 3, 2 / 3), (-1 / 3, -1 / 3), (-1 / 3, -1 / 3)], [1.0, 1.0, 1.0])
    assert flat(advantages) == pytest.approx([1 / 6, 2 / 3, -1 / 3, -1 / 3, 1 / 6, -1 / 3])


def test_a_shared_turn_gets_the_weighted_mean() -> None:
    # t0d0: (3 * 2/3 + 1 * -1/3) / 4 = 5/12; the others have one leaf each, whatever it weighs
    advantages = calibrated(three_leaves(), [(2 / 3, 2 / 3), (-1 / 3, -1 / 3), (-1 / 3, -1 / 3)], [3.0, 9.0, 1.0])
    assert flat(advantages) == pytest.approx([5 / 12, 2 / 3, -1 / 3, -1 / 3, 5 / 12, -1 / 3])


def test_calibration_keeps_what_differs_by_depth_apart() -> None:
    # returns to go differ within a trajectory: t0d0 has 1.4 and 2 in its two leaves, its leaves what they have
    advantages = calibrated(three_leaves(), [(1.4, 0.9), (0.0, 5.0), (2.0, -1.0)], [1.0, 1.0, 1.0])
    assert flat(advantages) == pytest.approx([1.7, 0.9, 0.0, 5.0, 1.7, -1.0])


@pytest.mark.parametrize(
    ("gae_lambda", "expected"),
    [
        # rewards 0, 0, 1 and values 0.5, 0.25, 0.75: deltas -0.25, 0.5, 0.25
        (0.0, [-0.25, 0.5, 0.25]),
        (1.0, [0.5, 0.75, 0.25]),  # return minus value
        (0.5, [0.0625, 0.625, 0.25]),  # 0.5 + 0.5 * 0.25; -0.25 + 0.5 * 0.625
    ],
)
def test_generalized_advantages_by_hand(gae_lambda: float, expected: list[float]) -> None:
    assert generalized_advantages([0.0, 0.0, 1.0], [0.5, 0.25, 0.75], gae_lambda) == pytest.approx(expected)


def test_generalized_advantages_of_rewards_on_the_way() -> None:
    # the example of the docstring, and rewards 1, 2 without values: 3 and 2 are still paid
    assert generalized_advantages([0.0, 1.0], [0.5, 0.75], 0.5) == [0.375, 0.25]
    assert generalized_advantages([1.0, 2.0], [0.0, 0.0], 1.0) == [3.0, 2.0]
    assert generalized_advantages([], [], 1.0) == []


def test_correction_counts_trajectories_of_valid_groups() -> None:
    assert group_correction(8, 8) == 1.0  # two mixed groups of 4: the paper's alpha is 1, however few are right
    assert group_correction(4, 8) == 2.0  # one mixed, one all wrong or all right
    assert group_correction(4, 8, "damp") == 0.5
    assert group_correction(4, 8, "none") == 1.0


@pytest.mark.parametrize(("valid", "total", "kind"), [(0, 8, "rescale"), (9, 8, "rescale"), (4, 8, "other")])
def test_correction_refuses_what_makes_no_sense(valid: int, total: int, kind: str) -> None:
    with pytest.raises(ValueError, match=r"expected"):
        group_correction(valid, total, kind)
