"""What one micro-batch adds to the loss of a step: the algorithm's choices, put together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch

from forkgym.trainers.algorithms.config import LossConfig
from forkgym.trainers.algorithms.losses import (
    clipped_terms,
    gradient_terms,
    kl_terms,
    log_ratios,
    truncated_terms,
    weighted_sum,
)
from forkgym.trainers.algorithms.mismatch import importance_weights, mismatch_metrics
from forkgym.trainers.algorithms.table import Algorithm
from forkgym.trainers.forward.measures import Measures
from forkgym.trainers.packing import Batch


@dataclass(frozen=True, slots=True)
class FixedLogprobs:
    """Log-probs that do not change during the updates of one rollout; no gradient flows through them.

    Attributes:
        before_BT: Under the policy before the first update, nats; None where the first is the only one, and the policy
            at hand is that policy.
        reference_BT: Under the policy at the start of the run, nats; None without a KL term.
    """

    before_BT: torch.Tensor | None = None
    reference_BT: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Objective:
    """A micro-batch's part of the loss, and what it is made of.

    Attributes:
        loss: Scalar with a gradient.
        gaps_N: log pi minus the engine's log-prob of each sampled token, nats.
        clipped_N: Whether each token's ratio was outside its range, so that the clip changed its gradient;
            empty without a ratio.
        kl_N: The KL estimate at each token, nats; empty without a reference.
        entropies_N: Before each token, nats; empty where they were not asked for.
        value_errors_N: The value head's error at each segment's first token; empty without a head.
    """

    loss: torch.Tensor
    gaps_N: torch.Tensor
    clipped_N: torch.Tensor
    kl_N: torch.Tensor
    entropies_N: torch.Tensor
    value_errors_N: torch.Tensor

    def without_graph(self) -> Objective:
        """The same numbers on the CPU; what the backward pass needed is let go."""
        return Objective(*(getattr(self, one.name).detach().cpu() for one in fields(self)))


@dataclass(frozen=True, slots=True)
class LossRule:
    """What a step minimises.

    Attributes:
        algorithm: Surrogate, ratio, clip range.
        config: Weights of what is added, and the dual clip.
        correction: See `group_correction`; of the policy's term alone.
    """

    algorithm: Algorithm
    config: LossConfig
    correction: float


def objective(measures: Measures, batch: Batch, fixed: FixedLogprobs, rule: LossRule) -> Objective:
    """Assemble the loss of one micro-batch.

    ``L = -correction sum_bt w_bt u_bt term_bt + kl_weight sum_bt w_bt kl_bt - entropy_weight sum_bt w_bt H_bt +
    value_weight sum_bt w_bt (V_bt - target_bt)^2 / 2``

    with ``w`` the normalisation's weights, ``u`` the truncated importance weights of rollout against trainer, and
    ``term`` the algorithm's surrogate. The value's sum is over segments' first tokens.

    Args:
        measures: Of the policy that is trained.
        batch: The same rows.
        fixed: Log-probs of the same rows under other policies.
        rule: The parts of the loss.
    """
    algorithm, config = rule.algorithm, rule.config
    logprobs_BT, mask_BT = measures.logprobs_BT, batch.mask_BT
    before_BT = logprobs_BT.detach() if fixed.before_BT is None else fixed.before_BT
    # Where the steps go on after the first one and nothing else accounts for it, the weights do.
    sampled_by_BT = logprobs_BT.detach() if config.importance_correction else before_BT
    # A weight of 0 or more scales a token's term, in every surrogate, as it scales the advantage.
    advantages_BT = importance_weights(sampled_by_BT, batch.old_logprobs_BT) * batch.advantages_BT
    nothing = logprobs_BT.new_zeros(0)
    clipped_N = nothing
    clip = (algorithm.clip_low, algorithm.clip_high)
    if algorithm.surrogate == "gradient":
        terms_BT = gradient_terms(logprobs_BT, advantages_BT)
    else:
        ratios_BT, shares_BT = log_ratios(logprobs_BT, before_BT, batch.segments_BT, algorithm.ratio)
        if algorithm.surrogate == "clipped":
            terms_BT = shares_BT * clipped_terms(ratios_BT, advantages_BT, clip, config.dual_clip)
        else:
            terms_BT = truncated_terms(logprobs_BT, ratios_BT, advantages_BT, clip)
        # A clipped term loses its gradient on the side that the advantage pushes to only; a weight is cut on both.
        pushes_BT = batch.advantages_BT if algorithm.surrogate == "clipped" else None
        clipped_N = outside(ratios_BT.detach(), clip, pushes_BT)[mask_BT]
    loss = -rule.correction * weighted_sum(terms_BT, batch.weights_BT, mask_BT)
    kl_N, entropies_N, errors_N = nothing, nothing, nothing
    if fixed.reference_BT is not None:
        kl_BT = kl_terms(logprobs_BT, fixed.reference_BT, config.kl)
        loss = loss + config.kl_weight * weighted_sum(kl_BT, batch.weights_BT, mask_BT)
        kl_N = kl_BT.detach()[mask_BT]
    if measures.entropies_BT is not None:
        loss = loss - config.entropy_weight * weighted_sum(measures.entropies_BT, batch.weights_BT, mask_BT)
        entropies_N = measures.entropies_BT.detach()[mask_BT]
    if measures.values_BT is not None:
        errors_BT = measures.values_BT - batch.targets_BT
        first_BT = segment_firsts(batch.segments_BT)
        loss = loss + config.value_weight * weighted_sum(errors_BT.square() / 2, batch.weights_BT, first_BT)
        errors_N = errors_BT.detach()[first_BT]
    gaps_N = (logprobs_BT.detach() - batch.old_logprobs_BT)[mask_BT]
    return Objective(loss, gaps_N, clipped_N, kl_N, entropies_N, errors_N)


def segment_firsts(segments_BT: torch.Tensor) -> torch.Tensor:
    """Where each segment has its first token, bool [B, T]; one may go on after an observation."""
    so_far_BT = torch.nn.functional.pad(segments_BT.cummax(1).values[:, :-1], (1, 0), value=-1)
    return segments_BT > so_far_BT


def outside(
    log_ratios_BT: torch.Tensor, clip: tuple[float, float], advantages_BT: torch.Tensor | None = None
) -> torch.Tensor:
    """Whether a ratio is out of its range, bool [B, T]; with advantages, on the side to which these push it."""
    ratios_BT = log_ratios_BT.exp()
    above_BT, below_BT = ratios_BT > 1.0 + clip[1], ratios_BT < 1.0 - clip[0]
    if advantages_BT is None:
        return above_BT | below_BT
    return (above_BT & (advantages_BT > 0)) | (below_BT & (advantages_BT < 0))


def objective_metrics(parts: Sequence[Objective]) -> dict[str, float]:
    """Describe an update; over the tokens of all its micro-batches, of which there is at least one."""
    joined = Objective(
        *(torch.cat([getattr(part, one.name).reshape(-1) for part in parts]) for one in fields(Objective))
    )
    metrics = {"loss": float(joined.loss.double().sum()), **mismatch_metrics(joined.gaps_N)}
    optional = {
        # Share of tokens whose ratio was outside its range, so that the clip changed their gradient.
        "clip/fraction": joined.clipped_N.double(),
        # KL divergence from the policy at the start of the run, by the estimator that the loss takes, nats.
        "kl/mean": joined.kl_N.double(),
        # Entropy before each trained token under the trained policy, nats.
        "entropy/trained": joined.entropies_N.double(),
        # Mean squared error of the value head.
        "value/squared_error": joined.value_errors_N.double().square(),
    }
    return metrics | {name: float(values.mean()) for name, values in optional.items() if len(values)}
