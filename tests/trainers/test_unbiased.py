"""Node weights leave the policy gradient unbiased; what is known to bias it does so, by as much as can be seen.

Rollouts with a real tool, trees, weights and baselines are the trainer's, and one test holds the estimate against the
credit that an update gives. The task is small enough for its exact gradient to be walked. A mean of estimates is
compared with it parameter by parameter, in standard errors; with the limit of the script, a fair estimator is taken for
a biased one with probability 0.001 in all comparisons of a test together. The seeds are fixed, so that a test that
passes passes again.
"""

from __future__ import annotations

import numpy as np
import pytest

from forkgym.trainers.algorithms.config import CreditConfig, SegmentConfig
from forkgym.trainers.algorithms.credit import CreditRule, Paid, make_samples
from forkgym.trainers.algorithms.segments import segment_begins
from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.packing import make_row
from tests.test_scripts import load

unbiased = load("benchmarks/unbiased")
LOOKS_AT_THE_STATE = ("none", "random", "fixed", "entropy, k = 1")


def errors(strategy: str, estimator: str, num_estimates: int, seed: int = 1) -> float:
    """The largest deviation of any parameter, in standard errors."""
    config = unbiased.Config(num_estimates=num_estimates, seed=seed)
    _, found = unbiased.measure(unbiased.POLICY, strategy, [estimator], config)
    largest: float = found[estimator].errors
    return largest


def limit(strategies: int) -> float:
    """Of as many comparisons as there are strategies and parameters."""
    bound: float = unbiased.limit(strategies * unbiased.POLICY.num_logits)
    return bound


def test_the_exact_gradient_is_that_of_the_expected_return() -> None:
    logits = np.array([[1.4, 0.8, 0.0], [0.0, 0.0, 3.0], [-1.6, 0.0, -3.0]])
    _, gradient = unbiased.exact_gradient(unbiased.Policy(logits))
    for place in range(logits.size):
        step = np.zeros(logits.size)
        step[place] = 1e-5
        values = [unbiased.exact_gradient(unbiased.Policy(logits + sign * step.reshape(3, 3)))[0] for sign in (1, -1)]
        assert gradient[place] == pytest.approx((values[0] - values[1]) / 2e-5, abs=1e-9)


def test_the_expected_return_is_what_paper_says() -> None:
    # All logits 0, so every turn has probability 1/4. An answer a pays 1. Three turns, looking with probability 1/2:
    # 1/4 + 1/2 * 1/4 + 1/4 * 1/4 = 7/16.
    expected, _ = unbiased.exact_gradient(unbiased.Policy(np.zeros((3, 3))))
    assert expected == pytest.approx(7 / 16)


@pytest.mark.parametrize("strategy", ["none", "random", "fixed", "entropy, k = 2"])
def test_the_estimate_is_what_an_update_makes_of_a_tree(strategy: str) -> None:
    config = TrainerConfig(algorithm="rloo", credit=CreditConfig(tree_weights="node"))
    algorithm = config.settings
    rule = CreditRule(algorithm, config.credit)
    assert (algorithm.normalisation, algorithm.correction) == ("sum", "none")
    branched = 0
    for group in unbiased.grow(unbiased.POLICY, strategy, unbiased.Config(num_estimates=40)):
        begins = segment_begins(group, algorithm.segments, SegmentConfig(), np.random.default_rng(0))
        rows_G = [make_row(group, trajectory, begins) for trajectory in group.trajectories]
        samples = make_samples([group], [rows_G], [Paid(group.rewards)], rule)
        scores = unbiased.leaf_scores(group, unbiased.POLICY)
        credit_G = [sample.weight * sample.advantages[sample.row.loss_mask.index(True)] for sample in samples]
        estimate = unbiased.ESTIMATORS["node"].estimate(group, scores)
        assert np.array(credit_G) @ scores == pytest.approx(estimate, abs=1e-12)
        branched += group.num_initial < len(group.trajectories)
    assert branched or strategy == "none"


@pytest.mark.parametrize("strategy", LOOKS_AT_THE_STATE)
def test_node_weights_are_unbiased_where_branching_looks_at_the_state_only(strategy: str) -> None:
    assert errors(strategy, "node", num_estimates=2000) < limit(len(LOOKS_AT_THE_STATE))


def test_leaf_weights_are_not_but_where_nothing_branches() -> None:
    for strategy in ("random", "fixed", "entropy, k = 1"):
        assert errors(strategy, "leaf", num_estimates=800) > limit(3)
    assert errors("none", "leaf", num_estimates=800) < limit(1)


def test_looking_at_the_continuation_that_is_kept_biases() -> None:
    assert errors("entropy, k = 2", "node", num_estimates=4000) > limit(1)


def test_dividing_by_a_trees_own_roots_biases() -> None:
    assert errors("entropy, k = 1", "node, own roots", num_estimates=4000) > limit(1)


def test_leaf_means_of_trees_that_compete_for_one_budget_bias() -> None:
    assert errors("fixed", "node, leaf baseline", num_estimates=1000) > limit(1)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", LOOKS_AT_THE_STATE)
def test_node_weights_are_unbiased_in_many_estimates(strategy: str) -> None:
    assert errors(strategy, "node", num_estimates=40_000, seed=2) < limit(len(LOOKS_AT_THE_STATE))


@pytest.mark.slow
def test_the_bias_of_a_look_at_the_continuation_stands_out_in_many_estimates() -> None:
    assert errors("entropy, k = 2", "node", num_estimates=40_000, seed=2) > 2 * limit(1)
