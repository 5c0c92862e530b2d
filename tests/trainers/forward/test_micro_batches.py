"""Splitting rows: what parts hold, and that they change no gradient."""

from __future__ import annotations

import pytest
import torch

from forkgym.trainers.forward.forwards import FORWARDS, SPLITS, micro_batches
from forkgym.trainers.forward.layout import grow_forest
from forkgym.trainers.forward.measures import ForwardSettings
from tests.trainers.forward.small_rows import (
    Tokens,
    gradients,
    largest_gap,
    measure,
    paper_rows,
    qwen3,
    random_rows,
    row,
)


def unique_tokens(rows: list[Tokens], part: list[int]) -> int:
    return grow_forest([rows[number] for number in part]).num_tokens


def test_padding_counts_where_there_is_padding() -> None:
    rows = [row([1], ([2] * (size - 1), [])) for size in (4, 9, 5, 8, 2)]
    # By length: 9 8 | 5 4 2 | as 2 x 9 = 18 and 3 x 5 = 15 fit into 18, and 3 x 9 do not.
    assert micro_batches(rows, 18, "padded") == [[1, 3], [2, 0, 4]]


def test_a_tree_is_cut_where_little_is_shared() -> None:
    # Two trees of prompts of 6 and 2 tokens, with two leaves of 2 tokens each: 10 and 6 unique tokens.
    rows = [
        row([1] * 6, ([2, 2], [])),
        row([3] * 2, ([2, 2], [])),
        row([1] * 6, ([4, 4], [])),
        row([3] * 2, ([4, 4], [])),
    ]
    assert micro_batches(rows, 16, "tree") == [[0, 2, 1, 3]]
    assert micro_batches(rows, 14, "tree") == [[0, 2], [1, 3]]  # [0, 2, 1] would fit; 3 needs its prompt again then
    assert micro_batches(rows, 9, "tree") == [[0], [2], [1, 3]]
    assert micro_batches(rows, 1, "tree") == [[0], [2], [1], [3]]  # too long, so by itself


def test_shared_beginnings_stay_together() -> None:
    rows = paper_rows()
    # 1 2 3 4 | 1 2 5 6 7 | 9 8 7, in the order of the leaves
    assert micro_batches(rows, 5, "tree") == [[0], [1, 3], [2]]
    assert micro_batches(rows, 8, "tree") == [[0, 1, 3], [2]]  # as in [[0], [1, 3, 2]], but nothing twice
    assert micro_batches(rows, 10, "flex") == [[0, 1, 3, 2]]


def test_of_equally_cheap_splits_the_largest_part_is_the_smallest() -> None:
    rows = [row([1] * 6, ([leaf] * 2, [])) for leaf in range(2, 7)]
    # A part has the prompt's 6 tokens and 2 a leaf. 4 leaves do not fit into 12: 10 and 10 tokens, not 8 and 12.
    assert micro_batches(rows[:4], 12, "tree") == [[0, 1], [2, 3]]
    # 5 leaves do not fit into 14: 10 and 12 tokens, not 8 and 14.
    assert micro_batches(rows, 14, "tree") == [[0, 1], [2, 3, 4]]


@pytest.mark.parametrize("name", list(FORWARDS))
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("most_tokens", [5, 40, 100, 10_000])
def test_each_row_is_in_one_part_of_the_size_allowed(name: str, seed: int, most_tokens: int) -> None:
    rows = random_rows(seed)
    parts = micro_batches(rows, most_tokens, name)
    assert sorted(number for part in parts for number in part) == list(range(len(rows)))
    for part in parts:
        padded = len(part) * max(len(rows[number].tokens) for number in part)
        assert len(part) == 1 or (padded if name == "padded" else unique_tokens(rows, part)) <= most_tokens


def test_parts_change_no_gradient() -> None:
    model = qwen3()
    rows = random_rows(0)[:8]
    assert len(rows) == 8
    weights_BT = torch.randn(8, max(len(line.tokens) for line in rows), generator=torch.Generator().manual_seed(0))

    def total_gradient(parts: list[list[int]], name: str) -> list[torch.Tensor]:
        sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
        for part in parts:
            logprobs_BT = measure(name, model, [rows[number] for number in part]).logprobs_BT
            loss = (logprobs_BT * weights_BT[part, : logprobs_BT.shape[1]]).sum() / 100
            sums = [one + other for one, other in zip(sums, gradients(model, loss), strict=True)]
        return sums

    whole = total_gradient([list(range(8))], "tree")
    for size in (1, 2, 4):
        parts = [list(range(start, start + size)) for start in range(0, 8, size)]
        assert largest_gap(total_gradient(parts, "tree"), whole) < 1e-6
    for name in ("padded", "tree"):
        for budget in (20, 50, 100):
            parts = micro_batches(rows, budget, name)
            assert len(parts) > 1
            assert largest_gap(total_gradient(parts, name), whole) < 1e-6


def test_no_rows_no_parts() -> None:
    for name in SPLITS:
        assert micro_batches([], 10, name) == []


def test_names_and_sizes_that_mean_nothing_are_refused() -> None:
    assert set(SPLITS) == set(FORWARDS)
    with pytest.raises(ValueError, match="no forward 'trees', expected one of padded, tree, flex"):
        micro_batches(paper_rows(), 10, "trees")
    with pytest.raises(ValueError, match="most_tokens is 0"):
        micro_batches(paper_rows(), 0, "tree")
    with pytest.raises(ValueError, match="no rows"):
        FORWARDS["padded"](qwen3(), [], ForwardSettings(), 0)
