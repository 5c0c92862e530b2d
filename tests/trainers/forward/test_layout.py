"""The row of unique tokens, on a forest that fits on paper."""

from __future__ import annotations

import pytest
import torch

from forkgym.trainers.forward.layout import (
    SHORTEST_SHARED,
    Node,
    common_length,
    grow_forest,
    lay_out,
    prompt_cuts,
    without_tails,
)
from forkgym.trainers.forward.measures import check_rows
from tests.trainers.forward.small_rows import Tokens, paper_rows, random_rows, row


def test_the_forest_on_paper() -> None:
    forest = grow_forest(paper_rows())
    assert forest.nodes == (
        Node(parent=-1, start=0, end=2, exit=7, depth=0),  # 1 2
        Node(parent=0, start=2, end=3, exit=4, depth=2),  # 3
        Node(parent=1, start=3, end=4, exit=4, depth=3),  # 4
        Node(parent=0, start=4, end=5, exit=7, depth=2),  # 5
        Node(parent=3, start=5, end=6, exit=6, depth=3),  # 6
        Node(parent=3, start=6, end=7, exit=7, depth=3),  # 7
        Node(parent=-1, start=7, end=8, exit=10, depth=0),  # 9
        Node(parent=6, start=8, end=10, exit=10, depth=1),  # 8 7
    )
    assert forest.paths == ((0, 1, 2), (0, 3, 4), (6, 7), (0, 3, 5))
    assert forest.num_tokens == 10


def test_the_tensors_on_paper() -> None:
    rows = paper_rows()
    layout = lay_out(grow_forest(rows), rows, torch.device("cpu"))
    assert layout.tokens_U.tolist() == [1, 2, 3, 4, 5, 6, 7, 9, 8, 7]
    assert layout.positions_U.tolist() == [0, 1, 2, 3, 2, 3, 3, 0, 1, 2]
    # Token 2 at place 1 predicts both 3 and 5, 3 predicts 4, 5 at place 4 both 6 and 7, 9 predicts 8, and 8 predicts 7.
    assert layout.targets_N.tolist() == [3, 5, 4, 6, 7, 8, 7]
    assert layout.predictors_N.tolist() == [1, 1, 2, 4, 4, 7, 8]
    assert layout.index_BT.tolist() == [[7, 7, 0, 2], [7, 7, 1, 3], [7, 5, 6, 7], [7, 7, 1, 4]]


def test_what_no_log_prob_needs_is_left_out() -> None:
    # 1 2 ─┬─ 3      9 8      as 4, 6 and 7 are only predicted
    #      └─ 5
    rows = paper_rows()
    forest = without_tails(grow_forest(rows), rows)
    assert forest.nodes == (
        Node(parent=-1, start=0, end=2, exit=4, depth=0),  # 1 2
        Node(parent=0, start=2, end=3, exit=3, depth=2),  # 3
        Node(parent=0, start=3, end=4, exit=4, depth=2),  # 5
        Node(parent=-1, start=4, end=5, exit=6, depth=0),  # 9
        Node(parent=3, start=5, end=6, exit=6, depth=1),  # 8
    )
    assert forest.paths == ((0, 1), (0, 2), (3, 4), (0, 2))
    layout = lay_out(forest, rows, torch.device("cpu"))
    assert layout.tokens_U.tolist() == [1, 2, 3, 5, 9, 8]
    assert layout.positions_U.tolist() == [0, 1, 2, 2, 0, 1]
    assert layout.targets_N.tolist() == [3, 5, 4, 6, 7, 8, 7]
    assert layout.predictors_N.tolist() == [1, 1, 2, 3, 3, 4, 5]
    assert layout.index_BT.tolist() == [[7, 7, 0, 2], [7, 7, 1, 3], [7, 5, 6, 7], [7, 7, 1, 4]]


def test_a_reply_is_needed_only_where_a_row_goes_on_after_it() -> None:
    ends, goes_on = row([1], ([2, 3], [4, 5])), row([1], ([2, 3], [4, 5]), ([6], [7]))
    forest = without_tails(grow_forest([ends]), [ends])
    assert forest.num_tokens == 2  # 1 2, which predict 2 3
    forest = without_tails(grow_forest([ends, goes_on]), [ends, goes_on])
    assert forest.num_tokens == 5  # 1 2 3 4 5, which predict 2 3 6
    assert forest.paths == ((0, 1), (0, 1))
    silent = row([1, 2], ([], [3]))
    assert without_tails(grow_forest([silent]), [silent]).num_tokens == 1


