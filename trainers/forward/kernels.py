"""Attention of one piece with the log of its normaliser, so that pieces of one softmax can be put together.

PyTorch's public attention gives no log-normaliser on a CPU, and its backward pass needs that of the whole softmax
instead of the piece's: hence the operators behind it. Each kernel is a pair:

- forward: queries, keys, values, whether causal, an additive mask or None, the scale -> outputs, log-normalisers;
- backward: gradient of the outputs, queries, keys, values, outputs and log-normalisers *of the whole softmax*, then as
  above -> gradients of queries, keys and values that this piece adds.

Queries and outputs are [C, heads, Q, D], keys and values [C, key heads, K, D], log-normalisers [C, heads, Q].
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, cast

import torch

Three = tuple[torch.Tensor, torch.Tensor, torch.Tensor]

BLOCK = 32  # queries that the fused kernel takes at a time, or a multiple of it
MOST_FILLED = 2  # tokens that are cheaper to fill up to a whole block than to go without


@dataclass(frozen=True, slots=True)
class Shape:
    """What a piece's product is, apart from its tensors.

    Attributes:
        causal: Query i sees keys up to i.
        mask_QK: Added to the scores.
        scale: Multiplies the scores.
    """

    causal: bool
    mask_QK: torch.Tensor | None
    scale: float


class Kernel(Protocol):
    """Forward and backward of one piece."""

    def forward(self, inputs: Three, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """Return outputs and log-normalisers of queries, keys and values."""
        ...

    def backward(
        self, gradient: torch.Tensor, inputs: Three, whole: tuple[torch.Tensor, torch.Tensor], shape: Shape
    ) -> Three:
        """Return gradients of queries, keys and values; ``whole`` are outputs and log-normalisers of all pieces."""
        ...


class FlashKernel:
    """PyTorch's fused attention for the CPU: no scores are kept, keys and values may have fewer heads."""

    def forward(self, inputs: Three, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel`.

        A causal product that is a token or two short of a whole block takes up to half as long again as the block, so
        it is filled up: no token sees one after it.
        """
        length = inputs[0].shape[2]
        missing = -length % BLOCK
        if shape.causal and 0 < missing <= MOST_FILLED:
            inputs = cast("Three", tuple(torch.nn.functional.pad(tensor, (0, 0, 0, missing)) for tensor in inputs))
        result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            *inputs, 0.0, shape.causal, attn_mask=shape.mask_QK, scale=shape.scale
        )
        outputs, normalisers = cast("tuple[torch.Tensor, torch.Tensor]", result)
        return outputs[:, :, :length], normalisers[:, :, :length]

    def backward(
        self, gradient: torch.Tensor, inputs: Three, whole: tuple[torch.Tensor, torch.Tensor], shape: Shape
    ) -> Three:
        """See `Kernel`."""
        result = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
            gradient, *inputs, *whole, 0.0, shape.causal, attn_mask=shape.mask_QK, scale=shape.scale
        )
        return cast("Three", result)


class PlainKernel:
    """Written out in float32: for any device and for values of another size than keys; holds a piece's scores."""

    def forward(self, inputs: Three, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Kernel`."""
        query, _, value = inputs
        scores = plain_scores(inputs, shape)
        normalisers = scores.logsumexp(-1)
        outputs = (scores - normalisers[..., None]).exp() @ spread_heads(value, query).float()
        return outputs.to(query.dtype), normalisers

    def backward(
        self, gradient: torch.Tensor, inputs: Three, whole: tuple[torch.Tensor, torch.Tensor], shape: Shape
    ) -> Three:
        """``P`` the weights: ``dV = P' dO``, ``dS = P (dO V' - sum(dO O))``, ``dQ = dS K``, ``dK = dS' Q``."""
        query, key, value = inputs
        outputs, normalisers = whole
        gradient = gradient.float()
        weights = (plain_scores(inputs, shape) - normalisers[..., None]).exp()
        of_values = weights.mT @ gradient
        centre = (gradient * outputs.float()).sum(-1, keepdim=True)
        of_scores = weights * (gradient @ spread_heads(value, query).float().mT - centre) * shape.scale
        of_queries = of_scores @ spread_heads(key, query).float()
        of_keys = of_scores.mT @ query.float()
        return of_queries.to(query.dtype), gather_heads(of_keys, key), gather_heads(of_values, value)


def plain_scores(inputs: Three, shape: Shape) -> torch.Tensor:
    """Scores of queries and keys, float32, -inf where a query does not see a key."""
    query, key, _ = inputs
    scores = query.float() @ spread_heads(key, query).float().mT * shape.scale
    if shape.causal:
        later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).triu(1)
        scores = scores.masked_fill(later, float("-inf"))
    return scores if shape.mask_QK is None else scores + shape.mask_QK


def spread_heads(key: torch.Tensor, query: torch.Tensor) -> torch.Tensor:
    """Repeat each key head for the query heads that share it."""
    return key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)


def gather_heads(gradient: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """Sum the gradient over the query heads that share a key head."""
    by_key_head = cast("torch.Tensor", gradient.unflatten(1, (key.shape[1], -1)))
    return by_key_head.sum(2).to(key.dtype)


def kernel_for(query: torch.Tensor, value: torch.Tensor) -> Kernel:
    """The fused kernel where there is one."""
    return FlashKernel() if query.device.type == "cpu" and query.shape[-1] == value.shape[-1] else PlainKernel()
