"""ARPO's rule for where a rollout branches: after a tool's reply, where the policy has become less certain.

Dong et al. 2025, arXiv:2507.19849. The mean entropy of a trajectory's first ``k`` tokens is its baseline ``H_0``; the
first ``k`` policy tokens after each tool reply give ``H_t``; with ``dH = (H_t - H_0) / scale`` the trajectory branches
there by ``P = alpha + beta * dH``.

As published the scale is ``log(vocabulary size)``; ``dH`` then is about 0.05 and P hardly leaves ``alpha``. The default
here is the running standard deviation of ``H_t - H_0``, so that P tells boundaries apart.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from forkgym.trainers.config import RolloutConfig


@dataclass(frozen=True, slots=True)
class EntropyScale:
    """Count, mean and sum of squared deviations of all entropy changes so far (Welford's), nats.

    A step's decisions use the scale of the steps before it, so they do not depend on the order in which tasks finish.
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def including(self, changes: Iterable[float]) -> EntropyScale:
        """Return the scale with more changes taken in."""
        count, mean, squares = self.count, self.mean, self.squares
        for change in changes:
            count += 1
            before = change - mean
            mean += before / count
            squares += before * (change - mean)
        return EntropyScale(count, mean, squares)

    @property
    def deviation(self) -> float | None:
        """The standard deviation, nats; None before two different changes are known."""
        return math.sqrt(self.squares / self.count) if self.count > 1 and self.squares > 0 else None


def mean_entropy(entropies: tuple[float, ...], first: int) -> float:
    """Return the mean over the first tokens, nats; 0 where there is none."""
    taken = entropies[:first]
    return sum(taken) / len(taken) if taken else 0.0


def branch_probability(change: float, config: RolloutConfig, scale: EntropyScale, vocabulary_size: int) -> float:
    """Return ``P = alpha + beta * change / scale``, cut to 0 to 1.

    Args:
        change: ``H_t - H_0``, nats.
        config: Gives alpha, beta and which scale is meant.
        scale: Of the steps before; where it knows nothing yet, P is alpha.
        vocabulary_size: Tokens that can be sampled, 2 or more.
    """
    divisor = math.log(vocabulary_size) if config.branch_scale == "vocabulary" else scale.deviation
    relative = change / divisor if divisor is not None else 0.0
    return min(1.0, max(0.0, config.branch_alpha + config.branch_beta * relative))


def does_branch(probability: float, draw: float, config: RolloutConfig) -> bool:
    """Decide one boundary; ``draw`` is uniform in [0, 1) and used by the ``sample`` rule alone."""
    if config.branch_rule == "sample":
        return draw < probability
    return probability > config.branch_threshold
