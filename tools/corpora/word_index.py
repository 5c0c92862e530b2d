"""Which texts hold a word, and how much that tells about them: BM25, by ``bm25s``, in memory or memory-mapped."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol, cast
from zlib import crc32

import bm25s
import numpy as np
import numpy.typing as npt

from forkgym.tools.corpora.ranking import GROUPS, Floats, best_places, thread_buffer
from forkgym.tools.corpora.string_table import StringTable, write_strings

BM25_VERSION = f"1 {bm25s.__version__}"  # of the files below and the scores in them; "1" is raised with this file
# A word in more than one text of this many has a column with a score for each text: adding 1,000,000 numbers in order
# takes 0.11 ms, and adding them in the places of a list 1.5 ms.
COMMON_ONE_IN = 12
ARRAYS = ("scores", "texts", "starts", "columns", "common")


class Vocabulary(Protocol):
    """Words by number."""

    def get(self, word: str, /) -> int | None:
        """The number of a word, or None."""
        ...


class StoredVocabulary:
    """A vocabulary in memory-mapped files: a table of words in the order of their hashes, those, and the numbers.

    A search among numbers takes a microsecond, and one among as many strings ten times as long.
    """

    def __init__(self, folder: Path) -> None:
        self.words = StringTable(folder, "words")
        self.hashes = memoryview(np.load(folder / "word_hashes.npy", mmap_mode="r"))
        self.numbers = memoryview(np.load(folder / "word_numbers.npy", mmap_mode="r"))
        if not len(self.words) == len(self.hashes) == len(self.numbers):
            raise ValueError(f"the vocabulary's files in {folder} do not belong together")

    @staticmethod
    def write(folder: Path, vocabulary: Mapping[str, int]) -> None:
        """Write the files."""
        rows = sorted((crc32(word.encode()), word, number) for word, number in vocabulary.items())
        np.save(folder / "word_hashes.npy", np.array([row[0] for row in rows], np.uint32))
        write_strings(folder, "words", (row[1] for row in rows))
        np.save(folder / "word_numbers.npy", np.array([row[2] for row in rows], np.int64))

    def get(self, word: str, /) -> int | None:
        """The number of a word, or None."""
        hashed = crc32(word.encode())
        place = bisect_left(self.hashes, hashed)
        while place < len(self.hashes) and self.hashes[place] == hashed:
            if self.words[place] == word:
                return self.numbers[place]
            place += 1
        return None


@dataclass(frozen=True, eq=False)
class WordIndex:
    """A BM25 index of texts that never changes, so threads may share it. Scores are Lucene's, k1 = 1.5 and b = 0.75.

    Word ``w`` stands in the texts ``texts[starts[w] : starts[w + 1]]``, in order, and gives them the scores in the same
    places of ``scores``. A word in many texts has a column too: those scores again, and a zero for each other text.

    Attributes:
        num_texts: Number of texts, N.
        vocabulary: The number of each word, in [0, W).
        scores: (P,) float32, > 0.
        texts: (P,) int32, in [0, N).
        starts: (W + 1,) int64, in [0, P].
        columns: (C, N) float32.
        common: (C,) int64; the numbers of the words with a column.
    """

    num_texts: int
    vocabulary: Vocabulary
    scores: Floats
    texts: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    columns: Floats
    common: npt.NDArray[np.int64]

    @classmethod
    def build(cls, texts: Iterable[list[str]]) -> WordIndex:
        """Index texts, each a list of its words."""
        vocabulary: dict[str, int] = {}
        # Four bytes a word, where a list takes eight.
        numbers = [array("i", [vocabulary.setdefault(word, len(vocabulary)) for word in words]) for words in texts]
        scores, places, starts = bm25_scores(numbers, len(vocabulary))
        common = np.zeros(0, np.int64)
        if len(numbers) > GROUPS:  # for fewer texts, lists are as quick
            common = np.flatnonzero(np.diff(starts) * COMMON_ONE_IN > len(numbers))
        columns = np.zeros((len(common), len(numbers)), np.float32)
        for column, word in zip(columns, common.tolist(), strict=True):
            column[places[starts[word] : starts[word + 1]]] = scores[starts[word] : starts[word + 1]]
        return cls(len(numbers), vocabulary, scores, places, starts, columns, common)

    def save(self, folder: Path) -> None:
        """Write the files that `load` maps."""
        assert isinstance(self.vocabulary, dict), "a loaded index has its files already"
        StoredVocabulary.write(folder, cast(dict[str, int], self.vocabulary))
        for name in ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name))

    @classmethod
    def load(cls, folder: Path) -> WordIndex:
        """Map an index that `save` wrote, in a time that does not depend on its size.

        Raises:
            OSError: A file is missing.
            ValueError: A file is damaged, or they do not belong together.
        """
        # As plain arrays: slices of the class for mapped ones are slow to make.
        arrays = {name: np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r")) for name in ARRAYS}
        vocabulary = StoredVocabulary(folder)
        num_words, num_pairs = len(vocabulary.words), len(arrays["scores"])
        if len(arrays["texts"]) != num_pairs or len(arrays["starts"]) != num_words + 1:
            raise ValueError(f"the arrays in {folder} do not belong together")
        return cls(arrays["columns"].shape[1], vocabulary, **arrays)

    @cached_property
    def column_of(self) -> dict[int, int]:
        """The column of each word that has one."""
        return {word: column for column, word in enumerate(self.common.tolist())}

    def score(self, words: Iterable[str]) -> Floats | None:
        """Score all texts; a word that occurs twice counts twice.

        Returns:
            (at least N,) the sums of the words' scores, and zeros; a buffer of this thread's, filled again by the next
            call. None where no word is in the index.
        """
        known = [number for word in words if (number := self.vocabulary.get(word)) is not None]
        if not known:
            return None
        total = thread_buffer(self.num_texts, 0.0)
        in_columns = total[: self.num_texts]
        for word in known:
            column = self.column_of.get(word)
            if column is None:
                start, end = self.starts[word], self.starts[word + 1]
                np.add.at(total, self.texts[start:end], self.scores[start:end])
            else:
                in_columns += self.columns[column]
        return total

    def best(self, words: Iterable[str], top_k: int) -> list[int]:
        """The texts that share a word with these, at most ``top_k``, best first; of equal ones, the first."""
        scores = self.score(words)
        return [] if scores is None else best_places(scores, top_k, above=0.0)


def bm25_scores(texts: list[array[int]], num_words: int) -> tuple[Floats, npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Score each word in each text: the arrays ``scores``, ``texts`` and ``starts`` of a `WordIndex`."""
    if num_words == 0:
        return np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int64)
    # bm25s has no types. The backends are named so that an installed numba changes nothing.
    bm25: Any = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy", csc_backend="numpy")
    # What ``BM25.index`` does with ids, less the debug record that its logger lets through for every index.
    matrix = bm25.build_index_from_ids(range(num_words), texts, show_progress=False)
    return matrix["data"], matrix["indices"], matrix["indptr"]
