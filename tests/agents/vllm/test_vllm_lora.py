"""The vllm agent with a model that has adapters: a real engine samples from the merged weights after each step."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from forkgym.agents.base import Request
from forkgym.agents.config import LoraConfig, VllmConfig
from forkgym.agents.loading import load_tokenizer
from forkgym.agents.lora import add_adapters
from forkgym.agents.vllm.vllm_agent import VllmAgent
from tests.agents.tiny import complete, full_measures, make_model

pytest.importorskip("peft")
pytestmark = pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed")


def test_it_samples_from_the_base_with_the_adapters_of_each_step() -> None:
    tokenizer = load_tokenizer("embedded")
    # The heads are as large as vLLM needs them.
    model = make_model(vocabulary=len(tokenizer), head_dim=32, max_position_embeddings=512, tie_word_embeddings=True)
    add_adapters(model, LoraConfig(rank=4, alpha=8))
    agent = VllmAgent(model, tokenizer, slots=4, config=VllmConfig(cache_gib=0.125, max_context=256))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    request = Request("x", tuple(range(3, 60)), 16, (), seed=0)
    first = found = complete(agent, request)
    agent.release("x")
    for step in range(1, 4):
        ids = torch.randint(len(tokenizer), (2, 30), generator=torch.Generator().manual_seed(step))
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        agent.pause()
        agent.load_weights(model, step)
        assert agent.probe_gap < 1e-4
        found = complete(agent, request)
        agent.release("x")
        logprobs, _ = full_measures(model, request.tokens, found.tokens)
        assert found.logprobs == pytest.approx(logprobs, abs=1e-4)
        assert found.version == step
    assert found.logprobs != pytest.approx(first.logprobs, abs=1e-2)
