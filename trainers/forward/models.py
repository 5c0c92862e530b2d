"""The parts of a causal language model that a forward calls: the decoder, and what makes logits of its states."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any, cast

import torch
from transformers import PreTrainedModel

from forkgym.trainers.forward.vocabulary import Projection

PROBE_TOKENS = 4

# Models whose logits were found to be what `Projection` says.
_checked: weakref.WeakSet[torch.nn.Module] = weakref.WeakSet()


@dataclass(frozen=True, slots=True)
class ModelParts:
    """A causal language model, taken apart.

    Attributes:
        whole: The model of transformers, out of its wrapper.
        decoder: Token ids to hidden states.
        projection: Hidden states to logits.
    """

    whole: PreTrainedModel
    decoder: PreTrainedModel
    projection: Projection


def take_apart(model: torch.nn.Module) -> ModelParts:
    """Find a model's parts, and check once that they make its logits.

    Raises:
        ValueError: It is no causal language model of transformers; it is steered by a learned prompt; its logits are
            not a plain linear layer on the decoder's states, scaled or soft-capped at most.
    """
    peft_config = getattr(model, "active_peft_config", None)
    if getattr(peft_config, "is_prompt_learning", False):
        raise ValueError(f"{type(peft_config).__name__} puts a learned prompt before the tokens, expected LoRA or none")
    # A wrapper of PEFT has changed the modules of the model inside it.
    get_base_model = getattr(model, "get_base_model", None)
    whole = model if get_base_model is None else get_base_model()
    if not isinstance(whole, PreTrainedModel):
        raise ValueError(f"the model is a {type(whole).__name__}, expected a causal language model of transformers")
    head = cast("Any", whole.get_output_embeddings())
    decoder = cast("Any", whole.get_decoder())
    if not isinstance(decoder, PreTrainedModel) or decoder is whole:
        raise ValueError(f"{type(whole).__name__} has no decoder of its own, expected a causal language model")
    # A subclass, such as an adapter on the output embedding, may compute something else.
    if type(head) is not torch.nn.Linear:
        raise ValueError(f"the output embedding is a {type(head).__name__}, expected torch.nn.Linear")
    parts = ModelParts(whole, decoder, Projection(head.weight, head.bias, logit_scale(whole), soft_cap(whole)))
    if whole not in _checked:
        check_logits(parts)
        _checked.add(whole)
    return parts


def logit_scale(model: PreTrainedModel) -> float:
    """What the model multiplies its logits by: ``logit_scale`` of Cohere, one over ``logits_scaling`` of Granite."""
    config: Any = model.config
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def soft_cap(model: PreTrainedModel) -> float | None:
    """The bound of soft-capped logits (Gemma)."""
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return None if cap is None else float(cap)


def is_exact(weight: torch.Tensor) -> bool:
    """Whether a model computes in float32 or better."""
    return weight.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled(weight.device.type)


def check_logits(parts: ModelParts) -> None:
    """Compare the model's logits on a few tokens with those made of its parts.

    Raises:
        ValueError: They differ.
    """
    projection = parts.projection
    device = projection.weight_VH.device
    tokens_1T = torch.arange(PROBE_TOKENS, device=device)[None] % len(projection.weight_VH)
    with torch.no_grad():
        expected_1TV = parts.whole(input_ids=tokens_1T, use_cache=False).logits.float()
        hidden_1TH = parts.decoder(input_ids=tokens_1T, use_cache=False).last_hidden_state
        logits_1TV = torch.nn.functional.linear(hidden_1TH, projection.weight_VH, projection.bias_V).float()
        logits_1TV = logits_1TV * projection.scale
        if projection.cap is not None:
            logits_1TV = (logits_1TV / projection.cap).tanh() * projection.cap
    largest = expected_1TV.abs().max().item()
    gap = (expected_1TV - logits_1TV).abs().max().item()
    if not gap <= (1e-4 if is_exact(projection.weight_VH) else 2e-2) * max(largest, 1.0):
        raise ValueError(
            f"the logits of {type(parts.whole).__name__} differ by {gap:.2g} from its output embedding on its "
            "decoder's states; expected a model that at most scales or soft-caps them, with dropout off"
        )
