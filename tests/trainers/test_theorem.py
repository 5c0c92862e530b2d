"""The macro-action policy gradient theorem and its ends, on random trees, and where segments and calibration matter.

With K segments a trajectory, on-policy: K = 1 is GRPO's gradient up to its length normalisation, K = tokens the
classical policy gradient. In a loss that is linear in the log-prob neither segments nor calibration change anything.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import pytest
import torch

from forkgym.trainers.algorithms.advantages import returns_to_go
from forkgym.trainers.algorithms.config import CreditConfig, LossConfig, SegmentConfig
from forkgym.trainers.algorithms.credit import CreditRule, Paid, make_samples
from forkgym.trainers.algorithms.objective import FixedLogprobs, LossRule, objective
from forkgym.trainers.algorithms.segments import Marking, segment_begins
from forkgym.trainers.algorithms.table import ALGORITHMS, Algorithm, Normalisation, Ratio, Segmentation
from forkgym.trainers.forward.measures import Measures
from forkgym.trainers.packing import make_row, pad
from forkgym.trainers.types import Group, Row
from tests.trainers.random_trees import random_table, random_tree, sampled_by, table_logprobs, written_out_gradient

SEEDS = range(12)
PIECES = ("<a>", "</a>", "x", "y", "z", "w")  # texts of the six tokens
SEGMENTATIONS: tuple[Segmentation, ...] = ("trajectory", "turn", "marker", "token", "random", "entropy")
RATIOS: tuple[Ratio, ...] = (
    "token",
    "segment-product",
    "segment-geometric",
    "sequence-product",
    "sequence-geometric",
)


def step_groups(seed: int, *, paid_on_the_way: bool = False) -> tuple[torch.Tensor, list[Group]]:
    """A policy, and two trees that it sampled."""
    table = random_table(seed)
    trees = [random_tree(10 * seed + place, paid_on_the_way=paid_on_the_way) for place in range(2)]
    return table, [sampled_by(tree, table) for tree in trees]


def gradient(
    table: torch.Tensor,
    groups: Sequence[Group],
    algorithm: Algorithm,
    *,
    before: torch.Tensor | None = None,
    config: CreditConfig | None = None,
) -> torch.Tensor:
    """The gradient of a step by the trainer's own parts, from rewards to the loss; ``before`` sampled the trees."""
    rng = np.random.default_rng(0)
    marking = Marking(PIECES[:2], lambda token: PIECES[token])
    numbers = SegmentConfig(mean_length=2.0, entropy_share=0.5)
    rows: list[list[Row]] = []
    for group in groups:
        begins = segment_begins(group, algorithm.segments, numbers, rng, marking)
        rows.append([make_row(group, one, begins) for one in group.trajectories])
    credit = CreditRule(algorithm, config or CreditConfig(), most_tokens=50)
    samples = make_samples(groups, rows, [Paid(group.rewards) for group in groups], credit)
    table = table.clone().requires_grad_()
    flat_rows = [sample.row for sample in samples]
    fixed = FixedLogprobs(None if before is None else table_logprobs(before, flat_rows))
    found = objective(
        Measures(table_logprobs(table, flat_rows)),
        pad(samples, torch.device("cpu")),
        fixed,
        LossRule(algorithm, LossConfig(), 1.0),
    )
    (slope,) = torch.autograd.grad(found.loss, table)
    return slope


def assert_near(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=0.0, atol=1e-6)


def whole(groups: Sequence[Group], scales: Sequence[Sequence[float]], table: torch.Tensor) -> torch.Tensor:
    """Minus the written-out gradient, with one scale for each trajectory."""
    slopes = [
        written_out_gradient(
            table,
            group,
            [[scale] * len(group.path(one.leaf)) for one, scale in zip(group.trajectories, scales_G, strict=True)],
        )
        for group, scales_G in zip(groups, scales, strict=True)
    ]
    return -torch.stack(slopes).sum(0)


def lengths(group: Group) -> list[int]:
    return [sum(len(turn.tokens) for turn in group.path(one.leaf)) for one in group.trajectories]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("ratio", RATIOS)
def test_one_segment_is_grpo_with_its_length_normalisation(seed: int, ratio: Ratio) -> None:
    # GRPO: - 1/B sum_i 1/T_i sum_t A_i grad log pi_t with A_i = (r_i - mean) / (std + 1e-6). On-policy its ratios are
    # 1, be they of tokens or of the whole trajectory; the 1/T_i is the normalisation, of which the theorem has none.
    table, groups = step_groups(seed)
    count = sum(len(group.trajectories) for group in groups)
    scales = [
        [
            (one - statistics.fmean(group.rewards)) / (statistics.stdev(group.rewards) + 1e-6) / count / length
            for one, length in zip(group.rewards, lengths(group), strict=True)
        ]
        for group in groups
    ]
    algorithm = replace(ALGORITHMS["grpo"], segments="trajectory", ratio=ratio)
    found = gradient(table, groups, algorithm)
    assert float(found.abs().max()) > 1e-3
    assert_near(found, whole(groups, scales, table))
    assert_near(found, gradient(table, groups, ALGORITHMS["grpo"]))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("surrogate", ["gradient", "clipped", "truncated"])
def test_one_token_a_segment_is_the_classical_policy_gradient(
    seed: int, surrogate: Literal["gradient", "clipped", "truncated"]
) -> None:
    # - 1/B sum_i R_i sum_t grad log pi_t
    table, groups = step_groups(seed)
    count = sum(len(group.trajectories) for group in groups)
    scales = [[reward / count for reward in group.rewards] for group in groups]
    for ratio in RATIOS[:3]:
        algorithm = Algorithm(
            segments="token",
            baseline="none",
            surrogate=surrogate,
            ratio="none" if surrogate == "gradient" else ratio,
            normalisation="sum",
        )
        assert_near(gradient(table, groups, algorithm), whole(groups, scales, table))


