"""Models and tokenizers from the package, a folder or the Hugging Face hub."""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

EMBEDDED = "embedded"  # names the policy that is shipped with the package
# What transformers raises for a folder or name that holds nothing, half of what is needed, or broken files.
UNUSABLE = (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError, StrictDataclassError)


def quiet_libraries() -> None:
    """Let loading print nothing but our own errors: no progress bars, no reports of retries; for programs."""
    import datasets
    import huggingface_hub.utils.logging
    import transformers.utils.logging

    transformers.utils.logging.disable_progress_bar()
    huggingface_hub.utils.logging.set_verbosity(logging.CRITICAL)
    datasets.disable_progress_bars()
    datasets.logging.set_verbosity(logging.CRITICAL)


def model_location(name_or_path: str) -> str:
    """The folder of the embedded policy for its name; anything else as it is."""
    if name_or_path == EMBEDDED:
        return str(Path(str(resources.files("forkgym.agents"))) / "embedded")
    return name_or_path


def load_model(name_or_path: str, dtype: torch.dtype) -> PreTrainedModel:
    """Load a causal LM.

    Args:
        name_or_path: ``embedded``, a folder with a config and weights, or a name on the hub.
        dtype: Of the weights.

    Raises:
        ValueError: Nothing there is a causal LM.
    """
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_location(name_or_path), dtype=dtype, output_loading_info=True
        )
    except UNUSABLE as error:
        raise ValueError(unusable("model", name_or_path, error)) from error
    model: PreTrainedModel = loaded[0]
    # transformers would go on with random weights in their place.
    missing = sorted(loaded[1]["missing_keys"])
    if missing:
        raise ValueError(
            f"model {name_or_path!r}: {len(missing)} weights are missing, {missing[0]} for one; expected all"
        )
    return model


def load_tokenizer(name_or_path: str) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a causal LM and check it.

    Args:
        name_or_path: ``embedded``, a folder with a tokenizer, or a name on the hub.

    Raises:
        ValueError: Nothing there is a tokenizer, or `check_tokenizer` refuses it.
    """
    try:
        tokenizer = cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(model_location(name_or_path)))
    except UNUSABLE as error:
        raise ValueError(unusable("tokenizer", name_or_path, error)) from error
    check_tokenizer(tokenizer, name_or_path)
    return tokenizer


def check_tokenizer(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse a tokenizer without an end or a padding token.

    Raises:
        ValueError: One is missing; the message says which of ``name``'s settings to add.
    """
    for setting, token in (("eos_token", tokenizer.eos_token_id), ("pad_token", tokenizer.pad_token_id)):
        if token is None:
            raise ValueError(f"tokenizer {name!r} has no {setting}, expected one: set it in its tokenizer_config.json")


def unusable(what: str, name: str, error: Exception) -> str:
    """One line: what could not be loaded, what was expected, and the first line of why."""
    reason = str(error).strip().partition("\n")[0]
    return (
        f"{what} {name!r}: expected {EMBEDDED!r}, a folder that holds one, or a name on the Hugging Face hub ({reason})"
    )
