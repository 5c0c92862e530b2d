"""The branching rule, against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest

from forkgym.trainers.branching import EntropyScale, branch_probability, does_branch, mean_entropy
from forkgym.trainers.config import RolloutConfig


def test_entropies_are_averaged_over_the_first_tokens() -> None:
    assert mean_entropy((1.0, 2.0, 6.0), 2) == 1.5
    assert mean_entropy((1.0, 2.0), 20) == 1.5
    assert mean_entropy((), 20) == 0.0


def test_the_scale_is_the_running_standard_deviation() -> None:
    # 1, 2, 6: mean 3, squares 4 + 1 + 9 = 14, variance 14 / 3
    scale = EntropyScale().including((1.0,)).including((2.0, 6.0))
    assert scale.count == 3
    assert scale.deviation == pytest.approx(math.sqrt(14 / 3))
    assert EntropyScale().deviation is None
    assert EntropyScale().including((1.0, 1.0)).deviation is None


def test_published_scale_hardly_leaves_alpha() -> None:
    # a change of half a nat over a vocabulary of 151,936: 0.5 + 0.2 * 0.5 / 11.931 = 0.5084
    config = RolloutConfig(branch_scale="vocabulary")
    assert branch_probability(0.5, config, EntropyScale(), 151_936) == pytest.approx(0.5084, abs=1e-4)


def test_deviation_scale_tells_boundaries_apart() -> None:
    config = RolloutConfig()
    scale = EntropyScale().including((-0.1, 0.1))  # deviation 0.1
    assert branch_probability(0.2, config, scale, 1000) == pytest.approx(0.9)  # 0.5 + 0.2 * 2
    assert branch_probability(-0.9, config, scale, 1000) == 0.0
    assert branch_probability(0.2, config, EntropyScale(), 1000) == 0.5


def test_the_two_rules() -> None:
    sample, threshold = RolloutConfig(), RolloutConfig(branch_rule="threshold", branch_threshold=0.6)
    assert does_branch(0.5, 0.49, sample)
    assert not does_branch(0.5, 0.5, sample)
    assert does_branch(0.61, 0.99, threshold)
    assert not does_branch(0.6, 0.0, threshold)