@pytest.mark.parametrize("seed", SEEDS)
def test_with_rewards_on_the_way_it_is_the_classical_one_with_what_is_to_go(seed: int) -> None:
    table, groups = step_groups(seed, paid_on_the_way=True)
    count = sum(len(group.trajectories) for group in groups)
    expected = torch.zeros_like(table)
    for group in groups:
        to_go = [[value / count for value in values_D] for values_D in returns_to_go(group)]
        expected -= written_out_gradient(table, group, to_go)
    algorithm = Algorithm(segments="token", baseline="none", surrogate="clipped", ratio="token", normalisation="sum")
    for calibrates in (False, True):
        found = gradient(
            table, groups, replace(algorithm, calibrates=calibrates), config=CreditConfig(return_to_go=True)
        )
        assert_near(found, expected)
    whole_returns = gradient(table, groups, algorithm)
    assert float((whole_returns - expected).abs().max()) > 1e-3


@pytest.mark.parametrize("seed", SEEDS)
def test_on_policy_no_segmentation_and_no_ratio_changes_the_gradient(seed: int) -> None:
    # One advantage a trajectory: every ratio is exact, those over whole sequences as well.
    table, groups = step_groups(seed)
    expected = gradient(table, groups, Algorithm())
    for segments, ratio in itertools.product(SEGMENTATIONS, RATIOS):
        algorithm = Algorithm(segments=segments, surrogate="clipped", ratio=ratio)
        assert_near(gradient(table, groups, algorithm), expected)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("normalisation", ["tokens", "length", "sum"])
def test_in_a_linear_loss_neither_segments_nor_calibration_change_anything(
    seed: int, normalisation: Normalisation
) -> None:
    table, groups = step_groups(seed, paid_on_the_way=seed % 2 == 1)
    plain = Algorithm(normalisation=normalisation)
    expected = gradient(table, groups, plain)
    for segments, calibrates in itertools.product(SEGMENTATIONS, (False, True)):
        algorithm = replace(plain, segments=segments, calibrates=calibrates)
        assert_near(gradient(table, groups, algorithm), expected)


@pytest.mark.parametrize("seed", SEEDS)
def test_nor_do_they_with_node_weights(seed: int) -> None:
    # the mean over the leaves below a turn is then weighted as the leaves are
    table, groups = step_groups(seed)
    plain = Algorithm(baseline="others", normalisation="sum")
    expected = gradient(table, groups, plain, config=CreditConfig(tree_weights="node"))
    found = gradient(
        table, groups, replace(plain, calibrates=True, segments="turn"), config=CreditConfig(tree_weights="node")
    )
    assert_near(found, expected)


def changed_by(table: torch.Tensor, groups: Sequence[Group], one: Algorithm, other: Algorithm, seed: int) -> float:
    """How far apart two gradients are where the policy has moved since it sampled."""
    before = table + 0.3 * random_table(1000 + seed)
    groups = [sampled_by(group, before) for group in groups]
    gap = gradient(table, groups, one, before=before) - gradient(table, groups, other, before=before)
    return float(gap.abs().max())


@pytest.mark.parametrize("seed", SEEDS)
def test_off_policy_with_a_clip_both_matter(seed: int) -> None:
    table, groups = step_groups(seed)
    clipped = Algorithm(segments="turn", surrogate="clipped", ratio="segment-product")
    assert changed_by(table, groups, clipped, replace(clipped, segments="token"), seed) > 1e-3
    assert changed_by(table, groups, clipped, replace(clipped, segments="random"), seed) > 1e-3
    assert changed_by(table, groups, clipped, replace(clipped, ratio="segment-geometric"), seed) > 1e-3


def test_off_policy_with_a_clip_calibration_matters() -> None:
    # Only where a shared turn's leaves have advantages of either sign does it change what is clipped.
    gaps: list[float] = []
    for seed in SEEDS:
        table, groups = step_groups(seed)
        clipped = Algorithm(segments="turn", surrogate="clipped", ratio="token")
        gaps.append(changed_by(table, groups, clipped, replace(clipped, calibrates=True), seed))
    assert sum(gap > 1e-3 for gap in gaps) > len(gaps) // 2


def test_off_policy_without_a_clip_calibration_does_not_matter_but_segments_do() -> None:
    # A ratio is not linear in the log-prob, but it is in the advantage.
    for seed in SEEDS:
        table, groups = step_groups(seed)
        open_wide = Algorithm(segments="turn", surrogate="clipped", ratio="token", clip_low=1.0, clip_high=1e9)
        assert changed_by(table, groups, open_wide, replace(open_wide, calibrates=True), seed) < 1e-6
        product = replace(open_wide, ratio="segment-product")
        assert changed_by(table, groups, open_wide, product, seed) > 1e-3


def test_with_each_trajectorys_own_length_calibration_matters() -> None:
    # GRPO's normalisation weighs a shared turn's leaves by their lengths, calibration by their number.
    gaps: list[float] = []
    for seed in SEEDS:
        table, groups = step_groups(seed)
        plain = Algorithm(segments="turn", normalisation="trajectories")
        gap = gradient(table, groups, plain) - gradient(table, groups, replace(plain, calibrates=True))
        gaps.append(float(gap.abs().max()))
    assert sum(gap > 1e-3 for gap in gaps) > len(gaps) // 2
