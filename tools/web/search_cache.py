"""What was found before: a cache of queries on disk, and the cache files of ARPO."""

from __future__ import annotations

import re
import sqlite3
import threading
import time
from functools import lru_cache
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from forkgym.tools.base import DEFAULT_TIMEOUT_S, ToolFailure
from forkgym.tools.os_fork import OwnedByProcess
from forkgym.tools.passages import Passage, corpus_file
from forkgym.tools.search import Retriever

LOCK_WAIT_S = 5.0
BUSY_PAUSE_S = 0.01
MAX_CACHE_BYTES = 2**32
LAYOUT = 1  # of the table; a file of another one is refused, not read wrongly
TABLE = """
CREATE TABLE IF NOT EXISTS found (
    source TEXT NOT NULL, top_k INTEGER NOT NULL, query BLOB NOT NULL, passages BLOB NOT NULL,
    PRIMARY KEY (source, top_k, query)
) WITHOUT ROWID
"""
STORED: TypeAdapter[list[tuple[str, str, str]]] = TypeAdapter(list[tuple[str, str, str]])

ARPO_FILE: TypeAdapter[dict[str, str]] = TypeAdapter(dict[str, str])
ARPO_PAGE = re.compile(r"^(Page \d+): ", re.MULTILINE)
ARPO_START = re.compile(r'\s*\{\s*"(?:[^"\\]|\\.)*"\s*:\s*"(?:Page \d+: |No search results)')
SNIFFED_CHARACTERS = 8_192
CACHED_FILES = 8


class SearchCache(OwnedByProcess):
    """Passages by source, number and query, in an SQLite file that threads and processes share.

    An entry never expires: delete the file to ask again. The file has to be on a local disk, because processes share it
    through memory (SQLite's write-ahead log).

    Args:
        path: The file; it is made where there is none, in a folder that exists.
        max_bytes: Size from which on nothing is added.

    Raises:
        ValueError: The file is not such a cache, or cannot be opened.
    """

    def __init__(self, path: str | Path, max_bytes: int = MAX_CACHE_BYTES) -> None:
        super().__init__()
        self.path = Path(path).resolve()
        self.max_bytes = max_bytes
        self._inherited: list[sqlite3.Connection] = []
        self._connection: sqlite3.Connection | None = None
        self.start()
        with self._lock:
            try:
                self._open()
            except sqlite3.Error as error:
                raise ValueError(f"search cache {path}: {error}; expected a file that this class wrote") from error

    def start(self) -> None:
        """Forget the connection of the parent process."""
        if self._connection is not None:
            # SQLite forbids every use in a child, closing included: that may undo what the parent is writing.
            self._inherited.append(self._connection)
        self._connection = None
        self._lock = threading.Lock()

    def get(self, source: str, top_k: int, query: str) -> list[Passage] | None:
        """What was found, or None where nobody asked.

        Raises:
            ToolFailure: The file cannot be read.
        """
        key = (source, top_k, key_of(query))
        try:
            with self._lock:
                row = (
                    self._open()
                    .execute("SELECT passages FROM found WHERE source = ? AND top_k = ? AND query = ?", key)
                    .fetchone()
                )
            return None if row is None else [Passage(*fields) for fields in STORED.validate_json(row[0])]
        except (sqlite3.Error, ValidationError) as error:
            raise ToolFailure(f"search cache {self.path}: {type(error).__name__}") from error

    def put(self, source: str, top_k: int, query: str, passages: list[Passage]) -> None:
        """Keep what was found, unless the file has reached its size.

        Raises:
            ToolFailure: The file cannot be written.
        """
        stored = STORED.dump_json([(passage.title, passage.text, passage.id) for passage in passages])
        try:
            with self._lock:
                connection = self._open()
                size = connection.execute(
                    "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
                ).fetchone()[0]
                if size < self.max_bytes:
                    connection.execute(
                        "INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?)", (source, top_k, key_of(query), stored)
                    )
        except sqlite3.Error as error:
            raise ToolFailure(f"search cache {self.path}: {type(error).__name__}") from error

    def close(self) -> None:
        """Close the file; a later call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def __del__(self) -> None:
        """Close the file of a cache that nobody holds any more."""
        if getattr(self, "_connection", None) is not None:
            self.close()

    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            connection = sqlite3.connect(self.path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False)
            try:
                if not _is_made(connection):
                    _make(connection)
                connection.execute("PRAGMA synchronous = NORMAL")  # a crash of the machine may lose the last entries
            except sqlite3.Error:
                connection.close()
                raise
            self._connection = connection
        return self._connection


def _is_made(connection: sqlite3.Connection) -> bool:
    """Whether the file is a cache, and not an empty file yet.

    Raises:
        sqlite3.Error: It is something else.
    """
    connection.execute("BEGIN")  # so that both answers are of one moment, while another process makes the table
    layout: int = connection.execute("PRAGMA user_version").fetchone()[0]
    num_tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    connection.execute("COMMIT")
    if layout == 0 and num_tables > 0:
        raise sqlite3.DatabaseError("the file is another program's database")
    if layout not in (0, LAYOUT):
        raise sqlite3.DatabaseError(f"the file has layout {layout}, expected {LAYOUT}")
    return layout == LAYOUT


def _make(connection: sqlite3.Connection) -> None:
    deadline_s = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # While another process does the same, SQLite says so at once, although it was told to wait for locks.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline_s:
                raise
        time.sleep(BUSY_PAUSE_S)
    connection.executescript(f"BEGIN IMMEDIATE; {TABLE}; PRAGMA user_version = {LAYOUT}; COMMIT")


class CachedRetriever:
    """A retriever that asks another one only for what neither a file of ARPO's nor the cache on disk has.

    Args:
        retriever: The other one.
        source: What is searched, such as a URL; entries of different sources do not mix.
        cache: Where to keep what it finds.
        known: Read first, never written.
    """

    inline = False

    def __init__(
        self, retriever: Retriever, source: str, cache: SearchCache | None = None, known: ArpoSearchCache | None = None
    ) -> None:
        self._retriever = retriever
        self._source = source
        self._cache = cache
        self._known = known

    @property
    def timeout_s(self) -> float:
        """The other retriever's limit."""
        return self._retriever.timeout_s

    def search(self, query: str, top_k: int) -> list[Passage]:
        """Find passages; see ``Retriever``."""
        found = self._known.lookup(query) if self._known is not None else None
        if found is not None:
            return found[:top_k]
        if self._cache is None:
            return self._retriever.search(query, top_k)
        found = self._cache.get(self._source, top_k, query)
        if found is None:
            found = self._retriever.search(query, top_k)
            self._cache.put(self._source, top_k, query, found)
        return found