def test_turns_sampled_twice_alike_and_equal_rows_are_one() -> None:
    one, other = row([1], ([2, 3], [4]), ([5], [])), row([1], ([2, 3], [4]), ([6], []))
    forest = grow_forest([one, other, one])
    assert forest.num_tokens == 4 + 1 + 1
    assert forest.paths == ((0, 1, 2), (0, 1, 3), (0, 1, 2))


def test_a_row_may_end_where_another_goes_on() -> None:
    forest = grow_forest([row([1], ([2], [])), row([1], ([2], []), ([3], []))])
    assert forest.num_tokens == 3
    assert forest.paths == ((0, 1), (0, 1, 2))


def test_tokens_that_only_one_row_sampled_are_measured_for_that_row_only() -> None:
    rows = [Tokens((1, 2, 3), (False, True, True), (1,)), Tokens((1, 2, 3), (False, True, False), (1,))]
    layout = lay_out(grow_forest(rows), rows, torch.device("cpu"))
    assert layout.targets_N.tolist() == [2, 3]
    assert layout.index_BT.tolist() == [[2, 0, 1], [2, 0, 2]]


def test_prompts_that_begin_alike_are_cut_where_they_part() -> None:
    assert SHORTEST_SHARED == 32
    head = tuple(range(40))
    one, other, short = (*head, 7, 7), (*head, 8), (*head[:20], 99, 99)
    # The first two share 40 tokens; 20 with the third are too few.
    assert prompt_cuts({one, other, short}) == {one: (40,), other: (40,), short: ()}
    # Nested: three share 40, two of them 32 more; a further 5 are too few.
    longer = (*head, *head[:32])
    a, b, c, d = (*longer, 1, 1, 1, 1, 1, 2), (*longer, 1, 1, 1, 1, 1, 3), (*longer, 9), (*head, 49)
    assert prompt_cuts({a, b, c, d}) == {a: (40, 72), b: (40, 72), c: (40, 72), d: (40,)}
    # One is the beginning of the other: its end is the cut.
    assert prompt_cuts({head, (*head, 5)}) == {head: (), (*head, 5): (40,)}
    forest = grow_forest([row(one, ([1], [])), row(other, ([1], []))])
    assert forest.num_tokens == 40 + 2 + 1 + 1 + 1


def test_common_length() -> None:
    assert common_length((1, 2, 3), (1, 2, 4)) == 2
    assert common_length((1, 2), (1, 2, 4)) == 2
    assert common_length((), (1,)) == 0


@pytest.mark.parametrize("seed", range(5))
def test_each_path_spells_its_row(seed: int) -> None:
    rows = random_rows(seed)
    forest = grow_forest(rows)
    layout = lay_out(forest, rows, torch.device("cpu"))
    for line, path in zip(rows, forest.paths, strict=True):
        places = [place for number in path for place in range(forest.nodes[number].start, forest.nodes[number].end)]
        assert layout.tokens_U[places].tolist() == list(line.tokens)
        assert layout.positions_U[places].tolist() == list(range(len(line.tokens)))
    # Prefixes that end with a stretch are what rows can share, so as many stretches as there are different ones.
    prefixes = {line.tokens[:end] for line in rows for end in (*line.starts, len(line.tokens))}
    assert len(forest.nodes) == len(prefixes)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([], "no rows"),
        ([Tokens((1, 2), (False,), (1,))], "row 0 has 2 tokens and a mask of 1"),
        ([Tokens((1, 2), (True, True), (1,))], "no prompt"),
        ([Tokens((1, 2, 3), (False, True, True), (2, 1))], r"start at \(2, 1\)"),
        ([Tokens((1, 2), (False, True), (0,))], r"start at \(0,\)"),
        ([Tokens((1, 2), (False, True), (2,))], r"start at \(2,\)"),
    ],
)
def test_rows_that_contradict_themselves_are_refused(rows: list[Tokens], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_rows(rows)
