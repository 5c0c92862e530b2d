"""Settings of supervised fine-tuning. Imports nothing heavy."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from forkgym.agents.config import AgentConfig
from forkgym.trainers.schedule import rise_and_fall

EMBEDDED_LEARNING_RATE = 5e-4
LEARNING_RATE = 1e-5
WARMUP_STEPS = 10
WARMUP_SHARE = 10  # one in so many steps at most, unless the user says otherwise


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of a run, over which the learning rate rises and falls towards 0, see `rise_and_fall`.

    Attributes:
        num_steps: Optimizer steps; at least 1.
        warmup_steps: Those over which it rises, from 0 to num_steps.
    """

    num_steps: int
    warmup_steps: int

    def factor(self, step: int) -> float:
        """The learning rate of a step, counted from 0, as a share of the peak."""
        return rise_and_fall(step, self.warmup_steps, self.num_steps)

    def __str__(self) -> str:
        """Say it in words."""
        rise = f"the learning rate rises over the first {self.warmup_steps}" if self.warmup_steps else "no warm-up"
        return f"Optimizer steps: {self.num_steps:,}; {rise}."


@dataclass(frozen=True)
class SftConfig:
    """What the policy is shown, and how it learns from it."""

    conversations: str | None = None
    """File of conversations with tool calls (.jsonl, a list in .json, or .parquet), or name of a data set on the hub;
    each row has messages as the chat completions interface takes them, and may have tools, which the calls have to fit.
    By default the policy is shown how the environments' own solutions are carried out."""
    num_demonstrations: int | None = None
    """Demonstrations, drawn without repetition and shared out over the environments; by default 4,000, or the whole
    file of conversations."""
    epochs: int = 1
    """How often each demonstration is gone through."""
    max_steps: int | None = None
    """Optimizer steps, whatever the epochs; by default as many as those take."""
    batch_size: int = 32
    """Demonstrations of an optimizer step."""
    micro_batch_size: int = 8
    """Demonstrations of one forward and backward pass; a divisor of batch_size, which changes no gradient."""
    learning_rate: float | None = None
    """Peak learning rate of AdamW, which falls linearly to 0; by default 5e-4 for the embedded policy and 1e-5 for any
    other."""
    warmup_steps: int | None = None
    """Steps over which the learning rate rises to its peak, at most as many as there are; by default 10, or a tenth of
    all where that is fewer."""
    max_tokens: int = 4096
    """Longest demonstration, prompt and tool output included; longer ones are left out, not cut."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them: slower, with less memory."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("num_demonstrations", "epochs", "max_steps", "batch_size", "micro_batch_size"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"sft.{name} is {getattr(self, name)}, expected at least 1")
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"sft.micro_batch_size is {self.micro_batch_size}, expected a divisor of sft.batch_size, "
                f"{self.batch_size}"
            )
        if self.learning_rate is not None and not self.learning_rate > 0:
            raise ValueError(f"sft.learning_rate is {self.learning_rate}, expected a positive number")
        if self.warmup_steps is not None and self.warmup_steps < 0:
            raise ValueError(f"sft.warmup_steps is {self.warmup_steps}, expected 0 or more")
        if self.max_tokens < 2:
            raise ValueError(f"sft.max_tokens is {self.max_tokens}, expected at least 2")

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate that is given, or the default for models of any size."""
        return LEARNING_RATE if self.learning_rate is None else self.learning_rate

    def schedule(self, num_demonstrations: int) -> Schedule:
        """The course of a run on so many demonstrations; the last batch of an epoch may be smaller.

        Raises:
            ValueError: The warm-up takes more steps than there are.
        """
        num_steps = self.max_steps or self.epochs * math.ceil(num_demonstrations / self.batch_size)
        if self.warmup_steps is None:
            return Schedule(num_steps, min(WARMUP_STEPS, num_steps // WARMUP_SHARE))
        if self.warmup_steps > num_steps:
            raise ValueError(
                f"sft.warmup_steps is {self.warmup_steps}, expected at most {num_steps}, as many as this run has steps"
            )
        return Schedule(num_steps, self.warmup_steps)

    def for_agent(self, agent: AgentConfig) -> SftConfig:
        """Return the config with what is left open filled in for an agent."""
        if self.learning_rate is None and agent.model == "embedded":
            return replace(self, learning_rate=EMBEDDED_LEARNING_RATE)
        return self
