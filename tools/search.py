"""Search over passages in memory: BM25 by ``bm25s``, the index of a file built once in a process."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

import bm25s
import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from forkgym.tools.base import FunctionSession, Tool, ToolError
from forkgym.tools.passages import Passage, corpus_file, load_passages

NO_RESULTS = "No results."
DESCRIPTION = "Find passages by their words: write a name or a few key words."
MAX_QUERY_CHARACTERS = 1_000
CACHED_CORPORA = 8
TITLE_WEIGHT = 2
WORD = re.compile(r"\w+")


class PassageIndex:
    """A BM25 index of passages that never changes, so threads and forks may share it.

    Words are runs of Unicode word characters in lower case, without stop words or stemming: on HotpotQA's paragraphs a
    stop list moved no figure by more than a point, and titles such as "Was (Not Was)" would be unfindable. The words
    of the title count twice, which lifts the titles found at rank 1 there from 87 % to 92 %. Scores are Lucene's BM25
    with k1 = 1.5 and b = 0.75.
    """

    def __init__(self, passages: Iterable[Passage]) -> None:
        self.passages = tuple(passages)
        vocabulary: dict[str, int] = {}
        word_ids = [
            [vocabulary.setdefault(word, len(vocabulary)) for word in words_of(passage)] for passage in self.passages
        ]
        self.vocabulary = vocabulary
        # bm25s has no types. The backends are named so that an installed numba changes nothing.
        self.bm25: Any = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy", csc_backend="numpy")
        if vocabulary:
            # What ``BM25.index`` does with ids, less the debug record that its logger lets through for every index.
            self.bm25.scores = self.bm25.build_index_from_ids(range(len(vocabulary)), word_ids, show_progress=False)

    def search(self, query: str, top_k: int) -> list[Passage]:
        """Find the passages that fit a query best.

        Returns:
            At most ``top_k`` passages that share a word with the query, the best first; of equal ones, the first in the
            index.

        Raises:
            ValueError: ``top_k`` is not positive.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        known = [self.vocabulary[word] for word in WORD.findall(query.lower()) if word in self.vocabulary]
        if not known:
            return []
        scores: npt.NDArray[np.float32] = self.bm25.get_scores_from_ids(known)
        hits = np.flatnonzero(scores)
        if len(hits) > top_k:
            # bm25s' own selection leaves the order of equal scores open.
            lowest = np.partition(scores[hits], -top_k)[-top_k]
            hits = hits[scores[hits] >= lowest]
        best = hits[np.argsort(-scores[hits], kind="stable")[:top_k]]
        return [self.passages[position] for position in best.tolist()]


def words_of(passage: Passage) -> list[str]:
    """The words that a passage is found by."""
    return TITLE_WEIGHT * WORD.findall(passage.title.lower()) + WORD.findall(passage.text.lower())


def index_for(path: str | Path) -> PassageIndex:
    """The index of a corpus file, built once in a process for as long as the file stays the same.

    Raises:
        FileNotFoundError: See ``load_passages``.
        ValueError: See ``load_passages``.
    """
    path = corpus_file(path)
    status = path.stat()
    return cached_index(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=CACHED_CORPORA)
def cached_index(path: Path, modified_ns: int, size_bytes: int) -> PassageIndex:
    """The index of one version of a file; the time and the size only tell versions apart."""
    return PassageIndex(load_passages(path))


class SearchArguments(BaseModel):
    """The arguments of a search."""

    model_config = ConfigDict(extra="forbid")
    query: str


def search_tool(index: PassageIndex, top_k: int = 3, max_chars: int = 600) -> Tool:
    """Make the tool ``search``, which answers with one line ``Title: text`` for each passage that it finds.

    Args:
        index: Where to search.
        top_k: Passages in a reply, at most; > 0.
        max_chars: Length of one line, at most, characters; a longer one ends after a whole word. > 0.

    Raises:
        ValueError: ``top_k`` or ``max_chars`` is not positive.
    """
    if top_k < 1 or max_chars < 1:
        raise ValueError(f"search: top_k is {top_k} and max_chars is {max_chars}, expected at least 1")

    def search(query: str) -> str:
        if not query.strip():
            raise ToolError("the query is empty; write the words to look for")
        if len(query) > MAX_QUERY_CHARACTERS:
            raise ToolError(f"the query has {len(query)} characters; at most {MAX_QUERY_CHARACTERS} are allowed")
        found = index.search(query, top_k)
        return "\n".join(render(passage, max_chars) for passage in found) if found else NO_RESULTS

    session = FunctionSession(search)
    # Not by ``as_tool``: generated worlds make a tool for every task, and a schema takes longer than their index.
    return Tool("search", DESCRIPTION, SearchArguments, new_session=lambda: session, inline=True)


def render(passage: Passage, max_chars: int) -> str:
    """Write a passage as one line of at most ``max_chars`` characters."""
    line = " ".join(f"{passage.title}: {passage.text}".split())
    if len(line) <= max_chars:
        return line
    cut = line.rfind(" ", 0, max_chars + 1)
    return line[: cut if cut > 0 else max_chars]
