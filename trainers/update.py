"""The optimizer steps on the trees of one rollout."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from forkgym.trainers.algorithms.advantages import group_correction
from forkgym.trainers.algorithms.credit import CreditRule, Paid, check_rewards, counts, has_signal, make_samples
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

logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training can't go on; the message says why and what was kept."""


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
        ``loss`` and ``grad_norm`` (before it is scaled down; both of the first update); ``correction``;
        ``tokens/trained`` (policy tokens of all trajectories in the loss, those that share them counted apart);
        ``step_skipped`` (1 where no update was made); ``step_non_finite`` (1 where the loss or gradient of an update
        was not finite: neither that one nor those after it were made); where one was made, those of
        `objective_metrics`, and where several were, those of the last one as ``last/...``.

    Raises:
        RewardError: A reward is no finite number.
        ValueError: See `check_rewards`; or a greedy reward that the algorithm needs is missing or not a number.
    """
    circumstances = circumstances or Circumstances()
    algorithm = config.settings
    check_rewards(groups, rewards_PG)
    samples = step_samples(learner, groups, rewards_PG, config, circumstances)
    valid = count_valid(groups, samples, config)
    nothing = {"tokens/trained": 0.0, "step_skipped": 1.0, "step_non_finite": 0.0}
    if not valid:  # an optimizer's momentum would move the weights on a zero gradient too
        return {"loss": 0.0, "grad_norm": 0.0, "correction": 1.0, **nothing}
    correction = group_correction(valid, len(samples), algorithm.correction)
    if not every_token_counts(config, algorithm):
        samples = [sample for sample in samples if has_signal(sample)]
    rows = [sample.row for sample in samples]
    parts = [
        [samples[place] for place in part] for part in micro_batches(rows, config.micro_batch_tokens, config.forward)
    ]
    made, failed = take_updates(learner, parts, config, LossRule(algorithm, config.loss, correction))
    if not made:
        assert failed is not None
        figures = {name: failed[name] for name in ("loss", "grad_norm")}
        return {**figures, "correction": correction, **nothing, "step_non_finite": 1.0}
    return {
        **made[0],
        **({} if len(made) == 1 else {f"last/{name}": value for name, value in made[-1].items()}),
        "correction": correction,
        "tokens/trained": float(sum(sum(row.loss_mask) for row in rows)),
        "step_skipped": 0.0,
        "step_non_finite": float(failed is not None),
    }


def count_valid(groups: Sequence[Group], samples: Sequence[Sample], config: TrainerConfig) -> int:
    """How many of a step's samples are in groups with a signal."""
    in_order = iter(samples)
    valid = 0
    for group in groups:
        own = [next(in_order) for trajectory in group.trajectories if counts(trajectory, config.credit)]
        valid += len(own) if any(map(has_signal, own)) else 0
    return valid


def take_updates(
    learner: Learner, parts: Sequence[Sequence[Sample]], config: TrainerConfig, rule: LossRule
) -> tuple[list[Mapping[str, float]], Mapping[str, float] | None]:
    """Return what the updates made came to, and the one that was not made since it is not finite, if there is one."""
    own = parts[learner.accelerator.process_index :: learner.accelerator.num_processes]
    fixed = [fixed_logprobs(learner, part, config) for part in own]
    made: list[Mapping[str, float]] = []
    for number in range(1, config.updates_per_rollout + 1):
        outcome = one_update(learner, own, fixed, config, rule)
        if not is_finite(outcome):
            logger.warning(
                "update %d of %d: the loss is %s and the gradient's norm %s, expected finite numbers; %s",
                *(number, config.updates_per_rollout, outcome["loss"], outcome["grad_norm"]),
                "those before it stand" if made else "the step is skipped",
            )
            return made, outcome
        made.append(outcome)
    return made, None


def is_finite(outcome: Mapping[str, float]) -> bool:
    """Whether an update had numbers to step by."""
    return math.isfinite(outcome["loss"]) and math.isfinite(outcome["grad_norm"])


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
    """Add up the gradient of all micro-batches, of all processes, and take one step where it is finite."""
    learner.forget_gradients()
    done: list[Objective] = []
    for part, known in zip(parts, fixed, strict=True):
        measures = measure(learner, learner.model, [sample.row for sample in part], config)
        batch = pad(part, measures.logprobs_BT.device)
        found = objective(measures, batch, known, rule)
        found.loss.backward()  # accelerate's own would divide it by what its environment says
        done.append(found.without_graph())
    parameters = learner.parameters
    add_up_gradients(learner.accelerator, parameters)
    described = objective_metrics(gathered(learner.accelerator, done))
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, config.max_grad_norm))
    outcome = {**described, "grad_norm": norm}
    if is_finite(outcome):
        learner.optimizer.step()
    return outcome
