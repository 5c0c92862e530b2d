"""Losses as pure functions: tensors in, a scalar out. Both are divided by the whole batch's token count."""

from __future__ import annotations

import torch


def gpg_loss(
    logprobs_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    loss_mask_BT: torch.Tensor,
    num_tokens: int,
    correction: float = 1.0,
) -> torch.Tensor:
    """Group Policy Gradient: REINFORCE with a group baseline, no ratio, no clip, no critic, no KL.

    ``L = -correction * sum_bt m_bt A_bt log pi_bt / num_tokens``

    Chu et al. 2025, arXiv:2504.02546, with their mean over tokens; ``correction`` is their ``alpha = B / (B - M)``. The
    sum over micro-batches equals the loss of the whole batch. Exact only where the tokens were sampled by the policy
    that is trained.

    Args:
        logprobs_BT: log pi of each token under the policy being trained, nats, float.
        advantages_BT: Advantage of each token, float; no gradient flows through it.
        loss_mask_BT: True on tokens that the policy sampled, bool.
        num_tokens: Sampled tokens of all trajectories of the whole batch, invalid groups included; > 0.
        correction: See ``group_correction``.

    Returns:
        Scalar.

    Raises:
        ValueError: Shapes differ, or ``num_tokens`` is not positive.
    """
    check_shapes(num_tokens, logprobs_BT, advantages_BT, loss_mask_BT)
    terms_BT = advantages_BT.detach() * logprobs_BT
    return -correction * torch.where(loss_mask_BT, terms_BT, 0.0).sum() / num_tokens


def clipped_loss(
    log_ratios_BT: torch.Tensor,
    advantages_BT: torch.Tensor,
    loss_mask_BT: torch.Tensor,
    num_tokens: int,
    clip: tuple[float, float] = (0.2, 0.2),
) -> torch.Tensor:
    """PPO's clipped surrogate with one ratio a token, as GRPO uses it, without a KL term.

    ``L = -sum_bt m_bt min(rho_bt A_bt, clip(rho_bt, 1 - low, 1 + high) A_bt) / num_tokens``

    Schulman et al. 2017, arXiv:1707.06347; Shao et al. 2024, arXiv:2402.03300. GRPO's paper takes the mean within each
    trajectory and then over trajectories; here it is the mean over all tokens, as in DAPO (arXiv:2503.14476), so that
    a token weighs the same wherever it stands.

    Args:
        log_ratios_BT: ``log rho``: log pi of each token under the policy being trained minus the same before the
            first step on these trajectories, nats, float.
        advantages_BT: Advantage of each token, float; no gradient flows through it.
        loss_mask_BT: True on tokens that the policy sampled, bool.
        num_tokens: Sampled tokens of the whole batch; > 0.
        clip: ``low`` and ``high``, 0 or more.

    Returns:
        Scalar.

    Raises:
        ValueError: Shapes differ, or ``num_tokens`` is not positive.
    """
    check_shapes(num_tokens, log_ratios_BT, advantages_BT, loss_mask_BT)
    # Outside the mask both are 0 or padding; without this an overflow there would become nan in the gradient.
    ratio_BT = torch.where(loss_mask_BT, log_ratios_BT, 0.0).exp()
    advantages_BT = advantages_BT.detach()
    clipped_BT = ratio_BT.clamp(1.0 - clip[0], 1.0 + clip[1])
    terms_BT = torch.minimum(ratio_BT * advantages_BT, clipped_BT * advantages_BT)
    return -torch.where(loss_mask_BT, terms_BT, 0.0).sum() / num_tokens


def check_shapes(num_tokens: int, *tensors_BT: torch.Tensor) -> None:
    """Raise ValueError where tensors differ in shape or there is no token to divide by."""
    shapes = {tuple(tensor.shape) for tensor in tensors_BT}
    if len(shapes) != 1:
        raise ValueError(f"expected tensors of one shape, got {sorted(shapes)}")
    if num_tokens <= 0:
        raise ValueError(f"num_tokens is {num_tokens}, expected a positive number")
