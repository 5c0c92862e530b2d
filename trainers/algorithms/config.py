"""Settings of the parts of an algorithm. A field left open takes what the algorithm's row of the table says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from forkgym.trainers.algorithms.table import (
    ALGORITHMS,
    Algorithm,
    Baseline,
    Correction,
    Normalisation,
    Ratio,
    Segmentation,
    Surrogate,
)


@dataclass(frozen=True)
class SegmentConfig:
    """What shares one advantage and one ratio."""

    kind: Segmentation | None = None
    """trajectory; turn: ARPO's macro action; marker: a turn is also cut at the grammar's markers; token; random;
    entropy: before the tokens of which the policy was least certain. By default what the algorithm says."""
    mean_length: float = 16.0
    """Mean length of a random segment in tokens; at least 1."""
    entropy_share: float = 0.2
    """Share of a tree's tokens that begin a segment for entropy; 0 to 1."""
    missed: float = 0.0
    """Share of the boundaries within turns that are taken out, to measure how much depends on them."""
    spurious: float = 0.0
    """Share of the other tokens that become boundaries, for the same."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not self.mean_length >= 1:
            raise ValueError(f"trainer.segments.mean_length is {self.mean_length}, expected at least 1")
        for name in ("entropy_share", "missed", "spurious"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"trainer.segments.{name} is {getattr(self, name)}, expected 0 to 1")


@dataclass(frozen=True)
class CreditConfig:
    """How rewards become advantages."""

    baseline: Baseline | None = None
    """What a return is compared with: none; mean: the group's; others: the mean of the trajectories that share no turn
    with it; greedy: the greedy trajectory's reward; critic: a value head. By default what the algorithm says."""
    divide_by_deviation: bool | None = None
    """Divide advantages by the group's standard deviation; by default what the algorithm says."""
    calibrate: bool | None = None
    """Give each turn the mean advantage of the trajectories that share it; by default what the algorithm says."""
    tree_weights: Literal["leaf", "node"] = "leaf"
    """leaf: every trajectory counts the same, as published, so that prefixes that branched count more; node: every
    sampled turn counts as one draw from its state."""
    return_to_go: bool = False
    """Credit a turn with what was paid from it on, instead of all that its trajectory was paid."""
    gae_lambda: float = 1.0
    """Lambda of the critic's advantages, over segments; 0 to 1."""
    correction: Correction | None = None
    """What makes up for the M of B trajectories whose group has equal rewards. rescale: B / (B - M), as GPG's paper
    computes it; damp: the inverse, as a summary prints it; none: 1. By default what the algorithm says."""
    min_valid_fraction: float | None = None
    """Share of a step's groups that must have a signal: tasks of the others are replaced by new ones, which are rolled
    out before the step; 0 to 1. By default what the algorithm says."""
    extra_rounds: int = 4
    """Most times that groups without a signal are replaced in a step."""
    mask_truncated: bool = False
    """Leave the tokens of trajectories that ended at a limit out of the loss; their rewards count in the group."""
    shuffle_rewards: bool = False
    """Control experiment: permute each task's rewards among its trajectories, so that nothing can be learnt."""

    def __post_init__(self) -> None:
        """Check the numbers, and what can't go together."""
        for name in ("gae_lambda", "min_valid_fraction"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"trainer.credit.{name} is {value}, expected 0 to 1")
        if self.extra_rounds < 0:
            raise ValueError(f"trainer.credit.extra_rounds is {self.extra_rounds}, expected 0 or more")
        if self.shuffle_rewards and self.return_to_go:
            raise ValueError("trainer.credit.return_to_go is true, expected false where rewards are shuffled")


