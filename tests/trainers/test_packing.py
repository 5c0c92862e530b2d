"""Rows and batches for the loss, against rows written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from forkgym.agents.base import FinishReason
from forkgym.envs.tasks import StopReason
from forkgym.trainers.algorithms.config import SegmentConfig
from forkgym.trainers.algorithms.segments import segment_begins
from forkgym.trainers.algorithms.table import Segmentation
from forkgym.trainers.packing import make_row, pad
from forkgym.trainers.types import Group, Row, Sample
from tests.trainers.small_trees import three_leaves, turn


def rows_of(group: Group, kind: Segmentation = "turn") -> list[Row]:
    begins = segment_begins(group, kind, SegmentConfig(), np.random.default_rng(0))
    return [make_row(group, one, begins) for one in group.trajectories]


def segments_of(group: Group, begins: Mapping[str, Sequence[int]]) -> list[tuple[int, ...]]:
    """The segments of each row, for turns whose segments begin as given."""
    arrays = {uid: np.array(ones, np.bool_) for uid, ones in begins.items()}
    return [make_row(group, one, arrays).segments for one in group.trajectories]


def cut_short() -> Group:
    """The tree of three leaves; the context limit left t1d1 no room for a single token.

    prompt 1 2 ─┬─ t0d0: 3 4, sees 5 ─┬─ t0d1: 6     reward 1
                │                     └─ t2d1: 7 8   reward 0
                └─ t1d0: 9, sees 5 ───── t1d1: nothing
    """
    group = three_leaves()
    nothing = replace(turn("t1d1", "t1d0", ()), finish_reason=FinishReason.CONTEXT)
    ended = replace(group.trajectories[1], stop_reason=StopReason.CONTEXT_LIMIT)
    return replace(
        group,
        turns=(*group.turns[:4], nothing),
        trajectories=(group.trajectories[0], ended, group.trajectories[2]),
    )


def test_a_row_is_prompt_turn_observation_turn() -> None:
    group = three_leaves()
    turns = tuple(
        replace(one, logprobs=(-0.25, -0.5)) if one.uid == "t0d0" else one  # the others have -1
        for one in group.turns
    )
    row = rows_of(replace(group, turns=turns))[2]
    assert row.tokens == (1, 2, 3, 4, 5, 7, 8)
    assert row.loss_mask == (False, False, True, True, False, True, True)
    assert row.starts == (2, 5)
    assert row.segments == (-1, -1, 0, 0, -1, 1, 1)
    assert row.old_logprobs == (0.0, 0.0, -0.25, -0.5, 0.0, -1.0, -1.0)


def test_what_the_environment_said_after_the_last_turn_is_left_out() -> None:
    group = three_leaves()
    turns = tuple(replace(one, observation_tokens=(5, 5)) if one.uid == "t0d1" else one for one in group.turns)
    assert rows_of(replace(group, turns=turns))[0].tokens == (1, 2, 3, 4, 5, 6)


def test_segments_are_numbered_over_turns() -> None:
    group = three_leaves()
    # whole trajectories: one segment goes on after the observation
    assert [row.segments for row in rows_of(group, "trajectory")] == [
        (-1, -1, 0, 0, -1, 0),
        (-1, -1, 0, -1, 0),
        (-1, -1, 0, 0, -1, 0, 0),
    ]
    assert [row.segments for row in rows_of(group, "token")] == [
        (-1, -1, 0, 1, -1, 2),
        (-1, -1, 0, -1, 1),
        (-1, -1, 0, 1, -1, 2, 3),
    ]


def test_a_segment_may_go_on_in_the_next_turn_and_the_first_token_begins_one_anyway() -> None:
    begins = {"t0d0": (0, 1), "t1d0": (0,), "t0d1": (0,), "t2d1": (0, 1), "t1d1": (1,)}
    assert segments_of(three_leaves(), begins) == [
        (-1, -1, 0, 1, -1, 1),
        (-1, -1, 0, -1, 1),
        (-1, -1, 0, 1, -1, 1, 2),
    ]


def test_a_last_turn_without_tokens_adds_nothing() -> None:
    kinds: tuple[Segmentation, ...] = ("trajectory", "turn", "token")
    for kind in kinds:
        row = rows_of(cut_short(), kind)[1]
        assert row.tokens == (1, 2, 9, 5)
        assert row.loss_mask == (False, False, True, False)
        assert row.starts == (2,)
        assert row.segments == (-1, -1, 0, -1)


def test_a_turn_without_tokens_in_the_middle_keeps_its_observation_and_its_place() -> None:
    # The model said nothing and was answered; it did not end the trajectory.
    group = three_leaves()
    turns = tuple(turn("t1d0", None, (), seen=(5,)) if one.uid == "t1d0" else one for one in group.turns)
    kinds: tuple[Segmentation, ...] = ("trajectory", "turn", "token")
    for kind in kinds:
        row = rows_of(replace(group, turns=turns), kind)[1]
        assert row.tokens == (1, 2, 5, 6)
        assert row.starts == (2, 3)
        assert row.segments == (-1, -1, -1, 0)


def test_a_trajectory_without_any_token_is_its_prompt() -> None:
    group = replace(
        three_leaves(),
        turns=(turn("t0d0", None, ()),),
        trajectories=(replace(three_leaves().trajectories[1], leaf="t0d0"),),
    )
    assert rows_of(group) == [Row((1, 2), (False, False), (), (-1, -1), (0.0, 0.0))]


def samples_of(group: Group, *, targets: bool = False) -> list[Sample]:
    """Advantages 1, 2, ... by place; weights 0.5, 1.5 and 2.5."""
    return [
        Sample(
            row,
            advantages=tuple(float(place) for place in range(len(row.tokens))),
            weight=number + 0.5,
            targets=tuple(-float(place) for place in range(len(row.tokens))) if targets else (),
        )
        for number, row in enumerate(rows_of(group))
    ]


def test_padding_is_masked() -> None:
    batch = pad(samples_of(three_leaves()), device=torch.device("cpu"))
    assert batch.mask_BT.long().tolist() == [[0, 0, 1, 1, 0, 1, 0], [0, 0, 1, 0, 1, 0, 0], [0, 0, 1, 1, 0, 1, 1]]
    assert batch.segments_BT.tolist() == [
        [-1, -1, 0, 0, -1, 1, -1],
        [-1, -1, 0, -1, 1, -1, -1],
        [-1, -1, 0, 0, -1, 1, 1],
    ]
    assert torch.equal(batch.segments_BT >= 0, batch.mask_BT)
    assert batch.advantages_BT.tolist()[1] == [0, 1, 2, 3, 4, 0, 0]
    assert batch.old_logprobs_BT.tolist()[0] == [0, 0, -1, -1, 0, -1, 0]
    assert batch.weights_BT[:, 2].tolist() == [0.5, 1.5, 2.5]
    assert batch.targets_BT.numel() == 0  # no value head


def test_targets_are_padded_where_there_are_any() -> None:
    batch = pad(samples_of(three_leaves(), targets=True), device=torch.device("cpu"))
    assert batch.targets_BT.tolist()[1] == [0, -1, -2, -3, -4, 0, 0]
