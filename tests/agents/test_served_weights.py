"""The weights that an engine gets are those of the plain model, with the adapters merged into copies."""

from __future__ import annotations

import copy
from typing import Any, cast

import pytest
import torch
from transformers import PreTrainedModel

from forkgym.agents.served_weights import served_shapes, served_weights
from tests.agents.tiny import make_model

peft = pytest.importorskip("peft")
# peft's wrapper asks transformers by an old name.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")

ATTENTION_AND_MLP = ["q_proj", "v_proj", "o_proj", "up_proj", "down_proj"]


def randomise(model: torch.nn.Module) -> None:
    """Give adapters, whose B is zero at first, values that matter."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)


def with_lora(model: PreTrainedModel, **settings: Any) -> torch.nn.Module:
    config = peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": "all-linear", **settings})
    wrapped = cast(torch.nn.Module, peft.get_peft_model(model, config))
    randomise(wrapped)
    return wrapped.eval()


def merged_by_peft(model: Any) -> dict[str, torch.Tensor]:
    plain = copy.deepcopy(model).merge_and_unload()
    return dict(plain.named_parameters())


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("tied", [True, False])
def test_a_plain_models_are_its_own_parameters(tied: bool) -> None:
    model = make_model(tie_word_embeddings=tied)
    found = served_weights(model)
    assert [name for name, _ in found] == [name for name, _ in model.named_parameters()]
    assert ("lm_head.weight" in dict(found)) is not tied
    for (_, weight), parameter in zip(found, model.parameters(), strict=True):
        assert weight.data_ptr() == parameter.data_ptr()
        assert not weight.requires_grad


@pytest.mark.parametrize("family", ["qwen3", "qwen2", "llama"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("settings", [{}, {"target_modules": ATTENTION_AND_MLP}, {"use_rslora": True}])
def test_adapters_are_merged_as_peft_merges_them(family: str, tied: bool, settings: dict[str, Any]) -> None:
    model = with_lora(make_model(family, tie_word_embeddings=tied), **settings)
    expected = merged_by_peft(model)
    before = state(model)
    for _ in range(3):  # the base is not written to, so that the third time gives what the first gave
        found = dict(served_weights(model))
        assert list(found) == list(expected)
        for name, weight in found.items():
            assert torch.equal(weight, expected[name]), name
            assert not weight.requires_grad
    assert served_shapes(model) == {name: tuple(weight.shape) for name, weight in expected.items()}
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_weight_by_hand() -> None:
    # W = 0, B = [1, 2]^T, A = [3, 4], scaling = alpha / r = 2: B A = [[3, 4], [6, 8]], merged [[6, 8], [12, 16]].
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
    peft.inject_adapter_in_model(peft.LoraConfig(r=1, lora_alpha=2, target_modules=["0"]), model)
    layer: Any = model[0]
    with torch.no_grad():
        layer.base_layer.weight.zero_()
        layer.lora_A["default"].weight.copy_(torch.tensor([[3.0, 4.0]]))
        layer.lora_B["default"].weight.copy_(torch.tensor([[1.0], [2.0]]))
    ((name, weight),) = served_weights(model)
    assert name == "0.weight"
    assert weight.tolist() == [[6.0, 8.0], [12.0, 16.0]]


def test_injected_adapters_keep_the_plain_names() -> None:
    model = make_model("qwen2")
    names = [name for name, _ in model.named_parameters()]
    peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules="all-linear"), model)
    assert [name for name, _ in served_weights(model)] == names  # qwen2's biases below adapters included


def test_the_merged_weights_compute_what_the_adapters_do() -> None:
    model: Any = with_lora(make_model("qwen2"))
    plain: Any = make_model("qwen2")
    plain.load_state_dict(dict(served_weights(model)), strict=False)
    ids = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.allclose(model(input_ids=ids).logits, plain(input_ids=ids).logits, atol=1e-4)
        with model.disable_adapter():  # then it is the base
            base = dict(served_weights(model))
    assert torch.equal(
        base["model.layers.0.mlp.up_proj.weight"],
        dict(make_model("qwen2").named_parameters())["model.layers.0.mlp.up_proj.weight"],
    )


def test_half_precision_is_rounded_once() -> None:
    # 256 + 0.75 + 0.75 in bfloat16, whose neighbours there are 256 and 258: added one after the other and rounded each
    # time it stays at 256, and rounded once it is 258.
    model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False))
    config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"])
    wrapped: Any = peft.get_peft_model(model, config, adapter_name="one")
    wrapped.add_adapter("two", config)
    wrapped.base_model.set_adapter(["one", "two"])
    layer = wrapped.base_model.model[0]
    with torch.no_grad():
        layer.base_layer.weight.fill_(256.0)
        for adapter in ("one", "two"):
            layer.lora_A[adapter].weight.fill_(0.75)
            layer.lora_B[adapter].weight.fill_(1.0)
    layer.base_layer.to(torch.bfloat16)
    ((_, weight),) = served_weights(wrapped)
    assert weight.dtype == torch.bfloat16
    assert weight.item() == 258.0


def test_what_cannot_be_merged_is_refused() -> None:
    with pytest.raises(ValueError, match="variant of LoRA such as DoRA"):
        served_weights(with_lora(make_model(), use_dora=True))
    with pytest.raises(ValueError, match="its adapter has a bias"):
        served_weights(with_lora(make_model("qwen2"), target_modules=["q_proj"], lora_bias=True))
    with pytest.raises(ValueError, match="ModulesToSaveWrapper, expected adapters of LoRA alone"):
        served_weights(with_lora(make_model(tie_word_embeddings=False), modules_to_save=["lm_head"]))
    merged: Any = with_lora(make_model())
    merged.merge_adapter()
    with pytest.raises(ValueError, match="merged into it"):
        served_weights(merged)
    ia3 = peft.get_peft_model(make_model(), peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[]))
    with pytest.raises(ValueError, match="expected adapters of LoRA alone"):
        served_weights(ia3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of peft, about this very thing
def test_an_adapter_on_tied_embeddings_is_refused() -> None:
    with pytest.raises(ValueError, match=r"embed_tokens\.base_layer\.weight has an adapter and is tied"):
        served_weights(with_lora(make_model(tie_word_embeddings=True), target_modules=["embed_tokens"]))
