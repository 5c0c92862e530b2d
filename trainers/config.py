"""Settings of rollout, training and evaluation; every field says its meaning and unit. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from forkgym.agents.config import AgentConfig
from forkgym.trainers.algorithms.config import CreditConfig, LossConfig, SegmentConfig, resolved
from forkgym.trainers.algorithms.table import Algorithm, AlgorithmName, Branching
from forkgym.trainers.algorithms.uses import Use, check_uses

ORACLE_TOKENS = 10**9

BRANCHING_USES = (
    Use("rollout.branching.rule", "rollout.branching.strategy", ("entropy",)),
    Use("rollout.branching.scale", "rollout.branching.strategy", ("entropy",)),
    Use("rollout.branching.alpha", "rollout.branching.strategy", ("entropy", "random")),
    Use("rollout.branching.beta", "rollout.branching.strategy", ("entropy",)),
    Use("rollout.branching.threshold", "rollout.branching.rule", ("threshold",)),
    Use("rollout.branching.tokens", "rollout.branching.strategy", ("entropy",)),
    Use("rollout.branching.width", "rollout.branching.strategy", ("entropy", "random", "fixed")),
)


@dataclass(frozen=True)
class BranchingConfig:
    """Where a task's trajectories branch: at tool boundaries, as long as there is budget."""

    strategy: Branching | None = None
    """entropy: with P = alpha + beta * dH, dH being how much less certain the policy has become (ARPO); random: with
    P = alpha; fixed: at every boundary; none: nowhere. By default what the algorithm does: entropy, or none."""
    rule: Literal["sample", "threshold"] = "sample"
    """For entropy. sample: branch with probability P (ARPO's released code); threshold: branch where P > threshold (its
    paper)."""
    scale: Literal["deviation", "vocabulary"] = "deviation"
    """What an entropy change is divided by to give dH: its own running standard deviation, or log(vocabulary size) as
    published (P then hardly leaves alpha)."""
    alpha: float = 0.5
    """P where the entropy did not change, and P of the random strategy; 0 to 1."""
    beta: float = 0.2
    """Weight of the entropy change in P, for entropy; below 0, the policy branches where it is more certain."""
    threshold: float = 0.5
    """Limit on P for the threshold rule; 0 to 1."""
    tokens: int = 20
    """First tokens of a turn whose mean entropy is compared, for entropy (ARPO's k). With 1 it is that of the state
    itself; with more the decision looks at the continuation that it keeps, which biases the gradient."""
    width: int = 2
    """Ways a branch continues, the one that is kept included (ARPO's Z)."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("alpha", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"rollout.branching.{name} is {getattr(self, name)}, expected 0 to 1")
        if not math.isfinite(self.beta):
            raise ValueError(f"rollout.branching.beta is {self.beta}, expected a finite number")
        for name, least in (("tokens", 1), ("width", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"rollout.branching.{name} is {getattr(self, name)}, expected at least {least}")


@dataclass(frozen=True)
class RolloutConfig:
    """How a step's tasks are rolled out into trees."""

    num_generations: int = 16
    """Trajectories of one task (ARPO's budget M)."""
    initial_generations: int | None = None
    """Trajectories that start from the prompt (ARPO's N); branches, then fresh ones, fill up to num_generations. By
    default half of them, rounded up. Ignored where nothing branches."""
    tasks_per_step: int = 8
    """Tasks of one step, shared out evenly over the environments."""
    max_turn_tokens: int | None = None
    """Most tokens the policy may sample in one turn; by default 64 for the embedded policy, whose turns are short, and
    512 for any other."""
    max_total_tokens: int = 4096
    """Most tokens of a trajectory, prompt and tool output included."""
    branching: BranchingConfig = field(default_factory=BranchingConfig)

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("num_generations", "initial_generations", "tasks_per_step", "max_turn_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"rollout.{name} is {getattr(self, name)}, expected at least 1")
        if self.max_total_tokens < 2:
            raise ValueError(f"rollout.max_total_tokens is {self.max_total_tokens}, expected at least 2")

    def first_turns(self, strategy: Branching) -> int:
        """Trajectories that start from the prompt, before it is known what branching leaves over.

        Raises:
            ValueError: `initial_generations` is more than the budget that branches are to share.
        """
        if strategy == "none":
            return self.num_generations
        if self.initial_generations is None:
            return (self.num_generations + 1) // 2
        if self.initial_generations > self.num_generations:
            raise ValueError(
                f"rollout.initial_generations is {self.initial_generations}, "
                f"expected at most rollout.num_generations, {self.num_generations}"
            )
        return self.initial_generations

    def check_branching(self, strategy: Branching, algorithm: AlgorithmName) -> None:
        """Refuse what does not go with the strategy, be it given or the algorithm's own.

        Raises:
            ValueError: A number is set that the strategy does nothing with, or see `first_turns`.
        """
        chosen = {"rollout.branching.strategy": strategy, "rollout.branching.rule": self.branching.rule}
        check_uses(BRANCHING_USES, {"rollout.branching": self.branching}, chosen, algorithm)
        self.first_turns(strategy)

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

    algorithm: AlgorithmName = "arpo-gpg"
    """A row of settings. arpo-gpg: branching rollouts, Group Policy Gradient; gpg: the same without branching; arpo:
    branching rollouts, clipped ratios; ppo: with a value head; the others as their papers have them. The sections
    segments, credit and loss change single choices."""
    num_steps: int = 200
    """Steps, each on a fresh batch of rollouts."""
    updates_per_rollout: int = 1
    """Optimizer steps on each batch; more than one needs a ratio or loss.importance_correction."""
    learning_rate: float = 8e-5
    """Peak learning rate of AdamW."""
    warmup_steps: int = 5
    """Steps over which the learning rate rises from 0; at most num_steps."""
    final_learning_rate: float = 0.1
    """Learning rate at the last step, as a share of the peak; falls linearly."""
    max_grad_norm: float = 1.0
    """The gradient is scaled down to this norm where it is longer."""
    forward: Literal["tree", "padded", "flex"] = "tree"
    """tree: every token that trajectories share is computed once; padded: one row a trajectory, for models that tree
    can't run; flex: as tree, by FlexAttention, on a GPU only."""
    micro_batch_tokens: int = 8192
    """Most tokens of one forward and backward pass, shared ones once and padding included; splitting changes no
    gradient."""
    gradient_checkpointing: bool = False
    """Compute activations again in the backward pass instead of keeping them: less memory, a third more time."""
    checkpoint_every: int = 50
    """Steps between checkpoints; one is also left at the end and at Ctrl-C."""
    log_rollouts_every: int = 10
    """Steps between files of rollouts; 0 for none."""
    segments: SegmentConfig = field(default_factory=SegmentConfig)
    credit: CreditConfig = field(default_factory=CreditConfig)
    loss: LossConfig = field(default_factory=LossConfig)

    def __post_init__(self) -> None:
        """Check the fields, and what can't go together."""
        for name in ("num_steps", "micro_batch_tokens", "checkpoint_every", "updates_per_rollout"):
            if getattr(self, name) < 1:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}, expected at least 1")
        for name in ("warmup_steps", "log_rollouts_every", "final_learning_rate"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"trainer.{name} is {getattr(self, name)}, expected a finite number, 0 or more")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"trainer.learning_rate is {self.learning_rate}, expected a positive, finite number")
        if not self.max_grad_norm > 0:
            raise ValueError(f"trainer.max_grad_norm is {self.max_grad_norm}, expected a positive number")
        # The default stands where a run is shorter than it: such a run is there to see that all works.
        if self.warmup_steps > max(self.num_steps, TrainerConfig.warmup_steps):
            raise ValueError(
                f"trainer.warmup_steps is {self.warmup_steps}, expected at most trainer.num_steps, {self.num_steps}"
            )
        on_policy_only = self.settings.surrogate == "gradient" and not self.loss.importance_correction
        if self.updates_per_rollout > 1 and on_policy_only:
            raise ValueError(
                f"trainer.updates_per_rollout is {self.updates_per_rollout} for {self.algorithm}, which has no ratio "
                "and is exact only for the policy that sampled; expected 1, or trainer.loss.importance_correction true"
            )
        if self.loss.importance_correction and self.updates_per_rollout == 1:
            raise ValueError(
                "trainer.loss.importance_correction is true, expected false with trainer.updates_per_rollout 1, whose "
                "tokens are weighted by that already: leave it out"
            )

    @property
    def settings(self) -> Algorithm:
        """The algorithm's row with what the sections put in its place."""
        return resolved(self.algorithm, self.segments, self.credit, self.loss)


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
