"""What training is prepared with: the learning rate of each step, and nothing of accelerate's environment."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType

from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.learner import make_accelerator, make_learner
from tests.trainers.logprobs import PAD
from tests.trainers.test_update import MODEL, eight_rows, gradient, settings, step


@pytest.mark.parametrize(
    ("steps", "warmup", "expected"),
    [
        (5, 0, [1.0, 0.775, 0.55, 0.325, 0.1]),
        (5, 2, [0.5, 1.0, 1.0, 0.55, 0.1]),
        (3, 3, [1 / 3, 2 / 3, 1.0]),
        (1, 0, [1.0]),
        (3, 2, [0.5, 1.0, 1.0]),  # it ends as the rate reaches its peak
    ],
)
def test_the_learning_rate_falls_to_its_share_of_the_peak_at_the_last_step(
    steps: int, warmup: int, expected: list[float]
) -> None:
    config = TrainerConfig(num_steps=steps, warmup_steps=warmup, learning_rate=2.0, final_learning_rate=0.1)
    learner, scheduler = make_learner(torch.nn.Linear(1, 1), PAD, 1.0, config)
    rates: list[float] = []
    for _ in range(steps):
        rates.append(float(scheduler.get_last_lr()[0]))
        learner.optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([2.0 * share for share in expected])


def test_accelerates_environment_changes_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings("gpg")
    plain, _ = make_learner(copy.deepcopy(MODEL), PAD, 1.0, config)
    norm = step(eight_rows(), config, plain)["grad_norm"]
    with monkeypatch.context() as changed:
        changed.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
        changed.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        learner, _ = make_learner(copy.deepcopy(MODEL), PAD, 1.0, config)
        assert learner.accelerator.gradient_accumulation_steps == 4  # it does reach accelerate
        assert learner.accelerator.mixed_precision == "no"
        assert step(eight_rows(), config, learner)["grad_norm"] == norm
        assert torch.equal(gradient(learner), gradient(plain))
    Accelerator()  # which keeps its state from one to the next


@pytest.mark.parametrize("kind", DistributedType)
def test_processes_that_would_share_the_model_out_are_refused(
    monkeypatch: pytest.MonkeyPatch, kind: DistributedType
) -> None:
    found = SimpleNamespace(distributed_type=kind)

    def accelerator(**_: object) -> SimpleNamespace:
        return found

    monkeypatch.setattr("forkgym.trainers.learner.Accelerator", accelerator)
    if kind in ("NO", "MULTI_CPU", "MULTI_GPU"):
        assert make_accelerator() is found
        return
    with pytest.raises(ValueError) as caught:
        make_accelerator()
    assert str(caught.value) == (
        f"accelerate's distributed type is {kind.value}, expected one of NO, MULTI_CPU, MULTI_GPU: each process holds "
        "the whole model"
    )
