"""Whether an engine has the weights that are trained: log-probs of one fixed prompt, from both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from forkgym.agents.errors import AgentFailure
from forkgym.agents.slot_model import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel

PROBE_TOKENS = 32
TOLERANCE = 1e-3  # nats; engines agree to 1e-5, and weights that were not taken over differ by tenths soon
HALF_TOLERANCE = 0.3  # nats; half precision alone differs by tenths on single tokens


def probe_prompt(num_embeddings: int, max_context: int) -> tuple[int, ...]:
    """Tokens from all over the vocabulary, the same each time, with room left to sample after them."""
    count = max(2, min(PROBE_TOKENS, max_context // 2))
    return tuple((7 + 31 * place * place) % num_embeddings for place in range(count))


def model_logprobs(model: PreTrainedModel, tokens: Sequence[int]) -> NDArray[np.float32]:
    """Log-probs of each token but the first given those before it, by the trained model, nats."""
    ids = torch.tensor([list(tokens)], device=model.device)
    with torch.inference_mode(), evaluating(list(model.modules())):
        output: Any = model(input_ids=ids, use_cache=False)
        log_p = torch.log_softmax(output.logits[0, :-1].float(), dim=-1)
        found: NDArray[np.float32] = log_p.gather(1, ids[0, 1:, None])[:, 0].cpu().numpy()
    return found


def check_probe(
    expected: NDArray[np.float32], found: NDArray[np.float32], tolerance: float, engine: str, version: int
) -> float:
    """Compare log-probs of the same tokens.

    Returns:
        The largest difference, nats.

    Raises:
        AgentFailure: It is above ``tolerance``, or not a number.
    """
    difference = float(np.abs(expected - found).max())
    if not difference <= tolerance:
        raise AgentFailure(
            f"{engine} does not sample from the trained weights (version {version}): its log-probs of a fixed prompt "
            f"differ by {difference:.3g} nats from the trained model's, expected at most {tolerance:g}"
        )
    return difference
