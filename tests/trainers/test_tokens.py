"""Token in, token out: what was sampled is what is trained, over whole trajectories with tool text in between."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import gymnasium as gym
import pytest
import torch
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from forkgym.agents.base import Completion, Event, Request
from forkgym.agents.loading import load_tokenizer
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.envs.grammar import Call, Grammar, ParsedTurn
from forkgym.envs.hermes import HermesGrammar
from forkgym.trainers.algorithms import ALGORITHMS, make_samples
from forkgym.trainers.config import BranchingConfig, RolloutConfig, TrainerConfig
from forkgym.trainers.loop import make_learner
from forkgym.trainers.packing import pad
from forkgym.trainers.rollout import RolloutSettings, TaskRef, roll_out
from forkgym.trainers.types import Group
from forkgym.trainers.update import token_logprobs, update


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


def tiny_model(tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    torch.manual_seed(0)
    size = len(tokenizer)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=16,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
        )
    )


class EagerGrammar(HermesGrammar):
    """Takes every message for two calls: a random policy would hardly ever write one."""

    def parse(self, text: str, tool_names: tuple[str, ...]) -> ParsedTurn:
        """Call the only tool."""
        (name,) = tool_names
        argument = {"expression": "1 + 1"} if name == "calculator" else {"query": text or "?"}
        return ParsedTurn(calls=(Call(name, text, argument), Call(name, text, argument)))


def check_tokens(tokenizer: PreTrainedTokenizerBase, seed: int, grammar: str | Grammar = "arpo") -> None:
    """Roll out with a random policy, which writes rubbish of all kinds, and compare every token."""
    agent = RecordingAgent(tiny_model(tokenizer), tokenizer, slots=8)
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
    rewards = [float(index) for index in range(len(group.trajectories))]  # so that every row counts
    samples = make_samples([group], [rewards], ALGORITHMS["gpg"])
    assert len(samples) == len(group.trajectories) == 6
    for trajectory, sample in zip(group.trajectories, samples, strict=True):
        path = group.path(trajectory.leaf)
        assert len(path) > 1
        begin = len(group.prompt_tokens)
        for turn in path:
            uid = f"{place}/{turn.uid}"
            assert agent.requests[uid].tokens == sample.tokens[:begin]  # what it was conditioned on
            end = begin + len(turn.tokens)
            assert agent.completions[uid].tokens == sample.tokens[begin:end]
            assert all(sample.loss_mask[begin:end])
            begin = end + (len(turn.observation_tokens) if turn.uid != trajectory.leaf else 0)
            assert not any(sample.loss_mask[end:begin])
        assert begin == len(sample.tokens)
    # And the trained model gives those tokens the log-probs that they were sampled with.
    model = agent._model.model
    batch = pad(samples, 0, torch.device("cpu"))
    with torch.no_grad():
        gap_BT = token_logprobs(model, batch, 1.0) - batch.old_logprobs_BT
    assert float(gap_BT[batch.loss_mask_BT].abs().max()) < 1e-4


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
    model = tiny_model(tokenizer)
    agent = TransformersAgent(model, tokenizer, slots=8)
    envs: dict[str, gym.Env[str, str]] = {"forkgym/WordMath-v0": gym.make("forkgym/WordMath-v0")}
    config = RolloutConfig(
        num_generations=6, initial_generations=3, max_turn_tokens=12, branching=BranchingConfig(tokens=3)
    )
    settings = RolloutSettings(config, branching="entropy", temperature=1.0, seed=(0,))
    groups = roll_out(agent, envs, [TaskRef("forkgym/WordMath-v0", index) for index in range(3)], settings).groups
    rewards = [[1.0, 0.0, 0.0, 1.0, 0.0, 0.0], [0.0] * 6, [0.0, 0.0, 0.0, 0.0, 0.0, 1.0]]
    # A group whose own rewards are all equal makes no step; here the rewards are the test's, so the groups are marked.
    groups = tuple(pretend_rewards(group, given) for group, given in zip(groups, rewards, strict=True))
    gradients: list[torch.Tensor] = []
    for algorithm, size in (("gpg", 10**6), ("gpg", 1), ("gpg", 300), ("arpo-gpg", 10**6)):
        learner, _ = make_learner(model, 0, 1.0, TrainerConfig())
        before = {name: value.clone() for name, value in model.state_dict().items()}
        outcome = update(learner, groups, rewards, TrainerConfig(algorithm=algorithm, micro_batch_tokens=size))  # type: ignore[arg-type]  # one of the four
        assert outcome["correction"] == 18 / 12
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
        model.load_state_dict(before)
    for gradient in gradients[1:]:
        torch.testing.assert_close(gradient, gradients[0], rtol=1e-4, atol=1e-6)


def pretend_rewards(group: Group, rewards: Sequence[float]) -> Group:
    """The same tree with other rewards on its leaves."""
    from dataclasses import replace

    by_leaf = dict(zip((one.leaf for one in group.trajectories), rewards, strict=True))
    return replace(
        group,
        turns=tuple(replace(turn, reward=by_leaf.get(turn.uid, 0.0)) for turn in group.turns),
        trajectories=tuple(replace(one, reward=by_leaf[one.leaf]) for one in group.trajectories),
    )


def test_a_batch_without_a_signal_makes_no_step() -> None:
    tokenizer = load_tokenizer("embedded")
    model = tiny_model(tokenizer)
    agent = TransformersAgent(model, tokenizer, slots=8)
    envs: dict[str, gym.Env[str, str]] = {"forkgym/WordMath-v0": gym.make("forkgym/WordMath-v0")}
    config = RolloutConfig(num_generations=2, initial_generations=2, max_turn_tokens=4)
    settings = RolloutSettings(config, branching="none", temperature=1.0, seed=(0,))
    groups = roll_out(agent, envs, [TaskRef("forkgym/WordMath-v0", 0)], settings).groups
    learner, _ = make_learner(model, 0, 1.0, TrainerConfig())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    outcome = update(learner, groups, [group.rewards for group in groups], TrainerConfig())
    assert outcome["step_skipped"] == 1.0
    assert not any(name.startswith("mismatch/") for name in outcome)  # nothing was compared, so nothing agrees
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not learner.optimizer.state_dict()["state"]
