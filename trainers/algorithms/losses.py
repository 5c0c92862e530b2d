"""Losses as pure functions: tensors in, one term a token out; `weighted_sum` makes the scalar.

``L = -sum_bt w_bt term_bt``: what a term is divided by stands in the weights (`normalisation`), so that the sum over
micro-batches is the loss of the whole batch.
"""

from __future__ import annotations

from typing import Literal

import torch

from forkgym.trainers.algorithms.table import Ratio

LARGEST_LOG_RATIO = 20.0  # nats; the product over a long segment may be anything


def gradient_terms(logprobs_BT: torch.Tensor, advantages_BT: torch.Tensor) -> torch.Tensor:
    """REINFORCE, and Group Policy Gradient: ``A_bt log pi_bt``; no ratio, no clip, no critic, no KL.

    Williams 1992; Chu et al. 2025, arXiv:2504.02546. Exact only where the tokens were sampled by the policy that is
    trained.

    Args:
        logprobs_BT: log pi of each token under the policy being trained, nats, float.
        advantages_BT: Advantage of each token, float; no gradient flows through it.

    Raises:
        ValueError: Shapes differ.
    """
    check_shapes(logprobs_BT, advantages_BT)
    return advantages_BT.detach() * logprobs_BT


def clipped_terms(
    log_ratios_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    clip: tuple[float, float] = (0.2, 0.2),
    dual_clip: float | None = None,
) -> torch.Tensor:
    """PPO's clipped surrogate: ``min(rho_bt A_bt, clip(rho_bt, 1 - low, 1 + high) A_bt)``.

    Schulman et al. 2017, arXiv:1707.06347. With ``dual_clip`` c, a term with a negative advantage is at least
    ``c A_bt`` (Ye et al. 2020, arXiv:1912.09729): where the ratio explodes on a bad token, PPO's own term has no bound
    but that of the ratio, which is cut at exp(20), as in verl.

    Args:
        log_ratios_BT: ``log rho``, see `log_ratios`, nats, float; 0 where nothing was sampled.
        advantages_BT: Advantage of each token, float; no gradient flows through it.
        clip: ``low`` and ``high``, 0 or more.
        dual_clip: c, above 1; None for no such bound.

    Raises:
        ValueError: Shapes differ.
    """
    check_shapes(log_ratios_BT, advantages_BT)
    # Of a ratio that overflows, 0 times its slope would be nan, also where the term is clipped.
    ratio_BT = log_ratios_BT.clamp(max=LARGEST_LOG_RATIO).exp()
    advantages_BT = advantages_BT.detach()
    clipped_BT = ratio_BT.clamp(1.0 - clip[0], 1.0 + clip[1])
    terms_BT = torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    if dual_clip is None:
        return terms_BT
    return torch.where(advantages_BT < 0, torch.maximum(terms_BT, dual_clip * advantages_BT), terms_BT)


def truncated_terms(
    logprobs_BT: torch.Tensor,
    log_ratios_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    clip: tuple[float, float] = (1.0, 4.0),
) -> torch.Tensor:
    """CISPO: ``sg(clip(rho_bt, 1 - low, 1 + high)) A_bt log pi_bt``, so that a clipped token keeps its gradient.

    MiniMax 2025, arXiv:2506.13585, which sets ``low`` so large that nothing is clipped below: 1 here, as no ratio is
    negative.

    Args:
        logprobs_BT: log pi of each token under the policy being trained, nats, float.
        log_ratios_BT: ``log rho``, nats, float; no gradient flows through it, nor through the advantages.
        advantages_BT: Advantage of each token, float.
        clip: ``low`` and ``high``, 0 or more.

    Raises:
        ValueError: Shapes differ.
    """
    check_shapes(logprobs_BT, log_ratios_BT, advantages_BT)
    weights_BT = log_ratios_BT.detach().exp().clamp(1.0 - clip[0], 1.0 + clip[1])
    return weights_BT * advantages_BT.detach() * logprobs_BT


