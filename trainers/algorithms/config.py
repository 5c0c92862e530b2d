"""Settings of the parts of an algorithm. A field left open takes what the algorithm's row of the table says."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from forkgym.trainers.algorithms.table import (
    ALGORITHMS,
    GROUP_BASELINES,
    Algorithm,
    Baseline,
    Correction,
    Normalisation,
    Ratio,
    Segmentation,
    Surrogate,
)
from forkgym.trainers.algorithms.uses import ABOVE_0, Use, check_uses

WITHOUT_CRITIC = ("none", *GROUP_BASELINES, "greedy")
USES = (
    Use("trainer.segments.mean_length", "trainer.segments.kind", ("random",)),
    Use("trainer.segments.entropy_share", "trainer.segments.kind", ("entropy",)),
    # Turns have no boundary within that could be missed, and where every token is one, no other is left to become one.
    Use("trainer.segments.missed", "trainer.segments.kind", ("marker", "token", "random", "entropy")),
    Use("trainer.segments.spurious", "trainer.segments.kind", ("turn", "marker", "random", "entropy")),
    Use("trainer.credit.divide_by_deviation", "trainer.credit.baseline", WITHOUT_CRITIC, False),
    Use("trainer.credit.calibrate", "trainer.credit.baseline", WITHOUT_CRITIC, False),
    # A critic's advantages are of what is to go as it is; with greedy it is refused for another reason.
    Use("trainer.credit.return_to_go", "trainer.credit.baseline", ("none", *GROUP_BASELINES)),
    Use("trainer.credit.gae_lambda", "trainer.credit.baseline", ("critic",)),
    # Compared with anything else, trajectories of equal rewards have advantages as well: there is nothing to make up
    # for, and no group to replace.
    Use("trainer.credit.correction", "trainer.credit.baseline", GROUP_BASELINES, "none"),
    Use("trainer.credit.min_valid_fraction", "trainer.credit.baseline", GROUP_BASELINES, 0.0),
    Use("trainer.credit.extra_rounds", "trainer.credit.min_valid_fraction", (ABOVE_0,)),
    Use("trainer.loss.clip_low", "trainer.loss.surrogate", ("clipped", "truncated")),
    Use("trainer.loss.clip_high", "trainer.loss.surrogate", ("clipped", "truncated")),
    Use("trainer.loss.dual_clip", "trainer.loss.surrogate", ("clipped",)),
    Use("trainer.loss.kl", "trainer.loss.kl_weight", (ABOVE_0,)),
    Use("trainer.loss.value_weight", "trainer.credit.baseline", ("critic",)),
    Use("trainer.loss.value_learning_rate", "trainer.credit.baseline", ("critic",)),
)


@dataclass(frozen=True)
class SegmentConfig:
    """What shares one advantage and one ratio."""

    kind: Segmentation | None = None
    """trajectory; turn: ARPO's macro action; marker: a turn is also cut at the grammar's markers; token; random;
    entropy: before the tokens of which the policy was least certain. By default what the algorithm says."""
    mean_length: float = 16.0
    """Mean length of a random segment in tokens, for random; at least 1."""
    entropy_share: float = 0.2
    """Share of a tree's tokens, rounded down, that begin a segment beside those that begin a turn, for entropy; 0 to
    1."""
    missed: float = 0.0
    """Share of the boundaries within turns that are taken out, to measure how much depends on them; 0 to 1."""
    spurious: float = 0.0
    """Share of the other tokens that become boundaries, for the same; 0 to 1."""

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
    """Divide advantages by the group's standard deviation; by default what the algorithm says, and false for a
    critic."""
    calibrate: bool | None = None
    """Give each turn the mean advantage of the trajectories that share it; by default what the algorithm says, and
    false for a critic."""
    tree_weights: Literal["leaf", "node"] = "leaf"
    """leaf: every trajectory counts the same, as published, so that prefixes that branched count more; node: every
    sampled turn counts as one draw from its state."""
    return_to_go: bool = False
    """Credit a turn with what was paid from it on, instead of all that its trajectory was paid."""
    gae_lambda: float = 1.0
    """Lambda of the critic's advantages, over segments; 0 to 1 (critic only)."""
    correction: Correction | None = None
    """What makes up for the M of B trajectories whose group has no signal, its rewards being equal. rescale: B / (B -
    M), as GPG's paper computes it; damp: the inverse, as a summary prints it; none: 1. By default what the algorithm
    says; always none where the baseline is none, greedy or critic, which give such groups a signal."""
    min_valid_fraction: float | None = None
    """Share of a step's groups that must have a signal: tasks of the others are replaced by new ones, which are rolled
    out before the step; 0 to 1. By default what the algorithm says; always 0 with those baselines."""
    extra_rounds: int = 4
    """Most times that groups without a signal are replaced in a step (with min_valid_fraction above 0 only)."""
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
    """Ratios are clipped below 1 - clip_low; 0 to 1. For clipped and truncated only."""
    clip_high: float | None = None
    """Ratios are clipped above 1 + clip_high. For clipped and truncated only."""
    normalisation: Normalisation | None = None
    """What the sum over tokens is divided by. tokens: all of the batch; trajectories: each trajectory's length, then
    their number; length: rollout.max_total_tokens times the number of trajectories; sum: the number of trajectories."""
    dual_clip: float | None = None
    """Most that a term with a negative advantage costs, in advantages; above 1, for clipped only. By default
    unlimited."""
    importance_correction: bool = False
    """Weigh each token by how much likelier the policy of each update makes it than the one that sampled it, at most
    2; it lets an algorithm without a ratio take several updates a rollout."""
    kl: Literal["k1", "k2", "k3"] = "k3"
    """Estimator of the KL divergence from the policy at the start of the run (with kl_weight only). With d = log pi -
    log ref, k1: d, and k2: d^2 / 2, both with the divergence's gradient; k3: exp(-d) - 1 + d, GRPO's, with the gradient
    of the reverse divergence."""
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
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"trainer.loss.{name} is {value}, expected a finite number, 0 or more")
        if self.clip_low is not None and self.clip_low > 1:
            raise ValueError(f"trainer.loss.clip_low is {self.clip_low}, expected 0 to 1")
        if self.dual_clip is not None and not 1 < self.dual_clip < math.inf:
            raise ValueError(f"trainer.loss.dual_clip is {self.dual_clip}, expected a finite number above 1")


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
    # What a row has for other baselines than the one that was given goes; what was given with it is checked.
    baseline = credit.baseline or ALGORITHMS[name].baseline
    without = {"correction": "none", "min_valid_fraction": 0.0} if baseline not in GROUP_BASELINES else {}
    without |= {"divides_by_deviation": False, "calibrates": False} if baseline == "critic" else {}
    try:
        algorithm = replace(ALGORITHMS[name], **(without | changes))  # type: ignore[arg-type]  # each by its own type
    except ValueError as error:
        raise ValueError(f"trainer.algorithm {name} with the settings given: trainer.loss.{error}") from error
    check_together(algorithm, credit, loss)
    chosen = {
        "trainer.segments.kind": algorithm.segments,
        "trainer.credit.baseline": algorithm.baseline,
        "trainer.credit.min_valid_fraction": algorithm.min_valid_fraction,
        "trainer.loss.surrogate": algorithm.surrogate,
        "trainer.loss.kl_weight": loss.kl_weight,
    }
    sections = {"trainer.segments": segments, "trainer.credit": credit, "trainer.loss": loss}
    check_uses(USES, sections, chosen, name)
    return algorithm


