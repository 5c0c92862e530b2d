"""Whether a vLLM server samples what is trained, as far as its settings tell."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from forkgym.agents.vllm.server_protocol import PROTOCOL, WORKER_EXTENSION
from forkgym.agents.vllm.vllm_client import ServerDescription

# What makes two models of one kind differ; other fields of a config say how it is trained, saved or used.
SHAPE_FIELDS = (
    "model_type",
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "tie_word_embeddings",
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """What training asks of a server.

    Attributes:
        model: The fields of the trained model's config.
        tokenizer: See `vocabulary.vocabulary_hash`.
        dtype: Of the trained weights, such as ``float32``.
        num_logprobs: Most likely tokens whose log-probs are asked for.
        nccl: Whether weights are sent by NCCL.
    """

    model: Mapping[str, Any]
    tokenizer: str
    dtype: str
    num_logprobs: int
    nccl: bool


def why_unusable(found: ServerDescription, wanted: Wanted) -> str | None:
    """Say what has to change about a server; None where nothing has to."""
    if found.protocol != PROTOCOL:
        return f"it runs forkgym {found.forkgym} with protocol {found.protocol}, expected protocol {PROTOCOL}"
    different = [name for name in SHAPE_FIELDS if found.model.get(name) != wanted.model.get(name)]
    if different:
        name = different[0]
        return (
            f"it serves another model: {name} is {found.model.get(name)!r}, and that of the trained one is "
            f"{wanted.model.get(name)!r}"
        )
    if found.tokenizer not in (None, wanted.tokenizer):
        return "its tokenizer numbers tokens otherwise than the trainer's"
    return wrong_setting(found, wanted)


def wrong_setting(found: ServerDescription, wanted: Wanted) -> str | None:
    """Say which of a server's settings has to be another; None where none has to."""
    flags: list[tuple[str, object, object, bool]] = [
        (
            "--worker-extension-cls",
            found.worker_extension,
            WORKER_EXTENSION,
            found.worker_extension == WORKER_EXTENSION,
        ),
        ("--dtype", found.dtype, wanted.dtype, found.dtype == wanted.dtype),
        # Raw log-probs are not those of the distribution that is sampled from.
        ("--logprobs-mode", found.logprobs_mode, "processed_logprobs", found.logprobs_mode == "processed_logprobs"),
        (
            "--max-logprobs",
            found.max_logprobs,
            f"{wanted.num_logprobs} or more",
            found.max_logprobs == -1 or found.max_logprobs >= wanted.num_logprobs,
        ),
        ("--logits-processors", found.logits_processors, "none", not found.logits_processors),
        # On a CPU vLLM fails where it fills the cache of a seeded request in pieces.
        ("--enable-chunked-prefill", "on", "off on a CPU", not (found.chunked_prefill and found.device == "cpu")),
        ("--weight-transfer-config", found.weight_transfer, "nccl", found.weight_transfer == "nccl" or not wanted.nccl),
    ]
    for flag, value, expected, right in flags:
        if not right:
            return f"it was started with another {flag}: {value}, expected {expected}"
    return None
