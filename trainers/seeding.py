"""Seeds derived from what they are for, so that scheduling cannot change a draw."""

from __future__ import annotations

import numpy as np


def derive_seed(*numbers: int) -> int:
    """Return 63 bits that depend on all the numbers (0 or more each) and their order."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def uniform(*numbers: int) -> float:
    """Return one draw from [0, 1) that depends on the numbers alone."""
    return derive_seed(*numbers) / 2**63
