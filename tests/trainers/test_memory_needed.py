"""The account of a run's memory: against numbers by hand, published sizes, and what a layer really keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, Qwen2Config, Qwen3Config

from forkgym.agents.config import AgentConfig, LoraConfig, VllmConfig
from forkgym.agents.lora import add_adapters
from forkgym.trainers.config import RolloutConfig, TrainerConfig
from forkgym.trainers.memory_needed import (
    GIB,
    ModelSizes,
    Need,
    account,
    cached_sequences,
    engine_needs,
    sizes_of,
    state_needs,
    step_needs,
    total,
)

# A model of 2 GiB in bfloat16, with round numbers.
ROUND = ModelSizes(
    parameters=2**30,
    output=2**27,
    ends=2**20,
    layers=31,
    hidden=1024,
    inner=4096,
    queries=1024,
    keys=256,
    norms_heads=False,
)


SIZES: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 2,
    "vocab_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}
QWEN2, QWEN3 = Qwen2Config(**SIZES), Qwen3Config(**SIZES, head_dim=64)


def test_states_by_hand() -> None:
    # 2^30 numbers: 2 GiB in bfloat16 and 4 GiB in float32; two moments are 8.
    assert [need.gib for need in state_needs(ROUND, 0)] == [2.0, 4.0, 4.0, 8.0]
    # Adapters of rank 256 have 256 x 2^20 = 2^28 numbers: 1 GiB in float32.
    assert [need.gib for need in state_needs(ROUND, 256)] == [2.0, 1.0, 1.0, 2.0]


def test_a_step_by_hand() -> None:
    # A layer keeps, of one token: 2 norms x 8 bytes x 1024, 2 bytes x 2 x (1024 + 256), 8 bytes x 4096.
    assert ROUND.token_layer_bytes == 16384 + 5120 + 32768
    assert replace(ROUND, norms_heads=True).token_layer_bytes == ROUND.token_layer_bytes + 6 * (1024 + 256)
    inputs, layer, logits, output = step_needs(ROUND, 0, 2**14)
    assert inputs.gib == 32 * 2**14 * 2**10 * 2 / GIB == 1.0
    assert layer.gib == 2**14 * (54272 + 3 * 2 * 4096) / GIB
    assert logits.gib == 3 * 2**24 * 4 / GIB
    assert output.gib == 0.5
    assert len(step_needs(ROUND, 8, 2**14)) == 3


def test_keys_and_values_by_hand() -> None:
    # 2 x 31 layers x 256 x 2 bytes is 31 KiB a token; of 0.5 x 20 GiB the weights and 3 GiB leave 5.
    agent = AgentConfig(kind="vllm", vllm=VllmConfig(memory_fraction=0.5))
    needs = engine_needs(ROUND, agent, 20.0)
    assert [need.gib for need in needs] == [2.0, 3.0, 5.0]
    assert needs[2].name == "keys and values, 31 KiB a token"
    # 5 GiB / (31 KiB x 1024 tokens) = 165.16
    assert cached_sequences(ROUND, needs, RolloutConfig(max_total_tokens=1024)) == 165
    with pytest.raises(ValueError, match=r"memory_fraction is 0\.5 of 9 GiB, expected more than 5\.0 GiB for weights"):
        engine_needs(ROUND, agent, 9.0)


def test_adapters_are_counted_as_peft_makes_them() -> None:
    pytest.importorskip("peft")
    model: Any = cast(Any, AutoModelForCausalLM).from_config(QWEN3)
    assert sizes_of(QWEN3).parameters == sum(parameter.numel() for parameter in model.parameters())
    add_adapters(model, LoraConfig(rank=3))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert sizes_of(QWEN3).ends * 3 == trained


@pytest.mark.parametrize("config", [QWEN2, QWEN3], ids=["qwen2", "qwen3"])
def test_what_a_layer_keeps_is_what_it_really_keeps(config: PreTrainedConfig) -> None:
    model: Any = cast(Any, AutoModelForCausalLM).from_config(config).to(torch.bfloat16).eval()
    count = 512
    states = torch.randn(1, count, 256, dtype=torch.bfloat16, requires_grad=True)
    rotations = model.model.rotary_emb(states, torch.arange(count)[None])
    others = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *rotations)}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in others:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        output = model.model.layers[0](states, position_embeddings=rotations, attention_mask=None)
    # A few numbers of each token, such as the norms, are left out.
    assert sum(kept.values()) / count == pytest.approx(sizes_of(config).token_layer_bytes, rel=0.01)
    assert output is not None


def test_an_account_adds_up_and_refuses_what_does_not_fit() -> None:
    agent = AgentConfig(kind="vllm", dtype="bfloat16", vllm=VllmConfig(memory_fraction=0.5))
    trainer = TrainerConfig(micro_batch_tokens=2**14, gradient_checkpointing=True)
    rollout = RolloutConfig(max_total_tokens=1024)
    # Of 48 GiB the engine has 24: 19 for keys and values, at 31 MiB a sequence. Weights, copies, gradients and moments
    # are 2 + 4 + 4 + 8 = 18, libraries 3.
    text = account(ROUND, agent, rollout, trainer, 48.0)
    step = total(step_needs(ROUND, 0, 2**14))
    training, sampling = text.splitlines()[-2:]
    assert training.split() == ["training,", "vLLM", "asleep", f"{18 + step + 3:.1f}"]
    assert sampling.split() == ["sampling,", "no", "activations", "45.0"]
    assert "which is 627 sequences of 1,024 tokens; agent.slots is 128" in text
    with pytest.raises(ValueError, match=r"sampling needs 41\.0 GiB, expected at most the GPU's 40"):
        account(ROUND, agent, rollout, trainer, 40.0)


def test_the_sum() -> None:
    assert total([Need("a", 1.5), Need("b", 2.0)]) == 3.5
