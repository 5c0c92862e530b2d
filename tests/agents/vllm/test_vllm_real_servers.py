"""The vllm-server agent with servers of its own and real engines: the trained model's numbers, and a server's death."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import psutil
import pytest
import torch
from transformers import PreTrainedModel

from forkgym.agents.base import Agent, Event, Request
from forkgym.agents.config import AgentConfig, VllmConfig, VllmServerConfig
from forkgym.agents.errors import AgentFailure
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.agents.vllm.serving import launch
from forkgym.agents.vllm.vllm_client import ServerClient, ServerProblem
from forkgym.agents.vllm.vllm_launch import LaunchedServers
from forkgym.agents.vllm.vllm_server import VllmServerAgent
from forkgym.agents.vllm.weight_transfer import Weights
from tests.agents.tiny import complete
from tests.agents.vllm.test_vllm_agent import ENVS, MAX_CONTEXT, TOKENIZER, grow, largest_gap, make_model, prompt_of

pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")

CONFIG = AgentConfig(kind="vllm-server", slots=16, servers=2, vllm=VllmConfig(cache_gib=0.125, max_context=MAX_CONTEXT))


@dataclass(frozen=True)
class Policy:
    """A trained model and the servers that sample from it."""

    model: PreTrainedModel
    servers: LaunchedServers
    agent: VllmServerAgent


@pytest.fixture(scope="module")
def policies() -> Iterator[dict[bool, Policy]]:
    """By whether the embeddings are tied: two servers if so, else one. They start side by side."""
    models = {tied: make_model(tied=tied) for tied in (True, False)}
    servers = {tied: launch(models[tied], replace(CONFIG, servers=2 if tied else 1)) for tied in models}
    agents: dict[bool, VllmServerAgent] = {}
    try:
        for tied, model in models.items():
            agents[tied] = VllmServerAgent(
                model, TOKENIZER, servers[tied], config=VllmServerConfig(), engine=CONFIG.vllm
            )
        yield {tied: Policy(models[tied], servers[tied], agents[tied]) for tied in models}
    finally:
        for agent in agents.values():
            agent.close()
        for one in servers.values():
            one.close()


def train(model: PreTrainedModel, steps: int) -> None:
    """Take optimizer steps towards some tokens."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    ids = torch.tensor([prompt_of(64)])
    for _ in range(steps):
        optimizer.zero_grad()
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_sampled_log_probs_are_the_trained_models_after_every_step(policies: dict[bool, Policy], tied: bool) -> None:
    model, agent = policies[tied].model, policies[tied].agent
    assert largest_gap(model, grow(agent, seed=0)) < 1e-4
    prompt = Request("p", prompt_of(300), 8, (), seed=0)  # long enough for blocks of it to be cached
    before = complete(agent, prompt)
    agent.release("p")
    taken = 0
    for steps in (1, 2, 20):
        train(model, steps - taken)
        taken = steps
        assert largest_gap(model, grow(agent, seed=3)) > 1e-3  # the engines' are old
        agent.load_weights(model, steps)
        assert agent.probe_gap < 1e-4
        assert largest_gap(model, grow(agent, seed=3)) < 1e-4
    after = complete(agent, prompt)
    agent.release("p")
    assert after.version == 20
    assert after.logprobs != before.logprobs


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_greedy_trees_are_those_of_the_embedded_agent(policies: dict[bool, Policy], tied: bool) -> None:
    model, agent = policies[tied].model, policies[tied].agent
    theirs = grow(agent, seed=1, temperature=0.0)
    ours = grow(TransformersAgent(model, TOKENIZER, slots=8), seed=1, temperature=0.0)
    for one, other in zip(theirs, ours, strict=True):
        assert [turn.tokens for turn in one.turns] == [turn.tokens for turn in other.turns]
        for turn, twin in zip(one.turns, other.turns, strict=True):
            assert (turn.finish_reason, turn.text) == (twin.finish_reason, twin.text)
            assert turn.logprobs == pytest.approx(twin.logprobs, abs=1e-4)
            assert turn.entropies == pytest.approx(twin.entropies, abs=1e-4)


def test_the_same_seed_grows_the_same_tree(policies: dict[bool, Policy]) -> None:
    first, again = (grow(policies[True].agent, seed=4) for _ in range(2))
    assert [turn.tokens for group in first for turn in group.turns] == [
        turn.tokens for group in again for turn in group.turns
    ]


def test_weights_that_a_server_did_not_take_stop_the_run(policies: dict[bool, Policy]) -> None:
    model, agent = copy.deepcopy(policies[False].model), policies[False].agent
    old = [(name, parameter.detach().clone()) for name, parameter in model.named_parameters()]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.05)
    given = list(old)
    send = agent._transfer.send

    def send_given(weights: Weights, name: str, clients: Sequence[ServerClient]) -> list[ServerProblem | None]:
        del weights
        return send(given, name, clients)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(agent._transfer, "send", send_given)
        with pytest.raises(AgentFailure, match=r"does not sample from the trained weights \(version 7\)"):
            agent.load_weights(model, 7)
        given[0] = ("x", given[0][1])
        with pytest.raises(AgentFailure, match="can't take the weights"):
            agent.load_weights(model, 8)
    agent.load_weights(model, 9)
    assert agent.probe_gap < 1e-4


class Killer:
    """An agent that kills a server's processes when the first turns are over."""

    def __init__(self, agent: VllmServerAgent, process: psutil.Process) -> None:
        self._agent = agent
        self._process = process
        self._seen = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._agent, name)

    def step(self) -> list[Event]:
        """Step, and kill once."""
        events = list(self._agent.step())
        if self._seen < 3 <= self._seen + len(events):
            for process in self._process.children(recursive=True):
                process.kill()
        self._seen += len(events)
        return events


# The last one: it leaves one server of two.
def test_no_tree_is_short_where_one_of_two_servers_is_killed(policies: dict[bool, Policy]) -> None:
    policy = policies[True]
    killer = cast(Agent, Killer(policy.agent, psutil.Process(policy.servers._processes[0].pid)))
    found = grow(killer, seed=5)
    # A turn of which nothing had arrived is sampled anew by the same seed; one that had begun goes on from there, by
    # another. So the trees need not be those of a day on which nothing dies.
    assert [len({one.leaf for one in group.trajectories}) for group in found] == [6] * len(ENVS)
    assert largest_gap(policy.model, found) < 1e-4
    assert policy.agent.figures()["servers"] == 1
    assert policy.agent.resumed_turns > 0
    policy.servers.kept_log(policy.servers.addresses[0]).unlink()
    policy.agent.load_weights(policy.model, 30)
    assert largest_gap(policy.model, grow(policy.agent, seed=6)) < 1e-4
