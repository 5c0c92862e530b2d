"""Draw tokens from logits."""

from __future__ import annotations

import torch


def sample_tokens(
    logits: torch.Tensor, temperatures: torch.Tensor, uniforms: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Draw one token a row by the inverse of the cumulative distribution.

    ``p = softmax(logits / T)``; the token is the first whose cumulative probability exceeds the uniform's share of
    the total. Where T = 0 it is the most likely one, and ``p = softmax(logits)``.

    Args:
        logits: [rows, vocabulary], float.
        temperatures: T, [rows], 0 or more, float32.
        uniforms: [rows], in [0, 1), float32.

    Returns:
        Tokens (int64), their log p (nats) and the entropies of p (nats), each [rows].

    Raises:
        ValueError: A row holds NaN or +inf, or nothing but -inf, as it does when training has diverged.
    """
    # Half precision would round whole tails of the distribution away.
    scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
    greedy = temperatures == 0
    # The largest becomes 0 first: so the least temperature makes no inf of it.
    scores = (scores - scores.amax(dim=-1, keepdim=True)) / torch.where(greedy, 1.0, temperatures)[:, None]
    # The clamp lets 0 * log 0 be 0 where a model forbids tokens with -inf.
    log_p = torch.log_softmax(scores, dim=-1).clamp_(min=torch.finfo(scores.dtype).min)
    p = log_p.exp()
    entropies = (p * log_p).sum(dim=-1).abs()  # no term is above 0
    if not bool(torch.isfinite(entropies).all()):
        raise ValueError("logits: NaN or infinity in a row, expected finite numbers, or -inf for some of its tokens")
    cumulative = p.cumsum(dim=-1)
    # A float32 uniform is at most 1 - 2^-24, so the target rounds to less than the last sum: no index is out of
    # range, and with right=True the sum has risen at the token: its probability is not 0.
    targets = uniforms.to(scores.dtype)[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, targets, right=True)[:, 0]
    if bool(greedy.any()):
        tokens = torch.where(greedy, log_p.argmax(dim=-1), tokens)
    return tokens, log_p.gather(1, tokens[:, None])[:, 0], entropies
