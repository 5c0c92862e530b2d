"""The algorithms by name: one row each, and the one place that reads the name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from forkgym.trainers.advantages import calibrated_advantages, group_advantages
from forkgym.trainers.packing import make_sample
from forkgym.trainers.types import Group, Sample


@dataclass(frozen=True, slots=True)
class Algorithm:
    """What tells algorithms apart.

    Attributes:
        branches: Rollouts branch at tool boundaries.
        calibrates: A turn's advantage is the mean over the trajectories that share it, else each trajectory's own.
        divides_by_deviation: ``F_norm`` of the group advantage is the standard deviation, else 1.
        clips: PPO's clipped ratios, else the plain Group Policy Gradient with its correction.
    """

    branches: bool
    calibrates: bool
    divides_by_deviation: bool
    clips: bool


ALGORITHMS: Mapping[str, Algorithm] = {
    "arpo-gpg": Algorithm(branches=True, calibrates=True, divides_by_deviation=False, clips=False),
    "gpg": Algorithm(branches=False, calibrates=False, divides_by_deviation=False, clips=False),
    "arpo": Algorithm(branches=True, calibrates=True, divides_by_deviation=True, clips=True),
    "grpo": Algorithm(branches=False, calibrates=False, divides_by_deviation=True, clips=True),
}


def make_samples(groups: Sequence[Group], rewards_PG: Sequence[Sequence[float]], algorithm: Algorithm) -> list[Sample]:
    """Turn groups into the samples that can move the weights.

    Trajectories whose tokens all have advantage 0 add nothing to either loss and are left out; their tokens are
    still counted in the loss's divisor, which the caller takes from the groups.

    Args:
        groups: Trees of one step.
        rewards_PG: Each trajectory's reward, by group: the groups' own but for the control experiment.
        algorithm: What the advantage is.
    """
    samples: list[Sample] = []
    for group, rewards_G in zip(groups, rewards_PG, strict=True):
        advantages_G = group_advantages(rewards_G, divide_by_deviation=algorithm.divides_by_deviation)
        shared = calibrated_advantages(group, advantages_G) if algorithm.calibrates else None
        for trajectory, own in zip(group.trajectories, advantages_G, strict=True):
            path = group.path(trajectory.leaf)
            by_turn = {turn.uid: own if shared is None else shared[turn.uid] for turn in path}
            if any(abs(advantage) > 1e-12 for advantage in by_turn.values()):
                samples.append(make_sample(group, trajectory, by_turn))
    return samples


def shuffled_rewards(groups: Sequence[Group], seed: int) -> list[tuple[float, ...]]:
    """Permute each group's rewards among its trajectories: as much signal in size, none in direction."""
    rng = np.random.default_rng(seed)
    return [tuple(float(reward) for reward in rng.permutation(group.rewards)) for group in groups]
