"""Fine-tuning: the loss is the mean over the policy's tokens of a batch, however it is split, and it falls."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from forkgym.agents.config import AgentConfig
from forkgym.trainers.sft.config import Schedule, SftConfig
from forkgym.trainers.sft.demonstrations import Demonstration
from forkgym.trainers.sft.training import NOT_WRITTEN, SftError, fine_tune, mean_nll, prepare
from tests.agents.tiny import full_measures, make_model, weight

T, F = True, False
# Four rows of different lengths, of which 1, 2, 3 and 5 tokens are written.
BATCH = (
    Demonstration((10, 11, 12), (F, F, T)),
    Demonstration((20, 21, 22, 23, 24, 25), (F, T, T, F, F, F)),
    Demonstration((30, 31, 32, 33, 34), (F, F, T, T, T)),
    Demonstration((40, 41, 42, 43, 44, 45, 46), (F, T, T, F, T, T, T)),
)


def run(
    model: PreTrainedModel,
    config: SftConfig,
    folder: Path,
    demonstrations: tuple[Demonstration, ...] = BATCH,
    seed: int = 0,
) -> list[Mapping[str, float]]:
    """Fine-tune and return the figures of each step."""
    steps: list[Mapping[str, float]] = []
    tuning = prepare(model, 0, config, seed, folder)
    fine_tune(tuning, demonstrations, steps.append)
    return steps


def written_nll(model: PreTrainedModel) -> float:
    """The mean negative log-prob of the written tokens of all rows together, each row by itself."""
    logprobs: list[float] = []
    for one in BATCH:
        each, _ = full_measures(model, one.tokens[:1], one.tokens[1:])
        logprobs += [value for value, written in zip(each, one.written[1:], strict=True) if written]
    assert len(logprobs) == 11
    return -sum(logprobs) / len(logprobs)


def test_the_loss_by_hand() -> None:
    # Probabilities of token 1: 3/4 after the first token, 1/5 after the second, 1/2 after the third.
    logits_BTV = torch.tensor([[[0.0, math.log(3)], [math.log(4), 0.0], [1.0, 1.0], [9.0, -9.0]]])
    labels_BT = torch.tensor([[NOT_WRITTEN, 1, NOT_WRITTEN, 1]])
    # The second of the targets is read, not written, and what follows the last has no target.
    expected = -(math.log(3 / 4) + math.log(1 / 2)) / 5
    assert mean_nll(logits_BTV, labels_BT, 5).item() == pytest.approx(expected, abs=1e-6)
    half = mean_nll(logits_BTV.bfloat16(), labels_BT, 5)
    assert half.dtype == torch.float32
    assert mean_nll(logits_BTV, torch.full((1, 4), NOT_WRITTEN), 5).item() == 0.0


@pytest.mark.parametrize("family", ["qwen3", "llama", "mistral-window"])
def test_the_loss_of_a_step_is_the_mean_over_the_whole_batch_however_it_is_split(family: str, tmp_path: Path) -> None:
    before = written_nll(make_model(family))
    results: list[tuple[float, float, torch.Tensor]] = []
    for micro_batch_size in (4, 2, 1):
        model = make_model(family)
        config = SftConfig(
            batch_size=4, micro_batch_size=micro_batch_size, epochs=2, warmup_steps=0, learning_rate=1e-3
        )
        first, second = run(model, config, tmp_path)
        assert first["tokens/trained"] == second["tokens/trained"] == 11
        assert first["loss"] == pytest.approx(before, abs=1e-5)
        results.append((first["loss"], first["grad_norm"], next(model.parameters()).detach().flatten()))
    for loss, norm, weights in results[1:]:
        assert loss == pytest.approx(results[0][0], abs=1e-6)
        assert norm == pytest.approx(results[0][1], rel=1e-6)
        assert torch.allclose(weights, results[0][2], atol=1e-6)


def test_a_last_batch_that_is_smaller_is_normalised_by_its_own_tokens(tmp_path: Path) -> None:
    seen: list[float] = []
    for micro_batch_size in (3, 1):
        config = SftConfig(batch_size=3, micro_batch_size=micro_batch_size, warmup_steps=0, learning_rate=1e-12)
        steps = run(make_model(), config, tmp_path)
        assert sum(step["tokens/trained"] for step in steps) == 11
        total = sum(step["tokens/trained"] * step["loss"] for step in steps)
        assert total / 11 == pytest.approx(written_nll(make_model()), abs=1e-5)
        seen.append(steps[1]["loss"])
    assert seen[0] == pytest.approx(seen[1], abs=1e-6)


def test_what_the_policy_reads_is_not_learnt(tmp_path: Path) -> None:
    """The gradient is that of the written tokens alone: another token at the end of what is read changes nothing."""
    others = (*BATCH[:1], Demonstration((20, 21, 22, 99, 98, 97), (F, T, T, F, F, F)), *BATCH[2:])
    config = SftConfig(batch_size=4, micro_batch_size=4, max_steps=1)
    (one,) = run(make_model(), config, tmp_path)
    (other,) = run(make_model(), config, tmp_path, demonstrations=others)
    assert one["loss"] == pytest.approx(other["loss"], abs=1e-6)
    assert one["grad_norm"] == pytest.approx(other["grad_norm"], rel=1e-5)


def test_the_loss_falls_and_the_seed_alone_decides_how(tmp_path: Path) -> None:
    config = SftConfig(batch_size=2, micro_batch_size=1, max_steps=20, warmup_steps=2, learning_rate=1e-2)
    losses: list[list[float]] = []
    embeddings: list[torch.Tensor] = []
    for seed in (0, 0, 1):
        model = make_model()
        steps = run(model, config, tmp_path, seed=seed)
        assert [step["step"] for step in steps] == list(range(1, 21))
        losses.append([step["loss"] for step in steps])
        embeddings.append(weight(model, "model.embed_tokens.weight").detach())
    # It begins above log(262), which is what a uniform guess costs.
    assert losses[0][0] > math.log(262)
    assert sum(losses[0][-4:]) / 4 < 0.5
    assert losses[0] == losses[1]
    assert torch.equal(embeddings[0], embeddings[1])
    assert losses[0] != losses[2]


def test_the_learning_rate_rises_and_falls(tmp_path: Path) -> None:
    config = SftConfig(batch_size=4, micro_batch_size=4, max_steps=6, warmup_steps=2, learning_rate=1.0)
    rates = [step["learning_rate"] for step in run(make_model(), config, tmp_path)]
    # Up in two steps, neither of them 0, down towards 0 in the four that are left.
    assert rates == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


def test_a_run_of_one_step_learns(tmp_path: Path) -> None:
    """Four demonstrations and the settings as they come: one batch, smaller than it might be, at the full rate."""
    model = make_model()
    before = written_nll(model)
    (step,) = run(model, SftConfig(learning_rate=1e-3), tmp_path)
    assert step["learning_rate"] == 1e-3
    assert step["tokens/trained"] == 11
    assert written_nll(model) < before


@pytest.mark.parametrize(
    ("settings", "count", "steps", "warmup"),
    [
        ({}, 4000, 125, 10),  # 4,000 / 32
        ({}, 3200, 100, 10),
        ({}, 3168, 99, 9),
        ({}, 320, 10, 1),
        ({}, 33, 2, 0),  # a full batch and one of 1
        ({}, 1, 1, 0),
        ({"epochs": 3}, 33, 6, 0),
        ({"max_steps": 50, "epochs": 3}, 33, 50, 5),
        ({"warmup_steps": 0}, 4000, 125, 0),
        ({"warmup_steps": 2}, 33, 2, 2),
    ],
)
def test_the_warm_up_is_a_tenth_of_the_steps_at_most(
    settings: dict[str, int], count: int, steps: int, warmup: int
) -> None:
    schedule = SftConfig(**settings).schedule(count)  # type: ignore[arg-type]
    assert schedule == Schedule(steps, warmup)
    assert max(schedule.factor(step) for step in range(steps)) == 1.0
    assert min(schedule.factor(step) for step in range(steps)) > 0.0


def test_a_warm_up_that_never_ends_is_refused(tmp_path: Path) -> None:
    config = SftConfig(batch_size=2, micro_batch_size=2, warmup_steps=3)
    with pytest.raises(ValueError, match="sft.warmup_steps is 3, expected at most 2, as many as this run has steps"):
        run(make_model(), config, tmp_path)


def test_the_schedule_says_what_it_does() -> None:
    assert str(Schedule(1250, 10)) == "Optimizer steps: 1,250; the learning rate rises over the first 10."
    assert str(Schedule(3, 0)) == "Optimizer steps: 3; no warm-up."


def test_checkpointing_changes_no_gradient(tmp_path: Path) -> None:
    norms: list[float] = []
    for gradient_checkpointing in (False, True):
        config = SftConfig(batch_size=4, micro_batch_size=2, max_steps=1, gradient_checkpointing=gradient_checkpointing)
        (step,) = run(make_model(), config, tmp_path)
        norms.append(step["grad_norm"])
    assert norms[0] == pytest.approx(norms[1], rel=1e-6)


def test_small_steps_add_up_in_half_precision(tmp_path: Path) -> None:
    """Each step is 1e-4 of a weight near 1, of which bfloat16 knows 1 and 1.0078."""
    model = make_model(dtype=torch.bfloat16)
    norm = weight(model, "model.norm.weight")
    with torch.no_grad():
        norm.fill_(1.0)
    config = SftConfig(batch_size=4, micro_batch_size=4, epochs=100, warmup_steps=0, learning_rate=2e-4)
    run(model, config, tmp_path)
    assert norm.dtype == torch.bfloat16
    assert (norm != 1.0).float().mean() > 0.5


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    model = make_model()
    with torch.no_grad():
        weight(model, "model.norm.weight").fill_(float("nan"))
    seen: list[Mapping[str, float]] = []
    tuning = prepare(model, 0, SftConfig(max_steps=5), 0, tmp_path)
    with pytest.raises(SftError, match="loss is nan in step 1; a lower learning rate may help"):
        fine_tune(tuning, BATCH, seen.append)
    assert len(seen) == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "sft.batch_size is 0, expected at least 1"),
        ({"num_demonstrations": 0}, "sft.num_demonstrations is 0, expected at least 1"),
        ({"max_steps": 0}, "sft.max_steps is 0, expected at least 1"),
        ({"epochs": 0}, "sft.epochs is 0, expected at least 1"),
        (
            {"batch_size": 12, "micro_batch_size": 8},
            "sft.micro_batch_size is 8, expected a divisor of sft.batch_size, 12",
        ),
        ({"learning_rate": 0.0}, "sft.learning_rate is 0.0, expected a positive number"),
        ({"warmup_steps": -1}, "sft.warmup_steps is -1, expected 0 or more"),
        ({"max_tokens": 1}, "sft.max_tokens is 1, expected at least 2"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        SftConfig(**settings)  # type: ignore[arg-type]
    assert str(refused.value) == message


def test_the_learning_rate_depends_on_the_model_unless_it_is_given() -> None:
    assert SftConfig().for_agent(AgentConfig()).peak_learning_rate == 5e-4
    assert SftConfig().for_agent(AgentConfig(model="some/model")).peak_learning_rate == 1e-5
    assert SftConfig(learning_rate=2e-5).for_agent(AgentConfig()).peak_learning_rate == 2e-5
