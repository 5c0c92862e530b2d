"""Passages for the search tool, and the file layouts that they come in."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import reprlib
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TextIO, cast

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, TypeAdapter, ValidationError

EXPECTED = (
    "expected 'contents' (a title line, then the text), or 'title' and 'text', or HotpotQA's 'context': "
    "pairs of a title and its sentences, or a list of 'title' and as many lists of 'sentences'"
)
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can escape half a pair; no tokenizer takes it


@dataclass(frozen=True, slots=True)
class Passage:
    """A paragraph and the title of the page that it is from.

    ``id`` is what its corpus calls it; empty where the corpus has no ids.
    """

    title: str
    text: str
    id: str = ""


def load_passages(path: str | Path) -> list[Passage]:
    """Read a whole corpus into memory; see `read_passages`."""
    return list(read_passages(path))


def read_passages(path: str | Path) -> Iterator[Passage]:
    r"""Read a corpus piece by piece: JSON Lines or a JSON list of rows, in UTF-8; a file that ends in .gz is unpacked.

    Each row is an object in one of these layouts; what else it holds is ignored:

    - ``{"id": "7", "contents": "Title\ntext"}``, as in Search-R1's corpora, which put the title in double quotes
    - ``{"title": "Title", "text": "text"}``, with or without an ``id`` (or ``_id``, as in BEIR's corpora)
    - ``{"context": {"title": ["Title", ...], "sentences": [["First.", " Second."], ...]}}``, as HotpotQA on the hub
    - ``{"context": [["Title", ["First.", " Second."]], ...]}``, as in HotpotQA's and 2WikiMultihopQA's own files

    Yields:
        The passages in the order of the file; of those with the same title and text, the first.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is not JSON, holds no passage, or has a row in none of these layouts.
    """
    path = corpus_file(path)
    seen: set[bytes] = set()  # fingerprints: the passages themselves may be larger than memory
    try:
        with open_text(path) as file:
            for where, row in read_rows(file):
                for passage in read_row(row, where):
                    known = len(seen)
                    seen.add(fingerprint(passage))
                    if len(seen) > known:
                        yield passage
    # ValueErrors are also what json and the UTF-8 decoder raise; the last three are a broken archive's.
    except (ValueError, RecursionError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"corpus {path}: {error}") from error
    if not seen:
        raise ValueError(f"corpus {path}: found no passages; {EXPECTED}")


def open_text(path: Path) -> TextIO:
    """Open a file of text, packed or not."""
    if path.suffix == ".gz":
        return cast(TextIO, gzip.open(path, "rt", encoding="utf-8"))
    return path.open(encoding="utf-8")


def fingerprint(passage: Passage) -> bytes:
    """Tell passages apart by title and text; 0xff is in no UTF-8."""
    return hashlib.blake2b(passage.title.encode() + b"\xff" + passage.text.encode(), digest_size=16).digest()


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


def id_text(value: Any) -> str:
    """An id as text; what is neither text nor a whole number is none."""
    return str(value) if isinstance(value, str | int) else ""


def is_pair(value: Any) -> bool:
    """Whether this is a list of two."""
    match value:
        case [_, _]:
            return True
        case _:
            return False


def pairs_to_columns(value: Any) -> Any:
    """Accept the layout of HotpotQA's own files: pairs where the hub has two columns."""
    match value:
        case [*pairs] if all(map(is_pair, pairs)):
            return {"title": [pair[0] for pair in pairs], "sentences": [pair[1] for pair in pairs]}
        case _:
            return value  # the columns, or what cannot be read


Id = Annotated[str, BeforeValidator(id_text), Field(validation_alias=AliasChoices("id", "_id"))]


class ContentsRow(BaseModel):
    """A row of a Search-R1 corpus."""

    id: Id = ""
    contents: str

    def passages(self) -> list[Passage]:
        """The one passage."""
        title, _, text = self.contents.partition("\n")
        title = title.strip()
        if len(title) >= 2 and title[0] == title[-1] == '"':  # else the quotes are the title's: "Heroes" (album)
            title = title[1:-1]
        return [Passage(title, text, self.id)]


class TitledRow(BaseModel):
    """A row with a title and a text."""

    id: Id = ""
    title: str
    text: str

    def passages(self) -> list[Passage]:
        """The one passage."""
        return [Passage(self.title, self.text, self.id)]


class Context(BaseModel):
    """The paragraphs that come with a question of HotpotQA, in columns."""

    title: list[str]
    sentences: list[list[str]]


class ContextRow(BaseModel):
    """A row of HotpotQA; its id is the question's, so the paragraphs have none."""

    context: Annotated[Context, BeforeValidator(pairs_to_columns)]

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
        if any(map(SURROGATE.search, (passage.title, passage.text, passage.id))):
            raise ValueError(f"{where}: found half a surrogate pair in {passage.title!a}; expected Unicode text")
    return passages
