"""The records that flow through a training step; each stage takes some and returns new ones.

    Task --rollout--> Group --packing--> Row --credit--> Sample --forward, losses--> scalar --> weights

A `Group` is a tree of turns. With two first turns, the first of which branched into two,

    prompt ─┬─ t0d0 ─┬─ t0d1   reward 1
            │        └─ t2d1   reward 0
            └─ t1d0 ─── t1d1   reward 0

it has five turns and three trajectories, the leaves ``t0d1``, ``t1d1`` and ``t2d1``. A turn is named by the trajectory
that sampled it and its depth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from typing import SupportsFloat

from forkgym.agents.base import FinishReason
from forkgym.envs.tasks import StopReason

# Where a trajectory was cut off, whatever it would have come to. One that was malformed too often was not: that is what
# the policy did, and what it is to learn from.
LIMITS = frozenset(
    (StopReason.TURN_LIMIT, StopReason.TIME_LIMIT, StopReason.TOTAL_TOKEN_LIMIT, StopReason.CONTEXT_LIMIT)
)


class RewardError(ValueError):
    """A reward is no finite number, so that nothing can be learnt from it; the message names it."""


def finite_reward(reward: object, earned_by: str) -> float:
    """Return a reward as a number.

    Args:
        reward: What was paid.
        earned_by: Named in the error, with a verb.

    Raises:
        RewardError: It is no number, or not finite.
    """
    value = math.nan
    if isinstance(reward, SupportsFloat):
        with suppress(OverflowError, TypeError):  # of a whole number too large, or of an array
            value = float(reward)
    if not math.isfinite(value):
        raise RewardError(f"{earned_by} {reward!r}, expected a finite number")
    return value


@dataclass(frozen=True, slots=True)
class Turn:
    """A node of the tree: what the policy sampled up to a tool boundary or the end, and the environment's reply.

    Attributes:
        uid: Unique in its group. Two trajectories share a prefix exactly when they share the uid of its last turn.
        parent: The uid of the turn before, None for a first turn.
        tokens: Sampled by the policy; the loss sees exactly these.
        logprobs: Of each token under the sampling distribution, nats.
        entropies: Of that distribution before each token, nats.
        text: The tokens as the environment read them.
        finish_reason: Why sampling ended.
        version: Of the weights that sampled it.
        observation: The environment's reply; empty after an answer.
        observation_tokens: The same as tokens, in the context but never trained on.
        tools: Names of the tools called, in order.
        error: Why the turn was malformed, empty where it was not.
        reward: What the environment paid for this turn.
    """

    uid: str
    parent: str | None
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropies: tuple[float, ...]
    text: str
    finish_reason: FinishReason
    version: int
    observation: str = ""
    observation_tokens: tuple[int, ...] = ()
    tools: tuple[str, ...] = ()
    error: str = ""
    reward: float = 0.0

    def __post_init__(self) -> None:
        """Check the lengths."""
        if not len(self.tokens) == len(self.logprobs) == len(self.entropies):
            raise ValueError(f"turn {self.uid}: tokens, logprobs and entropies differ in length")


@dataclass(frozen=True, slots=True)
class Trajectory:
    """A root-to-leaf path, named by its leaf.

    Attributes:
        leaf: The uid of its last turn.
        reward: The sum of its turns' rewards.
        accuracy: Exact match or equal value of the answer, 0 to 1; 0 without one.
        stop_reason: Why it ended.
        parts: Each part of the final score, by name.
        extraction: Why nothing could be read out of the answer; empty where something could.
    """

    leaf: str
    reward: float
    accuracy: float
    stop_reason: StopReason
    parts: Mapping[str, float] = field(default_factory=dict[str, float])
    extraction: str = ""

    @property
    def is_truncated(self) -> bool:
        """Whether it ended at a limit: of turns, time, tokens or context."""
        return self.stop_reason in LIMITS


@dataclass(frozen=True)
class Group:
    """All trajectories of one task: one tree.

    The first ``num_initial`` of its first turns, in the order of ``turns``, began the initial trajectories (ARPO's N);
    the others are fresh ones, drawn afterwards to fill up what branching left of the budget. None stands for all.

    Raises:
        ValueError: The turns are no tree, or a trajectory's leaf is unknown, shared, has children, or its reward is
            not the sum over its path.
    """

    env_id: str
    task_uid: str
    question: str
    answer: str
    prompt_tokens: tuple[int, ...]
    turns: tuple[Turn, ...]
    trajectories: tuple[Trajectory, ...]
    num_initial: int | None = None

    def __post_init__(self) -> None:
        """Check that it is a tree."""
        known: set[str] = set()
        for turn in self.turns:
            if turn.uid in known or (turn.parent is not None and turn.parent not in known):
                raise ValueError(f"group {self.task_uid}: turn {turn.uid} is repeated or comes before its parent")
            known.add(turn.uid)
        roots = sum(turn.parent is None for turn in self.turns)
        if self.num_initial is not None and not 1 <= self.num_initial <= roots:
            raise ValueError(f"group {self.task_uid}: num_initial is {self.num_initial}, expected 1 to {roots}")
        leaves = [trajectory.leaf for trajectory in self.trajectories]
        inner = {turn.parent for turn in self.turns}
        if len(set(leaves)) != len(leaves) or known - inner != set(leaves):
            raise ValueError(
                f"group {self.task_uid}: the trajectories' leaves are not the leaves of the tree, once each"
            )
        for trajectory in self.trajectories:
            paid = sum(turn.reward for turn in self.path(trajectory.leaf))
            if abs(paid - trajectory.reward) > 1e-9:
                raise ValueError(
                    f"group {self.task_uid}: trajectory {trajectory.leaf} has reward {trajectory.reward}, "
                    f"but its turns were paid {paid}"
                )

    @cached_property
    def turn_by_uid(self) -> dict[str, Turn]:
        """Each turn by its uid."""
        return {turn.uid: turn for turn in self.turns}

    def path(self, leaf: str) -> tuple[Turn, ...]:
        """Return the turns from the first to ``leaf``."""
        turns: list[Turn] = []
        uid: str | None = leaf
        while uid is not None:
            turn = self.turn_by_uid[uid]
            turns.append(turn)
            uid = turn.parent
        return tuple(reversed(turns))

    @property
    def rewards(self) -> tuple[float, ...]:
        """Each trajectory's reward."""
        return tuple(trajectory.reward for trajectory in self.trajectories)

    @property
    def is_valid(self) -> bool:
        """Whether the trajectories' rewards differ; see `credit.teaches` for what an algorithm makes of them."""
        return max(self.rewards) - min(self.rewards) > 1e-9


@dataclass(frozen=True, slots=True)
class Row:
    """A trajectory laid out in a row of tokens; all but ``starts`` are as long as ``tokens``.

    Example: a prompt ``P``, a call ``C C``, its result ``R`` and an answer ``A`` give ``tokens = P C C R A``,
    ``loss_mask = F T T F T``, ``starts = 1 4`` and, with turns as segments, ``segments = -1 0 0 -1 1``.

    Attributes:
        tokens: Prompt, then turns and observations in order.
        loss_mask: True where the policy sampled the token.
        starts: Where each turn begins; what lies between two of them is shared with whoever has the same before it.
        segments: Number of each sampled token's segment, from 0; -1 elsewhere.
        old_logprobs: Of each token under the sampling distribution, nats; 0 elsewhere.
    """

    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    starts: tuple[int, ...]
    segments: tuple[int, ...]
    old_logprobs: tuple[float, ...]

    def __post_init__(self) -> None:
        """Check the lengths."""
        if not len(self.tokens) == len(self.loss_mask) == len(self.segments) == len(self.old_logprobs):
            raise ValueError("a row's tokens, mask, segments and log-probs differ in length")


@dataclass(frozen=True, slots=True)
class Sample:
    """A row with what the loss makes of it; tuples are as long as the row.

    Attributes:
        row: The tokens.
        advantages: Of each token; 0 where nothing was sampled.
        weight: Of each of its tokens' terms in the loss, see `normalisation`.
        targets: What a value head should say before each token: the return that its advantage was taken from.
    """

    row: Row
    advantages: tuple[float, ...]
    weight: float
    targets: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Check the lengths."""
        if len(self.advantages) != len(self.row.tokens) or len(self.targets) not in (0, len(self.row.tokens)):
            raise ValueError("a sample's advantages or targets differ in length from its row")
