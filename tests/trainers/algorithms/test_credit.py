"""Credit and weights of whole steps, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from forkgym.envs.tasks import StopReason
from forkgym.trainers.algorithms.config import CreditConfig, SegmentConfig
from forkgym.trainers.algorithms.credit import (
    CreditRule,
    Paid,
    check_rewards,
    has_signal,
    make_samples,
    shuffled_rewards,
    teaches,
)
from forkgym.trainers.algorithms.segments import segment_begins
from forkgym.trainers.algorithms.table import ALGORITHMS, Algorithm, Baseline, Segmentation
from forkgym.trainers.packing import make_row
from forkgym.trainers.types import Group, RewardError, Row, Sample
from tests.trainers.algorithms.test_advantages import paid_on_the_way
from tests.trainers.random_trees import random_tree
from tests.trainers.small_trees import three_leaves, trajectory, turn, with_rewards

SUM = Algorithm(normalisation="sum")


def rows_of(group: Group, kind: Segmentation = "turn") -> list[Row]:
    begins = segment_begins(group, kind, SegmentConfig(), np.random.default_rng(0))
    return [make_row(group, one, begins) for one in group.trajectories]


def samples_of(
    *groups: Group, algorithm: Algorithm = SUM, most_tokens: int = 10, greedy: float = 0.0, **config: Any
) -> list[Sample]:
    rule = CreditRule(algorithm, CreditConfig(**config), most_tokens)
    paid = [Paid(group.rewards, greedy) for group in groups]
    return make_samples(groups, [rows_of(group) for group in groups], paid, rule)


def credit_of(*groups: Group, algorithm: Algorithm = SUM, **config: Any) -> list[list[float]]:
    """The advantage of each sampled token, by trajectory."""
    samples = samples_of(*groups, algorithm=algorithm, **config)
    return [
        [one for one, sampled in zip(sample.advantages, sample.row.loss_mask, strict=True) if sampled]
        for sample in samples
    ]


def alike(reward: float) -> Group:
    """The tree of three leaves with one reward on all of them."""
    return with_rewards(three_leaves(), [reward] * 3)


def close(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> bool:
    return [len(one) for one in found] == [len(one) for one in expected] and all(
        list(one) == pytest.approx(list(other)) for one, other in zip(found, expected, strict=True)
    )


# The trajectories of the tree of three leaves, t0d1, t1d1 and t2d1, have 3, 2 and 4 policy tokens and rewards 1, 0, 0.


def test_advantages_stand_on_sampled_tokens_alone() -> None:
    # mean 1/3; prompt 1 2, turn 3 4, observation 5, turn 6
    (first, *_) = samples_of(three_leaves())
    assert first.advantages == pytest.approx((0, 0, 2 / 3, 2 / 3, 0, 2 / 3))
    assert first.targets == ()


def test_each_baseline_by_hand() -> None:
    def by(baseline: Baseline, **config: Any) -> list[list[float]]:
        algorithm = replace(SUM, baseline=baseline)
        return credit_of(three_leaves(), algorithm=algorithm, **config)

    assert close(by("none"), [[1] * 3, [0] * 2, [0] * 4])
    assert close(by("mean"), [[2 / 3] * 3, [-1 / 3] * 2, [-1 / 3] * 4])
    # t0d1 and t2d1 share a turn: their only other is t1d1 (0), and its others are they (1/2)
    assert close(by("others"), [[1] * 3, [-1 / 2] * 2, [0] * 4])
    # the greedy trajectory got 0.25
    assert close(by("greedy", greedy=0.25), [[0.75] * 3, [-0.25] * 2, [-0.25] * 4])


def test_the_deviation_divides() -> None:
    # mean 1/3; squares 4/9 + 1/9 + 1/9 = 2/3, over 2: 1/3
    divisor = math.sqrt(1 / 3) + 1e-6
    found = credit_of(three_leaves(), algorithm=replace(SUM, divides_by_deviation=True))
    assert close(found, [[2 / 3 / divisor] * 3, [-1 / 3 / divisor] * 2, [-1 / 3 / divisor] * 4])


def test_calibration_changes_shared_turns_alone() -> None:
    # t0d0 (two tokens) is shared by 2/3 and -1/3: 1/6
    found = credit_of(three_leaves(), algorithm=replace(SUM, calibrates=True))
    assert close(found, [[1 / 6, 1 / 6, 2 / 3], [-1 / 3] * 2, [1 / 6, 1 / 6, -1 / 3, -1 / 3]])


def test_what_is_still_to_come() -> None:
    # to go: 1.4, 0.9, 1 and 0.25, which stays; means at each depth: 0.825, 0.575, 0.625
    found = credit_of(paid_on_the_way(), return_to_go=True)
    assert close(found, [[0.575, 0.325, 0.375], [-0.575, -0.575]])


@pytest.mark.parametrize("algorithm", ["gpg", "arpo-gpg", "arpo", "rloo", "reinforce"])
def test_what_is_still_to_come_is_everything_where_payment_comes_at_the_end(algorithm: str) -> None:
    for seed in range(10):
        tree = random_tree(seed)
        whole, to_go = (credit_of(tree, algorithm=ALGORITHMS[algorithm], return_to_go=to_go) for to_go in (False, True))
        assert close(to_go, whole), seed


def paid_in_turn(*paid: tuple[float, float]) -> Group:
    """Trajectories of two turns that share nothing."""
    turns = [turn(f"t{place}d0", None, (3,), seen=(5,), reward=one) for place, (one, _) in enumerate(paid)]
    turns += [turn(f"t{place}d1", f"t{place}d0", (4, 4), reward=two) for place, (_, two) in enumerate(paid)]
    leaves = tuple(trajectory(f"t{place}d1", one + two) for place, (one, two) in enumerate(paid))
    return Group("toy", "toy/2", "?", "!", (1, 2), tuple(turns), leaves)


def shared_and_silent() -> Group:
    """Two trajectories that share their one turn with tokens, beside one that earns as much as they do in the mean."""
    return replace(
        three_leaves(),
        turns=(
            turn("t0d0", None, (3, 4)),
            turn("t1d0", None, (9,), reward=0.5),
            turn("t0d1", "t0d0", (), reward=1.0),
            turn("t2d1", "t0d0", ()),
        ),
        trajectories=(trajectory("t0d1", 1.0), trajectory("t1d0", 0.5), trajectory("t2d1", 0.0)),
    )


MASKED = {"mask_truncated": True}
TO_GO = {"return_to_go": True}


@pytest.mark.parametrize(
    ("group", "algorithm", "config", "expected"),
    [
        (three_leaves(), "gpg", {}, True),
        (alike(1.0), "gpg", {}, False),
        (paid_in_turn((1.0, 0.0), (0.0, 1.0)), "gpg", {}, False),
        (paid_in_turn((1.0, 0.0), (0.0, 1.0)), "gpg", TO_GO, True),
        (paid_in_turn((1.0, 0.0), (0.0, 1.0)), "rloo", TO_GO, True),
        (paid_in_turn((1.0, 0.5), (1.0, 0.5)), "gpg", TO_GO, False),
        (shared_and_silent(), "gpg", {}, True),
        (shared_and_silent(), "arpo-gpg", {}, False),  # the mean of 1/2 and -1/2, and 0
        (three_leaves(), "rloo", {"tree_weights": "node"}, True),
    ],
)
def test_a_group_teaches_where_a_token_has_an_advantage(
    group: Group, algorithm: str, config: dict[str, Any], expected: bool
) -> None:
    rule = CreditRule(ALGORITHMS[algorithm], CreditConfig(**config))
    assert teaches(group, rule) == expected
    assert any(map(has_signal, samples_of(group, algorithm=ALGORITHMS[algorithm], **config))) == expected


def test_a_group_all_of_whose_advantages_are_masked_teaches_nothing() -> None:
    # Rewards 1, 1/2 and 0; of these 1/2, the mean, is the one whose trajectory ended by itself.
    group = with_rewards(three_leaves(), (1.0, 0.5, 0.0))
    cut = tuple(
        replace(one, stop_reason=StopReason.TURN_LIMIT) if one.reward != 0.5 else one for one in group.trajectories
    )
    group = replace(group, trajectories=cut)
    assert teaches(group, CreditRule(ALGORITHMS["gpg"], CreditConfig()))
    assert not teaches(group, CreditRule(ALGORITHMS["gpg"], CreditConfig(mask_truncated=True)))
    assert not any(map(has_signal, samples_of(group, algorithm=ALGORITHMS["gpg"], mask_truncated=True)))


@pytest.mark.parametrize("config", [{}, TO_GO, MASKED, TO_GO | MASKED])
@pytest.mark.parametrize("algorithm", ["gpg", "arpo-gpg", "arpo", "rloo"])
def test_a_group_teaches_by_itself_what_it_teaches_in_a_step(algorithm: str, config: dict[str, Any]) -> None:
    rule = CreditRule(ALGORITHMS[algorithm], CreditConfig(**config))
    reasons = (StopReason.ANSWERED, StopReason.CONTEXT_LIMIT)
    found: set[bool] = set()
    for seed in range(30):
        tree = random_tree(seed, paid_on_the_way=bool(seed % 2))
        if seed % 3 == 0:
            tree = with_rewards(tree, [0.7] * len(tree.trajectories))
        ends = [reasons[(seed + place) % 2] for place in range(len(tree.trajectories))]
        cut = [replace(one, stop_reason=end) for one, end in zip(tree.trajectories, ends, strict=True)]
        group = replace(tree, trajectories=tuple(cut))
        samples = samples_of(group, algorithm=ALGORITHMS[algorithm], **config)
        assert teaches(group, rule) == any(map(has_signal, samples))
        found.add(teaches(group, rule))
    assert found == {True, False}


def test_where_the_group_is_not_its_own_baseline_rewards_that_differ_teach() -> None:
    for name in ("reinforce", "remax", "ppo"):
        rule = CreditRule(ALGORITHMS[name], CreditConfig())
        assert teaches(three_leaves(), rule)
        assert not teaches(alike(1.0), rule)


def with_a_fresh_one() -> Group:
    """The tree of three leaves with a fresh trajectory beside it, whose reward is 1; two trajectories were initial."""
    group = three_leaves()
    return replace(
        group,
        turns=(*group.turns, turn("t3d0", None, (9, 9), reward=1.0)),
        trajectories=(*group.trajectories, trajectory("t3d0", 1.0)),
        num_initial=2,
    )


def test_node_weights_with_the_other_initial_trees() -> None:
    # G / N = 4 / 2: a first turn weighs 2, each of t0d0's two leaves 1, also the fresh one 2. What t0 is worth in the
    # mean is 1/2, t1 is worth 0: baselines 0 for t0's leaves, 1/2 for t1, (1/2 + 0) / 2 for the fresh one.
    algorithm = replace(SUM, baseline="others")
    samples = samples_of(with_a_fresh_one(), algorithm=algorithm, tree_weights="node")
    assert [one.weight for one in samples] == pytest.approx([1 / 4, 2 / 4, 1 / 4, 2 / 4])
    found = credit_of(with_a_fresh_one(), algorithm=algorithm, tree_weights="node")
    assert close(found, [[1] * 3, [-1 / 2] * 2, [0] * 4, [3 / 4] * 2])


def test_calibration_takes_the_weights_of_the_tree() -> None:
    # t0d0 goes on to t0d1 (1) and, by a branch that branched again, to two leaves (0 and 0) which weigh half of it each
    group = replace(
        three_leaves(),
        turns=(
            turn("t0d0", None, (3,)),
            turn("t1d0", None, (9,)),
            turn("t0d1", "t0d0", (6,), reward=1.0),
            turn("t2d1", "t0d0", (7,)),
            turn("t2d2", "t2d1", (8,)),
            turn("t3d2", "t2d1", (8, 8)),
        ),
        trajectories=(
            trajectory("t1d0", 0.0),
            trajectory("t0d1", 1.0),
            trajectory("t2d2", 0.0),
            trajectory("t3d2", 0.0),
        ),
    )
    algorithm = replace(SUM, baseline="none", calibrates=True)
    assert credit_of(group, algorithm=algorithm)[1] == pytest.approx([1 / 3, 1.0])
    assert credit_of(group, algorithm=algorithm, tree_weights="node")[1] == pytest.approx([1 / 2, 1.0])


def test_weights_are_a_number_of_the_whole_step() -> None:
    # two groups of 9 tokens; the second has no signal, but its tokens count, and it is among the samples
    samples = samples_of(three_leaves(), alike(1.0), algorithm=Algorithm(normalisation="tokens"))
    assert [one.weight for one in samples] == pytest.approx([1 / 18] * 6)
    assert [has_signal(one) for one in samples] == [True] * 3 + [False] * 3
    by_length = samples_of(three_leaves(), algorithm=Algorithm(normalisation="trajectories"))
    assert [one.weight for one in by_length] == pytest.approx([1 / 9, 1 / 6, 1 / 12])
    assert [one.weight for one in samples_of(three_leaves(), algorithm=Algorithm(normalisation="length"))] == (
        pytest.approx([1 / 30] * 3)
    )


def test_equal_rewards_give_no_signal_however_they_are_rounded() -> None:
    # three times 0.1 has a mean that is not 0.1 to the bit; over a deviation of 1e-6 that would count
    for name in ("grpo", "dapo", "arpo", "gpg", "rloo"):
        assert not any(has_signal(one) for one in samples_of(alike(0.1), algorithm=ALGORITHMS[name])), name


def truncated_second() -> Group:
    group = three_leaves()
    ended = replace(group.trajectories[1], stop_reason=StopReason.TOTAL_TOKEN_LIMIT)
    return replace(group, trajectories=(group.trajectories[0], ended, group.trajectories[2]))


def test_masked_trajectories_count_as_rewards_and_not_as_tokens() -> None:
    kept = samples_of(truncated_second(), algorithm=Algorithm(normalisation="tokens"), mask_truncated=True)
    assert [one.row.tokens[-1] for one in kept] == [6, 8]
    assert [one.weight for one in kept] == pytest.approx([1 / 7, 1 / 7])  # 3 + 4 tokens
    assert max(kept[0].advantages) == pytest.approx(2 / 3)  # against the mean of all three
    all_of_them = samples_of(truncated_second(), algorithm=Algorithm(normalisation="tokens"))
    assert [one.weight for one in all_of_them] == pytest.approx([1 / 9] * 3)
    by_count = samples_of(truncated_second(), mask_truncated=True)
    assert [one.weight for one in by_count] == [1 / 2, 1 / 2]


def test_masking_leaves_the_node_weights_of_the_others_alone() -> None:
    group = truncated_second()
    kept = samples_of(group, algorithm=replace(SUM, baseline="others"), tree_weights="node", mask_truncated=True)
    # 3 trajectories, 2 initial: t0's leaves weigh 3/2 * 1/2 each, over the two that are kept
    assert [one.weight for one in kept] == pytest.approx([3 / 8, 3 / 8])


@pytest.mark.parametrize(
    ("reason", "kept"),
    [
        (StopReason.ANSWERED, True),
        (StopReason.TOOL_STOP, True),
        (StopReason.MALFORMED, True),
        (StopReason.TIME_LIMIT, False),
        (StopReason.TURN_LIMIT, False),
        (StopReason.CONTEXT_LIMIT, False),
        (StopReason.TOTAL_TOKEN_LIMIT, False),
    ],
)
def test_what_no_limit_cut_off_is_kept(reason: StopReason, kept: bool) -> None:
    group = three_leaves()
    group = replace(group, trajectories=tuple(replace(one, stop_reason=reason) for one in group.trajectories))
    assert len(samples_of(group, mask_truncated=True)) == (3 if kept else 0)


def critic_samples(
    group: Group, values: Sequence[Sequence[float]], kind: Segmentation, rewards: Sequence[float], **config: Any
) -> list[Sample]:
    algorithm = replace(SUM, baseline="critic", segments=kind)
    rule = CreditRule(algorithm, CreditConfig(**config))
    return make_samples([group], [rows_of(group, kind)], [Paid(rewards, values_G=values)], rule)


def test_the_critics_credit_by_turn() -> None:
    # prompt 1, turns 2, 6 and 7 with an observation 3 after the first two; paid 0.5, -0.1 and 1.
    # Values before them 0.5, 0.25 and 0.75; what the head says of other tokens is of no interest.
    group = paid_on_the_way()
    values = [[9.0, 0.5, 9.0, 0.25, 9.0, 0.75], [9.0, 1.0, 9.0]]
    first, second = critic_samples(group, values, "turn", group.rewards)
    # lambda 1: to go 1.4, 0.9, 1 less the value; the target is what was to go
    assert first.advantages == pytest.approx((0, 0.9, 0, 0.65, 0, 0.25))
    assert first.targets == pytest.approx((0, 1.4, 0, 0.9, 0, 1.0))
    assert second.advantages == pytest.approx((0, -0.75, -0.75))
    assert second.targets == pytest.approx((0, 0.25, 0.25))
    # lambda 0: 0.5 + 0.25 - 0.5, -0.1 + 0.75 - 0.25, 1 - 0.75
    (first, _) = critic_samples(group, values, "turn", group.rewards, gae_lambda=0.0)
    assert first.advantages == pytest.approx((0, 0.25, 0, 0.4, 0, 0.25))
    assert first.targets == pytest.approx((0, 0.75, 0, 0.65, 0, 1.0))


def test_the_critics_credit_by_token_and_by_trajectory() -> None:
    group = paid_on_the_way()
    values = [[9.0, 0.5, 9.0, 0.25, 9.0, 0.75], [9.0, 1.0, 0.5]]
    _, second = critic_samples(group, values, "token", group.rewards, gae_lambda=0.0)
    # paid at the last token: 0 + 0.5 - 1, then 0.25 - 0.5
    assert second.advantages == pytest.approx((0, -0.5, -0.25))
    first, second = critic_samples(group, values, "trajectory", group.rewards)
    assert first.advantages == pytest.approx((0, 0.9, 0, 0.9, 0, 0.9))  # 1.4 - 0.5
    assert second.advantages == pytest.approx((0, -0.75, -0.75))


def test_a_turn_without_tokens_pays_what_came_before_it() -> None:
    group = replace(
        paid_on_the_way(),
        turns=(*paid_on_the_way().turns[:3], turn("t0d2", "t0d1", (), reward=1.0)),
    )
    (first, _) = critic_samples(group, [[0.0] * 5, [0.0] * 3], "turn", group.rewards)
    # row: prompt 1, turn 2, seen 3, turn 6, seen 3; 0.5 and -0.1 + 1 were paid
    assert first.targets == pytest.approx((0, 1.4, 0, 0.9, 0))


def test_shuffled_rewards_reach_the_critic_as_well() -> None:
    group = paid_on_the_way()
    values = [[0.0] * 6, [0.0] * 3]
    first, second = critic_samples(group, values, "turn", [0.25, 1.4], shuffle_rewards=True)
    assert first.targets == pytest.approx((0, 0.25, 0, 0.25, 0, 0.25))  # all at the end
    assert second.targets == pytest.approx((0, 1.4, 1.4))


def test_shuffling_keeps_each_groups_rewards() -> None:
    group = three_leaves()
    shuffled = shuffled_rewards([group] * 20, seed=1)
    assert all(sorted(rewards) == [0.0, 0.0, 1.0] for rewards in shuffled)
    assert {rewards.index(1.0) for rewards in shuffled} == {0, 1, 2}
    assert shuffled == shuffled_rewards([group] * 20, seed=1)
    assert shuffled != shuffled_rewards([group] * 20, seed=2)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, None])
def test_a_reward_that_is_no_number_is_refused_by_name(bad: Any) -> None:
    with pytest.raises(RewardError, match=f"group toy/0: trajectory t1d1 has reward {bad}, expected a finite number"):
        check_rewards([three_leaves()], [[1.0, bad, 0.0]])


def test_missing_rewards_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="group toy/0: 3 trajectories and 2 rewards, expected one for each"):
        check_rewards([three_leaves()], [[1.0, 0.0]])
    with pytest.raises(ValueError, match="1 groups and rewards of 0, expected as many"):
        check_rewards([three_leaves()], [])


def test_an_empty_group_is_refused_by_name() -> None:
    empty = replace(three_leaves(), turns=(), trajectories=())
    with pytest.raises(ValueError, match="group toy/0: .*no trajector"):
        check_rewards([three_leaves(), empty], [[1.0, 0.0, 0.0], []])


def test_a_trajectory_without_policy_tokens_is_refused_by_name() -> None:
    group = three_leaves()
    silent = tuple(
        replace(turn(one.uid, one.parent, (), seen=one.observation_tokens), reward=one.reward)
        if one.uid.startswith("t1")
        else one
        for one in group.turns
    )
    with pytest.raises(ValueError, match="group toy/0: trajectory t1d1 has no policy token"):
        samples_of(replace(group, turns=silent))


def test_a_group_that_an_algorithm_has_no_baseline_for_is_named() -> None:
    group = three_leaves()
    one_root = replace(
        group,
        turns=tuple(one for one in group.turns if not one.uid.startswith("t1")),
        trajectories=(group.trajectories[0], group.trajectories[2]),
    )
    with pytest.raises(ValueError, match="group toy/0: all 2 trajectories begin with turn t0d0"):
        samples_of(one_root, algorithm=ALGORITHMS["rloo"])
