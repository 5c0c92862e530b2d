"""From trees and their rewards to samples: which segment gets how much of the credit, and what each token weighs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from forkgym.trainers.algorithms.advantages import (
    ByTurn,
    calibrated,
    constant,
    deviations,
    differences,
    generalized_advantages,
    mean_baseline,
    others_baseline,
    returns_to_go,
    whole_returns,
)
from forkgym.trainers.algorithms.config import CreditConfig
from forkgym.trainers.algorithms.normalisation import token_weights
from forkgym.trainers.algorithms.table import GROUP_BASELINES, Algorithm
from forkgym.trainers.algorithms.tree_weights import leaf_weights, node_baselines, node_weights
from forkgym.trainers.types import Group, Row, Sample, Trajectory, finite_reward

NO_SIGNAL = 1e-12  # an advantage of this size is rounding
Credit = list[tuple[tuple[float, ...], tuple[float, ...]]]  # [G] of advantages and targets of each token


@dataclass(frozen=True, slots=True)
class CreditRule:
    """How rewards become advantages and weights.

    Attributes:
        algorithm: Baseline, deviation, calibration, normalisation.
        config: Tree weights, return-to-go, what is masked.
        most_tokens: For the normalisation ``length``.
    """

    algorithm: Algorithm
    config: CreditConfig
    most_tokens: int = 1


@dataclass(frozen=True, slots=True)
class Paid:
    """What the trajectories of one group were paid, and what that is compared with.

    Attributes:
        rewards_G: Each trajectory's reward: the group's own but for the control experiment.
        greedy: Reward of the task's greedy trajectory, for the baseline of that name.
        values_G: What a value head says before each token of each trajectory's row, for the critic.
    """

    rewards_G: Sequence[float]
    greedy: float = 0.0
    values_G: Sequence[Sequence[float]] = ()


def check_rewards(groups: Sequence[Group], rewards_PG: Sequence[Sequence[float]]) -> None:
    """Refuse what nothing can be learnt from.

    Raises:
        RewardError: A reward is no finite number; names it.
        ValueError: A group is empty, a reward is missing, or a trajectory has no policy token; names it.
    """
    if len(rewards_PG) != len(groups):
        raise ValueError(f"{len(groups)} groups and rewards of {len(rewards_PG)}, expected as many")
    for group, rewards_G in zip(groups, rewards_PG, strict=True):
        if not group.trajectories:
            raise ValueError(f"group {group.task_uid}: it has no trajectory, expected at least one")
        if len(rewards_G) != len(group.trajectories):
            raise ValueError(
                f"group {group.task_uid}: {len(group.trajectories)} trajectories and {len(rewards_G)} rewards, "
                "expected one for each"
            )
        for trajectory, reward in zip(group.trajectories, rewards_G, strict=True):
            finite_reward(reward, f"group {group.task_uid}: trajectory {trajectory.leaf} has reward")
            if not any(turn.tokens for turn in group.path(trajectory.leaf)):
                raise ValueError(
                    f"group {group.task_uid}: trajectory {trajectory.leaf} has no policy token, expected at least one"
                )


def make_samples(
    groups: Sequence[Group],
    rows: Sequence[Sequence[Row]],
    paid: Sequence[Paid],
    rule: CreditRule,
) -> list[Sample]:
    """Give each trajectory's row its advantages and its weight.

    Args:
        groups: Trees of one step.
        rows: Of each trajectory, by group.
        paid: What each group's trajectories were paid.
        rule: What to make of it.

    Returns:
        One sample a trajectory whose tokens count, in order; those whose advantages are all 0 included.

    Raises:
        ValueError: See `check_rewards`, `others_baseline` and `token_weights`.
    """
    check_rewards(groups, [one.rewards_G for one in paid])
    by_token = critic_credit if rule.algorithm.baseline == "critic" else group_credit
    counted: list[tuple[Row, tuple[float, ...], tuple[float, ...]]] = []
    weights_N: list[float] = []
    for group, rows_G, one in zip(groups, rows, paid, strict=True):
        weights_G = tree_weights(group, rule)
        credit = by_token(group, rows_G, one, rule)
        for trajectory, row, (advantages, targets), weight in zip(
            group.trajectories, rows_G, credit, weights_G, strict=True
        ):
            if counts(trajectory, rule.config):
                counted.append((row, advantages, targets))
                weights_N.append(weight)
    lengths_N = [sum(row.loss_mask) for row, _, _ in counted]
    shares_N = token_weights(rule.algorithm.normalisation, lengths_N, weights_N, rule.most_tokens)
    return [
        Sample(row, advantages, share, targets)
        for (row, advantages, targets), share in zip(counted, shares_N, strict=True)
    ]


def counts(trajectory: Trajectory, config: CreditConfig) -> bool:
    """Whether its tokens are in the loss."""
    return not (config.mask_truncated and trajectory.is_truncated)


def has_signal(sample: Sample) -> bool:
    """Whether any of its tokens has an advantage."""
    return any(map(is_signal, sample.advantages))


def is_signal(advantage: float) -> bool:
    """Whether an advantage is more than rounding; what is not a number is for the loss to show."""
    return not abs(advantage) <= NO_SIGNAL


def teaches(group: Group, rule: CreditRule) -> bool:
    """Whether a group has a signal: whether any token of it that counts would get an advantage.

    What `make_samples` and `has_signal` say of it, without rows. Where the group is not its own baseline (none, greedy,
    critic) that is no question of the group, and the answer is whether its rewards differ.
    """
    if rule.algorithm.baseline not in GROUP_BASELINES:
        return group.is_valid
    advantages_GD = turn_advantages(group, Paid(group.rewards), rule)
    return any(
        is_signal(advantage)
        for trajectory, advantages_D in zip(group.trajectories, advantages_GD, strict=True)
        if counts(trajectory, rule.config)
        for turn, advantage in zip(group.path(trajectory.leaf), advantages_D, strict=True)
        if turn.tokens
    )


def tree_weights(group: Group, rule: CreditRule) -> Sequence[float]:
    """Weight of each trajectory."""
    return node_weights(group) if rule.config.tree_weights == "node" else leaf_weights(group)


def group_credit(group: Group, rows_G: Sequence[Row], paid: Paid, rule: CreditRule) -> Credit:
    """Compare each trajectory with its group."""
    del rows_G
    advantages_GD = turn_advantages(group, paid, rule)
    return [(spread(group, place, advantages_D), ()) for place, advantages_D in enumerate(advantages_GD)]


def turn_advantages(group: Group, paid: Paid, rule: CreditRule) -> ByTurn:
    """The advantage of each turn of each trajectory, but for the critic's."""
    returns_GD = returns_to_go(group) if rule.config.return_to_go else whole_returns(group, paid.rewards_G)
    divisors_D = deviations(returns_GD) if rule.algorithm.divides_by_deviation else None
    advantages_GD = differences(returns_GD, baselines(group, returns_GD, paid, rule), divisors_D)
    if rule.algorithm.calibrates:
        advantages_GD = calibrated(group, advantages_GD, tree_weights(group, rule))
    return advantages_GD


