"""The algorithms by name: a table of settings, and the one place that reads the name. Imports nothing heavy.

All of them are the macro-action policy gradient (arXiv:2512.10365) with five choices made: what a segment is, how a
leaf's reward becomes its advantage, whether and at what level there is a ratio, what a token's term is divided by,
and how groups without a signal are made up for. Each choice is a pure function of its own: `segments`, `advantages`,
`losses` (ratios and surrogates), `normalisation`, and `advantages.group_correction`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

AlgorithmName = Literal[
    "arpo-gpg",
    "arpo",
    "gpg",
    "grpo",
    "dr_grpo",
    "dapo",
    "gspo",
    "cispo",
    "reinforce",
    "rloo",
    "remax",
    "ppo",
]
Branching = Literal["entropy", "fixed", "random", "none"]
Segmentation = Literal["trajectory", "turn", "marker", "token", "random", "entropy"]
Baseline = Literal["none", "mean", "others", "greedy", "critic"]
Surrogate = Literal["gradient", "clipped", "truncated"]
Ratio = Literal["none", "token", "segment-product", "segment-geometric", "sequence-product", "sequence-geometric"]
Normalisation = Literal["tokens", "trajectories", "length", "sum"]
Correction = Literal["rescale", "damp", "none"]


# Means over trajectories of one task: groups with equal rewards have no signal for these alone.
GROUP_BASELINES: tuple[Baseline, ...] = ("mean", "others")


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What tells algorithms apart.

    Attributes:
        branching: Where rollouts branch.
        segments: What shares one advantage and, where there is one, one ratio.
        baseline: What a return is compared with.
        divides_by_deviation: ``F_norm`` of the group advantage is the standard deviation, else 1.
        calibrates: A turn's advantage is the mean over the trajectories that share it, else each trajectory's own.
        surrogate: What a token adds to the loss.
        ratio: Between the policy that is trained and the one before the first step on these trajectories.
        normalisation: What a token's term is divided by.
        correction: What makes up for groups without a signal.
        clip_low: Ratios below ``1 - clip_low`` are clipped.
        clip_high: Ratios above ``1 + clip_high`` are clipped.
        min_valid_fraction: Groups with a signal that a step needs, as a share; more tasks are rolled out for it.
    """

    branching: Branching = "none"
    segments: Segmentation = "trajectory"
    baseline: Baseline = "mean"
    divides_by_deviation: bool = False
    calibrates: bool = False
    surrogate: Surrogate = "gradient"
    ratio: Ratio = "none"
    normalisation: Normalisation = "tokens"
    correction: Correction = "none"
    clip_low: float = 0.2
    clip_high: float = 0.2
    min_valid_fraction: float = 0.0

    def __post_init__(self) -> None:
        """Check that the choices go together."""
        if self.surrogate == "gradient" and self.ratio != "none":
            raise ValueError(f"surrogate gradient has no ratio, got ratio {self.ratio}; expected clipped or truncated")
        if self.surrogate != "gradient" and self.ratio == "none":
            raise ValueError(f"surrogate {self.surrogate} needs a ratio, got ratio none; expected such as token")


ALGORITHMS: Mapping[str, Algorithm] = {
    # The gradient of Group Policy Gradient (arXiv:2504.02546) on ARPO's branching rollouts (arXiv:2507.19849).
    "arpo-gpg": Algorithm(branching="entropy", segments="turn", calibrates=True, correction="rescale"),
    # arXiv:2507.19849. Its released code: branching rollouts, GRPO's loss over tokens.
    "arpo": Algorithm(
        branching="entropy",
        segments="turn",
        divides_by_deviation=True,
        calibrates=True,
        surrogate="clipped",
        ratio="token",
    ),
    # arXiv:2504.02546: a group's mean as the baseline; no ratio, clip, critic or KL.
    "gpg": Algorithm(correction="rescale"),
    # arXiv:2402.03300, without its KL term, which is a setting of the loss; the mean within each trajectory first.
    "grpo": Algorithm(divides_by_deviation=True, surrogate="clipped", ratio="token", normalisation="trajectories"),
    # arXiv:2503.20783: neither a deviation nor a trajectory's own length.
    "dr_grpo": Algorithm(surrogate="clipped", ratio="token", normalisation="length"),
    # arXiv:2503.14476: wider above, a mean over all tokens, groups without a signal replaced (dynamic sampling).
    "dapo": Algorithm(
        divides_by_deviation=True, surrogate="clipped", ratio="token", clip_high=0.28, min_valid_fraction=1.0
    ),
    # arXiv:2507.18071: one ratio a sequence, the geometric mean over its tokens.
    "gspo": Algorithm(
        divides_by_deviation=True,
        surrogate="clipped",
        ratio="sequence-geometric",
        normalisation="trajectories",
        clip_low=3e-4,
        clip_high=4e-4,
    ),
    # arXiv:2506.13585: the ratio is a clipped weight, so that no token's gradient is lost. Not clipped below, as there.
    "cispo": Algorithm(divides_by_deviation=True, surrogate="truncated", ratio="token", clip_low=1.0, clip_high=4.0),
    # Williams 1992, https://doi.org/10.1007/BF00992696, without a baseline.
    "reinforce": Algorithm(baseline="none", normalisation="sum"),
    # arXiv:2402.14740: each trajectory against the mean of the others.
    "rloo": Algorithm(baseline="others", normalisation="sum"),
    # arXiv:2310.10505: against the reward of the greedy trajectory.
    "remax": Algorithm(baseline="greedy", normalisation="sum"),
    # arXiv:1707.06347, with advantages by arXiv:1506.02438 from a value head.
    "ppo": Algorithm(segments="token", baseline="critic", surrogate="clipped", ratio="token"),
}
