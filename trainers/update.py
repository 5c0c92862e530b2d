"""One optimizer step on the trees of one rollout."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator

from forkgym.trainers.advantages import group_correction
from forkgym.trainers.algorithms import ALGORITHMS, make_samples
from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.losses import clipped_loss, gpg_loss
from forkgym.trainers.mismatch import importance_weights, mismatch_metrics
from forkgym.trainers.packing import Batch, merge_equal, micro_batches, pad
from forkgym.trainers.types import Group

if TYPE_CHECKING:
    from torch.optim import Optimizer


class TrainingError(RuntimeError):
    """Training can't go on; the message says why and what was kept."""


@dataclass(frozen=True, slots=True)
class Learner:
    """What a step changes: the model, its optimizer, and the accelerator that both were prepared by.

    Attributes:
        accelerator: Places tensors and runs the backward passes.
        model: A causal language model.
        optimizer: Over the model's parameters.
        pad_token: Fills up short rows; never trained on.
        temperature: At which the tokens were sampled; the loss takes log-probs under the same distribution.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    optimizer: Optimizer
    pad_token: int
    temperature: float


def token_logprobs(model: torch.nn.Module, batch: Batch, temperature: float) -> torch.Tensor:
    """Return the log-prob of each sampled token given those before it, nats, float32 [B, T]; elsewhere 0.

    Args:
        model: A causal language model.
        batch: Rows padded on the right: under a causal mask no token sees the padding, so none is masked.
        temperature: Divides the logits.
    """
    # The logits are the largest tensor by far: only columns that predict a sampled token of some row are asked for.
    columns = batch.loss_mask_BT.any(0).nonzero().squeeze(-1)
    logits_BKV = model(input_ids=batch.tokens_BT, use_cache=False, logits_to_keep=columns - 1).logits
    scaled_BKV = logits_BKV.float() / temperature
    targets_BK = batch.tokens_BT[:, columns]
    logprobs_BK = scaled_BKV.gather(-1, targets_BK[..., None]).squeeze(-1) - scaled_BKV.logsumexp(-1)
    logprobs_BT = torch.zeros_like(batch.advantages_BT).index_copy(1, columns, logprobs_BK)
    return torch.where(batch.loss_mask_BT, logprobs_BT, 0.0)


def update(
    learner: Learner, groups: Sequence[Group], rewards_PG: Sequence[Sequence[float]], config: TrainerConfig
) -> Mapping[str, float]:
    """Take one optimizer step, or none where no group says what to do more of.

    The loss is divided by the sampled tokens of all trajectories, so micro-batches change nothing. Each token is
    weighted by how much likelier the trained model makes it than the engine that sampled it.

    Args:
        learner: Changed in place.
        groups: Trees of one rollout, sampled by the weights as they are.
        rewards_PG: Each trajectory's reward, by group.
        config: Algorithm, clipping, micro-batches.

    Returns:
        ``loss``; ``grad_norm`` (before it is scaled down); ``correction``; ``tokens/trained`` (sampled tokens in the
        forward pass: those with an advantage, of equal trajectories one); ``step_skipped`` (1 where no step was made);
        where one was made, over the tokens trained, those of `mismatch_metrics`.

    Raises:
        TrainingError: The loss or its gradient is not finite; the weights are as they were.
    """
    algorithm = ALGORITHMS[config.algorithm]
    valid = sum(len(group.trajectories) for group in groups if group.is_valid)
    total = sum(len(group.trajectories) for group in groups)
    num_tokens = sum(len(t.tokens) for g in groups for trajectory in g.trajectories for t in g.path(trajectory.leaf))
    # An optimizer's momentum would move the weights on a zero gradient too.
    nothing = {"loss": 0.0, "grad_norm": 0.0, "correction": 1.0, "tokens/trained": 0.0}
    samples = make_samples(groups, rewards_PG, algorithm)
    if valid == 0 or not samples:
        return {**nothing, "step_skipped": 1.0}
    correction = 1.0
    if not algorithm.clips:
        correction = group_correction(valid, total, config.group_correction)
        samples = merge_equal(samples)  # exact: this loss is linear in the log-prob
    learner.model.eval()  # as it sampled: with dropout these would be the log-probs of another policy
    learner.optimizer.zero_grad(set_to_none=True)
    total_loss, gaps = 0.0, list[torch.Tensor]()
    for rows in micro_batches(samples, config.micro_batch_tokens):
        batch = pad(rows, learner.pad_token, learner.accelerator.device)
        logprobs_BT = token_logprobs(learner.model, batch, learner.temperature)
        # All micro-batches come before the optimizer's step: these are the log-probs of the old policy as well.
        before_BT = logprobs_BT.detach()
        # In either loss a weight of 0 or more scales a token's term as it scales the advantage.
        weighted_BT = importance_weights(before_BT, batch.old_logprobs_BT) * batch.advantages_BT
        if algorithm.clips:
            # From the trained model's own: the ratio to the engine's is in the weights.
            log_ratios_BT = logprobs_BT - before_BT
            clip = (config.clip_low, config.clip_high)
            loss = clipped_loss(log_ratios_BT, weighted_BT, batch.loss_mask_BT, num_tokens, clip)
        else:
            loss = gpg_loss(logprobs_BT, weighted_BT, batch.loss_mask_BT, num_tokens, correction)
        learner.accelerator.backward(loss)
        total_loss += loss.item()
        gaps.append((before_BT - batch.old_logprobs_BT)[batch.loss_mask_BT])
    norm = float(torch.nn.utils.clip_grad_norm_(learner.model.parameters(), config.max_grad_norm))
    if not (math.isfinite(total_loss) and math.isfinite(norm)):
        raise TrainingError(f"the loss is {total_loss} and the gradient's norm {norm}, expected finite numbers")
    learner.optimizer.step()
    gaps_N = torch.cat(gaps).cpu()
    return {
        "loss": total_loss,
        "grad_norm": norm,
        "correction": correction,
        "tokens/trained": float(len(gaps_N)),
        **mismatch_metrics(gaps_N),
        "step_skipped": 0.0,
    }
