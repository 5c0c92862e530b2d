"""What a tree grows by and what of it is alive: its plan, its open trajectories, its boundaries that may branch."""

from __future__ import annotations

from dataclasses import dataclass

import gymnasium as gym

from forkgym.trainers.config import RolloutConfig
from forkgym.trainers.rollouts.branching import BranchingRule

Env = gym.Env[str, str]


@dataclass(frozen=True, slots=True)
class GrowthPlan:
    """What a tree is grown by.

    Attributes:
        uid: Begins every request's uid; unique in a rollout.
        config: Budget and limits.
        branching: Says which boundaries branch.
        temperature: Of the sampling distribution; 0 is greedy.
        seed: Numbers that all draws of this tree derive from.
    """

    uid: str
    config: RolloutConfig
    branching: BranchingRule
    temperature: float
    seed: tuple[int, ...]

    @property
    def initial(self) -> int:
        """Trajectories that start from the prompt, before it is known what branching leaves over."""
        return self.config.first_turns(self.branching.strategy)


@dataclass(slots=True)
class LiveTrajectory:
    """A trajectory while it grows; ``index`` is its rank in everything that is given out in order.

    ``at_boundary`` says that the first tokens of its turn are still to be compared with the baseline; ``boundary`` is a
    fork that stands there, where there is budget left to branch with.
    """

    index: int
    env: Env
    context: tuple[int, ...]
    depth: int
    parent: str | None
    baseline: float | None
    may_branch: bool
    at_boundary: bool = False
    boundary: Env | None = None

    @property
    def uid(self) -> str:
        """The uid of the turn that is being sampled."""
        return f"t{self.index}d{self.depth}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """A tool boundary at which a trajectory might branch, with an environment that stands there.

    ``change`` is ``H_t - H_0`` in nats, and 0 where the decision looks at no entropy.
    """

    depth: int
    index: int
    env: Env
    context: tuple[int, ...]
    parent: str | None
    baseline: float | None
    change: float = 0.0
