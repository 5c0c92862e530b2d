"""Attention of one new token a sequence, where what the sequences begin with is attended to once for all of them.

The rollouts of a prompt, and the branches of a turn, begin with the same tokens. Read for each of them, the keys and
values of these are most of what a step of decoding moves through memory, each for a product with a single vector. Here
the queries of all sequences of a stem are one matrix, and its keys and values are read once.

For float32 and float64: scores and weights are of the keys' type, and half precision would round what a fused softmax
does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch

from forkgym.agents.attention import register_attention
from forkgym.agents.slots import Stems

STEMS = "forkgym_stems"  # the attention's name in a model's config, and the argument by which its plan comes


@dataclass(frozen=True, slots=True)
class StemPlan:
    """What all layers of a forward need to know of the stems.

    Attributes:
        stores: For each layer keys and values of the stems, [stems, kv heads, stem length, head size].
        rows: The rows of each stem, all as many as the longest list, filled up with row 0, int64 [stems x width].
        places: Where ``rows`` has each row, int64 [rows].
    """

    stores: Sequence[tuple[torch.Tensor, torch.Tensor]]
    rows: torch.Tensor
    places: torch.Tensor


def plan_stems(stems: Stems, stores: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> StemPlan:
    """Sort the rows of a forward by stem."""
    count, width = len(stems.holders), int(np.bincount(stems.stem_of_row).max())
    rows = np.zeros((count, width), np.int64)
    places = np.empty(len(stems.stem_of_row), np.int64)
    for stem in range(count):
        members = np.flatnonzero(stems.stem_of_row == stem)
        rows[stem, : len(members)] = members
        places[members] = stem * width + np.arange(len(members))
    device = stores[0][0].device
    return StemPlan(stores, torch.from_numpy(rows.ravel()).to(device), torch.from_numpy(places).to(device))


def stem_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as a layer of transformers asks for it, over the stem and then over what each row has beyond it.

    Two softmaxes over parts of the keys, with outputs ``o, o'`` and log-normalisers ``l, l'``, are together the output
    ``o + sigmoid(l' - l) (o' - o)``.

    Args:
        module: The layer.
        query: [rows, heads, 1, head size].
        key: Keys past the stem, [rows, kv heads, columns, head size].
        value: Likewise.
        attention_mask: Added to the scores of these, [rows, 1, 1, columns].
        arguments: The plan; ``scaling`` of the scores.

    Returns:
        Outputs [rows, 1, heads, head size], and no weights.
    """
    plan: StemPlan = arguments[STEMS]
    stem_key, stem_value = plan.stores[cast("int", module.layer_idx)]
    (rows, heads, _, size), key_heads, (stems, _, _, value_size) = query.shape, key.shape[1], stem_value.shape
    scaling: float | None = arguments.get("scaling")
    query_RHD = query[:, :, 0] * (size**-0.5 if scaling is None else scaling)
    # Query heads that share a key head stand together: [rows, kv heads, heads a kv head, head size].
    own, own_logs = weigh(
        query_RHD.reshape(rows * key_heads, -1, size), key.flatten(0, 1), value.flatten(0, 1), attention_mask[:, 0]
    )
    by_stem = query_RHD.index_select(0, plan.rows).view(stems, -1, key_heads, heads // key_heads, size)
    width = by_stem.shape[1]
    common, common_logs = weigh(
        by_stem.transpose(1, 2).reshape(stems * key_heads, -1, size), stem_key.flatten(0, 1), stem_value.flatten(0, 1)
    )

    def in_rows(found: torch.Tensor) -> torch.Tensor:
        by_head = found.view(stems, key_heads, width, heads // key_heads, -1).transpose(1, 2)
        return by_head.reshape(stems * width, heads, -1).index_select(0, plan.places)

    own, own_logs = own.view(rows, heads, value_size), own_logs.view(rows, heads, 1)
    output = torch.lerp(own, in_rows(common), (in_rows(common_logs) - own_logs).sigmoid_())
    return output[:, None], None


def weigh(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Average values by the softmax of scores.

    Args:
        query: Scaled, [N, queries, head size].
        key: [N, keys, head size].
        value: [N, keys, value size].
        mask: Added to the scores, [M, 1, keys], each for N / M of them in a row.

    Returns:
        Outputs [N, queries, value size] and log-normalisers [N, queries, 1].
    """
    scores = torch.bmm(query, key.transpose(1, 2))
    if mask is not None:
        scores.view(len(mask), -1, scores.shape[-1]).add_(mask)
    top = scores.amax(-1, keepdim=True)
    weights = scores.sub_(top).exp_()
    totals = weights.sum(-1, keepdim=True)
    return torch.bmm(weights, value).div_(totals), top.add_(totals.log_())


register_attention(STEMS, stem_attention)
