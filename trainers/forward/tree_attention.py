"""Attention of unique tokens to their paths, as an attention function of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch

from forkgym.agents.attention import register_attention
from forkgym.trainers.forward.kernels import Shape, Three, kernel_for
from forkgym.trainers.forward.layout import Forest
from forkgym.trainers.forward.pieces import Piece, full_pieces, segments_of, window_pieces
from forkgym.trainers.forward.plan import PLAN, Plan, refuse_extras, same_type, scale_of
from forkgym.trainers.forward.saving import once_a_position

TREE = "forkgym_tree"  # the attention's name in a model's config


class TreePlan(Plan):
    """Which slices attend to which, by window, and the masks of those that a window's edge runs through."""

    def __init__(self, forest: Forest, device: torch.device) -> None:
        super().__init__(forest)
        self._device = device
        self._segments = segments_of(forest)
        self._pieces: dict[int | None, list[Piece]] = {}
        self._masks: dict[tuple[int, int, int, int, torch.dtype], torch.Tensor] = {}

    def pieces(self, window: int | None) -> list[Piece]:
        """The pieces of a layer with this window, or with none."""
        window = self.asked(window)
        if window not in self._pieces:
            self._pieces[window] = (
                full_pieces(self._segments) if window is None else window_pieces(self._segments, window)
            )
        return self._pieces[window]

    def shape(self, piece: Piece, window: int | None, scale: float, dtype: torch.dtype) -> Shape:
        """The piece's scale, and its mask, which pieces of the same geometry share."""
        if piece.lead is None:
            return Shape(piece.causal, None, scale)
        assert window is not None
        name = (piece.lead, piece.queries, piece.keys, window, dtype)
        if name not in self._masks:
            queries_Q = torch.arange(piece.queries, device=self._device) + piece.lead
            hidden_QK = queries_Q[:, None] - torch.arange(piece.keys, device=self._device) >= window
            mask_QK = torch.zeros(hidden_QK.shape, dtype=dtype, device=self._device)
            self._masks[name] = mask_QK.masked_fill_(hidden_QK, float("-inf"))
        return Shape(piece.causal, self._masks[name], scale)

    def saving(self, positions_U: torch.Tensor) -> AbstractContextManager[None]:
        """What the layers run within: tables of the position are saved once a position."""
        return once_a_position(positions_U)


class TreeAttention(torch.autograd.Function):
    """One softmax a query over all pieces that it is in.

    Forward, two pieces with outputs ``o, o'`` and log-normalisers ``l, l'`` have together the output
    ``o + sigmoid(l' - l) (o' - o)`` and the log-normaliser ``logaddexp(l, l')``. Backward, each piece's weights follow
    from the log-normaliser of the whole, so its gradients are exact by themselves and add up. Nothing is saved but
    queries, keys, values, outputs and log-normalisers of the unique tokens.
    """

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> torch.Tensor:  # noqa: D102
        query_1HUD, key_1HUD, value_1HUD, ctx.pieces, ctx.shapes = arguments
        tensors = (query_1HUD, key_1HUD, value_1HUD)
        out_UHD, logs_UH = attend(tokens_first(tensors), ctx.pieces, ctx.shapes)
        ctx.save_for_backward(*tensors, out_UHD, logs_UH)
        return out_UHD[None]

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the names
        ctx: Any, *gradients: Any
    ) -> Any:
        *tensors, out_UHD, logs_UH = ctx.saved_tensors
        whole = (gradients[0][0], out_UHD, logs_UH)
        sums = attend_backward(whole, tokens_first(tensors), ctx.pieces, ctx.shapes)
        return (*(total.transpose(0, 1)[None] for total in sums), None, None)


