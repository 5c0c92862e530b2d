"""The loss of a micro-batch, against the whole equation worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from forkgym.trainers.algorithms.config import LossConfig
from forkgym.trainers.algorithms.objective import (
    FixedLogprobs,
    LossRule,
    Objective,
    objective,
    objective_metrics,
    segment_firsts,
)
from forkgym.trainers.algorithms.table import Algorithm
from forkgym.trainers.forward.measures import Measures
from forkgym.trainers.packing import Batch

CLIPPED = Algorithm(surrogate="clipped", ratio="token")
WILD = 9.0  # stands where nothing was sampled


def logs(*probabilities: float) -> torch.Tensor:
    """Log-probs of the three sampled tokens of the row; 0 elsewhere, as every forward has it."""
    first, second, third = probabilities
    return torch.tensor([[1.0, first, second, 1.0, third]]).log()


def row_batch(
    *,
    segments: Sequence[int] = (-1, 0, 0, -1, 1),
    advantages: Sequence[float] = (0, 1, 1, 0, -2),
    engine: torch.Tensor | None = None,
    targets: Sequence[float] = (),
) -> Batch:
    """A prompt, a turn of two tokens, an observation and a turn of one; each term weighs a quarter."""
    return Batch(
        mask_BT=torch.tensor([[False, True, True, False, True]]),
        segments_BT=torch.tensor([segments]),
        advantages_BT=torch.tensor([advantages], dtype=torch.float),
        weights_BT=torch.full((1, 5), 0.25),
        old_logprobs_BT=logs(0.4, 0.2, 0.3) if engine is None else engine,
        targets_BT=torch.tensor([targets], dtype=torch.float) if targets else torch.zeros(0, 0),
    )


def loss_of(
    batch: Batch,
    logprobs: torch.Tensor,
    algorithm: Algorithm,
    *,
    before: torch.Tensor | None = None,
    correction: float = 1.0,
    **config: object,
) -> Objective:
    rule = LossRule(algorithm, LossConfig(**config), correction)  # type: ignore[arg-type]  # fields by name
    return objective(Measures(logprobs), batch, FixedLogprobs(before), rule)


def slope_of(found: Objective, leaf: torch.Tensor) -> list[float]:
    (slope,) = torch.autograd.grad(found.loss, leaf)
    return [float(one) for one in slope[0]]


def test_the_whole_equation() -> None:
    measures = Measures(
        logprobs_BT=logs(0.6, 0.2, 0.3),
        entropies_BT=torch.tensor([[WILD, 0.5, 1.0, WILD, 1.5]]),
        values_BT=torch.tensor([[WILD, 1.0, WILD, WILD, 0.5]]),
    )
    # Advantages 1, 1, -2, corrected for the engine by before / mu: 0.4 / 0.4, 0.25 / 0.2, 0.2 / 0.3 give 1, 1.25, -4/3.
    # Ratios 1.5, 0.8 and 1.5: min(1.5, 1.2) = 1.2, 0.8 * 1.25 = 1, min(-2, -1.6) = -2; -2 * (0.2 / 4) = -0.1.
    # KL to 0.3, 0.2, 0.6 by k3: 1/2 - 1 + log 2, 0, 2 - 1 - log 2, so 0.5: 0.1 * 0.5 / 4 = 0.0125.
    # Entropy 3: -0.01 * 3 / 4 = -0.0075.
    # Values at the first tokens of the two segments: errors 0.5 and -1, halves of squares 0.625: 0.5 * 0.625 / 4.
    expected = -0.1 + 0.0125 - 0.0075 + 0.078125
    rule = LossRule(CLIPPED, LossConfig(kl_weight=0.1, entropy_weight=0.01, value_weight=0.5), correction=2.0)
    fixed = FixedLogprobs(before_BT=logs(0.4, 0.25, 0.2), reference_BT=logs(0.3, 0.2, 0.6))
    found = objective(measures, row_batch(targets=(WILD, 0.5, 0.5, WILD, 1.5)), fixed, rule)
    assert found.loss.item() == pytest.approx(expected, abs=1e-7)
    assert objective_metrics([found]) == pytest.approx(
        {
            "loss": expected,
            # log pi - log mu: log 1.5, 0, 0; weights 1.5, 1, 1: 3.5^2 / (3 * 4.25)
            "mismatch/mean": math.log(1.5) / 3,
            "mismatch/max": math.log(1.5),
            "mismatch/effective_sample_size": 12.25 / 12.75,
            "clip/fraction": 1 / 3,  # the first: above, and pushed up; the third is above and pushed down
            "kl/mean": 0.5 / 3,
            "entropy/trained": 1.0,
            "value/squared_error": (0.25 + 1.0) / 2,
        },
        abs=1e-6,
    )


def test_on_policy_nothing_but_the_gradient() -> None:
    leaf = logs(0.4, 0.2, 0.3).requires_grad_()
    for algorithm in (Algorithm(), CLIPPED, replace(CLIPPED, surrogate="truncated"), replace(CLIPPED, clip_high=0.0)):
        found = loss_of(row_batch(), leaf, algorithm, correction=2.0)
        # -2 * A / 4; where the ratio is 1 its clip has no part in it, be it at 1 itself
        assert slope_of(found, leaf) == pytest.approx([0, -0.5, -0.5, 0, 1.0])
    assert objective_metrics([found.without_graph()]).keys() == {
        *("loss", "mismatch/mean", "mismatch/max", "mismatch/effective_sample_size", "clip/fraction")
    }
    assert "clip/fraction" not in objective_metrics([loss_of(row_batch(), leaf, Algorithm()).without_graph()])


def test_the_policy_before_the_first_update_is_what_weights_compare_with_the_engine() -> None:
    # mu = 0.4, 0.2, 0.3; before 0.2, 0.4, 0.9: weights 0.5, 2, and 3 cut to 2. What the policy is now does not matter.
    leaf = logs(0.2, 0.4, 0.9).requires_grad_()
    before = logs(0.2, 0.4, 0.9)
    found = loss_of(row_batch(), leaf, CLIPPED, before=before)
    assert slope_of(found, leaf) == pytest.approx([0, -0.125, -0.5, 0, 1.0])
    assert slope_of(loss_of(row_batch(), leaf, CLIPPED), leaf) == pytest.approx([0, -0.125, -0.5, 0, 1.0])


def test_importance_correction_follows_the_policy() -> None:
    # now 0.6, 0.2, 0.15 against an engine's 0.4, 0.2, 0.3: weights 1.5, 1, 0.5, though before there was no difference
    leaf = logs(0.6, 0.2, 0.15).requires_grad_()
    before = logs(0.4, 0.2, 0.3)
    corrected = loss_of(row_batch(), leaf, Algorithm(), before=before, importance_correction=True)
    assert slope_of(corrected, leaf) == pytest.approx([0, -0.375, -0.25, 0, 0.25])
    plain = loss_of(row_batch(), leaf, Algorithm(), before=before)
    assert slope_of(plain, leaf) == pytest.approx([0, -0.25, -0.25, 0, 0.5])


def test_a_segments_tokens_share_its_clip_and_its_term() -> None:
    # Ratios 1.5, 1 and 1.5. Segment 0: product 1.5, above 1.2 for both of its tokens, whose one term is 1.2 * 1;
    # geometric mean sqrt(1.5) = 1.225, above as well. Segment 1, pushed down: 1.5 * -2.
    leaf, before = logs(0.6, 0.2, 0.45).requires_grad_(), logs(0.4, 0.2, 0.3)
    found = loss_of(row_batch(), leaf, replace(CLIPPED, ratio="segment-product"), before=before)
    assert found.loss.item() == pytest.approx(-(1.2 - 3.0) / 4)
    assert slope_of(found, leaf) == pytest.approx([0, 0, 0, 0, 0.75])
    assert found.clipped_N.tolist() == [True, True, False]
    wide = replace(CLIPPED, ratio="segment-geometric", clip_high=0.3)
    found = loss_of(row_batch(), leaf, wide, before=before)
    assert found.loss.item() == pytest.approx(-(2 * math.sqrt(1.5) - 3.0) / 4)
    assert slope_of(found, leaf)[1:3] == pytest.approx([-math.sqrt(1.5) / 4] * 2)
    assert not found.clipped_N.any()


def test_the_dual_clip_reaches_the_loss() -> None:
    # ratio 9 on a token of advantage -2: -18, or 3 * -2 with the bound
    now, before = logs(0.4, 0.2, 0.9), logs(0.4, 0.2, 0.1)
    batch = row_batch(engine=before)
    assert loss_of(batch, now, CLIPPED, before=before).loss.item() == pytest.approx(-(2 - 18) / 4)
    assert loss_of(batch, now, CLIPPED, before=before, dual_clip=3.0).loss.item() == pytest.approx(-(2 - 6) / 4)


def test_a_ratio_out_of_range_counts_where_the_advantage_pushes_it_further() -> None:
    now, before = logs(0.6, 0.1, 0.1), logs(0.4, 0.2, 0.3)
    # ratios 1.5, 0.5, 1/3 of advantages 1, 1, -2: the second is pulled back and goes on
    assert loss_of(row_batch(), now, CLIPPED, before=before).clipped_N.tolist() == [True, False, True]
    silent = row_batch(advantages=(0, 0, 0, 0, 0))
    assert not loss_of(silent, now, CLIPPED, before=before).clipped_N.any()


def test_the_value_of_a_segment_that_goes_on_after_an_observation_counts_once() -> None:
    rule = LossRule(Algorithm(), LossConfig(value_weight=2.0), 1.0)
    measures = Measures(logs(0.4, 0.2, 0.3), values_BT=torch.tensor([[WILD, 1.0, 3.0, WILD, 5.0]]))

    def errors(segments: Sequence[int]) -> list[float]:
        batch = row_batch(segments=segments, advantages=(0,) * 5, targets=(WILD, 0, 0, WILD, 0))
        found = objective(measures, batch, FixedLogprobs(), rule)
        assert found.loss.item() == pytest.approx(found.value_errors_N.square().sum().item() / 4)
        return [float(one) for one in found.value_errors_N]

    assert errors((-1, 0, 0, -1, 0)) == [1.0]
    assert errors((-1, 0, 0, -1, 1)) == [1.0, 5.0]
    assert errors((-1, 0, 1, -1, 2)) == [1.0, 3.0, 5.0]


def test_first_tokens_of_segments_row_by_row() -> None:
    segments = torch.tensor([[-1, 0, 0, 1, -1, 1, 2], [-1, -1, 0, -1, 0, -1, -1], [-1] * 7])
    assert segment_firsts(segments).long().tolist() == [[0, 1, 0, 1, 0, 0, 1], [0, 0, 1, 0, 0, 0, 0], [0] * 7]


def test_what_stands_where_nothing_was_sampled_has_no_part() -> None:
    batch = row_batch(advantages=(0, 1, 1, 0, -2))
    wild = Batch(
        batch.mask_BT,
        batch.segments_BT,
        torch.where(batch.mask_BT, batch.advantages_BT, 1e30),
        batch.weights_BT,
        batch.old_logprobs_BT,
        batch.targets_BT,
    )
    leaf = logs(0.6, 0.2, 0.3).requires_grad_()
    for algorithm in (Algorithm(), CLIPPED, replace(CLIPPED, ratio="sequence-product")):
        plain, spoiled = loss_of(batch, leaf, algorithm), loss_of(wild, leaf, algorithm)
        assert spoiled.loss.item() == plain.loss.item()
        assert slope_of(spoiled, leaf) == slope_of(plain, leaf)


def test_metrics_are_over_all_micro_batches() -> None:
    rule = LossRule(CLIPPED, LossConfig(kl_weight=1.0), 1.0)
    reference = FixedLogprobs(logs(0.4, 0.2, 0.3), logs(0.6, 0.2, 0.3))
    still = FixedLogprobs(logs(0.6, 0.2, 0.3), logs(0.6, 0.2, 0.3))
    now = Measures(logs(0.6, 0.2, 0.3))
    parts = [objective(now, row_batch(), fixed, rule).without_graph() for fixed in (reference, still)]
    found = objective_metrics(parts)
    assert found["loss"] == pytest.approx(parts[0].loss.item() + parts[1].loss.item())
    assert found["clip/fraction"] == pytest.approx(1 / 6)
    assert found["kl/mean"] == 0.0
