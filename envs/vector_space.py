"""`TextSpace` in Gymnasium's vector environments, with shared memory and without.

Importing this module registers the functions that ``gymnasium.vector.utils`` asks for. What is not here
(``batch_space``, ``iterate``, ``concatenate``) works for any space: batches are tuples.
"""

from __future__ import annotations

import copy
import ctypes
import multiprocessing
from collections.abc import Sequence
from types import ModuleType
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt
from gymnasium.spaces import Tuple
from gymnasium.vector import utils

from forkgym.envs.space import TextSpace

LENGTH_BYTES = 8
MAX_BYTES_PER_CHARACTER = 4
Slots: TypeAlias = npt.NDArray[np.uint8]


class SharedTexts(Sequence[str]):
    """The texts in a shared memory, decoded each time they are read.

    ``AsyncVectorEnv`` reads the memory once, at construction, and deep-copies what it got at each step; so a deep
    copy is a tuple of the texts at that moment.
    """

    def __init__(self, memory: Any, count: int) -> None:
        self.slots: Slots = np.frombuffer(memory.get_obj(), dtype=np.uint8).reshape(count, -1)

    @overload
    def __getitem__(self, index: int) -> str: ...

    @overload
    def __getitem__(self, index: slice) -> tuple[str, ...]: ...

    def __getitem__(self, index: int | slice) -> str | tuple[str, ...]:
        """Decode one text, or several."""
        if isinstance(index, slice):
            return tuple(self[place] for place in range(*index.indices(len(self))))
        slot: Slots = self.slots[index]
        length = int(slot[:LENGTH_BYTES].view(np.uint64)[0])
        text: bytes = slot[LENGTH_BYTES : LENGTH_BYTES + length].tobytes()
        return text.decode("utf-8", "surrogatepass")

    def __len__(self) -> int:
        """Number of environments."""
        return len(self.slots)

    def __deepcopy__(self, memo: dict[int, Any]) -> tuple[str, ...]:
        """The texts as they are now."""
        return tuple(self)


def slot_bytes(space: TextSpace) -> int:
    """Bytes of a slot: a length, then room for the longest text, in whole words so that every length is aligned.

    Raises:
        ValueError: The space has no longest text.
    """
    if space.max_length is None:
        raise ValueError(f"{space} has no longest text, which shared memory needs: expected a max_length")
    text_bytes = space.max_length * MAX_BYTES_PER_CHARACTER
    return LENGTH_BYTES * (1 + -(-text_bytes // LENGTH_BYTES))


def create_shared_texts(space: TextSpace, n: int = 1, ctx: ModuleType = multiprocessing) -> Any:
    """Allocate a slot for each of ``n`` environments, as a ``multiprocessing.Array``; zeros are empty texts."""
    return ctx.Array(ctypes.c_uint8, n * slot_bytes(space))


def read_shared_texts(space: TextSpace, shared_memory: Any, n: int = 1) -> Any:
    """Return a live view of the texts."""
    del space
    return SharedTexts(shared_memory, n)


def write_shared_text(space: TextSpace, index: int, value: str, shared_memory: Any) -> None:
    """Write the text of environment ``index``.

    Raises:
        ValueError: The text is too long for the space; nothing is cut in silence.
    """
    if value not in space:
        raise ValueError(f"an observation of {len(value)} characters does not fit {space}")
    encoded = value.encode("utf-8", "surrogatepass")
    width = slot_bytes(space)
    slot: Slots = np.frombuffer(shared_memory.get_obj(), dtype=np.uint8)[index * width : (index + 1) * width]
    slot[LENGTH_BYTES : LENGTH_BYTES + len(encoded)] = np.frombuffer(encoded, dtype=np.uint8)
    slot[:LENGTH_BYTES].view(np.uint64)[0] = len(encoded)


def create_empty_texts(space: TextSpace, n: int = 1, fn: Any = np.zeros) -> tuple[str, ...]:
    """As many empty texts."""
    del space, fn
    return ("",) * n


def batch_differing_text_spaces(spaces: Sequence[TextSpace]) -> Any:
    """The tuple of the spaces, which may have different limits."""
    return Tuple([copy.deepcopy(space) for space in spaces], seed=copy.deepcopy(spaces[0].np_random))


# Any: Gymnasium's types do not allow for spaces of others.
generic_functions: Any = utils
for generic_function, function in (
    (generic_functions.create_shared_memory, create_shared_texts),
    (generic_functions.read_from_shared_memory, read_shared_texts),
    (generic_functions.write_to_shared_memory, write_shared_text),
    (generic_functions.create_empty_array, create_empty_texts),
    (generic_functions.batch_differing_spaces, batch_differing_text_spaces),
):
    generic_function.register(TextSpace, function)
