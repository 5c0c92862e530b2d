"""The vllm agent with a real engine: the same numbers as the trained model's and the embedded agent's."""

from __future__ import annotations

import importlib.util
import os
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel, Qwen3Config, Qwen3ForCausalLM

from forkgym.agents.base import Agent, Completion, FinishReason, FirstTokens, Request
from forkgym.agents.config import VllmConfig
from forkgym.agents.errors import AgentFailure
from forkgym.agents.loading import load_tokenizer
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.agents.vllm import vllm_engine
from forkgym.agents.vllm.vllm_agent import VllmAgent
from forkgym.trainers.config import BranchingConfig, RolloutConfig, TrainerConfig
from forkgym.trainers.learner import make_learner
from forkgym.trainers.rollouts.growth import Env
from forkgym.trainers.rollouts.rollout import RolloutSettings, TaskRef, roll_out
from forkgym.trainers.types import Group
from forkgym.trainers.update import update
from tests.agents.tiny import complete, completions, drive, full_measures
from tests.trainers.logprobs import row_logprobs
from tests.trainers.small_trees import with_rewards

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

TOKENIZER = load_tokenizer("embedded")
MAX_CONTEXT = 768
ENVS: dict[str, Env] = {
    name: gym.make(name, split="train", grammar="arpo") for name in ("forkgym/WordMath-v0", "forkgym/MultiHop-v0")
}


@dataclass(frozen=True)
class Policy:
    """A trained model, its engine, and what the process looked like before and after the engine's start."""

    model: PreTrainedModel
    agent: VllmAgent
    process: tuple[object, object]


