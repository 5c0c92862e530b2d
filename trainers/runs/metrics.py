"""What a step's trees say in numbers. Every metric has its meaning beside it, and in docs/diagnostics.md."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence

import numpy as np

from forkgym.agents.base import FinishReason
from forkgym.trainers.algorithms.credit import CreditRule, teaches
from forkgym.trainers.types import Group, Turn

ENDED = (FinishReason.STOP, FinishReason.END)
NO_VARIANCE = 1e-12  # what is left of equal advantages after rounding


def rollout_metrics(
    groups: Sequence[Group], markers: Sequence[str] = (), rule: CreditRule | None = None
) -> dict[str, float]:
    """Describe the rollouts of one step; means are over trajectories unless said otherwise.

    Args:
        groups: The step's trees, at least one.
        markers: The environments' markers; without any, how often they are written is left out.
        rule: Says which groups have a signal; None for those whose rewards differ.
    """
    trajectories = [(group, trajectory) for group in groups for trajectory in group.trajectories]
    paths = [group.path(trajectory.leaf) for group, trajectory in trajectories]
    rewards = [trajectory.reward for _, trajectory in trajectories]
    turns = [turn for group in groups for turn in group.turns]
    entropies = [entropy for turn in turns for entropy in turn.entropies]
    calls = [sum(len(turn.tools) for turn in path) for path in paths]
    in_trajectories = sum(len(turn.tokens) for path in paths for turn in path)
    metrics = {
        # Reward of a trajectory, and its standard deviation.
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        # Exact match or equal value.
        "accuracy": statistics.fmean(trajectory.accuracy for _, trajectory in trajectories),
        # Share of groups with a signal: the others, whose rewards are equal, teach nothing.
        "groups/valid_fraction": statistics.fmean(
            group.is_valid if rule is None else teaches(group, rule) for group in groups
        ),
        # Share of groups all of whose trajectories are right: of those without a signal, the ones that need none.
        "groups/solved_fraction": statistics.fmean(is_solved(group) for group in groups),
        "turns/mean": statistics.fmean(len(path) for path in paths),
        "tool_calls/mean": statistics.fmean(calls),
        # Share of trajectories that called no tool.
        "tool_calls/none_fraction": statistics.fmean(number == 0 for number in calls),
        # Share of turns that held neither a call that could be run nor an answer; over the tree's turns.
        "turns/malformed_fraction": statistics.fmean(bool(turn.error) for turn in turns),
        # Share of turns that a limit cut off before a closing marker or the end token; over the tree's turns.
        "turns/cut_off_fraction": statistics.fmean(turn.finish_reason not in ENDED for turn in turns),
        # Tokens that the policy sampled: each turn of a tree counts once.
        "tokens/sampled": float(len(entropies)),
        # The same if every trajectory had been sampled by itself: what branching saved.
        "tokens/in_trajectories": float(in_trajectories),
        # Sampled tokens of a turn, over the tree's turns, and of a trajectory.
        "tokens/turn_mean": len(entropies) / len(turns),
        "tokens/trajectory_mean": in_trajectories / len(paths),
        # Mean entropy of the sampling distribution before a token, nats; over the tree's tokens.
        "entropy/mean": statistics.fmean(entropies) if entropies else 0.0,
        # Share of trajectories that branched off another one instead of starting from the prompt.
        "branches/fraction": statistics.fmean(
            is_branched(group, trajectory.leaf) for group, trajectory in trajectories
        ),
        # Share that ended at a limit: of turns, time, tokens or context.
        "truncated_fraction": statistics.fmean(trajectory.is_truncated for _, trajectory in trajectories),
        **calibration_metrics(groups),
    }
    if markers:
        # Markers of the grammar in a turn; over the tree's turns.
        metrics["markers/turn_mean"] = statistics.fmean(count_markers(turns, markers))
    env_ids = list(dict.fromkeys(group.env_id for group in groups))
    for env_id in env_ids:
        own = [trajectory.accuracy for group, trajectory in trajectories if group.env_id == env_id]
        metrics[f"accuracy/{env_id}"] = statistics.fmean(own)
    return metrics


def is_branched(group: Group, leaf: str) -> bool:
    """Whether a trajectory's first turn was sampled by another one."""
    return group.path(leaf)[0].uid.split("d")[0] != leaf.split("d")[0]