@dataclass(frozen=True)
class LossConfig:
    """What a step minimises."""

    surrogate: Surrogate | None = None
    """gradient: A log pi, no ratio; clipped: PPO's; truncated: A log pi weighted by the clipped ratio (CISPO). By
    default what the algorithm says, as are the next four."""
    ratio: Ratio | None = None
    """Level of the ratio, and how it is made of its tokens' ratios."""
    clip_low: float | None = None
    """Ratios are clipped below 1 - clip_low; 0 to 1."""
    clip_high: float | None = None
    """Ratios are clipped above 1 + clip_high."""
    normalisation: Normalisation | None = None
    """What the sum over tokens is divided by. tokens: all of the batch; trajectories: each trajectory's length, then
    their number; length: rollout.max_total_tokens times the number of trajectories; sum: the number of trajectories."""
    dual_clip: float | None = None
    """Most that a clipped term with a negative advantage costs, in advantages; above 1. By default unlimited."""
    importance_correction: bool = False
    """Weigh each token by how much likelier the policy of each update makes it than the one that sampled it, at most
    2; it lets an algorithm without a ratio take several updates a rollout."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence from the policy at the start of the run."""
    kl_weight: float = 0.0
    """Weight of that divergence in the loss; 0 keeps no copy of the policy."""
    entropy_weight: float = 0.0
    """Weight of the entropy before each token, which the loss rewards."""
    value_weight: float = 0.5
    """Weight of the value head's squared error (critic only)."""
    value_learning_rate: float = 1e-3
    """Learning rate of the value head (critic only)."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("clip_low", "clip_high", "kl_weight", "entropy_weight", "value_weight", "value_learning_rate"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"trainer.loss.{name} is {value}, expected 0 or more")
        if self.clip_low is not None and self.clip_low > 1:
            raise ValueError(f"trainer.loss.clip_low is {self.clip_low}, expected 0 to 1")
        if self.dual_clip is not None and not self.dual_clip > 1:
            raise ValueError(f"trainer.loss.dual_clip is {self.dual_clip}, expected above 1")


def resolved(name: str, segments: SegmentConfig, credit: CreditConfig, loss: LossConfig) -> Algorithm:
    """The algorithm's row of the table with what the settings put in its place.

    Raises:
        ValueError: No algorithm has this name, or the choices contradict each other.
    """
    if name not in ALGORITHMS:
        raise ValueError(f"trainer.algorithm is {name!r}, expected one of {', '.join(ALGORITHMS)}")
    given = {
        "segments": segments.kind,
        "baseline": credit.baseline,
        "divides_by_deviation": credit.divide_by_deviation,
        "calibrates": credit.calibrate,
        "correction": credit.correction,
        "min_valid_fraction": credit.min_valid_fraction,
        "surrogate": loss.surrogate,
        "ratio": loss.ratio,
        "clip_low": loss.clip_low,
        "clip_high": loss.clip_high,
        "normalisation": loss.normalisation,
    }
    changes = {key: value for key, value in given.items() if value is not None}
    try:
        algorithm = replace(ALGORITHMS[name], **changes)  # type: ignore[arg-type]  # each by its own field's type
    except ValueError as error:
        raise ValueError(f"trainer.algorithm {name} with the settings given: trainer.loss.{error}") from error
    if credit.tree_weights == "node" and algorithm.baseline in ("mean", "critic"):
        raise ValueError(
            f"trainer.credit.tree_weights is node and the baseline {algorithm.baseline}, expected none, others or "
            "greedy: a baseline that contains a turn's own leaves is biased (--trainer.credit.baseline others)"
        )
    if credit.tree_weights == "node" and credit.return_to_go:
        raise ValueError("trainer.credit.return_to_go is true, expected false with tree_weights node")
    whole = algorithm.segments == "trajectory"
    one_for_all = algorithm.ratio.startswith("sequence") or (whole and algorithm.ratio.startswith("segment"))
    by_segment = algorithm.baseline == "critic" and not whole
    if one_for_all and (algorithm.calibrates or credit.return_to_go or by_segment):
        raise ValueError(
            f"trainer.loss.ratio is {algorithm.ratio}: one ratio for a whole trajectory, whose turns have different "
            "advantages; expected one of a segment of a turn or less, or of a token (--trainer.loss.ratio token)"
        )
    for field, is_set in (
        ("return_to_go", credit.return_to_go),
        ("calibrate", credit.calibrate),
        ("divide_by_deviation", credit.divide_by_deviation),
    ):
        if is_set and algorithm.baseline == "critic":
            raise ValueError(f"trainer.credit.{field} is true, expected false with the baseline critic")
    if loss.importance_correction and algorithm.ratio != "none":
        raise ValueError(
            f"trainer.loss.importance_correction is true, expected false with the ratio {algorithm.ratio}, which "
            "corrects for the same updates"
        )
    if loss.dual_clip is not None and algorithm.surrogate != "clipped":
        raise ValueError(
            f"trainer.loss.dual_clip is {loss.dual_clip} for surrogate {algorithm.surrogate}, expected none"
        )
    return algorithm
