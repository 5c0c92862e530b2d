"""The branching rule, against numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from forkgym.trainers.algorithms.table import Branching
from forkgym.trainers.config import BranchingConfig
from forkgym.trainers.rollouts.branching import BranchingRule, EntropyScale, entropy_probability, mean_entropy


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
    config = BranchingConfig(scale="vocabulary")
    assert entropy_probability(0.5, config, EntropyScale(), 151_936) == pytest.approx(0.5084, abs=1e-4)


def test_deviation_scale_tells_boundaries_apart() -> None:
    config = BranchingConfig()
    scale = EntropyScale().including((-0.1, 0.1))  # deviation 0.1
    assert entropy_probability(0.2, config, scale, 1000) == pytest.approx(0.9)  # 0.5 + 0.2 * 2
    assert entropy_probability(-0.9, config, scale, 1000) == 0.0
    assert entropy_probability(0.2, config, EntropyScale(), 1000) == 0.5


def rule(strategy: Branching, config: BranchingConfig) -> BranchingRule:
    return BranchingRule(strategy, config, EntropyScale(), vocabulary_size=math.ceil(math.exp(2)))  # log(8) = 2.0794


def test_each_strategy_has_its_probability() -> None:
    sample = BranchingConfig(scale="vocabulary", alpha=0.3, threshold=0.35, tokens=7)
    threshold = replace(sample, rule="threshold")
    # P = 0.3 + 0.2 * 1 / 2.0794 = 0.3962 is over 0.35, and 0.3 + 0.2 * 0.5 / 2.0794 = 0.3481 is not
    assert rule("entropy", sample).probability(1.0) == pytest.approx(0.3962, abs=1e-4)
    assert [rule("entropy", threshold).probability(change) for change in (1.0, 0.5)] == [1.0, 0.0]
    for change in (1.0, 0.5):
        assert rule("random", threshold).probability(change) == 0.3
        assert rule("fixed", threshold).probability(change) == 1.0
        assert rule("none", threshold).probability(change) == 0.0


def test_only_a_strategy_that_looks_at_tokens_waits_for_them() -> None:
    config = BranchingConfig(tokens=7)
    waits = {name: rule(name, config).first_tokens for name in ("entropy", "random", "fixed", "none")}
    assert waits == {"entropy": 7, "random": 0, "fixed": 0, "none": 0}
    assert [rule(name, config).branches for name in ("entropy", "random", "fixed", "none")] == [True, True, True, False]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [("alpha", 1.1, "0 to 1"), ("threshold", -0.1, "0 to 1"), ("tokens", 0, "at least 1"), ("width", 1, "at least 2")],
)
def test_numbers_out_of_range_are_refused(field: str, value: float, expected: str) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.branching\.{field} is {value}, expected {expected}"):
        BranchingConfig(**{field: value})  # type: ignore[arg-type]
