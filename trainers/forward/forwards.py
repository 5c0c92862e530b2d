"""The forwards by name, and how rows are split into micro-batches for each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from forkgym.trainers.forward.flex import flex_forward
from forkgym.trainers.forward.measures import Forward, Row, check_rows
from forkgym.trainers.forward.micro_batches import padded_micro_batches, tree_micro_batches
from forkgym.trainers.forward.padded import padded_forward
from forkgym.trainers.forward.tree import tree_forward

FORWARDS: Mapping[str, Forward] = {"padded": padded_forward, "tree": tree_forward, "flex": flex_forward}

SPLITS: Mapping[str, Callable[[Sequence[Row], int], list[list[int]]]] = {
    "padded": padded_micro_batches,
    "tree": tree_micro_batches,
    "flex": tree_micro_batches,
}


def micro_batches(rows: Sequence[Row], most_tokens: int, forward_name: str) -> list[list[int]]:
    """Split rows into parts of at most ``most_tokens``, as indices into ``rows``, each in one part.

    What counts is what a forward computes: padding too for the padded one, unique tokens for those over trees, with the
    ends of rows that they leave out. A row that is longer by itself is a part of its own. The same rows give the same
    parts.

    Raises:
        ValueError: ``most_tokens`` is below 1, there is no such forward, or a row contradicts itself.
    """
    if most_tokens < 1:
        raise ValueError(f"most_tokens is {most_tokens}, expected at least 1")
    if forward_name not in SPLITS:
        raise ValueError(f"there is no forward {forward_name!r}, expected one of {', '.join(SPLITS)}")
    if not rows:
        return []
    check_rows(rows)
    return SPLITS[forward_name](rows, most_tokens)