def attend(inputs: Three, pieces: Sequence[Piece], shapes: Sequence[Shape]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return outputs [U, heads, D] and log-normalisers [U, heads] of queries, keys and values."""
    query_UHD, _, value_UHD = inputs
    kernel = kernel_for(query_UHD, value_UHD)
    if len(pieces) == 1:  # rows that share nothing
        part, logs = kernel.forward(cut_inputs(inputs, pieces[0]), shapes[0])
        return join(part), join(logs)
    exact = torch.promote_types(query_UHD.dtype, torch.float32)
    out_UHD = query_UHD.new_empty((*query_UHD.shape[:2], value_UHD.shape[2]), dtype=exact)
    logs_UH = query_UHD.new_empty(query_UHD.shape[:2], dtype=exact)
    for piece, shape in zip(pieces, shapes, strict=True):
        part, logs = kernel.forward(cut_inputs(inputs, piece), shape)
        out, known = cut_queries(out_UHD, piece), cut_queries(logs_UH, piece)
        if piece.causal:  # the first piece of these queries
            out.copy_(part)
            known.copy_(logs)
        else:
            out.lerp_(part.to(exact), (logs - known).sigmoid_().unsqueeze(-1))
            torch.logaddexp(known, logs, out=known)
    return out_UHD.to(query_UHD.dtype), logs_UH


def attend_backward(whole: Three, inputs: Three, pieces: Sequence[Piece], shapes: Sequence[Shape]) -> Three:
    """Return gradients of queries, keys and values; ``whole`` are the outputs' gradient, outputs, log-normalisers."""
    kernel = kernel_for(inputs[0], inputs[2])

    def of_piece(piece: Piece, shape: Shape) -> Three:
        gradient, out, logs = (cut_queries(tensor, piece) for tensor in whole)
        return kernel.backward(gradient, cut_inputs(inputs, piece), (out, logs), shape)

    if len(pieces) == 1:
        return three(join(part) for part in of_piece(pieces[0], shapes[0]))
    exact = torch.promote_types(inputs[0].dtype, torch.float32)
    sums = three(torch.empty_like(tensor, dtype=exact) for tensor in inputs)
    for piece, shape in zip(pieces, shapes, strict=True):
        for total, part in zip(cut_inputs(sums, piece), of_piece(piece, shape), strict=True):
            if piece.causal:
                total.copy_(part)
            else:
                total.add_(part)
    return three(total.to(tensor.dtype) for total, tensor in zip(sums, inputs, strict=True))


def three(tensors: Iterable[torch.Tensor]) -> Three:
    """Queries, keys and values."""
    query, key, value = tensors
    return query, key, value


def tokens_first(tensors: Iterable[torch.Tensor]) -> Three:
    """From [1, heads, U, D] to [U, heads, D]; views."""
    return three(tensor[0].transpose(0, 1) for tensor in tensors)


def cut_queries(tensor: torch.Tensor, piece: Piece) -> torch.Tensor:
    """The piece's queries of [U, heads, ...], as [count, heads, queries, ...]; a view."""
    return cut(tensor, piece.query_start, piece.queries, piece.count)


def cut_inputs(inputs: Sequence[torch.Tensor], piece: Piece) -> Three:
    """The piece's queries, keys and values; views."""
    query, key, value = inputs
    keys = (piece.key_start, piece.keys, piece.count)
    return cut_queries(query, piece), cut(key, *keys), cut(value, *keys)


def join(slices: torch.Tensor) -> torch.Tensor:
    """Undo `cut`; a view where the tokens stand before the heads in memory."""
    return slices.transpose(1, 2).flatten(0, 1)


def cut(tensor: torch.Tensor, start: int, length: int, count: int) -> torch.Tensor:
    """``count`` slices of ``length`` that follow one another, with the heads before the tokens; a view."""
    slices = cast("torch.Tensor", tensor[start : start + length * count].unflatten(0, (count, length)))
    return slices.transpose(1, 2)


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **arguments: Any,
) -> tuple[torch.Tensor, None]:
    """Attention as a layer of transformers asks for it, along the paths of the plan in its arguments.

    Raises:
        ValueError: The layer asks for what this attention does not compute.
    """
    refuse_extras(module, attention_mask, arguments)
    query, key, value = same_type((query, key, value))
    plan: TreePlan = arguments[PLAN]
    window: int | None = arguments.get("sliding_window")
    scale = scale_of(query, arguments.get("scaling"))
    pieces = plan.pieces(window)
    shapes = [plan.shape(piece, window, scale, query.dtype) for piece in pieces]
    apply = cast("Callable[..., torch.Tensor]", TreeAttention.apply)
    return apply(query, key, value, pieces, shapes), None


register_attention(TREE, tree_attention)
