"""The model that vLLM samples from in the trainer's place: what an agent knows of it, and what it refuses for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from numpy.typing import NDArray

from forkgym.agents.base import Request
from forkgym.agents.config import VllmConfig
from forkgym.agents.loading import check_tokenizer
from forkgym.agents.probing import HALF_TOLERANCE, TOLERANCE, check_probe, model_logprobs, probe_prompt
from forkgym.agents.served_weights import served_shapes

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

ALL_LOGPROBS = 1024  # tokens; of a vocabulary up to this size every log-prob is asked for
SAMPLED_PROBE_TOKENS = 4
TEMPERATURES = (0.01, 2.0)  # what vLLM samples at as asked, beside 0; it raises others to the first, or refuses


@dataclass(frozen=True, slots=True)
class SampledModel:
    """What stays the same of a model while it is trained.

    Attributes:
        num_embeddings: Tokens that it can read.
        vocabulary_size: Number of logits, which may be more than the tokenizer's tokens.
        shapes: Of its weights, by the names that they are handed over by.
        num_logprobs: Most likely tokens whose log-probs are asked for.
        tolerance: Largest difference between its log-probs of a fixed prompt and an engine's, nats.
    """

    num_embeddings: int
    vocabulary_size: int
    shapes: Mapping[str, tuple[int, ...]]
    num_logprobs: int
    tolerance: float

    def check_weights(self, model: torch.nn.Module, version: int, running: int) -> None:
        """Refuse weights that can't be handed over.

        Args:
            model: Has them.
            version: Of them.
            running: Requests that run.

        Raises:
            RuntimeError: A request is running.
            ValueError: The model's parameters are not this one's in name or shape.
        """
        if running:
            raise RuntimeError(f"weights of version {version} while {running} requests run, expected none")
        shapes = served_shapes(model)
        if shapes != self.shapes:
            raise ValueError(
                f"weights of version {version} don't fit the agent's model: {differing(shapes, self.shapes)} is "
                "another, expected the same names and shapes"
            )

    def probe_prompt(self, max_context: int) -> tuple[int, ...]:
        """The prompt that an engine continues by `SAMPLED_PROBE_TOKENS`, greedily, to show that it has the weights."""
        return probe_prompt(self.num_embeddings, max_context)

    def probe_gap(
        self, model: torch.nn.Module, tokens: Sequence[int], found: NDArray[np.float32], engine: str, version: int
    ) -> float:
        """Compare an engine's log-probs of the probe's tokens but the first with the model's.

        Returns:
            The largest difference, nats.

        Raises:
            AgentFailure: It is above ``tolerance``.
        """
        expected = model_logprobs(cast("PreTrainedModel", model), tokens)
        return check_probe(expected, found, self.tolerance, engine, version)


def sampled_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: VllmConfig) -> SampledModel:
    """What is to be known of a model.

    Raises:
        ValueError: The tokenizer has no end or padding token.
    """
    check_tokenizer(tokenizer, cast(str, tokenizer.name_or_path))
    embeddings: Any = model.get_input_embeddings()
    vocabulary_size = int(model.config.get_text_config().vocab_size)
    return SampledModel(
        num_embeddings=int(embeddings.weight.shape[0]),
        vocabulary_size=vocabulary_size,
        shapes=served_shapes(model),
        num_logprobs=logprobs_to_ask(vocabulary_size, config),
        tolerance=config.probe_tolerance or (TOLERANCE if model.dtype == torch.float32 else HALF_TOLERANCE),
    )


def logprobs_to_ask(vocabulary_size: int, config: VllmConfig) -> int:
    """How many of the most likely tokens' log-probs are asked for."""
    return vocabulary_size if vocabulary_size <= ALL_LOGPROBS else min(config.top_logprobs, vocabulary_size)


def differing(found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> str:
    """Name one parameter that only one of both has, or that has another shape."""
    return min(name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name))


def check_temperature(request: Request) -> None:
    """Raise ValueError where vLLM would sample at another temperature than the request's."""
    low, high = TEMPERATURES
    if request.temperature and not low <= request.temperature <= high:
        raise ValueError(
            f"request {request.uid}: temperature is {request.temperature}, expected 0, or {low} to {high:g}, which "
            "vLLM can sample at"
        )
