"""Where a sampled turn ends: end tokens, and stop strings however the tokenizer splits them."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from forkgym.agents.codec import TokenizerCodec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

END = 1  # the token is an end token
MAY_STOP = 2  # the token's text holds a character at which a stop string could be complete
BROKEN = "\ufffd"  # what part of a character decodes to
MARGIN = 8  # characters at the start of a decoded tail that may differ from the whole text's


class StopTable:
    """What each token of the vocabulary can end, by set of stop strings.

    A stop string can be split over tokens in any way and can end inside one, so only text tells. To decode after
    every token would cost more than the model: a table says which tokens hold the last character of a stop string,
    and only after those is the tail decoded.

    Args:
        tokenizer: Of the policy.
        end_tokens: Ids that end a turn.
        vocabulary_size: Number of ids that can be sampled.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_tokens: Collection[int], vocabulary_size: int) -> None:
        self._codec = TokenizerCodec(tokenizer)
        self._size = max(vocabulary_size, len(tokenizer), *(token + 1 for token in end_tokens))
        self._ends = np.zeros(self._size, np.uint8)
        self._ends[list(end_tokens)] = END
        self._texts: list[str] | None = None
        self._rows: dict[tuple[str, ...], int] = {}
        self._table: NDArray[np.uint8] = np.zeros((0, self._size), np.uint8)

    def row(self, stop: tuple[str, ...]) -> int:
        """The number of this set of stop strings.

        Raises:
            ValueError: One of them is empty.
        """
        if stop not in self._rows:
            if "" in stop:
                raise ValueError(f"stop strings {stop}: one is empty")
            self._rows[stop] = len(self._table)
            self._table = np.concatenate([self._table, self._make_row(stop)[None]])
        return self._rows[stop]

    def flags(self, rows: NDArray[np.int64], tokens: NDArray[np.int64]) -> NDArray[np.uint8]:
        """`END` and `MAY_STOP` for some tokens, each under the set of stop strings with its row's number."""
        found: NDArray[np.uint8] = self._table[rows, tokens]
        return found

    def completed(self, tokens: tuple[int, ...], stop: tuple[str, ...]) -> bool:
        """Whether the last of ``tokens``, the turn so far, completes a stop string."""
        if not stop:
            return False
        needed = max(map(len, stop)) + MARGIN + len(self._text(tokens[-1]))
        size = needed
        while True:
            text = self._codec.decode(tokens[-size:])
            if any(string in text for string in stop):
                return True
            # A token may add no character at all.
            if size >= len(tokens) or len(text) >= needed:
                return False
            size *= 2

    def _make_row(self, stop: tuple[str, ...]) -> NDArray[np.uint8]:
        last = {string[-1] for string in stop}
        flags = self._ends.copy()
        if any(character.isspace() for character in last):
            # A decoder may add or drop spaces between tokens, so no token alone shows whether it makes one.
            flags |= MAY_STOP
            return flags
        if not all(character.isascii() for character in last):
            last.add(BROKEN)
        for token in range(self._size) if stop else ():
            if not last.isdisjoint(self._text(token)):
                flags[token] |= MAY_STOP
        return flags

    def _text(self, token: int) -> str:
        if self._texts is None:
            known = len(self._codec.tokenizer)
            self._texts = [self._codec.decode((id_,)) if id_ < known else "" for id_ in range(self._size)]
        return self._texts[token]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Ids that end a turn: the tokenizer's end token and those of the model's generation config."""
    own: Any = tokenizer.eos_token_id
    # A model that can't generate has no such config.
    configured: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ids: list[int | None] = [own, *(configured if isinstance(configured, list) else [configured])]
    return frozenset(token for token in ids if token is not None)
