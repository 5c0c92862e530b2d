"""The tool ``search``, what it asks, and passages that are found by their words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from forkgym.tools.base import DEFAULT_TIMEOUT_S, FunctionSession, Tool, ToolError
from forkgym.tools.corpora.index_cache import CorpusVersion, load_or_build
from forkgym.tools.corpora.passage_table import FORMAT, PassageTable, passage_table
from forkgym.tools.corpora.word_index import BM25_VERSION, WordIndex
from forkgym.tools.passages import SURROGATE, Passage, corpus_file

NO_RESULTS = "No results."
DESCRIPTION = "Find passages by their words: write a name or a few key words."
MAX_QUERY_CHARACTERS = 1_000
CACHED_CORPORA = 8
TITLE_WEIGHT = 2
WORD = re.compile(r"\w+")
# What stored words depend on; "1" is for what is written here, and is raised with `TITLE_WEIGHT`, `WORD` or `words_of`.
WORDS_VERSION = f"1 {FORMAT} {BM25_VERSION} {unicodedata.unidata_version}"


class Retriever(Protocol):
    """What the tool ``search`` asks: passages in this process, or a server's."""

    @property
    def inline(self) -> bool:
        """Quick and bounded in time by construction; see ``Tool.inline``."""
        ...

    @property
    def timeout_s(self) -> float:
        """Limit of one query, seconds; a retriever that is not inline keeps it by itself."""
        ...

    def search(self, query: str, top_k: int) -> list[Passage]:
        """Find the passages that fit a query best.

        Args:
            query: Any text.
            top_k: > 0.

        Returns:
            At most ``top_k`` passages, the best first.

        Raises:
            ToolError: The query is at fault.
            ToolFailure: The infrastructure is, after the retriever's own retries.
            ValueError: ``top_k`` is not positive.
        """
        ...


class PassageIndex:
    """A BM25 index of passages that never changes, so threads and forks may share it.

    Words are runs of Unicode word characters in lower case, without stop words or stemming: on HotpotQA's paragraphs a
    stop list moved no figure by more than a point, and titles such as "Was (Not Was)" would be unfindable. The words
    of the title count twice, which lifts the titles found at rank 1 there from 87 % to 92 %. `WordIndex` has the
    scores.

    Args:
        passages: What to search in; they stay in memory.
        words: The index of their words, where there is one already.
    """

    inline = True
    timeout_s = DEFAULT_TIMEOUT_S

    def __init__(self, passages: Iterable[Passage], words: WordIndex | None = None) -> None:
        self.passages = passages if isinstance(passages, PassageTable) else tuple(passages)
        self.words = WordIndex.build(map(words_of, self.passages)) if words is None else words

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
        return [self.passages[place] for place in self.words.best(WORD.findall(query.lower()), top_k)]


def words_of(passage: Passage) -> list[str]:
    """The words that a passage is found by."""
    return TITLE_WEIGHT * WORD.findall(passage.title.lower()) + WORD.findall(passage.text.lower())


def index_for(path: str | Path) -> PassageIndex:
    """The BM25 index of a corpus file, for as long as the file stays the same.

    It is built once on a machine, kept in the cache's folder (see `forkgym.tools.corpora.index_cache`) and mapped from
    there by every process: a million passages are open in milliseconds, and no memory is taken but for what is read.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: See `read_passages`.
        OSError: The cache's folder cannot be written.
    """
    return cached_index(CorpusVersion.now(corpus_file(path)))


@lru_cache(maxsize=CACHED_CORPORA)
def cached_index(corpus: CorpusVersion) -> PassageIndex:
    """The index of one version of a file."""
    passages = passage_table(corpus)

    def build(folder: Path) -> None:
        WordIndex.build(map(words_of, passages)).save(folder)

    return PassageIndex(passages, load_or_build(corpus, "bm25", WORDS_VERSION, build, WordIndex.load))


class SearchArguments(BaseModel):
    """The arguments of a search."""

    model_config = ConfigDict(extra="forbid")
    query: str


def search_tool(retriever: Retriever, top_k: int = 3, max_chars: int = 600) -> Tool:
    """Make the tool ``search``, which answers with one line ``Title: text`` for each passage that it finds.

    Args:
        retriever: Where to search.
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
        found = retriever.search(query, top_k)
        return "\n".join(render(passage, max_chars) for passage in found) if found else NO_RESULTS

    session = FunctionSession(search)
    inline = retriever.inline
    # Not by ``as_tool``: generated worlds make a tool for every task, and a schema takes longer than their index.
    return Tool(
        "search",
        DESCRIPTION,
        SearchArguments,
        new_session=lambda: session,
        timeout_s=retriever.timeout_s,
        inline=inline,
        keeps_limit=not inline,
    )


def render(passage: Passage, max_chars: int) -> str:
    """Write a passage as one line of at most ``max_chars`` characters."""
    line = " ".join(f"{passage.title}: {passage.text}".split())
    if len(line) > max_chars:
        cut = line.rfind(" ", 0, max_chars + 1)
        line = line[: cut if cut > 0 else max_chars]
    return line if line.isascii() else SURROGATE.sub("\ufffd", line)
