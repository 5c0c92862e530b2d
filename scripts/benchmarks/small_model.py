"""The model that benchmarks measure with where no trained one is needed, and a tokenizer for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Of a Qwen3: 3.4 M parameters.
SMALL_MODEL: dict[str, Any] = {
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": True,
}


def random_model() -> PreTrainedModel:
    """A Qwen3 of 3.4 M parameters with random weights, the same each time: hidden size 256, 4 layers."""
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(Qwen3Config(**SMALL_MODEL))
    model.eval()
    return model


def endless_tokenizer(vocabulary_size: int) -> PreTrainedTokenizerFast:
    """One word a token, and an end token that is never sampled, so that lengths are what the work says."""
    vocabulary = {f"w{index}": index for index in range(vocabulary_size)} | {"<end>": vocabulary_size}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))  # noqa: S106
    tokenizer.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="w0")  # noqa: S106
