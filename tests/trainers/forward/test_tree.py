"""The forward over trees gives the padded batch's log-probs and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AttentionInterface,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedModel,
)

from forkgym.trainers.forward import pieces, tree_attention
from forkgym.trainers.forward.measures import Entropies, ForwardSettings, Measures
from tests.trainers.forward.small_rows import (
    SIZES,
    Tokens,
    gradients,
    largest_gap,
    llama,
    measure,
    mistral,
    mixed,
    paper_rows,
    qwen2,
    qwen3,
    random_rows,
    row,
)

MODELS = [qwen3, qwen2, llama, mistral, mixed]


def linear_loss(measures: Measures) -> torch.Tensor:
    """Weights of both signs for log-probs and entropies."""
    shape = measures.logprobs_BT.shape
    weights_BT = torch.randn(shape, generator=torch.Generator().manual_seed(3))
    assert measures.entropies_BT is not None
    terms_BT = weights_BT * measures.logprobs_BT + weights_BT.flip(0) * measures.entropies_BT
    return terms_BT.sum() / (measures.logprobs_BT != 0).sum()


def clipped_loss(measures: Measures) -> torch.Tensor:
    """PPO's, with old log-probs around the new ones, so that some tokens of shared turns are clipped in some rows."""
    logprobs_BT = measures.logprobs_BT
    generator = torch.Generator().manual_seed(4)
    noise_BT, advantages_BT = torch.randn((2, *logprobs_BT.shape), generator=generator)
    ratios_BT = (logprobs_BT - logprobs_BT.detach() + 0.3 * noise_BT).exp()
    clipped_BT = ratios_BT.clamp(0.8, 1.2)
    assert (clipped_BT != ratios_BT).any()
    terms_BT = torch.minimum(ratios_BT * advantages_BT, clipped_BT * advantages_BT)
    return terms_BT[logprobs_BT != 0].mean()


@pytest.mark.parametrize("loss", [linear_loss, clipped_loss])
@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("seed", range(2))
def test_gradients_are_those_of_the_padded_batch(
    make: Callable[[int], PreTrainedModel], loss: Callable[[Measures], torch.Tensor], seed: int
) -> None:
    model, rows = make(seed), random_rows(seed)
    settings = ForwardSettings(0.9, Entropies.WITH_GRADIENT)
    padded, tree = (measure(name, model, rows, settings) for name in ("padded", "tree"))
    assert padded.entropies_BT is not None
    assert tree.entropies_BT is not None
    assert largest_gap([tree.logprobs_BT, tree.entropies_BT], [padded.logprobs_BT, padded.entropies_BT]) < 1e-5
    expected, found = (gradients(model, loss(measures)) for measures in (padded, tree))
    assert max(gradient.abs().max().item() for gradient in expected) > 0.01
    assert largest_gap(found, expected) < 1e-5


@pytest.mark.parametrize("make", [qwen3, mixed])
def test_with_gradient_checkpointing_too(
    make: Callable[[int], PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    # The layers run again in the backward pass, when the model's own attention is back in place.
    model, rows = make(0), random_rows(0)
    expected = gradients(model, measure("padded", model, rows).logprobs_BT.mean())
    measure("tree", model, rows)
    model.activation_checkpointing_enable()
    model.train()
    monkeypatch.setattr(tree_attention, "TreeAttention", CountedAttention)
    CountedAttention.calls = 0
    logprobs_BT = measure("tree", model, rows).logprobs_BT
    assert CountedAttention.calls == 3
    assert model.config._attn_implementation == "sdpa"
    found = gradients(model, logprobs_BT.mean())
    assert CountedAttention.calls == 6
    assert model.config._attn_implementation == "sdpa"
    assert largest_gap(found, expected) < 1e-5


class CountedAttention:
    """Counts how often a layer computed attention."""

    calls = 0
    own: Any = tree_attention.TreeAttention

    @classmethod
    def apply(cls, *arguments: Any) -> Any:
        cls.calls += 1
        return cls.own.apply(*arguments)


def test_long_windows_in_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    # Windows longer than a block of queries: keys that all, some and none of a block see.
    monkeypatch.setattr(pieces, "WINDOW_BLOCK", 3)
    model, rows = mistral(1, window=10), random_rows(1)
    padded, tree = (measure(name, model, rows).logprobs_BT for name in ("padded", "tree"))
    assert largest_gap([tree], [padded]) < 1e-5
    assert largest_gap(gradients(model, tree.mean()), gradients(model, padded.mean())) < 1e-5


def test_a_single_row_and_rows_without_a_turn() -> None:
    model = qwen3()
    for rows in ([row([1, 2], ([3, 4], []))], [row([1, 2]), row([1, 2], ([3], []))], [row([5]), row([5])]):
        padded, tree = (measure(name, model, rows).logprobs_BT for name in ("padded", "tree"))
        assert largest_gap([tree], [padded]) < 1e-5


def test_each_unique_token_that_a_log_prob_needs_is_computed_once() -> None:
    model, seen = qwen3(), list[int]()
    rows = paper_rows()
    measure("tree", model, rows)  # the check of the model is over
    hook = model.get_input_embeddings().register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].numel()))
    measure("tree", model, rows)
    measure("padded", model, rows)
    hook.remove()
    assert seen == [6, 16]  # 1 2 3 5 9 8, as the last token of each row predicts nothing


