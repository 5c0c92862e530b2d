"""From rewards on leaves to advantages on turns. Pure functions of numbers and trees."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from forkgym.trainers.types import Group


def group_advantages(rewards_G: Sequence[float], *, divide_by_deviation: bool = False) -> list[float]:
    """Compare each trajectory with its group.

    ``A_i = (r_i - mean(r)) / F_norm``, with ``F_norm = 1`` (Group Policy Gradient, arXiv:2504.02546) or the standard
    deviation plus 1e-6 (GRPO, arXiv:2402.03300; the sample's, with G - 1 below).

    Args:
        rewards_G: One reward a trajectory; at least one.
        divide_by_deviation: Whether ``F_norm`` is the standard deviation.
    """
    mean = statistics.fmean(rewards_G)
    divisor = 1.0
    if divide_by_deviation and len(rewards_G) > 1:
        divisor = statistics.stdev(rewards_G) + 1e-6
    return [(reward - mean) / divisor for reward in rewards_G]


def calibrated_advantages(group: Group, advantages_G: Sequence[float]) -> Mapping[str, float]:
    """Give each turn the mean advantage of the trajectories that share it.

    ``A(turn) = mean over trajectories below of A_i``: ARPO's estimate for shared tokens (arXiv:2507.19849), on the tree
    of macro actions of arXiv:2512.10365. Every leaf weighs the same.

    In a loss that is linear in the log-prob this changes no gradient: the sum over the n trajectories below a turn of
    ``A_i grad log pi`` is ``n mean(A) grad log pi``. It matters where there is a ratio and a clip.

    Returns:
        The advantage of each turn by its uid.
    """
    sums: dict[str, float] = {}
    counts: dict[str, int] = {}
    for trajectory, advantage in zip(group.trajectories, advantages_G, strict=True):
        for turn in group.path(trajectory.leaf):
            sums[turn.uid] = sums.get(turn.uid, 0.0) + advantage
            counts[turn.uid] = counts.get(turn.uid, 0) + 1
    return {uid: total / counts[uid] for uid, total in sums.items()}


def group_correction(valid: int, total: int, kind: str = "rescale") -> float:
    """Return what the GPG loss is multiplied by, for the samples whose group has equal rewards.

    With ``B`` samples, ``M`` of them in such groups: ``rescale`` is ``alpha = B / (B - M)``, which keeps the size of
    the step (arXiv:2504.02546, and what its ablation measures); ``damp`` is the inverse, as a summary prints it;
    ``none`` is 1.

    Args:
        valid: ``B - M``, trajectories in groups whose rewards differ; 1 or more.
        total: ``B``.
        kind: Which of the three.

    Raises:
        ValueError: No trajectory is valid (the caller makes no step then), or ``kind`` is none of the three.
    """
    if not 0 < valid <= total:
        raise ValueError(f"{valid} of {total} trajectories are in groups with a signal, expected 1 to {total}")
    factors = {"rescale": total / valid, "damp": valid / total, "none": 1.0}
    if kind not in factors:
        raise ValueError(f"group correction {kind!r}: expected one of {', '.join(factors)}")
    return factors[kind]
