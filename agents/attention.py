"""Attention functions of our own in transformers' registry, and models that use one for a while."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface


def register_attention(name: str, function: Callable[..., Any]) -> None:
    """Enter an attention function under a name; transformers makes no mask for it."""
    AttentionInterface.register(name, function)
    AttentionMaskInterface.register(name, no_mask)


def no_mask(*_: object, **__: object) -> None:
    """Who sees whom comes by an argument of the forward."""


@contextmanager
def attending_by(name: str, config: Any) -> Generator[None]:
    """Have the layers of a model with this config use the attention of this name; the one before comes back."""
    before = config._attn_implementation
    try:
        config._attn_implementation = name
        yield
    finally:
        config._attn_implementation = before
