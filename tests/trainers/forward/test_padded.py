"""The padded forward against the model's own logits, and the models that no forward takes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    PreTrainedModel,
)

from forkgym.trainers.forward.measures import Entropies, ForwardSettings
from tests.trainers.forward.small_rows import (
    SIZES,
    VOCABULARY,
    gradients,
    largest_gap,
    measure,
    paper_rows,
    qwen3,
    random_rows,
    ready,
    without_head_size,
)


def cohere() -> PreTrainedModel:
    return ready(CohereForCausalLM(CohereConfig(**without_head_size(), logit_scale=0.3)))


def granite() -> PreTrainedModel:
    return ready(GraniteForCausalLM(GraniteConfig(**without_head_size(), logits_scaling=4.0)))


def gemma2() -> PreTrainedModel:
    return ready(Gemma2ForCausalLM(Gemma2Config(**SIZES, final_logit_softcapping=1.5)))


def gpt2() -> PreTrainedModel:
    return ready(GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)))


@pytest.mark.parametrize("make", [qwen3, cohere, granite, gemma2, gpt2])
def test_measures_are_those_of_the_models_own_logits(make: Any) -> None:
    torch.manual_seed(0)
    model, rows, temperature = make(), random_rows(0, depth=2), 0.8
    settings = ForwardSettings(temperature, Entropies.WITH_GRADIENT)
    measures = measure("padded", model, rows, settings)
    assert measures.entropies_BT is not None
    expected = torch.zeros(())
    for number, row in enumerate(rows):
        logs_TV = (model(input_ids=torch.tensor([row.tokens])).logits[0] / temperature).log_softmax(-1)
        for place in range(measures.logprobs_BT.shape[1]):
            found = (measures.logprobs_BT[number, place], measures.entropies_BT[number, place])
            if place < len(row.tokens) and row.loss_mask[place]:
                before_V = logs_TV[place - 1]
                logprob, entropy = before_V[row.tokens[place]], -(before_V.exp() * before_V).sum()
                torch.testing.assert_close(found, (logprob, entropy), atol=1e-5, rtol=1e-5)
                expected = expected + logprob - 0.5 * entropy
            else:
                assert [number.item() for number in found] == [0.0, 0.0]
    loss = measures.logprobs_BT.sum() - 0.5 * measures.entropies_BT.sum()
    scale = expected.abs().item()
    assert largest_gap(gradients(model, loss / scale), gradients(model, expected / scale)) < 1e-5


def test_a_prompt_learner_is_refused() -> None:
    class PromptConfig:
        is_prompt_learning = True

    model: Any = qwen3()
    model.active_peft_config = PromptConfig()
    with pytest.raises(ValueError, match="PromptConfig puts a learned prompt"):
        measure("padded", model, paper_rows())


def test_what_is_no_model_of_transformers_is_refused() -> None:
    with pytest.raises(ValueError, match="the model is a Linear"):
        measure("padded", torch.nn.Linear(1, 1), paper_rows())


def test_another_output_embedding_is_refused() -> None:
    class Adapted(torch.nn.Linear):
        pass

    model: Any = qwen3()
    model.lm_head = Adapted(32, VOCABULARY)
    with pytest.raises(ValueError, match="the output embedding is a Adapted"):
        measure("padded", model, paper_rows())


def test_logits_that_are_something_else_are_refused() -> None:
    model: Any = qwen3()
    own = model.forward

    def twice(**inputs: Any) -> Any:
        output = own(**inputs)
        output.logits = output.logits * 2
        return output

    model.forward = twice
    with pytest.raises(ValueError, match="logits of Qwen3ForCausalLM differ"):
        measure("padded", model, paper_rows())
