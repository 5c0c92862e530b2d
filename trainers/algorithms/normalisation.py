"""What a token's term in the loss is divided by: a number of the whole batch, so that micro-batches change nothing."""

from __future__ import annotations

from collections.abc import Sequence

from forkgym.trainers.algorithms.table import Normalisation


def token_weights(
    kind: Normalisation, lengths_N: Sequence[int], weights_N: Sequence[float], most_tokens: int
) -> list[float]:
    """Weight of each token of a trajectory in ``L = -sum over tokens of weight * term``.

    With B trajectories of lengths ``T_i`` and tree weights ``w_i`` (1 each unless nodes are weighted):

    - ``tokens``: ``w_i / sum_j w_j T_j``, the mean over all tokens: DAPO (arXiv:2503.14476), GPG (arXiv:2504.02546);
    - ``trajectories``: ``w_i / (B T_i)``, the mean within each trajectory, then over them: GRPO (arXiv:2402.03300);
      each of a long trajectory's tokens weighs less;
    - ``length``: ``w_i / (B most_tokens)``, a constant: Dr. GRPO (arXiv:2503.20783);
    - ``sum``: ``w_i / B``, the gradient of the expected reward itself: REINFORCE and RLOO.

    Example: lengths 2 and 6: tokens gives 1/8 and 1/8, trajectories 1/4 and 1/12, length with 10 gives 1/20 each, sum
    1/2 each.

    Args:
        kind: Which of the four.
        lengths_N: Policy tokens of every trajectory of the step whose tokens count, with or without a signal.
        weights_N: Tree weight of each, above 0.
        most_tokens: For ``length``; above 0.

    Raises:
        ValueError: A trajectory has no policy token, or ``most_tokens`` is not positive.
    """
    if not all(length > 0 for length in lengths_N):
        raise ValueError(f"trajectory {list(lengths_N).index(0)} has no policy token, expected at least one")
    if most_tokens < 1:
        raise ValueError(f"most_tokens is {most_tokens}, expected a positive number")
    count = len(lengths_N)
    if kind == "tokens":
        total = sum(length * weight for length, weight in zip(lengths_N, weights_N, strict=True))
        return [weight / total for weight in weights_N]
    if kind == "trajectories":
        return [weight / (count * length) for length, weight in zip(lengths_N, weights_N, strict=True)]
    divisor = count * most_tokens if kind == "length" else count
    return [weight / divisor for weight in weights_N]
