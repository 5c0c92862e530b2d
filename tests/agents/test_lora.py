"""Adapters: what is trained, what is sampled from, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from forkgym.agents.base import Request
from forkgym.agents.building import load_policy
from forkgym.agents.config import AgentConfig, LoraConfig
from forkgym.agents.lora import add_adapters
from forkgym.agents.served_weights import served_weights
from forkgym.agents.transformers_agent import TransformersAgent
from tests.agents.tiny import byte_tokenizer, complete, full_measures, make_model

pytest.importorskip("peft")

IDS = torch.arange(3, 15)[None]


def logits(model: PreTrainedModel) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def take_step(model: PreTrainedModel) -> None:
    """One large step on a loss, so that the adapters matter."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    for _ in range(2):  # at the first one A has no gradient, as B is zero
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_at_first_nothing_changes_but_what_is_trained() -> None:
    model, plain = make_model(), make_model()
    add_adapters(model, LoraConfig(rank=4))
    assert type(model) is type(plain)
    assert not any(module.training for module in model.modules())
    assert torch.equal(logits(model), logits(plain))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    # 7 linear layers in each of 3, A and B of each; neither the embeddings nor the output layer.
    assert len(trained) == 42
    assert all(".lora_A." in name or ".lora_B." in name for name in trained)


def test_a_step_changes_adapters_alone_and_the_agent_samples_with_them() -> None:
    model = make_model()
    add_adapters(model, LoraConfig(rank=4, alpha=8))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    agent = TransformersAgent(model, byte_tokenizer(), slots=2)
    request = Request("x", tuple(range(5, 25)), 12, (), seed=0)
    first = complete(agent, request)
    agent.release("x")
    take_step(model)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) is not parameter.requires_grad, name
    agent.load_weights(model, 1)
    second = complete(agent, request)
    logprobs, entropies = full_measures(model, request.tokens, second.tokens)
    assert second.logprobs == pytest.approx(logprobs, abs=1e-4)
    assert second.entropies == pytest.approx(entropies, abs=1e-4)
    assert second.logprobs != pytest.approx(first.logprobs, abs=1e-2)
    plain = make_model()
    plain.load_state_dict(dict(served_weights(model)), strict=False)
    assert torch.allclose(logits(plain), logits(model), atol=1e-4)


def test_adapters_are_float32_in_a_model_of_half_precision() -> None:
    model = make_model(dtype=torch.bfloat16)
    add_adapters(model, LoraConfig(rank=2))
    types = {parameter.dtype: parameter.requires_grad for parameter in model.parameters()}
    assert types == {torch.bfloat16: False, torch.float32: True}
    assert model.dtype == torch.bfloat16
    take_step(model)
    assert {weight.dtype for _, weight in served_weights(model)} == {torch.bfloat16}


def test_every_process_begins_with_the_same_adapters_and_no_random_state_is_touched() -> None:
    models: list[PreTrainedModel] = []
    for seed in (1, 2):
        models.append(make_model())
        torch.manual_seed(seed)
        expected = torch.rand(1).item()
        torch.manual_seed(seed)
        add_adapters(models[-1], LoraConfig(rank=4))
        assert torch.rand(1).item() == expected
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_layers_can_be_named() -> None:
    model = make_model()
    add_adapters(model, LoraConfig(rank=4, target_modules=("q_proj", "v_proj")))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert len(trained) == 12
    assert all(".q_proj." in name or ".v_proj." in name for name in trained)


def test_a_name_that_no_layer_has_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"agent\.lora\.target_modules is \['nose'\], expected names of linear layers of Q"
    ):
        add_adapters(make_model(), LoraConfig(rank=4, target_modules=("nose",)))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match=r"agent\.lora\.rank is -1"):
        LoraConfig(rank=-1)
    with pytest.raises(ValueError, match=r"agent\.lora\.alpha is 0"):
        LoraConfig(alpha=0)
    with pytest.raises(ValueError, match=r"agent\.lora\.target_modules is empty"):
        LoraConfig(target_modules=())


def test_a_policy_is_loaded_with_adapters_where_a_rank_is_given(tmp_path: Path) -> None:
    make_model().save_pretrained(tmp_path)
    byte_tokenizer().save_pretrained(tmp_path)
    whole = load_policy(AgentConfig(model=str(tmp_path)))
    assert all(parameter.requires_grad for parameter in whole.model.parameters())
    policy = load_policy(AgentConfig(model=str(tmp_path), lora=LoraConfig(rank=3)))
    ranks = {parameter.shape[0] for name, parameter in policy.model.named_parameters() if ".lora_A." in name}
    assert ranks == {3}
    assert isinstance(policy.agent, TransformersAgent)
    assert policy.agent.model is policy.model
