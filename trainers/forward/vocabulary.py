"""Log-probs and entropies of sampled tokens from hidden states, a part of the vocabulary projection at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch

from forkgym.trainers.forward.measures import Entropies, ForwardSettings, Measures

if TYPE_CHECKING:
    from collections.abc import Callable

# Rows x vocabulary of one block: 1 MiB, so that what is done to its logits between two products stays in the cache.
BLOCK_LOGITS = 2**18
# Fewer rows than this make the matrix products slow, however large the vocabulary.
BLOCK_ROWS = 64


@dataclass(frozen=True, slots=True)
class Projection:
    """From a hidden state to logits: ``cap * tanh(scale * (W h + b) / cap)``, without the cap where it is None.

    Attributes:
        weight_VH: Of the output embedding.
        bias_V: Of the output embedding.
        scale: Multiplies the logits (Cohere, Granite).
        cap: Soft cap (Gemma).
    """

    weight_VH: torch.Tensor
    bias_V: torch.Tensor | None = None
    scale: float = 1.0
    cap: float | None = None


def measure_states(
    predicting_NH: torch.Tensor,
    targets_N: torch.Tensor,
    index_BT: torch.Tensor,
    projection: Projection,
    settings: ForwardSettings,
) -> Measures:
    """Measure sampled tokens and lay the numbers out in padded rows.

    Args:
        predicting_NH: Hidden state that predicts each sampled token.
        targets_N: The sampled tokens; several rows may share one.
        index_BT: For each place of the padded rows which of the N it is, or N where nothing was sampled.
        projection: Of the model.
        settings: What is measured.

    Raises:
        ValueError: The value head does not give one number a state.
    """

    def spread(measure_N: torch.Tensor) -> torch.Tensor:
        padded = torch.cat([measure_N, measure_N.new_zeros(1)])
        return padded.index_select(0, index_BT.flatten()).view_as(index_BT)

    logprobs_N, entropies_N = sampled_measures(predicting_NH, targets_N, projection, settings)
    values_BT = None
    if settings.value_head is not None:
        values = settings.value_head(predicting_NH)
        if values.numel() != len(targets_N):
            raise ValueError(f"the value head gives a tensor of {tuple(values.shape)}, expected ({len(targets_N)}, 1)")
        values_BT = spread(values.flatten().float())
    return Measures(spread(logprobs_N), None if entropies_N is None else spread(entropies_N), values_BT)


def sampled_measures(
    hidden_NH: torch.Tensor, targets_N: torch.Tensor, projection: Projection, settings: ForwardSettings
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return log-probs and entropies of the distributions that hidden states predict, nats, float32 [N].

    The logits of all tokens are the largest tensor of a step by far. Here a part of them exists at a time and is
    computed again in the backward pass, at the price of one more product with the weights; where one part holds all of
    them they are kept. Liger-Kernel and cut-cross-entropy do the same in Triton, for a GPU only and for a mean
    cross-entropy rather than one log-prob and entropy a token.

    Args:
        hidden_NH: Hidden state that predicts each token.
        targets_N: The sampled tokens.
        projection: Of the model.
        settings: Temperature, whether entropies are wanted, and how many logits are held.
    """
    if not len(targets_N):  # keep the result on the graph: its gradient is 0
        nothing = hidden_NH.sum(-1).float()
        return nothing, None if settings.entropies is Entropies.NO else nothing
    project = cast("Callable[..., tuple[torch.Tensor, torch.Tensor | None]]", Projected.apply)
    return project(hidden_NH, projection.weight_VH, projection.bias_V, targets_N, projection, settings)


