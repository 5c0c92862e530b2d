"""Rows for the loss, against rows written by hand."""

from __future__ import annotations

import pytest
import torch

from forkgym.trainers.algorithms import ALGORITHMS, make_samples, shuffled_rewards
from forkgym.trainers.packing import make_sample, merge_equal, micro_batches, pad
from forkgym.trainers.types import Sample
from tests.trainers.small_trees import three_leaves


def test_a_row_is_prompt_turn_observation_turn() -> None:
    group = three_leaves()
    sample = make_sample(group, group.trajectories[2], {"t0d0": 0.5, "t2d1": -1.0})
    assert sample.tokens == (1, 2, 3, 4, 5, 7, 8)
    assert sample.loss_mask == (False, False, True, True, False, True, True)
    assert sample.advantages == (0.0, 0.0, 0.5, 0.5, 0.0, -1.0, -1.0)
    assert sample.old_logprobs == (0.0, 0.0, -1.0, -1.0, 0.0, -1.0, -1.0)


def test_calibrated_and_plain_rows_add_up_to_the_same_on_shared_tokens() -> None:
    # t0d0 is shared by leaves with advantages 2/3 and -1/3: as plain rows 2/3 - 1/3, calibrated 1/6 + 1/6
    group = three_leaves()
    for name in ("gpg", "arpo-gpg"):
        rows = make_samples([group], [group.rewards], ALGORITHMS[name])
        assert sum(row.advantages[2] for row in rows if row.tokens[2] == 3) == pytest.approx(1 / 3)


def test_rows_without_a_signal_are_left_out() -> None:
    group = three_leaves()
    assert make_samples([group], [(1.0, 1.0, 1.0)], ALGORITHMS["gpg"]) == []
    assert len(make_samples([group, group], [(1.0, 1.0, 1.0), group.rewards], ALGORITHMS["arpo-gpg"])) == 3


def test_equal_rows_are_added_up_unless_they_differ_in_who_wrote() -> None:
    row = Sample((1, 2, 3), (False, True, True), (0.0, 0.5, 0.5), (0.0, -1.0, -1.0))
    again = Sample((1, 2, 3), (False, True, True), (0.0, 0.25, -0.5), (0.0, -1.0, -1.0))
    other = Sample((1, 2, 3), (False, True, False), (0.0, 1.0, 0.0), (0.0, -1.0, 0.0))
    assert merge_equal([row, other, again]) == [
        Sample((1, 2, 3), (False, True, True), (0.0, 0.75, 0.0), (0.0, -1.0, -1.0)),
        other,
    ]


def test_equal_rows_stay_apart_where_the_engine_gave_other_log_probs() -> None:
    # Their importance weights differ, so no sum of advantages stands for both.
    row = Sample((1, 2, 3), (False, True, True), (0.0, 0.5, 0.5), (0.0, -1.0, -1.0))
    rounded = Sample((1, 2, 3), (False, True, True), (0.0, 1.0, 1.0), (0.0, -1.0, -1.00005))
    other = Sample((1, 2, 3), (False, True, True), (0.0, 1.0, 1.0), (0.0, -1.0, -1.01))
    assert merge_equal([row, other, rounded, other]) == [
        Sample((1, 2, 3), (False, True, True), (0.0, 1.5, 1.5), (0.0, -1.0, -1.0)),
        Sample((1, 2, 3), (False, True, True), (0.0, 2.0, 2.0), (0.0, -1.0, -1.01)),
    ]


def test_shuffling_keeps_each_groups_rewards() -> None:
    group = three_leaves()
    shuffled = shuffled_rewards([group] * 20, seed=1)
    assert all(sorted(rewards) == [0.0, 0.0, 1.0] for rewards in shuffled)
    assert {rewards.index(1.0) for rewards in shuffled} == {0, 1, 2}


def test_micro_batches_hold_every_row_once_within_the_limit() -> None:
    rows = [Sample((0,) * size, (True,) * size, (1.0,) * size, (0.0,) * size) for size in (3, 9, 4, 2, 20)]
    batches = micro_batches(rows, 12)
    assert [[len(row.tokens) for row in batch] for batch in batches] == [[20], [9], [4, 3, 2]]


def test_padding_is_masked() -> None:
    group = three_leaves()
    rows = [make_sample(group, one, dict.fromkeys(group.turn_by_uid, 1.0)) for one in group.trajectories]
    batch = pad(rows, pad_token=99, device=torch.device("cpu"))
    assert batch.tokens_BT.tolist() == [[1, 2, 3, 4, 5, 6, 99], [1, 2, 9, 5, 6, 99, 99], [1, 2, 3, 4, 5, 7, 8]]
    assert batch.loss_mask_BT.sum(1).tolist() == [3, 2, 4]