class ArpoSearchCache:
    r"""A search cache file of ARPO's, as a retriever that knows these queries and no other.

    The file is one JSON object, ``{"query": "Page 1: snippet\nPage 2: snippet", ...}``. Each page is a passage whose
    title is ``Page 1`` and so on: so the tool writes it as ARPO showed it. What has no page, such as "No search results
    found.", is a query that finds nothing.

    Args:
        entries: Text by query.
    """

    inline = True
    timeout_s = DEFAULT_TIMEOUT_S

    def __init__(self, entries: dict[str, str]) -> None:
        self._exact = entries
        self._normalised: dict[str, str] = {}
        for query, text in entries.items():
            self._normalised.setdefault(normalised(query), text)

    def lookup(self, query: str) -> list[Passage] | None:
        """What the file has for a query: the same one, else one that differs in white space and case; None else."""
        text = self._exact.get(query)
        if text is None:
            text = self._normalised.get(normalised(query))
        return None if text is None else pages(text)

    def search(self, query: str, top_k: int) -> list[Passage]:
        """What the file has for a query; nothing where it has not seen it.

        Raises:
            ValueError: ``top_k`` is not positive.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        return (self.lookup(query) or [])[:top_k]


def load_arpo_cache(path: str | Path) -> ArpoSearchCache:
    """Read a search cache file of ARPO's, once in a process for as long as the file stays the same.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is none.
    """
    path = corpus_file(path)
    status = path.stat()
    return _cached_file(path, status.st_mtime_ns, status.st_size)


def is_arpo_cache(path: str | Path) -> bool:
    """Whether a file starts as a search cache of ARPO's does, and not as a corpus.

    Raises:
        FileNotFoundError: There is no such file.
    """
    with corpus_file(path).open(encoding="utf-8", errors="replace") as file:
        return ARPO_START.match(file.read(SNIFFED_CHARACTERS)) is not None


@lru_cache(maxsize=CACHED_FILES)
def _cached_file(path: Path, modified_ns: int, size_bytes: int) -> ArpoSearchCache:
    try:
        return ArpoSearchCache(ARPO_FILE.validate_json(path.read_bytes()))
    except ValidationError as error:
        first = error.errors(include_input=False)[0]["msg"]
        raise ValueError(f"search cache {path}: {first}; expected a JSON object of texts by query") from error


def pages(text: str) -> list[Passage]:
    r"""The passages of an entry such as ``Page 1: snippet\nPage 2: snippet``."""
    _, *parts = ARPO_PAGE.split(text)
    return [Passage(title, snippet.rstrip("\n")) for title, snippet in zip(parts[::2], parts[1::2], strict=True)]


def normalised(query: str) -> str:
    """A query without what a search engine ignores: case, and the amount of white space."""
    return " ".join(query.split()).casefold()


def key_of(query: str) -> bytes:
    """A query as bytes; it may hold half a surrogate pair, which has no UTF-8."""
    return query.encode("utf-8", "surrogatepass")