class Projected(torch.autograd.Function):
    """`sampled_measures` with the gradient written out.

    With ``z`` the logits over the temperature, ``p = softmax(z)`` and ``H`` the entropy:
    ``d log p_t / dz = onehot(t) - p`` and ``dH / dz = -p (log p + H)``.
    """

    @staticmethod
    def forward(  # noqa: D102, PLR0913 - the arguments are those of the gradient
        ctx: Any,
        hidden_NH: torch.Tensor,
        weight_VH: torch.Tensor,
        bias_V: torch.Tensor | None,
        targets_N: torch.Tensor,
        projection: Projection,
        settings: ForwardSettings,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        logprobs_N = torch.empty(len(targets_N), dtype=torch.float32, device=hidden_NH.device)
        entropies_N = None if settings.entropies is Entropies.NO else torch.empty_like(logprobs_N)
        parts = blocks(len(targets_N), len(weight_VH), settings.chunk_logits)
        kept_NV = None
        for block in parts:
            logs_CV, _ = log_distribution(hidden_NH[block], weight_VH, bias_V, projection, settings.temperature)
            logprobs_N[block] = logs_CV.gather(1, targets_N[block, None]).squeeze(1)
            if entropies_N is not None:
                entropies_N[block] = -(logs_CV.exp() * logs_CV).sum(1)
            if len(parts) == 1 and projection.cap is None and any(ctx.needs_input_grad):
                kept_NV = logs_CV
        ctx.save_for_backward(hidden_NH, weight_VH, bias_V, targets_N, entropies_N, kept_NV)
        ctx.projection, ctx.settings = projection, settings
        if entropies_N is not None and settings.entropies is Entropies.DETACHED:
            ctx.mark_non_differentiable(entropies_N)
        return logprobs_N, entropies_N

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # noqa: D102  # pyright: ignore[reportIncompatibleMethodOverride] - the decorator hides the names
        ctx: Any, logprob_grads_N: torch.Tensor, entropy_grads_N: torch.Tensor | None
    ) -> Any:
        hidden_NH, weight_VH, bias_V, targets_N, entropies_N, kept_NV = ctx.saved_tensors
        settings, projection = ctx.settings, ctx.projection
        if settings.entropies is not Entropies.WITH_GRADIENT:
            entropy_grads_N = None
        hidden_grads_NH = torch.empty_like(hidden_NH) if ctx.needs_input_grad[0] else None
        # Summed in float32, as a sum over many blocks in bfloat16 loses small terms.
        weight_grads_VH = torch.zeros_like(weight_VH, dtype=torch.float32) if ctx.needs_input_grad[1] else None
        bias_grads_V = torch.zeros_like(bias_V, dtype=torch.float32) if ctx.needs_input_grad[2] else None
        for block in blocks(len(targets_N), len(weight_VH), settings.chunk_logits):
            slope_CV = None
            if kept_NV is None:
                logs_CV, slope_CV = log_distribution(
                    hidden_NH[block], weight_VH, bias_V, projection, settings.temperature
                )
            else:
                logs_CV = kept_NV[block]
            grads_CV = logs_CV.exp()
            if entropy_grads_N is not None:
                of_entropy_C1 = entropy_grads_N[block, None]
                factor_CV = (logs_CV + entropies_N[block, None]).mul_(of_entropy_C1)
                grads_CV.mul_(factor_CV.add_(logprob_grads_N[block, None]).neg_())
            else:
                grads_CV.mul_(-logprob_grads_N[block, None])
            grads_CV.scatter_add_(1, targets_N[block, None], logprob_grads_N[block, None])
            grads_CV.mul_(projection.scale / settings.temperature)
            if slope_CV is not None:
                grads_CV.mul_(slope_CV)
            grads_CV = grads_CV.to(weight_VH.dtype)
            if hidden_grads_NH is not None:
                hidden_grads_NH[block] = grads_CV @ weight_VH
            if weight_grads_VH is not None:
                add_product(weight_grads_VH, grads_CV.t(), hidden_NH[block])
            if bias_grads_V is not None:
                bias_grads_V += grads_CV.sum(0)
        return hidden_grads_NH, typed_as(weight_VH, weight_grads_VH), typed_as(bias_V, bias_grads_V), None, None, None


def blocks(rows: int, vocabulary: int, most_logits: int) -> list[slice]:
    """Slices of rows whose logits fit into the cache where that leaves enough rows, and into the limit always."""
    size = max(1, min(max(BLOCK_LOGITS // vocabulary, BLOCK_ROWS), most_logits // vocabulary))
    return [slice(start, min(start + size, rows)) for start in range(0, rows, size)]


def log_distribution(
    hidden_CH: torch.Tensor,
    weight_VH: torch.Tensor,
    bias_V: torch.Tensor | None,
    projection: Projection,
    temperature: float,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Log-probs over the vocabulary, float32, and the slope of the soft cap where there is one."""
    logits_CV = torch.nn.functional.linear(hidden_CH, weight_VH, bias_V).float()
    slope_CV = None
    if projection.scale != 1.0:
        logits_CV = logits_CV * projection.scale
    if projection.cap is not None:
        bent_CV = (logits_CV / projection.cap).tanh_()
        slope_CV = 1 - bent_CV**2
        logits_CV = bent_CV * projection.cap
    if temperature != 1.0:
        logits_CV = logits_CV / temperature
    return logits_CV.log_softmax(1), slope_CV


def add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    """Add ``left @ right`` to a total, in place where the types allow it."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def typed_as(like: torch.Tensor | None, gradient: torch.Tensor | None) -> torch.Tensor | None:
    """The gradient in its parameter's type."""
    return None if gradient is None or like is None else gradient.to(like.dtype)
