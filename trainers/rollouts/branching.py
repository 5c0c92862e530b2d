"""Where a rollout branches: at which tool boundaries of a tree, and by what probability.

Four strategies share one budget. ``entropy`` is ARPO's (Dong et al. 2025, arXiv:2507.19849): after a tool's reply,
where the policy has become less certain. The mean entropy of a trajectory's first ``k`` tokens is its baseline ``H_0``;
the first ``k`` policy tokens after each tool reply give ``H_t``; with ``dH = (H_t - H_0) / scale`` the trajectory
branches there by ``P = alpha + beta * dH``. ``random`` branches with ``P = alpha`` and ``fixed`` with ``P = 1``
(beaming of a fixed width); neither looks at a token, so neither waits for one. ``none`` starts every trajectory from
the prompt.

As published the scale is ``log(vocabulary size)``; ``dH`` then is about 0.05 and P hardly leaves ``alpha``. The default
here is the running standard deviation of ``H_t - H_0``, so that P tells boundaries apart.

With ``k = 1`` the entropy is that of the distribution before the turn's first token: of the state, whatever is sampled
there. With ``k > 1`` it depends on what was sampled, that is on the continuation which the branch keeps, and the
gradient is biased by ``-(Z - 1) / Z * Cov(branches, term of the kept continuation)`` at each boundary.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from forkgym.trainers.algorithms.table import Branching
from forkgym.trainers.config import BranchingConfig


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


def entropy_probability(change: float, config: BranchingConfig, scale: EntropyScale, vocabulary_size: int) -> float:
    """Return ARPO's ``P = alpha + beta * change / scale``, cut to 0 to 1.

    Args:
        change: ``H_t - H_0``, nats.
        config: Gives alpha, beta and which scale is meant.
        scale: Of the steps before; where it knows nothing yet, P is alpha.
        vocabulary_size: Tokens that can be sampled, 2 or more.
    """
    divisor = math.log(vocabulary_size) if config.scale == "vocabulary" else scale.deviation
    relative = change / divisor if divisor is not None else 0.0
    return min(1.0, max(0.0, config.alpha + config.beta * relative))


@dataclass(frozen=True, slots=True)
class BranchingRule:
    """A strategy with all that it decides by.

    Attributes:
        strategy: Which of the four.
        config: Its numbers.
        scale: What is known of entropy changes from the steps before.
        vocabulary_size: Tokens that can be sampled.
    """

    strategy: Branching
    config: BranchingConfig
    scale: EntropyScale
    vocabulary_size: int

    @property
    def branches(self) -> bool:
        """Whether anything branches; otherwise every trajectory starts from the prompt."""
        return self.strategy != "none"

    @property
    def first_tokens(self) -> int:
        """Tokens of a turn whose entropies the decision before it waits for; 0 where it does not look at any."""
        return self.config.tokens if self.strategy == "entropy" else 0

    def probability(self, change: float) -> float:
        """Return the probability that a boundary branches.

        Args:
            change: ``H_t - H_0`` at the boundary, nats; not looked at where ``first_tokens`` is 0.
        """
        if self.strategy == "entropy":
            probability = entropy_probability(change, self.config, self.scale, self.vocabulary_size)
            return probability if self.config.rule == "sample" else float(probability > self.config.threshold)
        return {"random": self.config.alpha, "fixed": 1.0, "none": 0.0}[self.strategy]
