"""From rewards on leaves to advantages on turns. Pure functions of numbers and trees.

A number belongs to a turn on a trajectory's path: ``[G][D]`` is one for each turn of each trajectory, in the order of
`Group.trajectories` and of `Group.path`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

import numpy as np

from forkgym.trainers.types import Group

ByTurn = list[tuple[float, ...]]  # [G][D]
DEVIATION_FLOOR = 1e-6  # added to a standard deviation, as verl does; TRL adds 1e-4
SAME_REWARD = 1e-9  # rewards that are less apart are equal
ROUNDING = 1e-12  # of a mean, as a share of it


def constant(values_G: Sequence[float], like: ByTurn) -> ByTurn:
    """Give every turn of a trajectory the trajectory's number."""
    return [(value,) * len(returns_D) for value, returns_D in zip(values_G, like, strict=True)]


def whole_returns(group: Group, rewards_G: Sequence[float]) -> ByTurn:
    """Credit every turn with all that its trajectory was paid."""
    return [
        (reward,) * len(group.path(trajectory.leaf))
        for trajectory, reward in zip(group.trajectories, rewards_G, strict=True)
    ]


def returns_to_go(group: Group) -> ByTurn:
    """Credit a turn with what was paid from it on: ``R_d = sum over d' >= d of r_d'``.

    It has no part in what was paid before it (the policy gradient theorem, Sutton et al. 1999). Where an environment
    pays at the end only, it is the trajectory's reward.

    Example: turns that were paid 0.5, -0.1 and 1 give 1.4, 0.9 and 1.
    """
    found: ByTurn = []
    for trajectory in group.trajectories:
        paid = np.array([turn.reward for turn in group.path(trajectory.leaf)])
        found.append(tuple(np.cumsum(paid[::-1])[::-1].tolist()))
    return found


def by_depth(returns_GD: ByTurn) -> list[list[float]]:
    """What all trajectories' returns are at each depth, [D][G]; one that has ended stands at its last turn.

    Left out, those that go on would be compared with themselves, and what tells them from the others would be lost;
    with 0 to go, so would what a wrong answer costs after the others' right ones, and trajectories that earn the same
    would differ by their lengths.

    Example: 1.4, 0.9 and 1 to go, beside 0.25, give 1.4 and 0.25, 0.9 and 0.25, 1 and 0.25.
    """
    deepest = max(len(returns_D) for returns_D in returns_GD)
    return [[returns_D[min(depth, len(returns_D) - 1)] for returns_D in returns_GD] for depth in range(deepest)]


def mean_baseline(returns_GD: ByTurn) -> ByTurn:
    """The group's mean, the trajectory itself included, as GRPO (arXiv:2402.03300) and GPG (arXiv:2504.02546) take it.

    It is taken at each depth, see `by_depth`: that of whole returns is the same at all of them.
    """
    means_D = [statistics.fmean(returns_G) for returns_G in by_depth(returns_GD)]
    return [tuple(means_D[: len(returns_D)]) for returns_D in returns_GD]


def others_baseline(group: Group, returns_GD: ByTurn) -> ByTurn:
    """The mean over the other trajectories: RLOO's baseline (Ahmadian et al. 2024, arXiv:2402.14740).

    Those that share a turn with a trajectory are no others: they have its first turn's luck in common, and a baseline
    that depends on the turn which it is taken from is biased. Without branching it is RLOO's to the letter:
    ``A_i = r_i - sum over j != i of r_j / (G - 1)``. It is taken at each depth, as `mean_baseline` is.

    Raises:
        ValueError: All trajectories share their first turn, so that there is no other.
    """
    roots_G = [group.path(trajectory.leaf)[0].uid for trajectory in group.trajectories]
    if len(set(roots_G)) < 2:
        raise ValueError(
            f"group {group.task_uid}: all {len(roots_G)} trajectories begin with turn {roots_G[0]}, expected two first "
            "turns or more, of which each is the others' baseline"
        )
    found: ByTurn = []
    for root, returns_D in zip(roots_G, returns_GD, strict=True):
        others = [other for name, other in zip(roots_G, returns_GD, strict=True) if name != root]
        means_D = [statistics.fmean(returns_G) for returns_G in by_depth(others)]
        means_D += means_D[-1:] * (len(returns_D) - len(means_D))
        found.append(tuple(means_D[: len(returns_D)]))
    return found


def deviation(rewards_G: Sequence[float]) -> float:
    """What GRPO divides by: the sample's standard deviation (with G - 1 below) plus 1e-6.

    1 where there is none, for a single trajectory or equal rewards: divided by 1e-6, the rounding of their mean would
    pass for an advantage, and what is compared with another baseline than the mean would be a million times too large.
    """
    spread = statistics.stdev(rewards_G) if len(rewards_G) > 1 else 0.0
    return spread + DEVIATION_FLOOR if spread > SAME_REWARD else 1.0


