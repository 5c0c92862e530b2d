"""The space of texts, which Gymnasium's own `Text` cannot be.

`gymnasium.spaces.Text` rejects a blank by default, and with all of Unicode as its charset takes 193 MB and eleven
seconds; shared memory truncates it in silence. This space checks the length only.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
from gymnasium.spaces import Space

SAMPLE_CHARACTERS = "abc 0123456789+-*/().,<>\\{}\n"
MAX_SAMPLE_LENGTH = 32


class TextSpace(Space[str]):
    """Any string of at most ``max_length`` characters, or any string at all.

    Args:
        max_length: Characters, 1 or more; None for no limit.
        seed: Seeds ``sample``.

    Raises:
        ValueError: ``max_length`` is not positive.
    """

    def __init__(self, max_length: int | None = None, seed: int | np.random.Generator | None = None) -> None:
        if max_length is not None and max_length <= 0:
            raise ValueError(f"max_length is {max_length}, expected a positive number of characters")
        self.max_length = max_length
        super().__init__(dtype=None, seed=seed)

    @property
    def is_np_flattenable(self) -> bool:
        """Texts have no flat numeric form."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draw a short text of a few characters that matter to parsers; masks are not supported."""
        if mask is not None or probability is not None:
            raise ValueError("TextSpace.sample takes no mask and no probability")
        length = int(self.np_random.integers(1, min(MAX_SAMPLE_LENGTH, self.max_length or MAX_SAMPLE_LENGTH) + 1))
        return "".join(self.np_random.choice(list(SAMPLE_CHARACTERS), size=length))

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string that is short enough."""
        return isinstance(x, str) and (self.max_length is None or len(x) <= self.max_length)

    def __deepcopy__(self, memo: dict[int, Any]) -> TextSpace:
        """Copy the space and the state of its generator; each fork of an environment does it."""
        twin = TextSpace(self.max_length)
        twin._np_random = copy.deepcopy(self._np_random, memo)
        return twin

    def __eq__(self, other: object) -> bool:
        """Spaces with the same limit are equal."""
        return isinstance(other, TextSpace) and other.max_length == self.max_length

    def __hash__(self) -> int:
        """Hash by the limit, as ``__eq__`` compares."""
        return hash((TextSpace, self.max_length))

    def __repr__(self) -> str:
        """The constructor's call."""
        return f"TextSpace(max_length={self.max_length})"