def check_together(algorithm: Algorithm, credit: CreditConfig, loss: LossConfig) -> None:
    """Refuse choices that contradict each other.

    Raises:
        ValueError: Names them.
    """
    if credit.tree_weights == "node" and algorithm.baseline in ("mean", "critic"):
        raise ValueError(
            f"trainer.credit.tree_weights is node and the baseline {algorithm.baseline}, expected none, others or "
            "greedy: a baseline that contains a turn's own leaves is biased (--trainer.credit.baseline others)"
        )
    if credit.tree_weights == "node" and credit.return_to_go:
        raise ValueError("trainer.credit.return_to_go is true, expected false with tree_weights node")
    if credit.return_to_go and algorithm.baseline == "greedy":
        raise ValueError(
            "trainer.credit.return_to_go is true, expected false with trainer.credit.baseline greedy: all that the "
            "greedy trajectory was paid is no measure of what is still to go (--trainer.credit.baseline others)"
        )
    whole = algorithm.segments == "trajectory"
    one_for_all = algorithm.ratio.startswith("sequence") or (whole and algorithm.ratio.startswith("segment"))
    by_segment = algorithm.baseline == "critic" and not whole
    if one_for_all and (algorithm.calibrates or credit.return_to_go or by_segment):
        raise ValueError(
            f"trainer.loss.ratio is {algorithm.ratio}: one ratio for a whole trajectory, whose turns have different "
            "advantages; expected one of a segment of a turn or less, or of a token (--trainer.loss.ratio token)"
        )
    if loss.importance_correction and algorithm.ratio != "none":
        raise ValueError(
            f"trainer.loss.importance_correction is true, expected false with the ratio {algorithm.ratio}, which "
            "corrects for the same updates"
        )
