"""What the layers of a forward over trees share: who has asked for attention, and what cannot be asked for."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from forkgym.trainers.forward.layout import Forest

PLAN = "forkgym_plan"  # the argument by which the plan comes through the model's layers

# Arguments of an attention function that change scores or weights, and that the forwards over trees do not compute:
# soft-capped scores (Gemma 2), attention sinks (gpt-oss), a bias by position, a paged cache.
FOREIGN = ("softcap", "s_aux", "position_bias", "cache")


class Plan:
    """Made once for all layers of a forward.

    Attributes:
        calls: How often a layer asked.
        longest: Tokens of the longest path.
    """

    def __init__(self, forest: Forest) -> None:
        self.calls = 0
        self.longest = max(node.depth + node.end - node.start for node in forest.nodes)

    def asked(self, window: int | None) -> int | None:
        """Count a layer's call; return its sliding window where it reaches less far than the longest path."""
        self.calls += 1
        return None if window is None or window >= self.longest else window

    def saving(self, positions_U: torch.Tensor) -> AbstractContextManager[None]:
        """What the layers run within: nothing, so that autograd saves tensors as they are."""
        del positions_U
        return nullcontext()


def refuse_extras(module: torch.nn.Module, attention_mask: object, arguments: dict[str, Any]) -> None:
    """Refuse what changes attention beyond path, window and scale.

    Raises:
        ValueError: A layer asks for such a thing.
    """
    extras = [name for name in FOREIGN if arguments.get(name) is not None]
    if attention_mask is not None:
        extras.append("a mask")
    if arguments.get("dropout"):
        extras.append("dropout")
    if arguments.get("is_causal") is False:
        extras.append("is_causal=False")
    if extras:
        raise ValueError(
            f"{type(module).__name__} asks for attention with {', '.join(extras)}, which the forwards over trees do "
            "not compute; use the padded forward"
        )


def same_type(tensors: tuple[torch.Tensor, ...]) -> list[torch.Tensor]:
    """Under autocast, queries, keys and values in its type, as PyTorch's own attention takes them; else as they are."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    return [tensor.to(torch.get_autocast_dtype(device)) for tensor in tensors]


def scale_of(query: torch.Tensor, scaling: float | None) -> float:
    """What scores are multiplied by."""
    return query.shape[-1] ** -0.5 if scaling is None else float(scaling)
