"""Text to tokens and back, in the one place where it happens.

Policy tokens are decoded for the environment and never encoded again; a prompt and an observation are encoded once,
when they arrive.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from jinja2 import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Codec(Protocol):
    """What rollouts need of a tokenizer."""

    def encode_prompt(self, instructions: str, question: str) -> tuple[int, ...]:
        """The context before the first turn."""
        ...

    def encode_observation(self, text: str, markers: tuple[str, ...]) -> tuple[int, ...]:
        """An environment's reply; only ``markers`` may become control tokens."""
        ...

    def encode_turn(self, text: str) -> tuple[int, ...]:
        """A turn that was written, not sampled (demonstrations); the end token is not added."""
        ...

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text of sampled tokens."""
        ...


class ByteCodec:
    """UTF-8 bytes as tokens: for agents that need no model."""

    def encode_prompt(self, instructions: str, question: str) -> tuple[int, ...]:
        """Both texts, a blank line between."""
        return self.encode_turn(f"{instructions}\n\n{question}\n")

    def encode_observation(self, text: str, markers: tuple[str, ...]) -> tuple[int, ...]:
        """The text; there are no control tokens."""
        del markers
        return self.encode_turn(text)

    def encode_turn(self, text: str) -> tuple[int, ...]:
        """The text; a lone surrogate becomes a question mark."""
        return tuple(text.encode("utf-8", errors="replace"))

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text; a broken sequence becomes U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")


class TokenizerCodec:
    """A Hugging Face tokenizer.

    A prompt goes through the chat template, where there is one, with the instructions as the system message, or before
    the question where the template refuses a system message.
    Markers of the grammar are encoded as whatever the tokenizer makes of them (one control token in the embedded
    policy, several tokens elsewhere); the rest of an observation is encoded with control tokens switched off, so a
    page that contains ``<|im_end|>`` cannot end a message.

    Args:
        tokenizer: A fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.has_system_role = tokenizer.chat_template is not None and renders_system(tokenizer)

    def encode_prompt(self, instructions: str, question: str) -> tuple[int, ...]:
        """The chat template's rendering with its generation prompt, or both texts where there is no template."""
        if self.tokenizer.chat_template is None:
            return tuple(self._ids(f"{instructions}\n\n{question}\n", add_special_tokens=True))
        messages = [{"role": "system", "content": instructions}, {"role": "user", "content": question}]
        if not self.has_system_role:
            messages = [{"role": "user", "content": f"{instructions}\n\n{question}"}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        assert isinstance(text, str)
        return tuple(self._ids(text))

    def encode_observation(self, text: str, markers: tuple[str, ...]) -> tuple[int, ...]:
        """Markers as the tokenizer knows them, everything between them without control tokens."""
        tokens: list[int] = []
        for index, piece in enumerate(marker_splitter(markers).split(text)):
            if piece:
                tokens += self._ids(piece, split_special_tokens=index % 2 == 0)
        return tuple(tokens)

    def encode_turn(self, text: str) -> tuple[int, ...]:
        """A turn's text, control tokens included."""
        return tuple(self._ids(text))

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text, control tokens included."""
        text = self.tokenizer.decode(list(tokens), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        assert isinstance(text, str)
        return text

    def _ids(self, text: str, *, add_special_tokens: bool = False, split_special_tokens: bool = False) -> list[int]:
        encoded: Any = self.tokenizer(
            text, add_special_tokens=add_special_tokens, split_special_tokens=split_special_tokens
        )
        ids: list[int] = encoded["input_ids"]
        return ids


def renders_system(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the chat template takes a system message; some raise on one."""
    messages = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
    try:
        tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except TemplateError:
        return False
    return True


@lru_cache(maxsize=64)
def marker_splitter(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Split a text at markers and keep them: every second piece is one."""
    return re.compile("(" + "|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True)) + ")")
