"""An engine's log-probs are not quite the trained model's: how far apart they are, and what makes up for it.

The engine multiplies in another order, often in half precision, so that its tokens come from a policy that is a little
other than the one that is trained: without a correction the gradient is not on-policy.
"""

from __future__ import annotations

import math

import torch

CAP = 2.0  # largest importance weight; verl's default for weights of tokens
# Nats. In float32 two ways to compute one log-prob are up to 1e-5 apart; a difference of up to ten times that is no
# other policy. So an agent that samples from the trained model itself is trained as if there were no correction.
ROUNDING = 1e-4


def importance_weights(logprobs_BT: torch.Tensor, rollout_logprobs_BT: torch.Tensor, cap: float = CAP) -> torch.Tensor:
    """Truncated importance weight of each token: how much likelier the trained model makes it than the engine did.

    ``w_bt = min(pi_bt / mu_bt, cap)``, and 1 where ``|log pi_bt - log mu_bt| <= ROUNDING``

    pi is the trained model's distribution before the step, mu the one that the token was sampled from. Yao et al. 2025,
    "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", https://fengyao.notion.site/off-policy-rl;
    TRL has it as ``token_truncate``. They do not leave rounding alone. A weight for each token, not one for a sequence:
    over a long trajectory their product is all noise. The cap bounds a token's part in the gradient; what it takes away
    is the bias.

    Only where every token could be sampled does this correct anything: with top-p or top-k an engine's log-probs are
    those of the tokens that were kept, each weight is their probability mass S instead of 1, and what was cut off is
    never seen (https://github.com/huggingface/trl/issues/6789).

    Example: pi = 0.3 and mu = 0.2 give 1.5; pi = 0.5 and mu = 0.1 give 2; pi = 0.1 and mu = 0.2 give 0.5.

    Args:
        logprobs_BT: log pi of each token, nats, float; no gradient flows through it.
        rollout_logprobs_BT: log mu of each token, nats, float; where nothing was sampled, both are 0.
        cap: Largest weight, 1 or more.

    Returns:
        Weights from 0 to ``cap``, float [B, T].

    Raises:
        ValueError: Shapes differ, or ``cap`` is below 1.
    """
    if logprobs_BT.shape != rollout_logprobs_BT.shape:
        raise ValueError(
            f"expected tensors of one shape, got {tuple(logprobs_BT.shape)} and {tuple(rollout_logprobs_BT.shape)}"
        )
    if not cap >= 1:
        raise ValueError(f"cap is {cap}, expected 1 or more")
    gaps_BT = logprobs_BT.detach() - rollout_logprobs_BT
    return torch.where(gaps_BT.abs() <= ROUNDING, 1.0, gaps_BT.exp().clamp(max=cap))


def mismatch_metrics(gaps_N: torch.Tensor) -> dict[str, float]:
    """Describe how far the trained model's log-probs are from those that the tokens were sampled with.

    Args:
        gaps_N: ``log pi - log mu`` of each sampled token, nats, float; at least one.
    """
    gaps_N = gaps_N.double()
    # In logarithms, since one large gap makes a weight that overflows.
    log_share = 2 * torch.logsumexp(gaps_N, 0) - torch.logsumexp(2 * gaps_N, 0) - math.log(len(gaps_N))
    return {
        # Mean and largest distance between the two log-probs of a token, nats.
        "mismatch/mean": float(gaps_N.abs().mean()),
        "mismatch/max": float(gaps_N.abs().max()),
        # How many on-policy tokens would say as much as these N, as a share: (sum w)^2 / (N sum w^2) with w = pi / mu
        # before the cap. 1 where the policies are the same, 1 / N where one token has all the weight.
        "mismatch/effective_sample_size": float(log_share.exp()),
    }
