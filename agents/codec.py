"""Text to tokens and back, in the one place where it happens.

Policy tokens are decoded for the environment and never encoded again; a prompt and an observation are encoded once,
when they arrive.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

from forkgym.agents.chat import ChatTemplate, control_token_pattern
from forkgym.envs.grammar import Prompt, Reply

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class Codec(Protocol):
    """What rollouts need of a tokenizer."""

    @property
    def opening(self) -> str:
        """What the prompt has written of the policy's message: the opening tag of a thought, or nothing."""
        ...

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The context before the first turn."""
        ...

    def encode_reply(self, reply: Reply, turn: tuple[int, ...]) -> tuple[int, ...]:
        """An environment's reply to a turn of these tokens; outside text in it gets no control token."""
        ...

    def encode_turn(self, text: str) -> tuple[int, ...]:
        """A turn that was written, not sampled (demonstrations); the end token is not added."""
        ...

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text of sampled tokens."""
        ...


class ByteCodec:
    """UTF-8 bytes as tokens: for agents that need no model."""

    @property
    def opening(self) -> str:
        """Nothing: there is no chat template."""
        return ""

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """Both texts, a blank line between."""
        return self.encode_turn(f"{prompt.instructions}\n\n{prompt.question}\n")

    def encode_reply(self, reply: Reply, turn: tuple[int, ...]) -> tuple[int, ...]:
        """The text; there are no control tokens."""
        del turn
        return self.encode_turn(reply.text)

    def encode_turn(self, text: str) -> tuple[int, ...]:
        """The text; a lone surrogate becomes a question mark."""
        return tuple(text.encode("utf-8", errors="replace"))

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text; a broken sequence becomes U+FFFD."""
        return bytes(tokens).decode("utf-8", errors="replace")


class TokenizerCodec:
    """A Hugging Face tokenizer.

    A prompt goes through the chat template, where there is one. In a tag grammar, markers in a reply are encoded as
    whatever the tokenizer makes of them (one control token in the embedded policy, several tokens elsewhere); in a chat
    grammar the template frames each result. Outside text, the question included, is encoded with control tokens
    switched off, so a page that contains ``<|im_end|>`` cannot end a message.

    Args:
        tokenizer: A fast tokenizer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        self.chat = ChatTemplate(tokenizer) if tokenizer.chat_template is not None else None
        self.control_tokens = control_token_pattern(tokenizer)

    @property
    def opening(self) -> str:
        """What the chat template opens; nothing where there is none."""
        return "" if self.chat is None else self.chat.opening

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """The chat template's rendering with its generation prompt, or both texts where there is no template.

        Raises:
            ValueError: The grammar's results are chat messages, and there is no template for them.
        """
        if self.chat is not None:
            return tuple(self.chat.encode_prompt(prompt))
        if prompt.schemas:
            raise ValueError("the tokenizer has no chat template, which the grammar needs; expected a chat model's")
        # The instructions may show markers as tokens; the question may not, so its control tokens stand apart.
        pieces = self.control_tokens.split(f"{prompt.question}\n")
        tokens = self._ids(f"{prompt.instructions}\n\n{pieces[0]}", add_special_tokens=True)
        for piece in pieces[1:]:
            tokens += self._ids(piece, split_special_tokens=True)
        return tuple(tokens)

    def encode_reply(self, reply: Reply, turn: tuple[int, ...]) -> tuple[int, ...]:
        """The template's rendering of its messages, or markers as the tokenizer knows them and text between them."""
        if reply.messages and self.chat is not None:
            return tuple(self.chat.encode_results(reply.messages, turn))
        tokens: list[int] = []
        for index, piece in enumerate(marker_splitter(reply.markers).split(reply.text)):
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


@lru_cache(maxsize=64)
def marker_splitter(markers: tuple[str, ...]) -> re.Pattern[str]:
    """Split a text at markers and keep them: every second piece is one."""
    if not markers:
        return re.compile(r"(\Z.)")  # matches nowhere; no alternative at all would match everywhere
    return re.compile("(" + "|".join(re.escape(marker) for marker in sorted(markers, key=len, reverse=True)) + ")")
