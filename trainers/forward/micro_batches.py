"""Splitting rows into parts of a bounded number of tokens, so that a step fits into memory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from forkgym.trainers.forward.layout import Forest, grow_forest
from forkgym.trainers.forward.measures import Row

PART_COST = 128  # what a part costs beside its tokens, in tokens


def padded_micro_batches(rows: Sequence[Row], most_tokens: int) -> list[list[int]]:
    """Put rows of similar length together; the padding counts."""
    parts: list[list[int]] = []
    for number in sorted(range(len(rows)), key=lambda one: len(rows[one].tokens), reverse=True):
        if parts and (len(parts[-1]) + 1) * len(rows[parts[-1][0]].tokens) <= most_tokens:
            parts[-1].append(number)
        else:
            parts.append([number])
    return parts


def tree_micro_batches(rows: Sequence[Row], most_tokens: int) -> list[list[int]]:
    """Put rows that share prefixes together; unique tokens count, those of a prefix once in each part that needs it.

    Rows stand in the order of their leaves, and parts are runs of them. Of all such splits this is the cheapest, where
    a split costs the tokens that are computed again and `PART_COST` a part: it cuts where little is shared. Of equally
    cheap ones it is that with the smallest largest part, on which the peak of memory depends.
    """
    forest = grow_forest(rows)
    # Nodes are numbered depth first, so this is the order of the leaves; equal rows stay in theirs.
    order = sorted(range(len(rows)), key=lambda one: (forest.paths[one], one))
    lengths = [len(rows[number].tokens) for number in order]
    shared = [0, *(shared_tokens(forest, one, other) for one, other in pairwise(order))]
    # The best split of the first rows: its cost, its largest part, and where its last part begins.
    best: list[tuple[float, int, int]] = [(0, 0, 0)]
    for end in range(1, len(order) + 1):
        choice, size = (math.inf, 0, end), 0
        for start in reversed(range(end)):
            size += lengths[start] - (shared[start + 1] if start + 1 < end else 0)
            if size > most_tokens and start + 1 < end:
                break
            cost, largest, _ = best[start]
            choice = min(choice, (cost + PART_COST + shared[start], max(largest, size), start))
        best.append(choice)
    cuts = [len(order)]
    while cuts[-1]:
        cuts.append(best[cuts[-1]][2])
    return [order[start:end] for end, start in pairwise(cuts)][::-1]


def shared_tokens(forest: Forest, one: int, other: int) -> int:
    """Tokens that two rows share."""
    total = 0
    for node, twin in zip(forest.paths[one], forest.paths[other], strict=False):
        if node != twin:
            break
        total += forest.nodes[node].end - forest.nodes[node].start
    return total