def log_ratios(
    logprobs_BT: torch.Tensor, old_logprobs_BT: torch.Tensor, segments_BT: torch.Tensor, kind: Ratio
) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-ratio that each token takes part in, and the token's share of its segment's term.

    With ``d_bt = log pi_bt - log pi_old_bt`` and a segment S of ``|S|`` tokens:

    - ``token``: ``d_bt``, share 1: PPO, GRPO;
    - ``segment-product``: ``sum over S of d``, the ratio of the macro action's probabilities (arXiv:2512.10365), share
      ``1 / |S|``: the segment has one term, and its tokens divide it among them;
    - ``segment-geometric``: ``mean over S of d``, share 1: GSPO's ratio (arXiv:2507.18071) on a segment;
    - ``sequence-product`` and ``sequence-geometric``: the same over all policy tokens of the row.

    With these shares every kind has the same gradient where pi is pi_old, that of ``A log pi``: a product moves by each
    of its tokens, a geometric mean by ``1 / |S|`` of each.

    Example: d = 0.1, 0.3 in one segment: product 0.4 with shares 1/2, geometric mean 0.2 with shares 1.

    Args:
        logprobs_BT: log pi of each token under the policy being trained, nats, float.
        old_logprobs_BT: The same before the first step on these trajectories; no gradient flows through it.
        segments_BT: Number of each token's segment in its row, from 0; -1 where nothing was sampled.
        kind: Which of the five.

    Returns:
        Log-ratios and shares, float [B, T]; 0 and 0 where nothing was sampled.

    Raises:
        ValueError: Shapes differ, or ``kind`` is none of the five.
    """
    check_shapes(logprobs_BT, old_logprobs_BT, segments_BT)
    mask_BT = segments_BT >= 0
    # Where nothing was sampled an overflow would become nan in the gradient.
    gaps_BT = torch.where(mask_BT, logprobs_BT - old_logprobs_BT.detach(), 0.0)
    shares_BT = mask_BT.to(gaps_BT.dtype)
    if kind == "token":
        return gaps_BT, shares_BT
    level, _, mean = kind.partition("-")
    if level not in ("segment", "sequence") or mean not in ("product", "geometric"):
        raise ValueError(f"ratio {kind!r}: expected token, or segment or sequence with -product or -geometric")
    ids_BT = segments_BT.clamp(min=0) if level == "segment" else torch.zeros_like(segments_BT)
    size_BT = segment_sums(shares_BT, ids_BT)
    total_BT = segment_sums(gaps_BT, ids_BT)
    if mean == "product":
        return torch.where(mask_BT, total_BT, 0.0), shares_BT / size_BT.clamp(min=1.0)
    return torch.where(mask_BT, total_BT / size_BT.clamp(min=1.0), 0.0), shares_BT


def segment_sums(values_BT: torch.Tensor, ids_BT: torch.Tensor) -> torch.Tensor:
    """Sum over each row's segments, at every token of the segment."""
    sums_BS = values_BT.new_zeros(values_BT.shape[0], int(ids_BT.max()) + 1).scatter_add(1, ids_BT, values_BT)
    return sums_BS.gather(1, ids_BT)


def kl_terms(logprobs_BT: torch.Tensor, reference_BT: torch.Tensor, kind: Literal["k1", "k2", "k3"]) -> torch.Tensor:
    """Estimates of ``KL(pi || ref)`` at each token, which was sampled from pi; Schulman, http://joschu.net/blog/kl-approx.html.

    With ``d = log pi - log ref``:

    - ``k1 = d``, unbiased in value. Its own gradient, ``grad log pi``, is 0 in expectation and would hold nothing, so
      that of k2 is put through it: ``d grad log pi``, the divergence's, as in verl's ``k1+``;
    - ``k2 = d^2 / 2``, biased in value, whose own gradient is that of the divergence;
    - ``k3 = exp(-d) - 1 + d``, unbiased in value and never negative, with the gradient of the reverse divergence
      ``KL(ref || pi)`` in its place (arXiv:2402.03300; GRPO). ``-d`` is cut at 20, as in verl, with no gradient beyond:
      a token that the reference finds that much likelier would outweigh all others by ``exp(20)``, and from 88 on
      overflow. The other side has no cut; verl cuts there too, and k3 itself at 10.

    All of it is of tokens that pi sampled: exact in a rollout's first update, and the later ones leave out that the
    policy has moved since.

    Args:
        logprobs_BT: log pi of each token under the policy being trained, nats, float.
        reference_BT: log ref; no gradient flows through it.
        kind: Which of the three.

    Raises:
        ValueError: Shapes differ, or ``kind`` is none of the three.
    """
    check_shapes(logprobs_BT, reference_BT)
    gaps_BT = logprobs_BT - reference_BT.detach()
    if kind == "k1":
        halves_BT = gaps_BT.square() / 2
        return gaps_BT.detach() + (halves_BT - halves_BT.detach())
    if kind == "k2":
        return gaps_BT.square() / 2
    if kind == "k3":
        gaps_BT = gaps_BT.clamp(min=-LARGEST_LOG_RATIO)
        return torch.expm1(-gaps_BT) + gaps_BT
    raise ValueError(f"KL estimator {kind!r}: expected k1, k2 or k3")


def weighted_sum(terms_BT: torch.Tensor, weights_BT: torch.Tensor, mask_BT: torch.Tensor) -> torch.Tensor:
    """``sum_bt w_bt term_bt`` over the tokens that the policy sampled; what stands elsewhere can't spoil it.

    Args:
        terms_BT: One a token, float.
        weights_BT: See `normalisation`, float; no gradient flows through it.
        mask_BT: True on tokens that the policy sampled, bool.

    Returns:
        Scalar.

    Raises:
        ValueError: Shapes differ.
    """
    check_shapes(terms_BT, weights_BT, mask_BT)
    return (torch.where(mask_BT, terms_BT, 0.0) * weights_BT.detach()).sum()


def check_shapes(*tensors_BT: torch.Tensor) -> None:
    """Raise ValueError where tensors differ in shape."""
    shapes = {tuple(tensor.shape) for tensor in tensors_BT}
    if len(shapes) != 1:
        raise ValueError(f"expected tensors of one shape, got {sorted(shapes)}")
