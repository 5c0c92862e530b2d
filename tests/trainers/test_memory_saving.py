"""Activation checkpointing: the same gradients from fewer kept activations, and nothing else is different."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM, PreTrainedModel

from forkgym.agents.base import Request
from forkgym.agents.config import LoraConfig
from forkgym.agents.lora import add_adapters
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.trainers.forward.measures import ForwardSettings
from forkgym.trainers.forward.tree import tree_forward
from forkgym.trainers.memory_saving import checkpoint_activations
from tests.agents.tiny import byte_tokenizer, complete, make_model

IDS = torch.arange(3, 63).reshape(2, 30)


@dataclass(frozen=True, slots=True)
class Row:
    """A trajectory as the forward over trees takes it."""

    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    starts: tuple[int, ...]


def gradients(model: PreTrainedModel) -> tuple[dict[str, torch.Tensor], int]:
    """Gradients of a loss in evaluation mode, and the bytes that were kept between forward and backward."""
    kept: dict[int, int] = {}
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    model.eval()
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        loss = model(input_ids=IDS, labels=IDS, use_cache=False).loss
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    return found, sum(kept.values())


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert list(one) == list(other)
    assert len(one) > 5
    for name, gradient in one.items():
        assert torch.allclose(gradient, other[name], rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("family", ["qwen3", "qwen3-mixed-windows", "qwen2", "llama", "mistral-window", "gpt2"])
def test_same_gradients_from_fewer_kept_activations(family: str) -> None:
    model = make_model(family)
    expected, before = gradients(model)
    checkpoint_activations(model)
    found, after = gradients(model)
    assert_same(found, expected)
    assert after < before / 2


def test_with_adapters() -> None:
    pytest.importorskip("peft")
    model = make_model()
    add_adapters(model, LoraConfig(rank=4))
    with torch.no_grad():  # B is zero at first, and A would have no gradient
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.fill_(0.1)
    expected, before = gradients(model)
    checkpoint_activations(model)
    found, after = gradients(model)
    assert_same(found, expected)
    assert all(".lora_" in name for name in found)
    assert after < before / 2


def test_on_trees() -> None:
    # The attention that reads a tree's plan is switched on for a forward alone, and has to be there again later.
    rows = [Row((*range(5, 25), *last), (False,) * 20 + (True,) * 6, (20,)) for last in (range(30, 36), range(40, 46))]
    found: list[dict[str, torch.Tensor]] = []
    for saving in (False, True):
        model = make_model()
        if saving:
            checkpoint_activations(model)
        measures = tree_forward(model, rows, ForwardSettings(), 0)
        measures.logprobs_BT.sum().backward()
        found.append({name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
    assert_same(found[1], found[0])


def test_dropout_stays_off() -> None:
    # The layers of OPT apply dropout themselves, by a number; their attention has one as well.
    model: Any = OPTForCausalLM(
        OPTConfig(
            vocab_size=64,
            hidden_size=16,
            ffn_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=64,
            word_embed_proj_dim=16,
            dropout=0.5,
            attention_dropout=0.5,
        )
    )
    expected, _ = gradients(model)
    checkpoint_activations(model)
    for _ in range(2):
        assert_same(gradients(model)[0], expected)
    assert not any(module.training for module in model.modules())


def test_sampling_is_as_before() -> None:
    model = make_model()
    agent = TransformersAgent(model, byte_tokenizer(), slots=2)
    request = Request("x", tuple(range(5, 25)), 12, (), seed=0)
    expected = complete(agent, request)
    agent.release("x")
    checkpoint_activations(model)
    gradients(model)
    agent.load_weights(model, 0)
    assert complete(agent, request) == expected  # with its cache, which checkpointing would have switched off


def test_a_copy_has_weights_of_its_own() -> None:
    model = make_model()
    checkpoint_activations(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    expected, before = gradients(make_model())
    found, after = gradients(twin)
    assert_same(found, expected)
    assert after < before / 2


def test_a_model_without_such_layers_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = make_model()
    monkeypatch.setattr(type(model), "supports_gradient_checkpointing", False)
    with pytest.raises(ValueError, match=r"gradient_checkpointing: Qwen3ForCausalLM can't checkpoint"):
        checkpoint_activations(model)
