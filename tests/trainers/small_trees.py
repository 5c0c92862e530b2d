"""Trees that fit on paper, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from forkgym.agents.base import FinishReason
from forkgym.envs.tasks import StopReason
from forkgym.trainers.types import Group, Trajectory, Turn


def turn(uid: str, parent: str | None, tokens: Sequence[int], *, seen: Sequence[int] = (), reward: float = 0.0) -> Turn:
    """A turn whose log-probs are -1 and entropies 0.5."""
    return Turn(
        uid=uid,
        parent=parent,
        tokens=tuple(tokens),
        logprobs=(-1.0,) * len(tokens),
        entropies=(0.5,) * len(tokens),
        text="",
        finish_reason=FinishReason.STOP,
        version=0,
        observation_tokens=tuple(seen),
        reward=reward,
    )


def trajectory(leaf: str, reward: float) -> Trajectory:
    """An answered trajectory whose accuracy is its reward."""
    return Trajectory(leaf=leaf, reward=reward, accuracy=reward, stop_reason=StopReason.ANSWERED)


def three_leaves() -> Group:
    """Two first turns, the first of which branched: rewards 1, 0, 0.

    prompt 1 2 ─┬─ t0d0: 3 4, sees 5 ─┬─ t0d1: 6     reward 1
                │                     └─ t2d1: 7 8   reward 0
                └─ t1d0: 9, sees 5 ───── t1d1: 6     reward 0
    """
    return Group(
        env_id="toy",
        task_uid="toy/0",
        question="?",
        answer="!",
        prompt_tokens=(1, 2),
        turns=(
            turn("t0d0", None, (3, 4), seen=(5,)),
            turn("t1d0", None, (9,), seen=(5,)),
            turn("t0d1", "t0d0", (6,), reward=1.0),
            turn("t2d1", "t0d0", (7, 8)),
            turn("t1d1", "t1d0", (6,)),
        ),
        trajectories=(trajectory("t0d1", 1.0), trajectory("t1d1", 0.0), trajectory("t2d1", 0.0)),
    )


def with_rewards(group: Group, rewards: Sequence[float]) -> Group:
    """The same tree with other rewards on its leaves."""
    by_leaf = dict(zip((one.leaf for one in group.trajectories), rewards, strict=True))
    return replace(
        group,
        turns=tuple(replace(one, reward=by_leaf.get(one.uid, 0.0)) for one in group.turns),
        trajectories=tuple(replace(one, reward=by_leaf[one.leaf]) for one in group.trajectories),
    )
