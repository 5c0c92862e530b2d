"""Settings of rollout, training and evaluation; every field says its meaning and unit. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from forkgym.agents.config import AgentConfig

ORACLE_TOKENS = 10**9


@dataclass(frozen=True)
class RolloutConfig:
    """How a step's tasks are rolled out into trees."""

    num_generations: int = 16
    """Trajectories of one task (ARPO's budget M)."""
    initial_generations: int = 8
    """Trajectories that start from the prompt (ARPO's N); branches, then fresh ones, fill up to num_generations. gpg
    and grpo never branch and ignore it."""
    tasks_per_step: int = 8
    """Tasks of one step, shared out evenly over the environments."""
    max_turn_tokens: int | None = None
    """Most tokens the policy may sample in one turn; by default 64 for the embedded policy, whose turns are short, and
    512 for any other."""
    max_total_tokens: int = 4096
    """Most tokens of a trajectory, prompt and tool output included."""
    branch_rule: Literal["sample", "threshold"] = "sample"
    """sample: branch with probability P = branch_alpha + branch_beta * dH (ARPO's released code); threshold: branch
    where P > branch_threshold (its paper)."""
    branch_scale: Literal["deviation", "vocabulary"] = "deviation"
    """What an entropy change is divided by to give dH: its own running standard deviation, or log(vocabulary size) as
    published (P then hardly leaves branch_alpha)."""
    branch_alpha: float = 0.5
    """P where the entropy did not change; 0 to 1."""
    branch_beta: float = 0.2
    """Weight of the entropy change in P."""
    branch_threshold: float = 0.5
    """Limit on P for the threshold rule; 0 to 1."""
    branch_tokens: int = 20
    """First tokens of a turn whose mean entropy is compared (ARPO's k)."""
    branch_width: int = 2
    """Ways a branch continues, the one that is kept included (ARPO's Z)."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("num_generations", "initial_generations", "tasks_per_step", "max_turn_tokens", "branch_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} is {getattr(self, name)}, expected at least 1")
        if self.max_total_tokens < 2:
            raise ValueError(f"rollout.max_total_tokens is {self.max_total_tokens}, expected at least 2")
        if self.initial_generations > self.num_generations:
            raise ValueError(
                f"rollout.initial_generations is {self.initial_generations}, "
                f"expected at most rollout.num_generations, {self.num_generations}"
            )
        for name in ("branch_alpha", "branch_threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"rollout.{name} is {getattr(self, name)}, expected 0 to 1")
        if self.branch_width < 2:
            raise ValueError(f"rollout.branch_width is {self.branch_width}, expected at least 2")

    @property
    def turn_tokens(self) -> int:
        """Most tokens of a turn."""
        return 512 if self.max_turn_tokens is None else self.max_turn_tokens

    def for_agent(self, agent: AgentConfig) -> RolloutConfig:
        """Return the config with what is left open filled in for an agent.

        An oracle gets no limits: it writes solutions that are known, in bytes instead of a model's tokens.
        """
        if agent.kind == "oracle":
            return replace(self, max_turn_tokens=ORACLE_TOKENS, max_total_tokens=ORACLE_TOKENS)
        if self.max_turn_tokens is None and agent.model == "embedded":
            return replace(self, max_turn_tokens=64)
        return self


@dataclass(frozen=True)
class TrainerConfig:
    """How the policy learns from trees."""

    algorithm: Literal["arpo-gpg", "gpg", "arpo", "grpo"] = "arpo-gpg"
    """arpo-gpg: branching rollouts, Group Policy Gradient; gpg: the same without branching; arpo: branching rollouts,
    clipped ratios; grpo: the same without branching."""
    num_steps: int = 200
    """Optimizer steps, each on a fresh batch of rollouts."""
    learning_rate: float = 8e-5
    """Peak learning rate of AdamW."""
    warmup_steps: int = 5
    """Steps over which the learning rate rises from 0."""
    final_learning_rate: float = 0.1
    """Learning rate at the last step, as a share of the peak; falls linearly."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm where it is longer."""
    clip_low: float = 0.2
    """Ratios below 1 - clip_low earn no more (arpo and grpo)."""
    clip_high: float = 0.2
    """Ratios above 1 + clip_high earn no more (arpo and grpo)."""
    group_correction: Literal["rescale", "damp", "none"] = "rescale"
    """What makes up for the M of B trajectories whose group has equal rewards, in GPG. rescale: B / (B - M), as the
    paper computes it; damp: the inverse, as a summary prints it; none: 1."""
    micro_batch_tokens: int = 8192
    """Most tokens, padding included, of one forward and backward pass; splitting changes no gradient."""
    checkpoint_every: int = 50
    """Steps between checkpoints; one is also left at the end and at Ctrl-C."""
    log_rollouts_every: int = 10
    """Steps between files of rollouts; 0 for none."""
    shuffle_rewards: bool = False
    """Control experiment: permute each task's rewards among its trajectories, so that nothing can be learnt."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("num_steps", "micro_batch_tokens", "checkpoint_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("warmup_steps", "log_rollouts_every", "clip_low", "clip_high", "final_learning_rate"):
            if getattr(self, name) < 0:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}, expected 0 or more")
        for name in ("learning_rate", "max_grad_norm"):
            if not getattr(self, name) > 0:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}, expected a positive number")


@dataclass(frozen=True)
class EvaluationConfig:
    """How accuracy is measured before and after training."""

    num_tasks: int = 400
    """Held-out tasks of each environment; 0 skips the evaluation."""
    samples_per_task: int = 1
    """Sampled episodes of each task, beside one greedy one."""
    split: str | None = None
    """Split of the held-out tasks; by default each environment's own test or validation split."""
    path: str | None = None
    """File of the held-out tasks, for environments that read files."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name, least in (("num_tasks", 0), ("samples_per_task", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"evaluation.{name} is {getattr(self, name)}, expected at least {least}")
