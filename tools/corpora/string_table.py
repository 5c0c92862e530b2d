r"""Strings in memory-mapped files: millions of them open at once, and one is decoded when it is asked for.

The two files of the table "Ayr", "", "Zoë", written under the name "titles":

    titles.utf8           b"AyrZo\xc3\xab"   all strings, end to end
    titles.offsets.npy    0 3 3 7            where each one begins, in bytes, and where the last one ends; int64
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from mmap import ACCESS_READ, mmap
from pathlib import Path

import numpy as np


def write_strings(folder: Path, name: str, strings: Iterable[str]) -> None:
    """Write a table; the strings are taken one by one.

    Raises:
        UnicodeEncodeError: One has half a surrogate pair.
    """
    offsets = array("q", [0])
    with (folder / f"{name}.utf8").open("wb") as file:
        for string in strings:
            offsets.append(offsets[-1] + file.write(string.encode()))
    np.save(folder / f"{name}.offsets.npy", np.frombuffer(offsets, np.int64))


class StringTable:
    """A table that `write_strings` wrote; it never changes, so threads and processes share it.

    Raises:
        OSError: A file is missing.
        ValueError: The files do not belong together.
    """

    def __init__(self, folder: Path, name: str) -> None:
        path = folder / f"{name}.utf8"
        # Items of a memoryview are quick to read; those of an array become numpy's objects first.
        self.offsets = memoryview(np.load(folder / f"{name}.offsets.npy", mmap_mode="r"))
        size_bytes = path.stat().st_size
        if self.offsets.format not in ("l", "q") or len(self.offsets) == 0 or self.offsets[-1] != size_bytes:
            raise ValueError(f"{path} has {size_bytes} bytes, and its offsets do not end there")
        with path.open("rb") as file:
            # An empty file cannot be mapped.
            self.data = memoryview(mmap(file.fileno(), 0, access=ACCESS_READ) if size_bytes else b"")

    def __len__(self) -> int:
        """Number of strings."""
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:
        """String number ``index``, from 0."""
        if not 0 <= index < len(self):
            raise IndexError(f"string {index} of {len(self)}")
        return str(self.data[self.offsets[index] : self.offsets[index + 1]], "utf-8")
