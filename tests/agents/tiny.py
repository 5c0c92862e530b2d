"""Models and a tokenizer small enough to run in tests, and a driver for agents."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
import transformers
from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from forkgym.agents.base import Agent, Completion, Event, Request

# Two-byte tokens: one that ends with what may end a marker, one that only begins with it, and one of the end's inside.
MERGES = [("<", "/"), ("a", ">"), (">", "b"), ("b", "c")]
END, PAD = "<|end|>", "<|pad|>"

COMMON = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 96,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
# By name: the library's prefix of class names, and what differs from COMMON.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "qwen3-mixed-windows": (
        "Qwen3",
        {"head_dim": 8, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    ),
    "qwen2": ("Qwen2", {}),
    "llama": ("Llama", {}),
    "mistral-window": ("Mistral", {"sliding_window": 6}),
    "gpt2": ("GPT2", {}),
}


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE with four merges, an end and a padding token: 262 tokens."""
    vocabulary = {character: index for index, character in enumerate(sorted(ByteLevel.alphabet()))}
    for left, right in MERGES:
        vocabulary[left + right] = len(vocabulary)
    tokenizer = Tokenizer(BPE(vocabulary, MERGES))
    # Their stubs say Any for these two.
    parts: Any = tokenizer
    parts.pre_tokenizer = ByteLevel(add_prefix_space=False)
    parts.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens([AddedToken(END), AddedToken(PAD)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=PAD)


def make_model(
    family: str = "qwen3", *, vocabulary: int = 262, dtype: torch.dtype = torch.float32, **settings: Any
) -> PreTrainedModel:
    """A model with random weights, large enough for its distributions to be far from uniform."""
    prefix, differences = FAMILIES[family]
    config = getattr(transformers, f"{prefix}Config")(**{**COMMON, "vocab_size": vocabulary, **differences, **settings})
    torch.manual_seed(0)
    suffix = "LMHeadModel" if prefix == "GPT2" else "ForCausalLM"
    made: Any = getattr(transformers, prefix + suffix)(config)
    model = cast(PreTrainedModel, made.to(dtype))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.25)
    model.eval()
    return model


def weight(model: PreTrainedModel, name: str) -> torch.nn.Parameter:
    """A parameter by name."""
    return dict(model.named_parameters())[name]


def drive(agent: Agent, requests: Sequence[Request], limit: int = 1000) -> list[Event]:
    """Submit requests and step until each is completed; returns all events."""
    for request in requests:
        agent.submit(request)
    return finish(agent, {request.uid for request in requests}, limit)


def finish(agent: Agent, uids: set[str], limit: int = 1000) -> list[Event]:
    """Step until each of these requests is completed; returns all events."""
    events: list[Event] = []
    missing = set(uids)
    for _ in range(limit):
        if not missing:
            return events
        events += agent.step()
        missing -= {event.uid for event in events if isinstance(event, Completion)}
    raise AssertionError(f"no completion of {sorted(missing)} after {limit} steps")


def completions(events: Sequence[Event]) -> dict[str, Completion]:
    """The completions among events, by uid."""
    return {event.uid: event for event in events if isinstance(event, Completion)}


def complete(agent: Agent, request: Request) -> Completion:
    """Submit one request and return its completion."""
    return completions(drive(agent, [request]))[request.uid]


def full_measures(
    model: PreTrainedModel, context: tuple[int, ...], sampled: tuple[int, ...], temperature: float = 1.0
) -> tuple[list[float], list[float]]:
    """Log-probs and entropies of ``sampled`` by one forward over the whole sequence, without a cache."""
    ids = torch.tensor([context + sampled])
    with torch.no_grad():
        output: Any = model(input_ids=ids, use_cache=False)
    logits = output.logits[0, len(context) - 1 : -1].double() / temperature
    log_p = torch.log_softmax(logits, dim=-1)
    entropies = torch.distributions.Categorical(logits=logits).entropy()
    chosen = log_p[torch.arange(len(sampled)), torch.tensor(sampled, dtype=torch.int64)]
    return [float(value) for value in chosen], [float(value) for value in entropies]
