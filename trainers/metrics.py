"""What a step's trees say in numbers. Every metric has its meaning beside it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from forkgym.envs.tasks import StopReason
from forkgym.trainers.types import Group

TERMINAL = (StopReason.ANSWERED, StopReason.TOOL_STOP)


def rollout_metrics(groups: Sequence[Group]) -> dict[str, float]:
    """Describe the rollouts of one step; means are over trajectories unless said otherwise."""
    trajectories = [(group, trajectory) for group in groups for trajectory in group.trajectories]
    paths = [group.path(trajectory.leaf) for group, trajectory in trajectories]
    rewards = [trajectory.reward for _, trajectory in trajectories]
    turns = [turn for group in groups for turn in group.turns]
    entropies = [entropy for turn in turns for entropy in turn.entropies]
    metrics = {
        # Reward of a trajectory, and its standard deviation.
        "reward/mean": statistics.fmean(rewards),
        "reward/std": statistics.pstdev(rewards),
        # Exact match or equal value.
        "accuracy": statistics.fmean(trajectory.accuracy for _, trajectory in trajectories),
        # Share of groups whose rewards differ: the others teach nothing.
        "groups/valid_fraction": statistics.fmean(group.is_valid for group in groups),
        "turns/mean": statistics.fmean(len(path) for path in paths),
        "tool_calls/mean": statistics.fmean(sum(len(turn.tools) for turn in path) for path in paths),
        # Share of turns that held neither a call that could be run nor an answer; over the tree's turns.
        "turns/malformed_fraction": statistics.fmean(bool(turn.error) for turn in turns),
        # Tokens that the policy sampled: each turn of a tree counts once.
        "tokens/sampled": float(len(entropies)),
        # The same if every trajectory had been sampled by itself: what branching saved.
        "tokens/in_trajectories": float(sum(len(turn.tokens) for path in paths for turn in path)),
        # Mean entropy of the sampling distribution before a token, nats; over the tree's tokens.
        "entropy/mean": statistics.fmean(entropies) if entropies else 0.0,
        # Share of trajectories that branched off another one instead of starting from the prompt.
        "branches/fraction": statistics.fmean(
            is_branched(group, trajectory.leaf) for group, trajectory in trajectories
        ),
        # Share that ended at a limit.
        "truncated_fraction": statistics.fmean(t.stop_reason not in TERMINAL for _, t in trajectories),
    }
    env_ids = list(dict.fromkeys(group.env_id for group in groups))
    for env_id in env_ids:
        own = [trajectory.accuracy for group, trajectory in trajectories if group.env_id == env_id]
        metrics[f"accuracy/{env_id}"] = statistics.fmean(own)
    return metrics


def is_branched(group: Group, leaf: str) -> bool:
    """Whether a trajectory's first turn was sampled by another one."""
    return group.path(leaf)[0].uid.split("d")[0] != leaf.split("d")[0]
