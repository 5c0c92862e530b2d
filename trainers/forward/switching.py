"""A model's attention, switched for the time of a call."""

from __future__ import annotations

import functools
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from forkgym.agents.attention import attending_by


@contextmanager
def attention(decoder: PreTrainedModel, name: str) -> Generator[None]:
    """Have a decoder use an attention function of this name; what it had before comes back, on errors too.

    Gradient checkpointing calls the layers again in the backward pass, after this is over: what they are called
    through switches again.
    """
    checkpointed: list[Any] = [
        module for module in decoder.modules() if hasattr(module, "_gradient_checkpointing_func")
    ]
    functions = [module._gradient_checkpointing_func for module in checkpointed]

    def switched(function: Callable[..., Any], *inputs: Any, **arguments: Any) -> Any:
        with attention(decoder, name):
            return function(*inputs, **arguments)

    def checkpoint(original: Callable[..., Any], layer: Callable[..., Any], *inputs: Any, **arguments: Any) -> Any:
        return original(functools.partial(switched, layer), *inputs, **arguments)

    try:
        for module, original in zip(checkpointed, functions, strict=True):
            module._gradient_checkpointing_func = functools.partial(checkpoint, original)
        with attending_by(name, decoder.config):
            yield
    finally:
        for module, original in zip(checkpointed, functions, strict=True):
            module._gradient_checkpointing_func = original
