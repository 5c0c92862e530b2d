"""Token in, token out: what was sampled is what is trained, over whole trajectories with tool text in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from forkgym.agents.base import Completion, Event, Request
from forkgym.agents.loading import load_tokenizer
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.envs.grammar import Call, Grammar, ParsedTurn
from forkgym.envs.hermes import HermesGrammar
from forkgym.trainers.config import BranchingConfig, RolloutConfig, TrainerConfig
from forkgym.trainers.learner import make_learner
from forkgym.trainers.rollouts.rollout import RolloutSettings, TaskRef, roll_out
from forkgym.trainers.types import Group
from forkgym.trainers.update import update
from tests.trainers.logprobs import PAD, row_logprobs, rows_of, tiny_qwen
from tests.trainers.small_trees import with_rewards


class RecordingAgent(TransformersAgent):
    """Remembers what was asked for and what was sampled."""

    requests: dict[str, Request]
    completions: dict[str, Completion]

    def submit(self, request: Request) -> None:
        """Remember the request."""
        self.requests = {**getattr(self, "requests", {}), request.uid: request}
        super().submit(request)

    def step(self) -> Sequence[Event]:
        """Remember what was sampled."""
        events = super().step()
        done = {event.uid: event for event in events if isinstance(event, Completion)}
        self.completions = {**getattr(self, "completions", {}), **done}
        return events


class EagerGrammar(HermesGrammar):
    """Takes every message for two calls: a random policy would hardly ever write one."""

    def parse(self, text: str, tool_names: tuple[str, ...]) -> ParsedTurn:
        """Call the only tool."""
        (name,) = tool_names
        argument = {"expression": "1 + 1"} if name == "calculator" else {"query": text or "?"}
        return ParsedTurn(calls=(Call(name, text, argument), Call(name, text, argument)))


def check_tokens(tokenizer: PreTrainedTokenizerBase, seed: int, grammar: str | Grammar = "arpo") -> None:
    """Roll out with a random policy, which writes rubbish of all kinds, and compare every token."""
    agent = RecordingAgent(tiny_qwen(len(tokenizer)), tokenizer, slots=8)
    envs: dict[str, gym.Env[str, str]] = {
        name: gym.make(name, split="train", grammar=grammar) for name in ("forkgym/WordMath-v0", "forkgym/MultiHop-v0")
    }
    config = RolloutConfig(
        num_generations=6, initial_generations=3, max_turn_tokens=12, branching=BranchingConfig(tokens=3)
    )
    tasks = [TaskRef(name, seed) for name in envs]
    settings = RolloutSettings(config, branching="entropy", temperature=1.0, seed=(seed,))
    groups = roll_out(agent, envs, tasks, settings).groups
    for place, group in enumerate(groups):
        check_group(agent, place, group)


def check_group(agent: RecordingAgent, place: int, group: Group) -> None:
    rows = rows_of([group])
    assert len(rows) == len(group.trajectories) == 6
    for trajectory, row in zip(group.trajectories, rows, strict=True):
        path = group.path(trajectory.leaf)
        assert len(path) > 1
        begin = len(group.prompt_tokens)
        starts: list[int] = []
        for turn in path:
            uid = f"{place}/{turn.uid}"
            assert agent.requests[uid].tokens == row.tokens[:begin]  # what it was conditioned on
            starts.append(begin)
            end = begin + len(turn.tokens)
            assert agent.completions[uid].tokens == row.tokens[begin:end]
            assert all(row.loss_mask[begin:end])
            begin = end + (len(turn.observation_tokens) if turn.uid != trajectory.leaf else 0)
            assert not any(row.loss_mask[end:begin])
        assert begin == len(row.tokens)
        assert row.starts == tuple(starts)
    # And the trained model gives those tokens the log-probs that they were sampled with.
    assert float(row_logprobs(agent._model.model, [group]).abs().max()) < 1e-4


@pytest.mark.parametrize("seed", range(4))
def test_sampled_tokens_are_trained_tokens(seed: int) -> None:
    check_tokens(load_tokenizer("embedded"), seed)


@pytest.mark.parametrize("seed", range(4))
def test_sampled_tokens_are_trained_tokens_where_markers_are_several(shared_data: Path, seed: int) -> None:
    tokenizer = load_tokenizer(str(shared_data / "tokenizer"))
    assert len(tokenizer("<search>", add_special_tokens=False)["input_ids"]) > 1
    check_tokens(tokenizer, seed)


@pytest.mark.parametrize("seed", range(2))
def test_sampled_tokens_are_trained_tokens_in_chat_messages(shared_data: Path, seed: int) -> None:
    check_tokens(load_tokenizer(str(shared_data / "tokenizer")), seed, EagerGrammar())


def test_micro_batches_and_dropped_rows_change_no_gradient() -> None:
    tokenizer = load_tokenizer("embedded")
    model = tiny_qwen(len(tokenizer))
    agent = TransformersAgent(model, tokenizer, slots=8)
    envs: dict[str, gym.Env[str, str]] = {"forkgym/WordMath-v0": gym.make("forkgym/WordMath-v0")}
    config = RolloutConfig(
        num_generations=6, initial_generations=3, max_turn_tokens=12, branching=BranchingConfig(tokens=3)
    )
    settings = RolloutSettings(config, branching="entropy", temperature=1.0, seed=(0,))
    groups = roll_out(agent, envs, [TaskRef("forkgym/WordMath-v0", index) for index in range(3)], settings).groups
    rewards = [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [0.0] * 6, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    groups = tuple(with_rewards(group, given) for group, given in zip(groups, rewards, strict=True))
    gradients: list[torch.Tensor] = []
    for changes in (
        {"forward": "padded", "micro_batch_tokens": 10**6},
        {"forward": "padded", "micro_batch_tokens": 1},
        {"forward": "padded", "micro_batch_tokens": 300},
        {"forward": "tree", "micro_batch_tokens": 10**6},
        {"forward": "tree", "micro_batch_tokens": 300},
        {"forward": "tree", "algorithm": "arpo-gpg"},
    ):
        trainer = TrainerConfig(**{"algorithm": "gpg", **changes})  # type: ignore[arg-type]  # fields by name
        learner, _ = make_learner(model, PAD, 1.0, trainer)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        outcome = update(learner, groups, rewards, trainer)
        assert outcome["correction"] == 18 / 12
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.load_state_dict(before)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-6)
