"""The optimizer steps on the trees of one rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from forkgym.trainers.algorithms.advantages import group_correction
from forkgym.trainers.algorithms.credit import CreditRule, Paid, check_rewards, has_signal, make_samples
from forkgym.trainers.algorithms.objective import FixedLogprobs, LossRule, Objective, objective, objective_metrics
from forkgym.trainers.algorithms.segments import Marking, segment_begins
from forkgym.trainers.algorithms.table import Algorithm
from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.forward.forwards import FORWARDS, micro_batches
from forkgym.trainers.forward.measures import Entropies, ForwardSettings, Measures
from forkgym.trainers.learner import Learner
from forkgym.trainers.packing import make_row, pad
from forkgym.trainers.processes import add_up_gradients, gathered
from forkgym.trainers.types import Group, Row, Sample


class TrainingError(RuntimeError):
    """Training can't go on; the message says why and what was kept."""


class NonFiniteError(ArithmeticError):
    """A loss or gradient is infinite or not a number; the update that it was for was not made."""

    def __init__(self, loss: float, grad_norm: float) -> None:
        super().__init__(f"the loss is {loss} and the gradient's norm {grad_norm}, expected finite numbers")
        self.loss = loss
        self.grad_norm = grad_norm


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What an update needs to know of its rollout, beside the trees and their rewards.

    Attributes:
        greedy_rewards: Reward of each task's greedy trajectory, for the baseline of that name.
        marking: For segments by marker.
        seed: Of random segments.
        most_tokens: Most tokens of a trajectory, for the normalisation ``length``.
    """

    greedy_rewards: Sequence[float] = ()
    marking: Marking | None = None
    seed: tuple[int, ...] = (0,)
    most_tokens: int = 4096


def update(
    learner: Learner,
    groups: Sequence[Group],
    rewards_PG: Sequence[Sequence[float]],
    config: TrainerConfig,
    circumstances: Circumstances | None = None,
) -> Mapping[str, float]:
    """Take the optimizer steps that a rollout allows, or none where no group says what to do more of.

    Every weight in the loss is a number of the whole step, so micro-batches and processes change nothing. Each token is
    weighted by how much likelier the trained model makes it than the engine that sampled it.

    Args:
        learner: Changed in place.
        groups: Trees of one rollout, sampled by the weights as they are.
        rewards_PG: Each trajectory's reward, by group.
        config: Algorithm, forward, micro-batches.
        circumstances: Likewise of the rollout.

    Returns:
        ``loss`` (of the first update); ``grad_norm`` (before it is scaled down; of the last); ``correction``;
        ``tokens/trained`` (policy tokens of all trajectories in the loss, those that share them counted apart);
        ``step_skipped`` (1 where no step was made); where one was made, those of `objective_metrics`, and with several
        updates those of the last one as ``last/...``.

    Raises:
        ValueError: See `check_rewards`; or a greedy reward that the algorithm needs is missing or not a number.
        NonFiniteError: The loss or its gradient is not finite; the weights are as they were before that update.
    """
    circumstances = circumstances or Circumstances()
    algorithm = config.settings
    check_rewards(groups, rewards_PG)
    valid = sum(len(group.trajectories) for group in groups if group.is_valid)
    total = sum(len(group.trajectories) for group in groups)
    samples = step_samples(learner, groups, rewards_PG, config, circumstances)
    correction = 1.0
    signal = any(has_signal(sample) for sample in samples)
    if algorithm.correction != "none":
        signal = signal and valid > 0
        correction = group_correction(valid, total, algorithm.correction) if valid else 1.0
    if not signal:  # an optimizer's momentum would move the weights on a zero gradient too
        return {"loss": 0.0, "grad_norm": 0.0, "correction": 1.0, "tokens/trained": 0.0, "step_skipped": 1.0}
    if not every_token_counts(config, algorithm):
        samples = [sample for sample in samples if has_signal(sample)]
    rows = [sample.row for sample in samples]
    parts = [
        [samples[place] for place in part] for part in micro_batches(rows, config.micro_batch_tokens, config.forward)
    ]
    process, count = learner.accelerator.process_index, learner.accelerator.num_processes
    own = parts[process::count]
    fixed = [fixed_logprobs(learner, part, config) for part in own]
    rule = LossRule(algorithm, config.loss, correction)
    outcomes = [one_update(learner, own, fixed, config, rule) for _ in range(config.updates_per_rollout)]
    return {
        **outcomes[0],
        **({} if len(outcomes) == 1 else {f"last/{name}": value for name, value in outcomes[-1].items()}),
        "correction": correction,
        "tokens/trained": float(sum(sum(row.loss_mask) for row in rows)),
        "step_skipped": 0.0,
    }


def every_token_counts(config: TrainerConfig, algorithm: Algorithm) -> bool:
    """Whether tokens without an advantage add to the loss as well."""
    return config.loss.kl_weight > 0 or config.loss.entropy_weight > 0 or algorithm.baseline == "critic"


def step_samples(
    learner: Learner,
    groups: Sequence[Group],
    rewards_PG: Sequence[Sequence[float]],
    config: TrainerConfig,
    circumstances: Circumstances,
) -> list[Sample]:
    """Lay all trajectories out, and give them their credit."""
    algorithm = config.settings
    rng = np.random.default_rng(list(circumstances.seed))
    rows_PG: list[list[Row]] = []
    for group in groups:
        begins = segment_begins(group, algorithm.segments, config.segments, rng, circumstances.marking)
        rows_PG.append([make_row(group, trajectory, begins) for trajectory in group.trajectories])
    greedy_P = circumstances.greedy_rewards if algorithm.baseline == "greedy" else [0.0] * len(groups)
    if len(greedy_P) != len(groups) or not all(map(math.isfinite, greedy_P)):
        raise ValueError(
            f"greedy rewards are {list(greedy_P)}, expected a finite number for each of {len(groups)} groups"
        )
    values_PG: Sequence[Sequence[Sequence[float]]] = [()] * len(groups)
    if algorithm.baseline == "critic":
        values_PG = critic_values(learner, rows_PG, config)
    paid = [Paid(*one) for one in zip(rewards_PG, greedy_P, values_PG, strict=True)]
    return make_samples(groups, rows_PG, paid, CreditRule(algorithm, config.credit, circumstances.most_tokens))


def critic_values(
    learner: Learner, rows_PG: Sequence[Sequence[Row]], config: TrainerConfig
) -> list[list[tuple[float, ...]]]:
    """What the value head says before each token of each row."""
    if learner.value_head is None:
        raise ValueError(f"trainer.algorithm {config.algorithm} has a critic, expected a learner with a value head")
    rows = [row for rows_G in rows_PG for row in rows_G]
    values: dict[int, tuple[float, ...]] = {}
    with torch.no_grad():
        for part in micro_batches(rows, config.micro_batch_tokens, config.forward):
            found = measure(learner, learner.model, [rows[place] for place in part], config).values_BT
            assert found is not None
            values_BT: list[list[float]] = cast("Any", found).tolist()
            for place, values_T in zip(part, values_BT, strict=True):
                values[place] = tuple(values_T[: len(rows[place].tokens)])
    in_order = iter([values[place] for place in range(len(rows))])
    return [[next(in_order) for _ in rows_G] for rows_G in rows_PG]


def measure(learner: Learner, model: torch.nn.Module, rows: Sequence[Row], config: TrainerConfig) -> Measures:
    """Run a model over rows, as the settings say."""
    settings = ForwardSettings(
        temperature=learner.temperature,
        entropies=Entropies.WITH_GRADIENT if config.loss.entropy_weight > 0 else Entropies.NO,
        value_head=learner.value_head,
    )
    model.eval()  # as it sampled: with dropout these would be the log-probs of another policy
    return FORWARDS[config.forward](model, rows, settings, learner.pad_token)


@torch.no_grad()
def fixed_logprobs(learner: Learner, part: Sequence[Sample], config: TrainerConfig) -> FixedLogprobs:
    """Measure a micro-batch under the policies that the coming updates do not change."""
    rows = [sample.row for sample in part]
    before_BT = reference_BT = None
    if config.updates_per_rollout > 1:
        before_BT = measure(learner, learner.model, rows, config).logprobs_BT
    if learner.reference is not None:
        with learner.reference.as_it_was() as model:
            reference_BT = measure(learner, model, rows, config).logprobs_BT
    return FixedLogprobs(before_BT, reference_BT)


def one_update(
    learner: Learner,
    parts: Sequence[Sequence[Sample]],
    fixed: Sequence[FixedLogprobs],
    config: TrainerConfig,
    rule: LossRule,
) -> Mapping[str, float]:
    """Add up the gradient of all micro-batches, of all processes, and take one step.

    Raises:
        NonFiniteError: The loss or its gradient is not finite; no step is taken.
    """
    learner.forget_gradients()
    done: list[Objective] = []
    for part, known in zip(parts, fixed, strict=True):
        measures = measure(learner, learner.model, [sample.row for sample in part], config)
        batch = pad(part, measures.logprobs_BT.device)
        found = objective(measures, batch, known, rule)
        learner.accelerator.backward(found.loss)
        done.append(found.without_graph())
    parameters = learner.parameters
    add_up_gradients(learner.accelerator, parameters)
    described = objective_metrics(gathered(learner.accelerator, done))
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
    if not (math.isfinite(described["loss"]) and math.isfinite(norm)):
        raise NonFiniteError(described["loss"], norm)
    learner.optimizer.step()
    return {**described, "grad_norm": norm}
