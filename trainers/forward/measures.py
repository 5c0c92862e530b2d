"""What a forward takes and what it gives: rows of tokens in, log-probs of the sampled ones out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch


class Row(Protocol):
    """One trajectory, prompt first.

    A prompt 1 2, a turn 3 4, its reply 5 and a turn 6: ``tokens = 1 2 3 4 5 6``, ``loss_mask = F F T T F T``,
    ``starts = 2 5``.
    """

    @property
    def tokens(self) -> tuple[int, ...]:
        """Token ids: the prompt, then turns and the environment's replies in order."""
        ...

    @property
    def loss_mask(self) -> tuple[bool, ...]:
        """True where the policy sampled."""
        ...

    @property
    def starts(self) -> tuple[int, ...]:
        """Where each turn begins, ascending; a turn's reply belongs to it."""
        ...


class Entropies(Enum):
    """Whether a forward gives entropies, and whether gradients flow through them."""

    NO = "no"
    DETACHED = "detached"
    WITH_GRADIENT = "with_gradient"


@dataclass(frozen=True, slots=True)
class ForwardSettings:
    """What is measured, and how.

    Attributes:
        temperature: Divides the logits, as it did when the tokens were sampled; > 0.
        entropies: Of the distributions that the tokens were sampled from.
        value_head: Maps hidden states [N, hidden size] to values [N] or [N, 1].
        chunk_logits: Most logits (tokens x vocabulary) that are held in float32 at a time; at least one row of the
            vocabulary is.
    """

    temperature: float = 1.0
    entropies: Entropies = Entropies.NO
    value_head: torch.nn.Module | None = None
    chunk_logits: int = 2**24

    def __post_init__(self) -> None:
        """Check the numbers."""
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise ValueError(f"temperature is {self.temperature}, expected a finite number above 0")
        if self.chunk_logits < 1:
            raise ValueError(f"chunk_logits is {self.chunk_logits}, expected at least 1")


@dataclass(frozen=True, slots=True)
class Measures:
    """Measures of padded rows [B, T] in the order of the rows; T is the longest. 0 where nothing was sampled.

    Attributes:
        logprobs_BT: Log-prob of each sampled token given those before it, nats, float32.
        entropies_BT: Entropy of the distribution that each token was sampled from, nats, float32.
        values_BT: The value head's reading of the hidden state that predicts each token, float32.
    """

    logprobs_BT: torch.Tensor
    entropies_BT: torch.Tensor | None = None
    values_BT: torch.Tensor | None = None


class Forward(Protocol):
    """Measures rows under a causal language model."""

    def __call__(
        self, model: torch.nn.Module, rows: Sequence[Row], settings: ForwardSettings, pad_token: int
    ) -> Measures:
        """Measure rows; the same numbers and gradients from every forward.

        Args:
            model: A causal language model of transformers, plain or wrapped by PEFT.
            rows: At least one; rows may share prefixes.
            settings: What is measured.
            pad_token: Fills up short rows where there is padding.

        Raises:
            ValueError: A row contradicts itself, or this forward cannot take the model.
        """
        ...


def check_rows(rows: Sequence[Row]) -> None:
    """Refuse rows that no forward can measure.

    Raises:
        ValueError: There are none; tokens and mask differ in length; the first token counts as sampled, though nothing
            predicts it; turns do not begin in order inside the row.
    """
    if not rows:
        raise ValueError("there are no rows, expected at least one")
    for number, row in enumerate(rows):
        if len(row.tokens) != len(row.loss_mask):
            raise ValueError(f"row {number} has {len(row.tokens)} tokens and a mask of {len(row.loss_mask)}")
        if not row.tokens or row.loss_mask[0]:
            raise ValueError(f"row {number} has no prompt: nothing predicts its first token")
        bounds = (0, *row.starts, len(row.tokens))
        if any(before >= after for before, after in zip(bounds, bounds[1:], strict=False)):
            raise ValueError(
                f"row {number} has turns that start at {row.starts}, expected ascending places after the prompt "
                f"and before its end, {len(row.tokens)}"
            )