def make_model(*, tied: bool) -> PreTrainedModel:
    """A model with random weights, large enough for its distributions to be far from uniform; heads as vLLM needs."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(TOKENIZER),
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
            max_position_embeddings=1024,
            tie_word_embeddings=tied,
        )
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.15)
    model.eval()
    # As models of the hub come with, but stronger: nothing of it may reach the engine.
    model.generation_config = GenerationConfig(do_sample=True, top_k=1, top_p=0.1, repetition_penalty=2.0)
    return model


def process_state() -> object:
    torch_state: Any = torch.random.get_rng_state()
    drawn = (random.getstate(), tuple(torch_state.tolist()))
    return torch.get_num_threads(), os.environ.get("LD_PRELOAD"), drawn, torch.set_num_threads


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def policy(request: pytest.FixtureRequest) -> Iterator[Policy]:
    model = make_model(tied=request.param)
    before = process_state()
    agent = VllmAgent(model, TOKENIZER, slots=16, config=VllmConfig(cache_gib=0.125, max_context=MAX_CONTEXT))
    yield Policy(model, agent, (before, process_state()))


def grow(agent: Agent, seed: int, temperature: float = 1.0) -> tuple[Group, ...]:
    """Branching multi-turn rollouts, with tool text in between."""
    config = RolloutConfig(
        num_generations=6, initial_generations=3, max_turn_tokens=12, branching=BranchingConfig(tokens=3)
    )
    tasks = [TaskRef(name, seed) for name in ENVS]
    settings = RolloutSettings(config, branching="entropy", temperature=temperature, seed=(seed,))
    return roll_out(agent, ENVS, tasks, settings).groups


def largest_gap(model: PreTrainedModel, groups: tuple[Group, ...]) -> float:
    """Largest difference between sampled and trained log-probs over all trajectories, nats."""
    assert max(len(group.path(one.leaf)) for group in groups for one in group.trajectories) > 2
    return float(row_logprobs(model, groups).abs().max())


def check_measures(model: PreTrainedModel, request: Request, completion: Completion) -> None:
    logprobs, entropies = full_measures(model, request.tokens, completion.tokens, request.temperature or 1.0)
    assert completion.logprobs == pytest.approx(logprobs, abs=1e-4)
    assert completion.entropies == pytest.approx(entropies, abs=1e-4)


def prompt_of(size: int) -> tuple[int, ...]:
    return tuple((11 * place + 3) % len(TOKENIZER) for place in range(size))


def test_starting_it_leaves_the_process_as_it_was(policy: Policy) -> None:
    before, after = policy.process
    assert before == after


def test_sampled_log_probs_are_the_trained_models(policy: Policy) -> None:
    assert largest_gap(policy.model, grow(policy.agent, seed=0)) < 1e-4


def test_greedy_trees_are_those_of_the_embedded_agent(policy: Policy) -> None:
    theirs = grow(policy.agent, seed=1, temperature=0.0)
    ours = grow(TransformersAgent(policy.model, TOKENIZER, slots=8), seed=1, temperature=0.0)
    for one, other in zip(theirs, ours, strict=True):
        assert [turn.tokens for turn in one.turns] == [turn.tokens for turn in other.turns]
        for turn, twin in zip(one.turns, other.turns, strict=True):
            assert turn.finish_reason == twin.finish_reason
            assert turn.text == twin.text
            assert turn.logprobs == pytest.approx(twin.logprobs, abs=1e-4)
            assert turn.entropies == pytest.approx(twin.entropies, abs=1e-4)


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 1.5])
def test_log_probs_and_entropies_are_those_of_the_sampling_distribution(policy: Policy, temperature: float) -> None:
    request = Request("x", prompt_of(40), 16, (), seed=3, temperature=temperature)
    completion = complete(policy.agent, request)
    check_measures(policy.model, request, completion)
    policy.agent.release("x")


def test_the_models_settings_for_generation_truncate_nothing(policy: Policy) -> None:
    # Under its top-k of 1 each token would be the likeliest, with log-prob 0: the trained model's ratio to that is the
    # probability itself, and no other token would ever be tried.
    requests = [Request(f"r{seed}", prompt_of(40), 4, (), seed) for seed in range(8)]
    greedy = Request("greedy", prompt_of(40), 1, (), seed=0, temperature=0.0)
    found = completions(drive(policy.agent, [*requests, greedy]))
    for request in requests:
        check_measures(policy.model, request, found[request.uid])
    assert {found[request.uid].tokens[:1] for request in requests} - {found["greedy"].tokens}
    assert policy.agent._engine._llm.model_config.get_diff_sampling_param() == {}
    for uid in found:
        policy.agent.release(uid)


def test_weights_of_each_optimizer_step_are_sampled_from(policy: Policy) -> None:
    model, agent = policy.model, policy.agent
    learner, _ = make_learner(model, 0, 1.0, TrainerConfig(learning_rate=1e-2))
    groups = grow(agent, seed=2)
    rewards = [[float(place % 2) for place in range(len(group.trajectories))] for group in groups]
    groups = tuple(with_rewards(group, given) for group, given in zip(groups, rewards, strict=True))
    prompt = Request("p", prompt_of(300), 8, (), seed=0)
    for step in range(1, 21):
        assert update(learner, groups, rewards, TrainerConfig(learning_rate=1e-2))["step_skipped"] == 0
        if step in (1, 2, 20):
            assert largest_gap(model, grow(agent, seed=3)) > 1e-3  # the engine's are old
            agent.load_weights(model, step)
            assert agent.figures() == {"probe_gap": agent.probe_gap, "entropy_error": 0.0}  # all log-probs are known
            assert agent.probe_gap < 1e-4
            assert largest_gap(model, grow(agent, seed=3)) < 1e-4
            completion = complete(agent, prompt)  # its keys and values were cached under the old weights
            assert completion.version == step
            check_measures(model, prompt, completion)
            agent.release("p")


def do_nothing(model: torch.nn.Module) -> None:
    """Take no weights."""


def test_a_broken_sync_is_noticed(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    model, agent = policy.model, policy.agent
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    with monkeypatch.context() as patch:
        if model.config.tie_word_embeddings:
            # As vLLM's own reload leaves it on a CPU: an output layer that is packed and old.
            patch.setattr(vllm_engine, "prepare_output_layers", do_nothing)
        else:
            patch.setattr(agent._engine, "load", do_nothing)
        with pytest.raises(AgentFailure, match=r"does not sample from the trained weights \(version 7\)"):
            agent.load_weights(model, 7)
    agent.load_weights(model, 8)
    assert agent.probe_gap < 1e-4


@pytest.mark.parametrize("seed", range(6))
def test_stops_at_the_token_that_completes_a_stop_string(policy: Policy, seed: int) -> None:
    agent, decode = policy.agent, policy.agent.codec.decode
    free = complete(agent, Request("free", prompt_of(9), 40, (), seed))
    agent.release("free")
    pieces = [piece for piece in free.text.split("\ufffd") if piece]
    rng = np.random.default_rng(seed)
    piece = pieces[rng.integers(len(pieces))]
    begin = int(rng.integers(len(piece)))
    stop = piece[begin : begin + 4]
    stopped = complete(agent, Request("stopped", prompt_of(9), 40, (stop,), seed))
    agent.release("stopped")
    count = next(count for count in range(1, len(free.tokens) + 1) if stop in decode(free.tokens[:count]))
    assert stopped.tokens == free.tokens[:count]
    assert stopped.finish_reason is FinishReason.STOP
    assert stopped.text == decode(free.tokens[:count])
    assert stop in stopped.text


def test_the_end_token_is_kept_and_is_no_text(policy: Policy) -> None:
    agent, end = policy.agent, TOKENIZER.eos_token_id
    for seed in range(400):
        completion = complete(agent, Request("x", prompt_of(5), 40, (), seed, temperature=2.0))
        agent.release("x")
        if completion.finish_reason is FinishReason.END:
            break
    else:
        pytest.fail("no seed of 400 drew the end token")
    assert completion.tokens[-1] == end
    assert completion.text == agent.codec.decode(completion.tokens[:-1])
    assert end not in completion.tokens[:-1]


def test_a_branch_and_a_next_turn_continue_what_was_sampled(policy: Policy) -> None:
    agent = policy.agent
    first = Request("first", prompt_of(150), 30, (), seed=0, report_after=4)
    events = drive(agent, [first])
    done = completions(events)["first"]
    assert [type(event) for event in events] == [FirstTokens, Completion]
    assert events[0].entropies == done.entropies[:4]
    past = first.tokens + done.tokens
    branch = Request("branch", past[:160], 8, (), seed=1)
    again = Request("next", past + prompt_of(20), 8, (), seed=2, continues="first")
    found = completions(drive(agent, [branch, again]))
    check_measures(policy.model, branch, found["branch"])
    check_measures(policy.model, again, found["next"])
    with pytest.raises(ValueError, match="first: expected a finished turn"):
        agent.release("first")
    agent.release("branch")
    agent.release("next")


def test_an_aborted_turn_is_never_reported_and_changes_no_other(policy: Policy) -> None:
    agent = policy.agent
    kept = Request("kept", prompt_of(30), 24, (), seed=5)
    alone = complete(agent, kept)
    agent.release("kept")
    agent.submit(Request("gone", prompt_of(31), 24, (), seed=6, report_after=1))
    agent.submit(kept)
    agent.step()
    agent.abort("gone")
    events = list(agent.step())
    while not completions(events):
        events += agent.step()
    assert {event.uid for event in events} == {"kept"}
    assert completions(events)["kept"].tokens == alone.tokens
    agent.release("kept")
    with pytest.raises(ValueError, match="gone"):
        agent.abort("gone")


def test_the_same_submissions_give_the_same_bits_and_another_seed_other_tokens(policy: Policy) -> None:
    requests = [Request(f"r{seed}", prompt_of(20 + seed), 20, (), seed=seed) for seed in range(5)]
    results = []
    for _ in range(2):
        results.append(completions(drive(policy.agent, requests)))
        for request in requests:
            policy.agent.release(request.uid)
    assert results[0] == results[1]
    other = complete(policy.agent, replace(requests[0], seed=99))
    policy.agent.release("r0")
    assert other.tokens != results[0]["r0"].tokens


def test_the_longest_context_ends_that_turn_alone(policy: Policy) -> None:
    agent = policy.agent
    long = Request("long", prompt_of(MAX_CONTEXT - 5), 20, (), seed=0, report_after=9)
    full = Request("full", prompt_of(MAX_CONTEXT), 20, (), seed=0, report_after=9)
    short = Request("short", prompt_of(8), 6, (), seed=0)
    events = drive(agent, [long, full, short])
    found = completions(events)
    assert (len(found["long"].tokens), found["long"].finish_reason) == (5, FinishReason.CONTEXT)
    assert (found["full"].tokens, found["full"].finish_reason) == ((), FinishReason.CONTEXT)
    assert (len(found["short"].tokens), found["short"].finish_reason) == (6, FinishReason.TURN_TOKENS)
    reports = {event.uid: event.entropies for event in events if isinstance(event, FirstTokens)}
    assert reports == {"long": found["long"].entropies, "full": ()}
    for uid in found:
        agent.release(uid)


def test_more_context_than_one_step_takes_and_the_cache_holds_is_sampled_in_turn(policy: Policy) -> None:
    # 16 contexts of up to 766 tokens: some 12,000 tokens, the cache of 0.125 GiB holds 16 times 768.
    requests = [Request(f"r{place}", prompt_of(place) + prompt_of(735), 16, (), seed=place) for place in range(1, 17)]
    found = completions(drive(policy.agent, requests))
    for request in requests:
        assert len(found[request.uid].tokens) == 16
        check_measures(policy.model, request, found[request.uid])
        policy.agent.release(request.uid)


def test_what_vllm_would_sample_otherwise_is_refused(policy: Policy) -> None:
    for temperature in (0.005, 2.5):
        with pytest.raises(ValueError, match=f"temperature is {temperature}, expected 0, or 0.01 to 2"):
            policy.agent.submit(Request("x", (1,), 4, (), seed=0, temperature=temperature))


def test_a_pause_changes_nothing_on_a_cpu(policy: Policy) -> None:
    request = Request("x", prompt_of(40), 8, (), seed=1)
    before = complete(policy.agent, request)
    policy.agent.release("x")
    policy.agent.pause()
    policy.agent.load_weights(policy.model, before.version)
    assert complete(policy.agent, request).tokens == before.tokens
    policy.agent.release("x")


def test_weights_that_do_not_fit_or_come_too_early_are_refused(policy: Policy) -> None:
    agent = policy.agent
    other = make_model(tied=not policy.model.config.tie_word_embeddings)
    with pytest.raises(ValueError, match=r"lm_head\.weight is another, expected the same names and shapes"):
        agent.load_weights(other, 3)
    agent.submit(Request("x", prompt_of(5), 20, (), seed=0))
    with pytest.raises(RuntimeError, match="while 1 requests run"):
        agent.load_weights(policy.model, 3)
    agent.abort("x")


def test_weights_that_have_diverged_are_reported(policy: Policy) -> None:
    # The last test of an engine: from here on its cache holds NaN, which spreads where memory is used again.
    with torch.no_grad():
        next(policy.model.parameters()).fill_(float("nan"))
    with pytest.raises(AgentFailure, match="differ by nan nats"):
        policy.agent.load_weights(policy.model, 9)
