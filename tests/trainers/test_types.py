"""Records refuse what is no tree."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from forkgym.envs.tasks import StopReason
from forkgym.trainers.types import RewardError, Row, Sample, finite_reward
from tests.trainers.small_trees import three_leaves, trajectory, turn


def test_path_goes_from_the_first_turn_to_the_leaf() -> None:
    assert [one.uid for one in three_leaves().path("t2d1")] == ["t0d0", "t2d1"]


def test_valid_means_that_rewards_differ() -> None:
    group = three_leaves()
    assert group.is_valid
    alike = replace(
        group,
        turns=tuple(replace(one, reward=0.0) for one in group.turns),
        trajectories=tuple(replace(one, reward=0.0) for one in group.trajectories),
    )
    assert not alike.is_valid


# An environment ends what is malformed too often; no limit cut it off, and it is to be learnt from.
@pytest.mark.parametrize(
    ("reason", "truncated"),
    [
        (StopReason.ANSWERED, False),
        (StopReason.TOOL_STOP, False),
        (StopReason.MALFORMED, False),
        (StopReason.TURN_LIMIT, True),
        (StopReason.TIME_LIMIT, True),
        (StopReason.TOTAL_TOKEN_LIMIT, True),
        (StopReason.CONTEXT_LIMIT, True),
    ],
)
def test_truncated_means_that_a_limit_cut_it_off(reason: StopReason, truncated: bool) -> None:
    assert replace(trajectory("t0d0", 0.0), stop_reason=reason).is_truncated == truncated


@pytest.mark.parametrize("reward", [1, 0.5, True, np.float32(0.25), np.array(2.0)])
def test_what_is_a_number_is_a_reward(reward: object) -> None:
    assert finite_reward(reward, "it was paid") == reward


@pytest.mark.parametrize("reward", [math.nan, math.inf, -math.inf, None, "1", 10**400])
def test_what_is_no_finite_number_is_no_reward(reward: object) -> None:
    with pytest.raises(RewardError) as caught:
        finite_reward(reward, "task shout/1: it was paid")
    assert str(caught.value) == f"task shout/1: it was paid {reward!r}, expected a finite number"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trajectories": (trajectory("t0d1", 1.0), trajectory("t2d1", 0.0))}, "leaves"),
        ({"trajectories": (*three_leaves().trajectories, trajectory("t1d1", 0.0))}, "leaves"),
        ({"trajectories": (trajectory("t0d1", 0.5), *three_leaves().trajectories[1:])}, "has reward 0.5"),
        ({"turns": three_leaves().turns[1:]}, "before its parent"),
        ({"turns": (*three_leaves().turns, turn("t1d1", None, (1,)))}, "repeated"),
    ],
)
def test_a_group_that_is_no_tree_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(three_leaves(), **change)  # type: ignore[arg-type]  # the fields differ by case


@pytest.mark.parametrize("missing", ["logprobs", "entropies"])
def test_a_turn_without_the_log_probs_of_its_tokens_is_refused(missing: str) -> None:
    with pytest.raises(ValueError, match="turn t0d0: tokens, logprobs and entropies differ in length"):
        replace(turn("t0d0", None, (1, 2)), **{missing: ()})  # type: ignore[arg-type]  # the fields differ by case


ROW = Row(tokens=(1, 2), loss_mask=(False, True), starts=(1,), segments=(-1, 0), old_logprobs=(0.0, -1.0))


@pytest.mark.parametrize("field", ["tokens", "loss_mask", "segments", "old_logprobs"])
def test_a_row_has_as_much_of_everything(field: str) -> None:
    with pytest.raises(ValueError, match="a row's tokens, mask, segments and log-probs differ in length"):
        replace(ROW, **{field: getattr(ROW, field)[:1]})


def test_a_sample_has_as_much_as_its_row() -> None:
    Sample(ROW, advantages=(0.0, 1.0), weight=1.0)
    Sample(ROW, advantages=(0.0, 1.0), weight=1.0, targets=(0.0, 0.5))
    for advantages, targets in (((0.0,), ()), ((0.0, 1.0), (0.5,))):
        with pytest.raises(ValueError, match="advantages or targets differ in length from its row"):
            Sample(ROW, advantages, 1.0, targets)
