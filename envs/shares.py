"""Take turns by weight: which of several sources comes next, and how many of its own came before."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

LONGEST_CYCLE = 1_000


@dataclass(frozen=True, slots=True)
class Shares:
    """An endless sequence of sources in which each has its share, as evenly spread as whole places allow.

    The sequence is a cycle that repeats. Where source k has ``n_k`` places of a cycle, its r-th place (from 0) comes
    at time ``(r + 1/2) / n_k``; of equal times the first source's comes first. Shares of 2 and 1 have the times 1/4
    and 3/4, and 1/2, so the cycle is 0 1 0.

    Attributes:
        cycle: The source at each place of a cycle, and how many places it had in the cycle before.
        counts: Places of each source in a cycle, 1 or more.
    """

    cycle: tuple[tuple[int, int], ...]
    counts: tuple[int, ...]

    def at(self, index: int) -> tuple[int, int]:
        """Return the source at a place of the sequence, and how many places that source had before; from 0."""
        round_number, place = divmod(index, len(self.cycle))
        source, before = self.cycle[place]
        return source, round_number * self.counts[source] + before


@lru_cache(maxsize=8)
def shares_of(weights: tuple[float, ...]) -> Shares:
    """Spread sources by weight; weights are read as they are written, so 0.7 and 0.3 make a cycle of ten.

    Weights whose cycle would be longer than 1,000 places are rounded to thousandths, each to one place at least.

    Args:
        weights: One for each source, > 0; their sum does not matter.

    Raises:
        ValueError: There is no weight, or one is not a positive number.
    """
    check_weights(weights)
    exact = [Fraction(str(weight)) for weight in weights]
    total = sum(exact)
    shares = [weight / total for weight in exact]
    length = math.lcm(*(share.denominator for share in shares))
    if length > LONGEST_CYCLE:
        length = LONGEST_CYCLE
    counts = tuple(max(1, round(share * length)) for share in shares)
    places = [
        (Fraction(2 * before + 1, 2 * count), source, before)
        for source, count in enumerate(counts)
        for before in range(count)
    ]
    return Shares(tuple((source, before) for _, source, before in sorted(places)), counts)


def check_weights(weights: Sequence[float]) -> None:
    """Raise ValueError where there is no weight, or one is not a positive number."""
    if not weights or any(not (math.isfinite(weight) and weight > 0) for weight in weights):
        raise ValueError(f"weights are {' '.join(map(str, weights))!r}, expected one or more, each above 0")
