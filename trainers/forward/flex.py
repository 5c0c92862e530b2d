"""The forward over trees by FlexAttention: one fused kernel that skips what no token sees, for training on a GPU.

It has not run on a GPU here; on a CPU, FlexAttention has no backward pass, and its forward is the test of the mask.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from forkgym.agents.attention import register_attention
from forkgym.trainers.forward.layout import Forest
from forkgym.trainers.forward.measures import ForwardSettings, Measures, Row
from forkgym.trainers.forward.models import take_apart
from forkgym.trainers.forward.plan import PLAN, Plan, refuse_extras, same_type, scale_of
from forkgym.trainers.forward.unique_row import measure_unique

FLEX = "forkgym_flex"  # the attention's name in a model's config


class FlexPlan(Plan):
    """Block masks by window. Depth first, token j is on the path of token i where ``j <= i < exit of j's stretch``."""

    def __init__(self, forest: Forest, device: torch.device) -> None:
        super().__init__(forest)
        sizes = torch.tensor([node.end - node.start for node in forest.nodes])
        exits = torch.tensor([node.exit for node in forest.nodes])
        shifts = torch.tensor([node.start - node.depth for node in forest.nodes])
        self._exits_U = exits.repeat_interleave(sizes).to(device)
        self._positions_U = (torch.arange(forest.num_tokens) - shifts.repeat_interleave(sizes)).to(device)
        self._masks: dict[int | None, BlockMask] = {}

    def mask(self, window: int | None) -> BlockMask:
        """Who sees whom in a layer with this window, or with none."""
        window = self.asked(window)
        if window not in self._masks:
            exits_U, positions_U = self._exits_U, self._positions_U

            def sees(_: Any, __: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
                on_path = (key <= query) & (query < exits_U[key])
                return on_path if window is None else on_path & (positions_U[query] - positions_U[key] < window)

            size = len(exits_U)
            self._masks[window] = create_block_mask(sees, None, None, size, size, device=exits_U.device)
        return self._masks[window]


@functools.cache
def compiled() -> Callable[..., torch.Tensor]:
    """FlexAttention as one kernel."""
    return cast("Callable[..., torch.Tensor]", torch.compile(flex_attention))


def flex_tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as a layer of transformers asks for it, along the paths of the plan in its arguments."""
    refuse_extras(module, attention_mask, arguments)
    query, key, value = same_type((query, key, value))
    plan: FlexPlan = arguments[PLAN]
    attend: Any = flex_attention if query.device.type == "cpu" else compiled()
    output = cast(
        "torch.Tensor",
        attend(
            query,
            key,
            value,
            block_mask=plan.mask(arguments.get("sliding_window")),
            scale=scale_of(query, arguments.get("scaling")),
            enable_gqa=query.shape[1] != key.shape[1],
        ),
    )
    return output.transpose(1, 2).contiguous(), None


def flex_forward(model: torch.nn.Module, rows: Sequence[Row], settings: ForwardSettings, pad_token: int) -> Measures:
    """Measure rows as one row of their unique tokens, with FlexAttention along their paths.

    See `Forward` for arguments and errors; nothing is padded before the end.

    Raises:
        ValueError: Gradients are wanted on a CPU, where FlexAttention has none.
    """
    del pad_token
    parts = take_apart(model)
    if torch.is_grad_enabled() and parts.projection.weight_VH.device.type == "cpu":
        raise ValueError("FlexAttention has no backward pass on a CPU; use the tree forward there, or the padded one")
    return measure_unique(parts, rows, settings, (FLEX, FlexPlan))


register_attention(FLEX, flex_tree_attention)
