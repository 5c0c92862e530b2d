"""Demonstrations: episodes in which somebody else wrote the policy's turns, as the tokens that the policy is to learn.

They are made by a rollout whose agent writes instead of sampling, so that they are, token by token, what reinforcement
learning sees later.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from forkgym.agents.base import Completion, Event, FinishReason, Request
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.scripted import WritingAgent
from forkgym.agents.stopping import end_tokens
from forkgym.trainers.config import ORACLE_TOKENS, RolloutConfig
from forkgym.trainers.evaluation import episodes
from forkgym.trainers.rollouts.growth import Env
from forkgym.trainers.rollouts.rollout import TaskRef, roll_out
from forkgym.trainers.types import Group

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ONLY = "demonstrations"  # names the one environment of a rollout
THOUGHT, END_OF_THOUGHT = "<think>", "</think>"


@dataclass(frozen=True, slots=True)
class Demonstration:
    """One episode's tokens, and which of them the policy wrote.

    Example: a prompt ``P``, a call ``C C``, its result ``R`` and an answer ``A`` give ``tokens = P C C R A`` and
    ``written = F T T F T``.

    Raises:
        ValueError: The two differ in length, nothing is written, or the first token is, which nothing predicts.
    """

    tokens: tuple[int, ...]
    written: tuple[bool, ...]

    def __post_init__(self) -> None:
        """Check them."""
        if len(self.tokens) != len(self.written):
            raise ValueError(f"a demonstration has {len(self.tokens)} tokens, but {len(self.written)} flags")
        if not any(self.written) or self.written[0]:
            raise ValueError("a demonstration begins with a turn, or has none; expected a prompt and a turn at least")

    @property
    def num_written(self) -> int:
        """Tokens that the policy wrote."""
        return sum(self.written)


class Spans:
    """A demonstration while it grows: runs of tokens, each by the policy or by somebody else."""

    def __init__(self, prompt: Sequence[int]) -> None:
        self.tokens = list(prompt)
        self.written = [False] * len(prompt)

    def add(self, turn: Sequence[int], reply: Sequence[int]) -> None:
        """Append what the policy wrote, and what was said to it."""
        self.tokens += [*turn, *reply]
        self.written += [True] * len(turn) + [False] * len(reply)

    def demonstration(self) -> Demonstration:
        """What has grown."""
        return Demonstration(tuple(self.tokens), tuple(self.written))


def demonstration_of(group: Group, leaf: str) -> Demonstration:
    """One trajectory of a tree as a demonstration: a row of the prompt, the turns and the replies."""
    spans = Spans(group.prompt_tokens)
    for turn in group.path(leaf):
        spans.add(turn.tokens, turn.observation_tokens)
    return spans.demonstration()


@dataclass(frozen=True, slots=True)
class Script:
    """An episode to act out: a task's index, and the texts of the turns."""

    index: int
    turns: tuple[str, ...]


def act_out(env: Env, codec: TokenizerCodec, end: int, scripts: Sequence[Script]) -> tuple[Group, ...]:
    """Act out episodes in an environment; after the last turn of a script it is repeated.

    Args:
        env: Is forked, never stepped itself.
        codec: Of the policy that is to learn.
        end: See `message_end`.
        scripts: What to act out.

    Returns:
        One tree with one trajectory for each script, in order.

    Raises:
        ToolFailure: The tools of a task fail again and again.
    """
    # Nobody samples, so nothing has to be cut off.
    rollout = RolloutConfig(max_turn_tokens=ORACLE_TOKENS, max_total_tokens=ORACLE_TOKENS)
    tasks = [TaskRef(ONLY, script.index) for script in scripts]
    agent = Demonstrator(codec, end, [script.turns for script in scripts])
    return roll_out(agent, {ONLY: env}, tasks, episodes(rollout, 1, 0.0)).groups


class Demonstrator(WritingAgent):
    """Writes the turns of scripts as a policy would have sampled them.

    A turn that no stop string ends has the token that ends a message. A thought that the chat template opens is not
    opened again; a message that has none closes it first.

    Args:
        codec: Of the policy.
        end: The token that ends a message.
        turns: The texts of each task's turns, in the order of the rollout's tasks.
    """

    def __init__(self, codec: TokenizerCodec, end: int, turns: Sequence[Sequence[str]]) -> None:
        super().__init__(codec)
        self._end = end
        self._scripts = turns

    def write(self, request: Request, turn: int) -> str:
        """The text of this turn; a request's uid begins with the place of its task."""
        turns = self._scripts[int(request.uid.partition("/")[0])]
        text = turns[min(turn, len(turns) - 1)]
        begins_message = turn == 0 or not request.stop
        return after_opening(text, self.codec.opening) if begins_message else text

    def step(self) -> Sequence[Event]:
        """Finish every queued turn."""
        return [self._ended(event) for event in super().step()]

    def _ended(self, event: Event) -> Event:
        if not isinstance(event, Completion) or event.finish_reason is not FinishReason.END:
            return event
        return replace(
            event,
            tokens=(*event.tokens, self._end),
            logprobs=(*event.logprobs, 0.0),
            entropies=(*event.entropies, 0.0),
        )


def after_opening(text: str, opening: str) -> str:
    """A message without what the chat template writes of it, the opening tag of a thought.

    >>> after_opening("<think>Add.</think>5", "<think>"), after_opening("5", "<think>"), after_opening("5", "")
    ('Add.</think>5', '</think>5', '5')
    """
    if not opening:
        return text
    blank = opening.removeprefix(THOUGHT)
    if text.startswith(THOUGHT):
        return text.removeprefix(THOUGHT).removeprefix(blank)
    return f"{blank}{END_OF_THOUGHT}{2 * blank}{text}"


def message_end(model: PreTrainedModel, codec: TokenizerCodec) -> int:
    """The token with which a policy ends a message: the chat template's where sampling stops at it, else the end token.

    Templates may end messages with another token than the tokenizer's ``eos_token``, as those of Gemma and Llama 3 do.
    """
    if codec.chat is not None:
        after = codec.chat.encode_results(["result"], turn=())
        first = next((token for token in after if token in codec.chat.control_ids), None)
        if first is not None and first in end_tokens(model, codec.tokenizer):
            return first
    end = codec.tokenizer.eos_token_id
    assert isinstance(end, int)
    return end


def stack(demonstrations: Sequence[Demonstration], pad_token: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Pad demonstrations on the right and stack them.

    Returns:
        ``tokens_BT``, int64; ``written_BT``, bool: which of them the policy wrote; ``present_BT``, bool: which of them
        are no padding.
    """
    size = len(demonstrations), max(len(one.tokens) for one in demonstrations)
    tokens_BT = torch.full(size, pad_token, dtype=torch.long)
    written_BT = torch.zeros(size, dtype=torch.bool)
    present_BT = torch.zeros(size, dtype=torch.bool)
    for row, one in enumerate(demonstrations):
        tokens_BT[row, : len(one.tokens)] = torch.tensor(one.tokens)
        written_BT[row, : len(one.tokens)] = torch.tensor(one.written)
        present_BT[row, : len(one.tokens)] = True
    return tokens_BT, written_BT, present_BT