def test_values_flow_back_into_the_model() -> None:
    model, rows = qwen3(), random_rows(2)
    torch.manual_seed(5)
    settings = ForwardSettings(value_head=torch.nn.Linear(32, 1))
    padded, tree = (measure(name, model, rows, settings).values_BT for name in ("padded", "tree"))
    assert padded is not None
    assert tree is not None
    assert largest_gap([tree], [padded]) < 1e-5
    assert largest_gap(gradients(model, tree.pow(2).mean()), gradients(model, padded.pow(2).mean())) < 1e-5


def test_bfloat16_is_as_near_the_exact_log_probs_as_the_padded_batch() -> None:
    model, rows = qwen3(), random_rows(3)
    exact = measure("padded", model, rows).logprobs_BT
    rounded = model.bfloat16()
    padded, tree = (measure(name, rounded, rows).logprobs_BT for name in ("padded", "tree"))
    assert tree.dtype == torch.float32
    assert (tree - exact).abs().mean() < 1.2 * (padded - exact).abs().mean()
    assert all(gradient.isfinite().all() for gradient in gradients(rounded, tree.mean()))


def test_under_autocast_it_is_as_near_the_exact_log_probs_as_the_padded_batch() -> None:
    model, rows = qwen3(), random_rows(3)
    exact = measure("padded", model, rows).logprobs_BT
    with torch.autocast("cpu", torch.bfloat16):
        padded, tree = (measure(name, model, rows).logprobs_BT for name in ("padded", "tree"))
    assert (padded - exact).abs().mean() > 1e-3
    assert (tree - exact).abs().mean() < 1.2 * (padded - exact).abs().mean()
    expected, found = (gradients(model, logprobs_BT.mean()) for logprobs_BT in (padded, tree))
    assert largest_gap(found, expected) < 0.2 * max(gradient.abs().max().item() for gradient in expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # which PEFT asks for
def test_peft_models_train_their_adapters() -> None:
    rows = random_rows(4)
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    model = get_peft_model(qwen3(), config)
    model.eval()
    adapters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    losses = [measure(name, model, rows).logprobs_BT.mean() for name in ("padded", "tree")]
    found = [torch.autograd.grad(loss, adapters) for loss in losses]
    assert max(gradient.abs().max().item() for gradient in found[0]) > 1e-3
    assert largest_gap(found[1], found[0]) < 1e-5


def test_the_models_own_attention_comes_back_after_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    model = qwen3()
    rows = paper_rows()
    measure("tree", model, rows)

    def broken(*_: Any, **__: Any) -> Any:
        raise RuntimeError("broken")

    monkeypatch.setattr(tree_attention, "kernel_for", broken)
    with pytest.raises(RuntimeError, match="broken"):
        measure("tree", model, rows)
    assert model.config._attn_implementation == "sdpa"


def test_models_with_attention_of_their_own_are_refused() -> None:
    # Soft-capped scores come as an argument of the attention function.
    config = Gemma2Config(**SIZES, attn_logit_softcapping=5.0, layer_types=["full_attention"] * 3)
    gemma = Gemma2ForCausalLM(config).eval()
    with pytest.raises(ValueError, match="attention with softcap.*use the padded forward"):
        measure("tree", gemma, paper_rows())
    model: Any = qwen3()
    measure("padded", model, paper_rows())
    model.config.layer_types = ["full_attention", "linear_attention", "full_attention"]
    with pytest.raises(ValueError, match="layers of linear_attention.*use the padded forward"):
        measure("tree", model, paper_rows())


def test_layers_that_do_not_ask_the_interface_are_found() -> None:
    model: Any = qwen3()
    layer = model.model.layers[1].self_attn

    def own_attention(hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return hidden_states, None

    layer.forward = own_attention
    with pytest.raises(ValueError, match="2 of the 3 layers of Qwen3Model.*use the padded forward"):
        measure("tree", model, paper_rows())


def test_states_that_depend_on_more_than_the_path_are_found() -> None:
    model: Any = qwen3()
    layer = model.model.layers[1].mlp
    own = layer.forward

    def mixing(hidden: torch.Tensor) -> torch.Tensor:
        mixed_in: torch.Tensor = own(hidden) + hidden.cumsum(1)  # mixes in what stands before in the row
        return mixed_in

    layer.forward = mixing
    with pytest.raises(ValueError, match="on a small tree differ by .* use the padded forward"):
        measure("tree", model, paper_rows())


def test_positions_that_are_learned_are_taken_from_the_path() -> None:
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=50, n_embd=32, n_layer=2, n_head=4, n_positions=64, attn_pdrop=0.0)
    model = GPT2LMHeadModel(config).eval()
    rows = random_rows(0, depth=2)
    padded, tree = (measure(name, model, rows).logprobs_BT for name in ("padded", "tree"))
    assert largest_gap([tree], [padded]) < 1e-5


def test_dropout_in_attention_is_refused() -> None:
    model = qwen3()
    layers: list[Any] = [*model.model.layers]
    for layer in layers:
        layer.self_attn.attention_dropout = 0.1
    measure("padded", model, paper_rows())
    model.train()
    with pytest.raises(ValueError, match="attention with dropout"):
        measure("tree", model, paper_rows())


def test_the_attention_is_registered_by_name() -> None:
    assert tree_attention.TREE in AttentionInterface()


def test_rows_are_checked() -> None:
    with pytest.raises(ValueError, match="no prompt"):
        measure("tree", qwen3(), [Tokens((1,), (True,), ())])