def is_solved(group: Group) -> bool:
    """Whether all trajectories are right."""
    return all(trajectory.accuracy >= 1.0 for trajectory in group.trajectories)


def count_markers(turns: Sequence[Turn], markers: Sequence[str]) -> list[int]:
    """Return the number of markers in each turn; where one begins with another, the longer one counts."""
    longest_first = sorted(markers, key=len, reverse=True)
    pattern = re.compile("|".join(re.escape(marker) for marker in longest_first))
    return [len(pattern.findall(turn.text)) for turn in turns]


def calibration_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Describe what averaging advantages over shared prefixes (`advantages.calibrated`) does to them.

    With ``A_i = r_i - mean(r)`` of trajectory i of a group, ``n_u`` trajectories below a turn u of ``T_u`` sampled
    tokens, ``m_u`` and ``s_u^2`` the mean and the sample variance (with ``n_u - 1`` below) of their ``A_i``, ``N = sum
    over u of n_u T_u`` the tokens of all trajectories of all groups, and ``c = sum over u of T_u n_u m_u / N``:

    ``V_leaf = sum over u, i below u of T_u (A_i - c)^2 / N`` is the variance of the advantages before,
    ``V_mean = sum over u of T_u n_u (m_u - c)^2 / N`` that of the calibrated ones,
    ``variance_removed = 1 - V_mean / V_leaf``, from 0 to 1 by the law of total variance, and
    ``noise = (sum over u with n_u > 1 of T_u n_u s_u^2 / n_u) / (N V_mean)``: the squared standard error of the means
    of shared turns, as a share of the variance. Its leaves count as independent draws, as if none shared a later turn.

    Returns:
        ``prefix/leaves_mean``, ``calibration/variance_removed`` and ``calibration/noise``, the last two where the
        variance is not 0; nothing where no trajectories share a turn.
    """
    turns: list[tuple[int, int, float, float]] = []  # n_u, T_u, m_u, sum over i below u of (A_i - m_u)^2
    for group in groups:
        middle = statistics.fmean(group.rewards)
        below: dict[str, list[float]] = {}
        for trajectory in group.trajectories:
            for turn in group.path(trajectory.leaf):
                below.setdefault(turn.uid, []).append(trajectory.reward - middle)
        for uid, advantages in below.items():
            mean = statistics.fmean(advantages)
            spread = sum((advantage - mean) ** 2 for advantage in advantages)
            turns.append((len(advantages), len(group.turn_by_uid[uid].tokens), mean, spread))
    leaves_U, sizes_U, means_U, spreads_U = np.array(turns, np.float64).T
    if not (leaves_U > 1).any():
        return {}
    # Trajectories that share a turn of a tree: how many values its calibrated advantage is the mean of.
    metrics = {"prefix/leaves_mean": float(leaves_U[leaves_U > 1].mean())}
    tokens_U = leaves_U * sizes_U
    if not tokens_U.any():
        return metrics
    center = np.average(means_U, weights=tokens_U)
    calibrated = float(np.average((means_U - center) ** 2, weights=tokens_U))
    whole = calibrated + float((sizes_U * spreads_U).sum() / tokens_U.sum())
    if whole > NO_VARIANCE:
        # Share of the advantages' variance that averaging over shared turns takes away; over the trajectories' tokens.
        metrics["calibration/variance_removed"] = 1.0 - calibrated / whole
    if calibrated > NO_VARIANCE:
        # Squared standard error of those averages, as a share of the variance that is left.
        errors_U = spreads_U / np.maximum(leaves_U - 1, 1)  # s_u^2; T_u n_u s_u^2 / n_u is T_u s_u^2
        metrics["calibration/noise"] = float((sizes_U * errors_U).sum() / tokens_U.sum()) / calibrated
    return metrics
