"""Rows, forests and models small enough for tests."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from forkgym.trainers.forward.forwards import FORWARDS
from forkgym.trainers.forward.measures import ForwardSettings, Measures

VOCABULARY = 50
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,  # so that a token's attention matters
}


@dataclass(frozen=True, slots=True)
class Tokens:
    """One row."""

    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    starts: tuple[int, ...]


def row(prompt: Sequence[int], *turns: tuple[Sequence[int], Sequence[int]]) -> Tokens:
    """A prompt, then turns, each of sampled tokens and the reply to them."""
    tokens, mask, starts = tuple(prompt), (False,) * len(prompt), list[int]()
    for sampled, reply in turns:
        starts.append(len(tokens))
        tokens += (*sampled, *reply)
        mask += (True,) * len(sampled) + (False,) * len(reply)
    return Tokens(tokens, mask, tuple(starts))


def paper_rows() -> list[Tokens]:
    """Three leaves below two first turns, as in `Forest`, and a tree of its own.

    1 2 ─┬─ 3 ─── 4          9 ─── 8 7
         └─ 5 ─┬─ 6
               └─ 7
    """
    return [
        row([1, 2], ([3], []), ([4], [])),
        row([1, 2], ([5], []), ([6], [])),
        row([9], ([8, 7], [])),
        row([1, 2], ([5], []), ([7], [])),
    ]


def random_rows(seed: int, *, depth: int = 4, trees: int = 2) -> list[Tokens]:
    """Ragged trees whose branches end at several depths, in no order."""
    rng = random.Random(seed)
    rows = list[Tokens]()

    def draw(least: int, most: int) -> list[int]:
        return [rng.randrange(VOCABULARY) for _ in range(rng.randint(least, most))]

    def grow(prompt: list[int], turns: list[tuple[list[int], list[int]]], left: int) -> None:
        if left == 0 or (turns and rng.random() < 0.15):
            rows.append(row(prompt, *turns))
            return
        for _ in range(rng.choice([1, 2, 3])):
            grow(prompt, [*turns, (draw(1, 9), draw(0, 4))], left - 1)

    for _ in range(trees):
        grow(draw(1, 12), [], depth)
    rng.shuffle(rows)
    return rows


def qwen3(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return ready(Qwen3ForCausalLM(Qwen3Config(**SIZES)))


def qwen2(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return ready(Qwen2ForCausalLM(Qwen2Config(**without_head_size())))


def llama(seed: int = 0) -> PreTrainedModel:
    torch.manual_seed(seed)
    return ready(LlamaForCausalLM(LlamaConfig(**SIZES)))


def mistral(seed: int = 0, *, window: int = 7) -> PreTrainedModel:
    """All layers see the last ``window`` tokens."""
    torch.manual_seed(seed)
    return ready(MistralForCausalLM(MistralConfig(**SIZES, sliding_window=window)))


def mixed(seed: int = 0) -> PreTrainedModel:
    """A Qwen2 whose first layer sees all and whose others see the last 5 tokens."""
    torch.manual_seed(seed)
    config = Qwen2Config(**without_head_size(), use_sliding_window=True, sliding_window=5, max_window_layers=1)
    assert config.layer_types == ["full_attention", "sliding_attention", "sliding_attention"]
    return ready(Qwen2ForCausalLM(config))


def without_head_size() -> dict[str, Any]:
    return {name: size for name, size in SIZES.items() if name != "head_dim"}


def ready(model: PreTrainedModel) -> PreTrainedModel:
    model.eval()
    return model


def measure(
    name: str, model: torch.nn.Module, rows: Sequence[Tokens], settings: ForwardSettings | None = None
) -> Measures:
    return FORWARDS[name](model, rows, settings or ForwardSettings(), 0)


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> list[torch.Tensor]:
    """The gradient of each parameter, 0 where there is none."""
    return list(torch.autograd.grad(loss, list(model.parameters()), allow_unused=True, materialize_grads=True))


def largest_gap(ones: Sequence[torch.Tensor], others: Sequence[torch.Tensor]) -> float:
    return max((one - other).abs().max().item() for one, other in zip(ones, others, strict=True))
