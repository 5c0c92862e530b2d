"""The passages of a corpus in memory-mapped files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import overload

from forkgym.tools.corpora.index_cache import CorpusVersion, load_or_build
from forkgym.tools.corpora.string_table import StringTable, write_strings
from forkgym.tools.passages import Passage, read_passages

FORMAT = "2"  # of the files, and of how a corpus is read; raised when either changes
FIELDS = 3


class PassageTable(Sequence[Passage]):
    """Passages that `write_passages` wrote; each is read when it is asked for."""

    def __init__(self, folder: Path) -> None:
        self.fields = StringTable(folder, "passages")
        if len(self.fields) % FIELDS:
            raise ValueError(f"{folder} has {len(self.fields)} strings, expected {FIELDS} for each passage")

    def __len__(self) -> int:
        """Number of passages."""
        return len(self.fields) // FIELDS

    @overload
    def __getitem__(self, index: int) -> Passage: ...
    @overload
    def __getitem__(self, index: slice) -> list[Passage]: ...
    def __getitem__(self, index: int | slice) -> Passage | list[Passage]:
        """A passage, or several."""
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        first = FIELDS * range(len(self))[index]  # also counts from the end, and checks the bounds
        return Passage(self.fields[first], self.fields[first + 1], self.fields[first + 2])


def write_passages(passages: Iterable[Passage], folder: Path) -> None:
    """Write the files of a `PassageTable`; the passages are taken one by one."""
    fields: Iterator[tuple[str, ...]] = ((passage.title, passage.text, passage.id) for passage in passages)
    write_strings(folder, "passages", chain.from_iterable(fields))


def passage_table(corpus: CorpusVersion) -> PassageTable:
    """The passages of a corpus, from the cache, where they are put first if they are not there.

    Raises:
        OSError: See `load_or_build`.
        ValueError: See `read_passages`.
    """
    return load_or_build(corpus, "passages", FORMAT, partial(write_passages, read_passages(corpus.path)), PassageTable)
