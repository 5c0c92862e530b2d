"""Sampling by the inverse of the cumulative distribution, with numbers that fit on paper."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from forkgym.agents.sampling import sample_tokens

# p = 1/2, 1/4, 1/8, 1/8: cumulative 0.5, 0.75, 0.875, 1.
LOGITS = torch.tensor([0.5, 0.25, 0.125, 0.125]).log()
LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))  # the largest float32 uniform, 1 - 2^-24


def draw(logits: torch.Tensor, uniforms: list[float], temperature: float = 1.0) -> tuple[torch.Tensor, ...]:
    rows = len(uniforms)
    return sample_tokens(logits.expand(rows, -1), torch.full((rows,), temperature), torch.tensor(uniforms))


def test_inverse_of_the_cumulative_distribution() -> None:
    tokens, _, _ = draw(LOGITS, [0.0, 0.49, 0.51, 0.74, 0.76, 0.87, 0.88, LARGEST])
    assert tokens.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_log_probs_and_entropies() -> None:
    tokens, logprobs, entropies = draw(LOGITS, [0.6, 0.9])
    assert tokens.tolist() == [1, 3]
    assert logprobs.tolist() == pytest.approx([math.log(1 / 4), math.log(1 / 8)])
    # 1/2 * 1 bit + 1/4 * 2 bits + 2 * 1/8 * 3 bits = 1.75 bits
    assert entropies.tolist() == pytest.approx([1.75 * math.log(2)] * 2)


def test_temperature_applies_before_everything() -> None:
    # T = 1/2 squares: 1/4, 1/16, 1/64, 1/64 over their sum 22/64: 16/22, 4/22, 1/22, 1/22.
    tokens, logprobs, entropies = draw(LOGITS, [0.7, 0.75], temperature=0.5)
    assert tokens.tolist() == [0, 1]
    assert logprobs.tolist() == pytest.approx([math.log(16 / 22), math.log(4 / 22)])
    expected = -(16 / 22 * math.log(16 / 22) + 4 / 22 * math.log(4 / 22) + 2 / 22 * math.log(1 / 22))
    assert entropies.tolist() == pytest.approx([expected] * 2)


def test_greedy_takes_the_most_likely_token_and_reports_the_models_own_distribution() -> None:
    tokens, logprobs, entropies = draw(LOGITS.flip(0), [0.0, LARGEST], temperature=0.0)
    assert tokens.tolist() == [3, 3]
    assert logprobs.tolist() == pytest.approx([math.log(1 / 2)] * 2)
    assert entropies.tolist() == pytest.approx([1.75 * math.log(2)] * 2)


def test_rows_have_their_own_temperatures() -> None:
    tokens, logprobs, _ = sample_tokens(LOGITS.expand(2, -1), torch.tensor([0.0, 1.0]), torch.tensor([0.9, 0.9]))
    assert tokens.tolist() == [0, 3]
    assert logprobs.tolist() == pytest.approx([math.log(1 / 2), math.log(1 / 8)])


def test_the_least_temperature_is_greedy_in_effect() -> None:
    tokens, logprobs, entropies = draw(LOGITS, [LARGEST], temperature=1e-40)
    assert (tokens.item(), logprobs.item(), entropies.item()) == (0, 0.0, 0.0)


@given(
    forbidden=st.lists(st.booleans(), min_size=2, max_size=40).filter(lambda flags: not all(flags)),
    uniform=st.sampled_from([0.0, LARGEST]) | st.floats(0, LARGEST, width=32),
    scale=st.sampled_from([0.0, 1.0, 30.0, 1e4]),
)
def test_no_token_without_probability_is_drawn(forbidden: list[bool], uniform: float, scale: float) -> None:
    logits = torch.arange(len(forbidden), dtype=torch.float32) * scale
    logits[torch.tensor(forbidden)] = -math.inf
    tokens, logprobs, entropies = draw(logits, [uniform])
    assert not forbidden[int(tokens)]
    assert logprobs.item() > -110  # exp(-104) is the least float32 above 0
    assert entropies.item() >= 0


def test_a_million_tokens_of_rounding_stay_in_range() -> None:
    logits = torch.zeros(1_000_000)
    tokens, _, entropies = draw(logits, [0.0, LARGEST])
    assert tokens.tolist()[0] == 0
    assert 999_990 <= tokens.tolist()[1] <= 999_999
    assert entropies.tolist() == pytest.approx([math.log(1e6)] * 2, abs=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_no_numbers_are_refused(bad: float) -> None:
    logits = LOGITS.clone()
    logits[2] = bad
    with pytest.raises(ValueError, match="NaN or infinity"):
        draw(logits, [0.5])


def test_draws_follow_the_distribution() -> None:
    uniforms = np.random.default_rng(0).random(40_000, dtype=np.float32).tolist()
    tokens, _, _ = draw(LOGITS, uniforms)
    shares = torch.bincount(tokens, minlength=4) / 40_000
    assert shares.tolist() == pytest.approx([0.5, 0.25, 0.125, 0.125], abs=0.01)  # 4 standard deviations of 0.0025
