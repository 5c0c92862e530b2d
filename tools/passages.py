"""Passages for the search tool, and the three file layouts that they come in."""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TextIO

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

EXPECTED = (
    "expected 'contents' (a title line, then the text), or 'title' and 'text', "
    "or HotpotQA's 'context' with a list of 'title' and as many lists of 'sentences'"
)
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape half a pair; no tokenizer takes it


@dataclass(frozen=True, slots=True)
class Passage:
    """A paragraph and the title of the page that it is from."""

    title: str
    text: str


def load_passages(path: str | Path) -> list[Passage]:
    r"""Read a corpus: a JSON list of rows, or JSON Lines, in UTF-8.

    Each row is an object in one of these layouts; what else it holds is ignored:

    - ``{"contents": "Title\ntext"}``, as in Search-R1's corpora, which put the title in double quotes
    - ``{"title": "Title", "text": "text"}``
    - ``{"context": {"title": ["Title", ...], "sentences": [["First.", " Second."], ...]}}``, as in HotpotQA

    Returns:
        The passages in the order of the file, each once.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, holds no passage, or has a row in none of these layouts.
    """
    path = corpus_file(path)
    try:
        with path.open(encoding="utf-8") as file:
            passages = {passage: None for where, row in read_rows(file) for passage in read_row(row, where)}
    except (ValueError, RecursionError) as error:  # also what json and the UTF-8 decoder raise
        raise ValueError(f"corpus {path}: {error}") from error
    if not passages:
        raise ValueError(f"corpus {path}: found no passages; {EXPECTED}")
    return list(passages)


def corpus_file(path: str | Path) -> Path:
    """The full path of a corpus.

    Raises:
        FileNotFoundError: There is no such file.
    """
    full = Path(path).resolve()
    if not full.is_file():
        raise FileNotFoundError(f"corpus {path}: no such file; expected JSON or JSON Lines with passages")
    return full


def context_passages(titles: Sequence[str], sentences: Sequence[Sequence[str]]) -> list[Passage]:
    """Make passages of HotpotQA's columns; a sentence carries the space that separates it from the one before.

    Raises:
        ValueError: There are not as many lists of sentences as titles.
    """
    if len(titles) != len(sentences):
        raise ValueError(f"found {len(titles)} titles and {len(sentences)} lists of sentences, expected as many")
    return [Passage(title, "".join(parts)) for title, parts in zip(titles, sentences, strict=True)]


class ContentsRow(BaseModel):
    """A row of a Search-R1 corpus."""

    contents: str

    def passages(self) -> list[Passage]:
        """The one passage."""
        title, _, text = self.contents.partition("\n")
        return [Passage(title.strip().removeprefix('"').removesuffix('"'), text)]


class TitledRow(BaseModel):
    """A row with a title and a text."""

    title: str
    text: str

    def passages(self) -> list[Passage]:
        """The one passage."""
        return [Passage(self.title, self.text)]


class Context(BaseModel):
    """The paragraphs that come with a question of HotpotQA, in columns."""

    title: list[str]
    sentences: list[list[str]]


class ContextRow(BaseModel):
    """A row of HotpotQA."""

    context: Context

    def passages(self) -> list[Passage]:
        """The question's paragraphs."""
        return context_passages(self.context.title, self.context.sentences)


Row = Annotated[ContentsRow | TitledRow | ContextRow, Field(union_mode="left_to_right")]
ROW: TypeAdapter[ContentsRow | TitledRow | ContextRow] = TypeAdapter(Row)


def read_rows(file: TextIO) -> Iterator[tuple[str, object]]:
    """Yield each row with the words that say where it is."""
    start = file.read(1)
    while start.isspace():
        start = file.read(1)
    file.seek(0)
    if start == "[":
        rows: list[object] = json.load(file)
        yield from ((f"row {number}", row) for number, row in enumerate(rows, start=1))
        return
    for number, line in enumerate(file, start=1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} is not JSON: {error}") from error
            yield f"line {number}", row


def read_row(row: object, where: str) -> list[Passage]:
    """The passages of a row, in whichever layout it has."""
    try:
        layout = ROW.validate_python(row)
    except ValidationError as error:
        raise ValueError(f"{where}: found {reprlib.repr(row)}; {EXPECTED}") from error
    try:
        passages = layout.passages()
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    for passage in passages:
        if SURROGATE.search(passage.title) or SURROGATE.search(passage.text):
            raise ValueError(f"{where}: found half a surrogate pair in {passage.title!a}; expected Unicode text")
    return passages
