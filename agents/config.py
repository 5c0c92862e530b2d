"""Settings of agents. Imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AgentConfig:
    """Which policy acts, and how it samples."""

    kind: Literal["transformers", "oracle"] = "transformers"
    """transformers: a model in this process; oracle: replays each task's known solution (evaluation only)."""
    model: str = "embedded"
    """Folder or hub name of a causal language model, or "embedded" for the small one that comes with the package."""
    temperature: float = 1.0
    """Temperature of sampling; above 0."""
    slots: int = 128
    """Turns that are decoded side by side."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of the weights."""
    threads: int | None = None
    """CPU threads of PyTorch; by default 1 for the embedded policy, which gains little from more and on a busy machine
    loses a lot, and for any other as many as PyTorch takes."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if not self.temperature > 0:
            raise ValueError(f"agent.temperature is {self.temperature}, expected a number above 0")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"agent.threads is {self.threads}, expected at least 1")
        if self.slots < 1:
            raise ValueError(f"agent.slots is {self.slots}, expected at least 1")