def deviations(returns_GD: ByTurn) -> list[float]:
    """The group's deviation at each depth, [D], see `by_depth`: that of whole returns is the same at all of them.

    That of the totals would not do for what is to go: where they hardly differ, it is next to nothing.
    """
    return [deviation(returns_G) for returns_G in by_depth(returns_GD)]


def differences(returns_GD: ByTurn, baselines_GD: ByTurn, divisors_D: Sequence[float] | None = None) -> ByTurn:
    """``A = (R - b) / F_norm``, with ``F_norm`` 1 (Group Policy Gradient) or `deviations` (GRPO).

    A difference that is the rounding of a mean is 0: whether a group teaches anything is judged by its advantages.
    """

    def difference(value: float, base: float) -> float:
        return 0.0 if math.isclose(value, base, rel_tol=ROUNDING, abs_tol=SAME_REWARD) else value - base

    found: ByTurn = []
    for returns_D, baselines_D in zip(returns_GD, baselines_GD, strict=True):
        by = [1.0] * len(returns_D) if divisors_D is None else divisors_D[: len(returns_D)]
        found.append(
            tuple(difference(value, base) / one for value, base, one in zip(returns_D, baselines_D, by, strict=True))
        )
    return found


def calibrated(group: Group, advantages_GD: ByTurn, weights_G: Sequence[float]) -> ByTurn:
    """Give each turn the mean advantage of the trajectories that share it.

    ``A(turn) = sum over trajectories i below of w_i A_i / sum of w_i``: ARPO's estimate for shared tokens
    (arXiv:2507.19849) on the tree of macro actions of arXiv:2512.10365, where every leaf weighs the same.

    In a loss that is linear in the log-prob this changes no gradient: the sum over the trajectories below a turn of
    ``w_i A_i grad log pi`` is ``(sum of w_i) mean(A) grad log pi``. It matters where there is a ratio and a clip.

    Args:
        group: A tree.
        advantages_GD: Each trajectory's own.
        weights_G: Of the trajectories, 0 or more.
    """
    sums: dict[str, float] = {}
    totals: dict[str, float] = {}
    paths = [group.path(trajectory.leaf) for trajectory in group.trajectories]
    for path, advantages_D, weight in zip(paths, advantages_GD, weights_G, strict=True):
        for turn, advantage in zip(path, advantages_D, strict=True):
            sums[turn.uid] = sums.get(turn.uid, 0.0) + weight * advantage
            totals[turn.uid] = totals.get(turn.uid, 0.0) + weight
    return [tuple(sums[turn.uid] / totals[turn.uid] for turn in path) for path in paths]


def generalized_advantages(rewards_K: Sequence[float], values_K: Sequence[float], gae_lambda: float) -> list[float]:
    """Advantages over a trajectory's segments from a value head (Schulman et al. 2016, arXiv:1506.02438), undiscounted.

    ``delta_k = r_k + V_{k+1} - V_k`` with ``V_K = 0``, and ``A_k = delta_k + lambda A_{k+1}``. With lambda 1 it is
    ``sum of r_k' from k on, minus V_k``; with 0 the single difference.

    Example: rewards 0, 1 and values 0.5, 0.75 with lambda 0.5: delta = 0.25, 0.25, so A = 0.375, 0.25.

    Args:
        rewards_K: Paid at the end of each segment.
        values_K: The head's estimate before each segment.
        gae_lambda: 0 to 1.
    """
    advantages = [0.0] * len(rewards_K)
    following, after = 0.0, 0.0
    for place in reversed(range(len(rewards_K))):
        following = rewards_K[place] + after - values_K[place] + gae_lambda * following
        after = values_K[place]
        advantages[place] = following
    return advantages


def group_correction(valid: int, total: int, kind: str = "rescale") -> float:
    """Return what the GPG loss is multiplied by, for the samples whose group has no signal.

    With ``B`` samples in the loss, ``M`` of them in groups none of whose samples has an advantage (as their rewards are
    equal, in total or, with return-to-go, from each turn on): ``rescale`` is ``alpha = B / (B - M)``, which keeps the
    size of the step (arXiv:2504.02546, and what its ablation measures); ``damp`` is the inverse, as a summary prints
    it; ``none`` is 1.

    Args:
        valid: ``B - M``, those in groups with a signal; 1 or more.
        total: ``B``; trajectories that are masked are in neither.
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
