"""Where demonstrations come from: the environments' own solutions, or a file of conversations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from forkgym.agents.codec import TokenizerCodec
from forkgym.envs.base import INFINITE_TASK_RANGE, ToolEnv
from forkgym.envs.shares import shares_of
from forkgym.envs.sources import DataError, Source, load_rows
from forkgym.trainers.rollouts.growth import Env
from forkgym.trainers.sft.conversations import Renderer
from forkgym.trainers.sft.demonstrations import Demonstration, Script, act_out, demonstration_of
from forkgym.trainers.sft.messages import Conversation, TableConversation

if TYPE_CHECKING:
    from forkgym.trainers.types import Group

DEFAULT_COUNT = 4_000
JSON_SUFFIXES = (".jsonl", ".json")  # of files in which a null is meant
ACTED_AT_ONCE = 256  # episodes; each holds a fork of its environment
TOO_LONG, UNSOLVED, WRONG = "too long", "without a solution", "whose solution earns no full marks"


@dataclass(frozen=True, slots=True)
class Collected:
    """Demonstrations to learn from.

    Attributes:
        demonstrations: What there is.
        left_out: How many there might have been besides, by reason.
    """

    demonstrations: tuple[Demonstration, ...]
    left_out: Mapping[str, int]

    def __str__(self) -> str:
        """Say in words how much there is, and what was left out."""
        tokens = sum(len(one.tokens) for one in self.demonstrations)
        written = sum(one.num_written for one in self.demonstrations)
        text = (
            f"{len(self.demonstrations):,} demonstrations of {tokens:,} tokens, of which the policy writes {written:,} "
            f"({written / tokens:.0%}) and learns from those alone."
        )
        drawn = len(self.demonstrations) + sum(self.left_out.values())
        reasons = [f"{count:,} of {drawn:,} ({count / drawn:.1%}) {why}" for why, count in self.left_out.items()]
        return f"{text} Left out: {', '.join(reasons) if reasons else 'none'}."


def collected(found: Iterator[Demonstration | str], max_tokens: int, where: str) -> Collected:
    """Take in demonstrations, and reasons why there is none.

    Args:
        found: What there is in the place of each.
        max_tokens: Of a demonstration.
        where: They come from, for messages.

    Raises:
        ValueError: None is left.
    """
    kept: list[Demonstration] = []
    left_out: Counter[str] = Counter()
    lengths: list[int] = []
    for one in found:
        if isinstance(one, str):
            left_out[one] += 1
        elif len(one.tokens) > max_tokens:
            left_out[f"{TOO_LONG} (above {max_tokens:,} tokens)"] += 1
            lengths.append(len(one.tokens))
        else:
            kept.append(one)
    if not kept and lengths:
        raise ValueError(
            f"sft.max_tokens is {max_tokens:,}, but the shortest demonstration of {where} has {min(lengths):,} tokens"
        )
    if not kept:
        reasons = ", ".join(f"{count:,} {why}" for why, count in left_out.items())
        raise ValueError(
            f"{where}: no task can be demonstrated ({reasons}), expected an environment whose tasks say how they are "
            "solved, or sft.conversations"
        )
    return Collected(tuple(kept), left_out)


def draw(size: int | None, count: int | None, rng: np.random.Generator) -> list[int]:
    """Draw ``count`` different indices below ``size``; all of them, in a random order, where there are no more.

    Args:
        size: None where the indices never end.
        count: None for all.
        rng: Draws them.
    """
    population = INFINITE_TASK_RANGE if size is None else size
    drawn = rng.choice(population, size=min(population, population if count is None else count), replace=False)
    return [int(index) for index in drawn]


def from_environments(  # noqa: PLR0913 - what tokens depend on
    envs: Mapping[str, Env],
    weights: tuple[float, ...] | None,
    count: int,
    codec: TokenizerCodec,
    end: int,
    rng: np.random.Generator,
) -> Iterator[Demonstration | str]:
    """Carry out the solutions of tasks drawn without repetition.

    Args:
        envs: Environments by id.
        weights: How often tasks of each come, in their order; None for equally often.
        count: Tasks of all environments together; of one that has fewer than its share, all.
        codec: Of the policy that is to learn.
        end: See `forkgym.trainers.sft.demonstrations.message_end`.
        rng: Draws the tasks.

    Yields:
        A demonstration of each task, or why there is none.

    Raises:
        ToolFailure: The tools of a task fail again and again.
    """
    shares = shares_of(weights if weights is not None else (1.0,) * len(envs))
    counts = Counter(shares.at(place)[0] for place in range(count))
    for place, env in enumerate(envs.values()):
        bare = env.unwrapped
        assert isinstance(bare, ToolEnv)
        indices = draw(bare.num_tasks, counts[place], rng)
        for start in range(0, len(indices), ACTED_AT_ONCE):
            scripts = [script_of(env, index) for index in indices[start : start + ACTED_AT_ONCE]]
            solved = [script for script in scripts if script.turns]
            yield from [UNSOLVED] * (len(scripts) - len(solved))
            for group in act_out(env, codec, end, solved):
                yield outcome(group)


def script_of(env: Env, index: int) -> Script:
    """The turns of a task's own solution; none where it has none."""
    env.reset(options={"index": index})
    bare = env.unwrapped
    assert isinstance(bare, ToolEnv)
    return Script(index, tuple(bare.render_step(step) for step in bare.current_task.solution))


def outcome(group: Group) -> Demonstration | str:
    """The one trajectory of a group, unless it is wrong."""
    (trajectory,) = group.trajectories
    return demonstration_of(group, trajectory.leaf) if trajectory.accuracy >= 1.0 else WRONG


def from_conversations(
    path: str, count: int | None, renderer: Renderer, rng: np.random.Generator
) -> Iterator[Demonstration | str]:
    """Render conversations.

    Args:
        path: See `Source`.
        count: Conversations, drawn without repetition; None for all.
        renderer: Makes tokens of them.
        rng: Draws them.

    Yields:
        A demonstration of each.

    Raises:
        ValueError: The file can't be read, is empty, or holds something else than conversations; names the place.
    """
    source = Source(hub=path, config=None, split="train", path=path)
    file = source.local()
    is_json = file is not None and file.suffix in JSON_SUFFIXES
    rows: Sequence[Conversation] = load_rows(source, Conversation if is_json else TableConversation)
    for index in draw(len(rows), count, rng):
        try:
            yield renderer.render(rows[index])
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{path}, conversation {index + 1}: {error}") from error
