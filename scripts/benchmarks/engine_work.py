"""The work that `engines` gives to each engine, and how each is made to do it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from forkgym.agents.base import Agent, Completion, Request

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Work:
    """Trees to sample.

    Attributes:
        name: In the table.
        prompts: One tree each.
        branches: Turns that follow the prompt, then each turn of the first level, and so on.
        turn: Tokens of a turn.
        reply: Tokens after each turn but the last.
    """

    name: str
    prompts: list[list[int]]
    branches: tuple[int, ...]
    turn: int
    reply: list[int]

    @property
    def tokens(self) -> int:
        """Tokens that are sampled."""
        return (
            len(self.prompts) * self.turn * sum(prod(self.branches[: depth + 1]) for depth in range(len(self.branches)))
        )


@dataclass(frozen=True, slots=True)
class Place:
    """A turn's place: depth, and what its context is."""

    depth: int
    context: tuple[int, ...]


def make_works(repetition: int) -> list[Work]:
    """The work of one repetition; lengths are the same in all."""
    rng = np.random.default_rng(repetition)

    def prompts(count: int, size: int) -> list[list[int]]:
        found: list[list[int]] = rng.integers(4, 500, (count, size)).tolist()
        return found

    reply: list[int] = rng.integers(4, 500, 16).tolist()
    return [
        Work("single-turn", prompts(8, 64), (8,), 128, []),
        Work("multi-turn", prompts(4, 256), (4, 1, 1, 1), 64, reply),
        Work("branching", prompts(4, 256), (2, 2, 2, 2), 64, []),
    ]


Runner = Callable[[Work, int], None]


def agent_runner(agent: Agent) -> Runner:
    """Sample with an agent as the trainer does: the first turn after another one continues it, the others fork it."""

    def run(work: Work, seed: int) -> None:
        places: dict[str, Place] = {}

        def submit(place: Place, continues: str | None) -> None:
            number = len(places) + seed * 10_000
            uid = f"turn {number}"
            places[uid] = place
            agent.submit(Request(uid, place.context, work.turn, (), seed=number, continues=continues))

        live = 0
        for prompt in work.prompts:
            for _ in range(work.branches[0]):
                submit(Place(0, tuple(prompt)), None)
                live += 1
        while live:
            for event in agent.step():
                assert isinstance(event, Completion)
                assert len(event.tokens) == work.turn
                live -= 1
                place = places[event.uid]
                if place.depth + 1 == len(work.branches):
                    agent.release(event.uid)
                    continue
                following = Place(place.depth + 1, place.context + event.tokens + tuple(work.reply))
                for branch in range(work.branches[following.depth]):
                    submit(following, None if branch else event.uid)
                    live += 1

    return run


def generate_runner(model: PreTrainedModel) -> Runner:
    """Sample by ``generate``, one batch for each level."""
    generate: Any = model.generate

    def run(work: Work, seed: int) -> None:
        torch.manual_seed(seed)
        contexts = work.prompts
        for depth, branches in enumerate(work.branches):
            ids = torch.tensor([context for context in contexts for _ in range(branches)])
            with torch.inference_mode():
                output = generate(
                    ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=work.turn,
                    do_sample=True,
                    temperature=1.0,
                    top_k=0,
                )
            contexts = output.tolist()
            if depth + 1 < len(work.branches):
                contexts = [context + work.reply for context in contexts]

    return run


def bare_runner(add: Callable[[str, tuple[int, ...], int, int], None], step: Callable[[], Sequence[Any]]) -> Runner:
    """Sample by an engine's own calls.

    Args:
        add: Takes a name, a context, a limit of tokens and a seed.
        step: Returns the name, the new tokens and their log-probs of each request that has some.
    """

    def run(work: Work, seed: int) -> None:
        places: dict[str, Place] = {}
        sampled: dict[str, list[int]] = {}
        logprobs: dict[str, list[object]] = {}

        def submit(place: Place) -> None:
            number = len(places) + seed * 10_000
            name = str(number)
            places[name], sampled[name], logprobs[name] = place, [], []
            add(name, place.context, work.turn, number)

        for prompt in work.prompts:
            for _ in range(work.branches[0]):
                submit(Place(0, tuple(prompt)))
        while sampled:
            for name, tokens, measures in step():
                sampled[name] += tokens
                logprobs[name].append(measures)
                if len(sampled[name]) < work.turn:
                    continue
                place = places[name]
                context = (*place.context, *sampled.pop(name), *work.reply)
                if place.depth + 1 < len(work.branches):
                    for _ in range(work.branches[place.depth + 1]):
                        submit(Place(place.depth + 1, context))

    return run