def baselines(group: Group, returns_GD: ByTurn, paid: Paid, rule: CreditRule) -> ByTurn:
    """What each turn's return is compared with."""
    match rule.algorithm.baseline:
        case "none":
            return constant([0.0] * len(returns_GD), returns_GD)
        case "greedy":
            return constant([paid.greedy] * len(returns_GD), returns_GD)
        case "others" if rule.config.tree_weights == "node":
            return constant(node_baselines(group, paid.rewards_G), returns_GD)
        case "others":
            return others_baseline(group, returns_GD)
        case _:
            return mean_baseline(returns_GD)


def critic_credit(group: Group, rows_G: Sequence[Row], paid: Paid, rule: CreditRule) -> Credit:
    """Compare what each segment led to with what a value head said before it; no advantage is whitened."""
    found: Credit = []
    for number, (trajectory, row) in enumerate(zip(group.trajectories, rows_G, strict=True)):
        segments = np.array(row.segments)
        values = np.array(paid.values_G[number])
        count = int(segments.max()) + 1
        first_K = np.array([int(np.argmax(segments == segment)) for segment in range(count)])
        paid_K = np.zeros(count)
        at = len(group.prompt_tokens)
        last = 0
        for turn in group.path(trajectory.leaf):
            at += len(turn.tokens)
            last = int(segments[at - 1]) if turn.tokens else last
            at += len(turn.observation_tokens) if turn.uid != trajectory.leaf else 0
            paid_K[last] += turn.reward
        if rule.config.shuffle_rewards:
            paid_K[:] = 0.0
            paid_K[-1] = paid.rewards_G[number]
        values_K = values[first_K]
        advantages_K = np.array(generalized_advantages(paid_K.tolist(), values_K.tolist(), rule.config.gae_lambda))
        sampled = segments >= 0
        advantages = np.where(sampled, advantages_K[segments], 0.0)
        targets = np.where(sampled, (advantages_K + values_K)[segments], 0.0)
        found.append((tuple(advantages.tolist()), tuple(targets.tolist())))
    return found


def spread(group: Group, place: int, values_D: Sequence[float]) -> tuple[float, ...]:
    """Give every token of a turn the turn's number; 0 to the prompt and to observations."""
    leaf = group.trajectories[place].leaf
    values = [0.0] * len(group.prompt_tokens)
    for turn, value in zip(group.path(leaf), values_D, strict=True):
        seen = len(turn.observation_tokens) if turn.uid != leaf else 0
        values += [value] * len(turn.tokens) + [0.0] * seen
    return tuple(values)


def shuffled_rewards(groups: Sequence[Group], seed: int) -> list[tuple[float, ...]]:
    """Permute each group's rewards among its trajectories: as much signal in size, none in direction."""
    rng = np.random.default_rng(seed)
    return [tuple(float(reward) for reward in rng.permutation(group.rewards)) for group in groups]
