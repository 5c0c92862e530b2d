"""How a learning rate goes."""

from __future__ import annotations


def rise_and_fall(step: int, warmup_steps: int, end: int, share: float = 0.0) -> float:
    """The learning rate of a step as a share of the peak: up in equal steps, none of them 0, then linearly down.

    Example: a warm-up of 2 and an end of 6 give 1/2, 1, 1, 3/4, 1/2 and 1/4 to the six steps before the end.

    Args:
        step: Counted from 0.
        warmup_steps: Those over which it rises, 0 or more.
        end: The step from which on it is ``share``; where the warm-up is not over before, it stays at the peak.
        share: Of the peak, 0 or more.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if end <= warmup_steps:
        return 1.0
    left = max(0, end - step) / (end - warmup_steps)
    return share + (1.0 - share) * left
