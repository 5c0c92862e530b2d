"""The policy at the start of a run: a copy, or the model without its adapters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from forkgym.agents.config import LoraConfig
from forkgym.agents.lora import add_adapters
from forkgym.trainers.algorithms.config import LossConfig
from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.learner import make_learner
from forkgym.trainers.reference import Reference
from tests.trainers.logprobs import PAD, row_logprobs, tiny_qwen
from tests.trainers.random_trees import VOCABULARY
from tests.trainers.test_update import eight_rows, step


def whole_model() -> torch.nn.Module:
    return tiny_qwen(VOCABULARY)


def with_adapters() -> torch.nn.Module:
    model = tiny_qwen(VOCABULARY)
    add_adapters(model, LoraConfig(rank=2))
    return model


def move(model: torch.nn.Module) -> None:
    """Change all that is trained."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1)


@pytest.mark.parametrize("make", [whole_model, with_adapters])
def test_it_stays_what_it_was_while_the_model_moves(make: Callable[[], torch.nn.Module]) -> None:
    model = make()
    groups = eight_rows()
    at_first = row_logprobs(model, groups)
    reference = Reference.of(model)
    move(model)
    moved = row_logprobs(model, groups)
    assert float((moved - at_first).abs().max()) > 0.01
    with reference.as_it_was() as frozen:
        torch.testing.assert_close(row_logprobs(frozen, groups), at_first)
    assert torch.equal(row_logprobs(model, groups), moved)


def test_a_copy_is_not_trained_and_adapters_need_none() -> None:
    model = whole_model()
    assert not any(parameter.requires_grad for parameter in Reference.of(model).model.parameters())
    assert all(parameter.requires_grad for parameter in model.parameters())
    adapted = with_adapters()
    assert Reference.of(adapted).model is adapted


def test_adapters_are_trained_on_after_they_were_switched_off() -> None:
    model = with_adapters()
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    with pytest.raises(RuntimeError, match="halfway"), Reference.of(model).as_it_was():
        raise RuntimeError("halfway")
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == trained


@pytest.mark.parametrize("make", [whole_model, with_adapters])
def test_a_step_with_a_kl_term_measures_the_distance_from_the_start(make: Callable[[], torch.nn.Module]) -> None:
    config = TrainerConfig(
        algorithm="gpg", learning_rate=1e-2, warmup_steps=0, loss=LossConfig(kl="k2", kl_weight=0.1), max_grad_norm=1e9
    )
    model = make()
    learner, _ = make_learner(model, PAD, 1.0, config)
    at_first = row_logprobs(model, eight_rows())
    assert step(eight_rows(), config, learner)["kl/mean"] == pytest.approx(0.0, abs=1e-9)
    gaps = row_logprobs(model, eight_rows()) - at_first
    # k2 is half the square of the difference; each trajectory's tokens once
    assert step(eight_rows(), config, learner)["kl/mean"] == pytest.approx(float(gaps.square().mean()) / 2, rel=1e-3)
