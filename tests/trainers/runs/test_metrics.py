"""What a step's trees say, against numbers worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest

from forkgym.agents.base import FinishReason
from forkgym.envs.tasks import StopReason
from forkgym.trainers.algorithms.config import CreditConfig
from forkgym.trainers.algorithms.credit import CreditRule
from forkgym.trainers.algorithms.table import ALGORITHMS
from forkgym.trainers.runs.metrics import rollout_metrics
from forkgym.trainers.types import Group
from tests.trainers.small_trees import three_leaves, trajectory, turn


def pair(*rewards: float) -> Group:
    """Trajectories of one turn of one token, which share nothing."""
    turns = tuple(turn(f"t{place}d0", None, (3,), reward=reward) for place, reward in enumerate(rewards))
    trajectories = tuple(trajectory(f"t{place}d0", reward) for place, reward in enumerate(rewards))
    return Group("toy", "toy/1", "?", "!", (1,), turns, trajectories)


def rewarded(group: Group, *rewards: float) -> Group:
    """The same tree with other rewards, each paid for the last turn of a trajectory."""
    paid = {one.leaf: reward for one, reward in zip(group.trajectories, rewards, strict=True)}
    turns = tuple(replace(one, reward=paid.get(one.uid, 0.0)) for one in group.turns)
    return replace(group, turns=turns, trajectories=tuple(trajectory(leaf, reward) for leaf, reward in paid.items()))


def test_calibration_on_a_tree_that_fits_on_paper() -> None:
    # Tokens and advantages by trajectory: 3 of 2/3, 2 of -1/3, 4 of -1/3; mean 0, variance (3 * 4 + 6) / 9 / 9 = 2/9.
    # The 2 * 2 tokens of t0d0 become 1/6, the others stay: (4 / 36 + 4 / 9 + 2 / 9 + 2 / 9) / 9 = 1/9.
    # Its two advantages have sample variance 1/2, so the noise is 2 * 2 * (1/2) / 2 / 9 = 1/9.
    metrics = rollout_metrics([three_leaves()])
    assert metrics["prefix/leaves_mean"] == 2.0
    assert metrics["calibration/variance_removed"] == pytest.approx(1 / 2)
    assert metrics["calibration/noise"] == pytest.approx(1.0)


def test_calibration_is_over_the_tokens_of_all_groups() -> None:
    # Two more tokens, with advantages 1/2 and -1/2: 2 + 1/2 before, 1 + 1/2 after.
    metrics = rollout_metrics([three_leaves(), pair(1.0, 0.0)])
    assert metrics["calibration/variance_removed"] == pytest.approx(1 - 1.5 / 2.5)
    assert metrics["calibration/noise"] == pytest.approx(1 / 1.5)


def test_more_leaves_are_less_noise() -> None:
    # One shared turn of one token above n leaves without tokens, rewards 1 and 0 in turn, and a lone turn of n tokens
    # that earns 0: the shared tokens have m = 1/2 against it, so V_mean = 1/16 at any n, and s^2 / n falls with n.
    def group(leaves: int) -> Group:
        rewards = [float(place % 2) for place in range(leaves)]
        turns = [turn("t0d0", None, (3,)), turn("t1d0", None, (4,) * leaves)]
        turns += [turn(f"t{place + 2}d1", "t0d0", (), reward=reward) for place, reward in enumerate(rewards)]
        found = [trajectory("t1d0", 0.0)]
        found += [trajectory(f"t{place + 2}d1", reward) for place, reward in enumerate(rewards)]
        return Group("toy", "toy/2", "?", "!", (1,), tuple(turns), tuple(found))

    # s^2 = n/4 / (n - 1), and half of the tokens are shared. n = 2: 1/2 / 2 / 2 * 16 = 2; n = 8: 2/7 / 8 / 2 * 16.
    for leaves, noise in ((2, 2.0), (8, 2 / 7)):
        metrics = rollout_metrics([group(leaves)])
        assert metrics["prefix/leaves_mean"] == leaves
        assert metrics["calibration/noise"] == pytest.approx(noise)


def test_what_a_step_cannot_have_is_left_out() -> None:
    metrics = rollout_metrics([pair(1.0, 0.0)])
    assert not [name for name in metrics if name.startswith(("prefix/", "calibration/", "markers/"))]
    metrics = rollout_metrics([rewarded(three_leaves(), 1.0, 1.0, 1.0)])
    assert metrics["prefix/leaves_mean"] == 2.0
    assert not [name for name in metrics if name.startswith("calibration/")]


def test_equal_leaves_leave_no_noise() -> None:
    # t0d1 and t2d1, which share t0d0, earn 1, and t1d1 0: averaging takes nothing away.
    metrics = rollout_metrics([rewarded(three_leaves(), 1.0, 0.0, 1.0)])
    assert metrics["calibration/variance_removed"] == pytest.approx(0.0)
    assert metrics["calibration/noise"] == pytest.approx(0.0)


def test_lengths_count_a_shared_turn_once_a_turn_and_in_each_trajectory() -> None:
    metrics = rollout_metrics([three_leaves()])
    assert metrics["tokens/turn_mean"] == 7 / 5  # 2 + 1 + 1 + 2 + 1
    assert metrics["tokens/trajectory_mean"] == 9 / 3  # 3 + 2 + 4


def test_turns_that_a_limit_cut_off() -> None:
    tree = three_leaves()
    reasons = (FinishReason.TURN_TOKENS, FinishReason.CONTEXT, *[FinishReason.STOP] * 2, FinishReason.END)
    turns = tuple(replace(one, finish_reason=reason) for one, reason in zip(tree.turns, reasons, strict=True))
    assert rollout_metrics([replace(tree, turns=turns)])["turns/cut_off_fraction"] == 2 / 5


def test_trajectories_without_a_call() -> None:
    # Two of three go through t0d0, which calls; t1d0 does not.
    tree = three_leaves()
    turns = tuple(replace(one, tools=("search",) if one.uid == "t0d0" else ()) for one in tree.turns)
    metrics = rollout_metrics([replace(tree, turns=turns)])
    assert metrics["tool_calls/none_fraction"] == pytest.approx(1 / 3)
    assert metrics["tool_calls/mean"] == pytest.approx(2 / 3)


def test_markers_of_a_turn() -> None:
    tree = three_leaves()
    texts = ("<think>a</think><search>b</search>", "<search>c</search>", "", "<answer>", "<think")
    turns = tuple(replace(one, text=text) for one, text in zip(tree.turns, texts, strict=True))
    markers = ("<think>", "</think>", "<search>", "</search>", "<answer>", "</answer>")
    assert rollout_metrics([replace(tree, turns=turns)], markers)["markers/turn_mean"] == 7 / 5
    # Where one marker begins with another, the text holds the longer one, once.
    assert rollout_metrics([replace(tree, turns=turns)], ("<t", "<think>"))["markers/turn_mean"] == 2 / 5


def test_solved_groups_need_no_signal() -> None:
    metrics = rollout_metrics([pair(1.0, 1.0), pair(0.0, 0.0), pair(1.0, 0.0), three_leaves()])
    assert (metrics["groups/solved_fraction"], metrics["groups/valid_fraction"]) == (0.25, 0.5)


def test_valid_groups_are_those_that_teach_the_algorithm() -> None:
    # The first two earn as much, but the first by its second turn.
    turns = (
        turn("t0d0", None, (3,)),
        turn("t1d0", None, (3,), reward=1.0),
        turn("t0d1", "t0d0", (4,), reward=1.0),
        turn("t1d1", "t1d0", (4,)),
    )
    group = Group("toy", "toy/3", "?", "!", (1,), turns, (trajectory("t0d1", 1.0), trajectory("t1d1", 1.0)))
    by_turn, whole = (CreditRule(ALGORITHMS["gpg"], CreditConfig(return_to_go=to_go)) for to_go in (True, False))
    groups = [group, pair(0.0, 0.0)]
    assert rollout_metrics(groups, (), by_turn)["groups/valid_fraction"] == 0.5
    assert rollout_metrics(groups, (), whole)["groups/valid_fraction"] == 0.0
    assert rollout_metrics(groups)["groups/valid_fraction"] == 0.0


def test_what_was_malformed_too_often_was_not_cut_off() -> None:
    tree = three_leaves()
    reasons = (StopReason.MALFORMED, StopReason.TIME_LIMIT, StopReason.ANSWERED)
    ended = tuple(replace(one, stop_reason=reason) for one, reason in zip(tree.trajectories, reasons, strict=True))
    assert rollout_metrics([replace(tree, trajectories=ended)])["truncated_fraction"] == pytest.approx(1 / 3)
