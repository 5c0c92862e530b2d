"""Importance weights and what is said of them, against numbers worked out by hand."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import pytest
import torch
from transformers import Qwen3ForCausalLM

from forkgym.trainers.algorithms.mismatch import importance_weights, mismatch_metrics
from forkgym.trainers.algorithms.table import AlgorithmName
from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.learner import make_learner
from forkgym.trainers.types import Group
from forkgym.trainers.update import Circumstances, update
from tests.trainers.logprobs import PAD, tiny_qwen
from tests.trainers.small_trees import three_leaves

VOCABULARY = 10


def uniform_model() -> tuple[Qwen3ForCausalLM, torch.nn.Parameter]:
    """Every token has probability 1 / 10, wherever it stands; what is trained is one logit a token, for all places."""
    model = tiny_qwen(VOCABULARY).requires_grad_(False)
    model.lm_head = torch.nn.Linear(model.config.hidden_size, VOCABULARY)
    torch.nn.init.zeros_(model.lm_head.weight.requires_grad_(False))
    torch.nn.init.zeros_(model.lm_head.bias)
    return model, model.lm_head.bias


def sampled_with(probabilities: Mapping[str, float]) -> Group:
    """The tree of three leaves; an engine gave a turn's tokens this probability, where none is named 1 / 10."""
    group = three_leaves()
    logprobs = {turn.uid: math.log(probabilities.get(turn.uid, 0.1)) for turn in group.turns}
    turns = (replace(turn, logprobs=(logprobs[turn.uid],) * len(turn.tokens)) for turn in group.turns)
    return replace(group, turns=tuple(turns))


def step(algorithm: str, probabilities: Mapping[str, float]) -> tuple[torch.Tensor, Mapping[str, float]]:
    """The gradient of the ten logits, and the metrics."""
    group = sampled_with(probabilities)
    model, logits_V = uniform_model()
    # Micro-batches of one row: what is compared is the whole batch all the same.
    config = TrainerConfig(algorithm=algorithm, max_grad_norm=1e9, micro_batch_tokens=1)  # type: ignore[arg-type]  # one of the table's
    learner, _ = make_learner(model, PAD, 1.0, config)
    outcome = update(learner, [group], [group.rewards], config, Circumstances(greedy_rewards=(0.25,), most_tokens=4))
    assert logits_V.grad is not None
    return logits_V.grad, outcome


def test_weights_by_hand() -> None:
    pi = torch.tensor([[0.3, 0.5, 0.1], [0.2, 1.0, 1.0]])
    mu = torch.tensor([[0.2, 0.1, 0.2], [0.2, 1.0, 1e-30]])
    expected = torch.tensor([[1.5, 2.0, 0.5], [1.0, 1.0, 2.0]])
    torch.testing.assert_close(importance_weights(pi.log(), mu.log()), expected)
    expected[0, 1], expected[1, 2] = 5.0, 10.0
    torch.testing.assert_close(importance_weights(pi.log(), mu.log(), cap=10.0), expected)


def test_rounding_weighs_one_to_the_bit_and_more_than_that_does_not() -> None:
    gaps = torch.tensor([[9e-5, -9e-5, 1.1e-4, -1.1e-4]])
    weights = importance_weights(gaps, torch.zeros(1, 4))
    assert weights[0, :2].tolist() == [1.0, 1.0]
    assert weights[0, 2:].tolist() == pytest.approx([1.00011, 0.99989], abs=1e-6)


def test_weights_have_no_gradient() -> None:
    logprobs = torch.tensor([[-1.0]], requires_grad=True)
    assert not importance_weights(logprobs, torch.tensor([[-1.5]])).requires_grad


def test_shapes_and_the_cap_are_checked() -> None:
    with pytest.raises(ValueError, match=r"one shape, got \(1, 2\) and \(1, 3\)"):
        importance_weights(torch.zeros(1, 2), torch.zeros(1, 3))
    with pytest.raises(ValueError, match=r"cap is 0\.5"):
        importance_weights(torch.zeros(1, 2), torch.zeros(1, 2), cap=0.5)


def test_metrics_by_hand() -> None:
    # Weights 1, 2, 1/2 and 1: their sum is 4.5, that of their squares 6.25.
    metrics = mismatch_metrics(torch.tensor([0.0, math.log(2), -math.log(2), 0.0]))
    assert metrics == pytest.approx(
        {
            "mismatch/mean": math.log(2) / 2,
            "mismatch/max": math.log(2),
            "mismatch/effective_sample_size": 4.5**2 / (4 * 6.25),
        }
    )


def test_one_token_with_all_the_weight_is_one_sample_of_many() -> None:
    # e^2000 is no float; seven weights of e^-2000 beside it are nothing
    gaps = torch.full((8,), -2000.0)
    gaps[3] = 2000.0
    assert mismatch_metrics(gaps)["mismatch/effective_sample_size"] == pytest.approx(1 / 8)


def test_an_engine_that_agrees_changes_nothing() -> None:
    # Advantages 2/3, -1/3, -1/3 add up to 0 over the 9 tokens, so the part of the gradient that all logits share is 0.
    # Left are -1/9 of each token's sum: 3 and 4 are in leaves 1 and 3, 6 in leaves 1 and 2, 7 and 8 in 3, 9 in 2.
    gradient, outcome = step("gpg", {})
    expected = torch.tensor([0, 0, 0, -1, -1, 0, -1, 1, 1, 1]) / 27
    torch.testing.assert_close(gradient, expected)
    assert outcome["mismatch/mean"] == outcome["mismatch/max"] == pytest.approx(0.0, abs=1e-6)
    assert outcome["mismatch/effective_sample_size"] == pytest.approx(1.0)
    rounded, _ = step("gpg", dict.fromkeys(("t0d0", "t1d0", "t0d1", "t2d1", "t1d1"), 0.1 * (1 + 5e-5)))
    assert torch.equal(rounded, gradient)


@pytest.mark.parametrize("algorithm", get_args(AlgorithmName))
@pytest.mark.parametrize(("probability", "weight"), [(0.2, 0.5), (0.08, 1.25), (0.01, 2.0)])
def test_every_algorithm_weighs_each_token(algorithm: str, probability: float, weight: float) -> None:
    plain, _ = step(algorithm, {})
    assert float(plain.abs().max()) > 0.01
    weighted, outcome = step(algorithm, dict.fromkeys(("t0d0", "t1d0", "t0d1", "t2d1", "t1d1"), probability))
    torch.testing.assert_close(weighted, weight * plain)
    assert outcome["mismatch/mean"] == pytest.approx(abs(math.log(0.1 / probability)))
    assert outcome["mismatch/effective_sample_size"] == pytest.approx(1.0)  # all weigh the same


def test_one_token_that_the_engine_found_unlikely_by_hand() -> None:
    # Token 9, of advantage -1/3, has pi / mu = 5, which is cut to 2: its sum is -2/3 instead of -1/3, and the shares of
    # all logits in it change by -1/10 of -1/3.
    gradient, outcome = step("gpg", {"t1d0": 0.02})
    expected = torch.tensor([0, 0, 0, -1, -1, 0, -1, 1, 1, 2]) / 27 - 0.1 / 27
    torch.testing.assert_close(gradient, expected)
    assert outcome["tokens/trained"] == 9
    assert outcome["mismatch/mean"] == pytest.approx(math.log(5) / 9)
    assert outcome["mismatch/max"] == pytest.approx(math.log(5))
    # before the cap: eight weights of 1 and one of 5
    assert outcome["mismatch/effective_sample_size"] == pytest.approx(13**2 / (9 * 33))
