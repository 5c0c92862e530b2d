"""The cache of queries on disk, and ARPO's files."""

import json
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forkgym.tools.base import ToolFailure
from forkgym.tools.passages import Passage
from forkgym.tools.search import NO_RESULTS, search_tool
from forkgym.tools.web import search_cache
from forkgym.tools.web.search_cache import (
    ArpoSearchCache,
    CachedRetriever,
    SearchCache,
    is_arpo_cache,
    load_arpo_cache,
    normalised,
    pages,
)

URL = "http://127.0.0.1:8000/retrieve"
AYR = Passage("Ayr", "Ayr is a town.\nIt has a port.", "7")
BLY = Passage("Bly", "Zoë\0")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[SearchCache]:
    cache = SearchCache(tmp_path / "found.sqlite")
    yield cache
    cache.close()


class Counting:
    """A retriever that counts."""

    inline = False
    timeout_s = 3.0

    def __init__(self, passages: list[Passage]) -> None:
        self.passages = passages
        self.queries: list[str] = []

    def search(self, query: str, top_k: int) -> list[Passage]:
        self.queries.append(query)
        return self.passages[:top_k]


def test_what_was_put_is_got_by_all_of_its_key(cache: SearchCache) -> None:
    assert cache.get(URL, 3, "ayr") is None
    cache.put(URL, 3, "ayr", [AYR, BLY])
    assert cache.get(URL, 3, "ayr") == [AYR, BLY]
    for source, top_k, query in [("http://other/", 3, "ayr"), (URL, 2, "ayr"), (URL, 3, "Ayr"), (URL, 3, "ayr ")]:
        assert cache.get(source, top_k, query) is None
    cache.put(URL, 3, "nothing", [])
    assert cache.get(URL, 3, "nothing") == []
    cache.put(URL, 3, "ayr", [BLY])
    assert cache.get(URL, 3, "ayr") == [BLY]


def test_it_is_there_the_next_time(tmp_path: Path) -> None:
    path = tmp_path / "found.sqlite"
    first = SearchCache(path)
    first.put(URL, 3, "ayr", [AYR])
    second = SearchCache(path)  # beside the first
    assert second.get(URL, 3, "ayr") == [AYR]
    first.close()
    second.close()
    assert second.get(URL, 3, "ayr") == [AYR]  # it opens the file again
    second.close()


@settings(max_examples=30)  # each makes a file
@given(st.lists(st.text(), max_size=5))
def test_any_text_is_a_key_of_its_own(tmp_path_factory: pytest.TempPathFactory, queries: list[str]) -> None:
    cache = SearchCache(tmp_path_factory.mktemp("cache") / "found.sqlite")
    for query in queries:
        cache.put(URL, 3, query, [Passage(str(queries.index(query)), "")])
    for query in queries:
        assert cache.get(URL, 3, query) == [Passage(str(queries.index(query)), "")]
    assert cache.get(URL, 3, "\ud800 of no list") is None
    cache.close()


def test_a_full_file_takes_nothing_more(tmp_path: Path) -> None:
    cache = SearchCache(tmp_path / "found.sqlite", max_bytes=50_000)
    for number in range(100):
        cache.put(URL, 3, str(number), [Passage("x" * 5_000, "")])
    held = [number for number in range(100) if cache.get(URL, 3, str(number)) is not None]
    assert held == list(range(len(held)))
    assert 5 <= len(held) <= 10  # of some 5,000 bytes each
    cache.close()


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look like a file" * 100, b'{"a": "Page 1: b"}' * 99]
)
def test_a_file_of_another_kind_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "found.sqlite"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="expected a file that this class wrote"):
        SearchCache(path)
    assert path.read_bytes() == content


def test_a_file_of_another_layout_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "found.sqlite"
    SearchCache(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ValueError, match="layout 99, expected 1"):
        SearchCache(path)


def test_a_database_of_another_program_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE bookmarks (url TEXT)")
    connection.close()
    content = path.read_bytes()
    with pytest.raises(ValueError, match="the file is another program's database"):
        SearchCache(path)
    assert path.read_bytes() == content


def test_who_opens_a_file_that_another_process_is_making_waits_for_it(tmp_path: Path) -> None:
    path = tmp_path / "found.sqlite"
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.2, other.close)
    timer.start()
    cache = SearchCache(path)
    cache.put(URL, 3, "ayr", [AYR])
    assert cache.get(URL, 3, "ayr") == [AYR]
    cache.close()
    timer.join()


def test_a_new_file_that_stays_locked_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_cache, "LOCK_WAIT_S", 0.05)
    path = tmp_path / "found.sqlite"
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ValueError, match="database is locked"):
        SearchCache(path)
    other.close()


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unable to open"):
        SearchCache(tmp_path / "nowhere" / "found.sqlite")


def test_a_damaged_file_is_the_infrastructures_fault(tmp_path: Path) -> None:
    path = tmp_path / "found.sqlite"
    cache = SearchCache(path)
    cache.put(URL, 3, "ayr", [AYR])
    cache.close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE found SET passages = 'half of a'")
    connection.commit()
    connection.close()
    with pytest.raises(ToolFailure, match="ValidationError"):
        cache.get(URL, 3, "ayr")
    cache.close()
    path.write_bytes(b"\xff" * 20_000)
    with pytest.raises(ToolFailure, match="DatabaseError"):
        cache.get(URL, 3, "ayr")
    with pytest.raises(ToolFailure, match="DatabaseError"):
        cache.put(URL, 3, "ayr", [])


FILL = """
import sys
from forkgym.tools.passages import Passage
from forkgym.tools.web.search_cache import SearchCache
path, name = sys.argv[1:]
cache = SearchCache(path)
for number in range(100):
    cache.put("here", 3, f"{name} {number}", [Passage(name, str(number))])
    cache.put("here", 3, f"same {number}", [Passage("same", str(number))])
cache.close()
"""


def test_processes_share_a_file(tmp_path: Path) -> None:
    path = tmp_path / "found.sqlite"
    names = ("a", "b")
    processes = [subprocess.Popen([sys.executable, "-c", FILL, str(path), name]) for name in names]
    assert [process.wait(120) for process in processes] == [0, 0]
    cache = SearchCache(path)
    for name in (*names, "same"):
        for number in range(100):
            assert cache.get("here", 3, f"{name} {number}") == [Passage(name, str(number))]
    cache.close()


def test_a_file_that_another_process_keeps_locked_is_the_infrastructures_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search_cache, "LOCK_WAIT_S", 0.05)
    cache = SearchCache(tmp_path / "found.sqlite")
    other = sqlite3.connect(cache.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(ToolFailure, match="OperationalError"):
        cache.put(URL, 3, "ayr", [AYR])
    assert cache.get(URL, 3, "ayr") is None  # readers do not wait for writers
    other.close()
    cache.put(URL, 3, "ayr", [AYR])
    cache.close()


def test_threads_share_a_cache(cache: SearchCache) -> None:
    def work(number: int) -> list[Passage] | None:
        cache.put(URL, 3, str(number % 50), [Passage(str(number % 50), "")])
        return cache.get(URL, 3, str(number % 50))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(work, range(400))) == [[Passage(str(number % 50), "")] for number in range(400)]


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # of Python 3.12: it is what is tested
def test_a_forked_child_opens_the_file_itself(cache: SearchCache) -> None:
    cache.put(URL, 3, "parent", [AYR])
    held, release = threading.Event(), threading.Event()

    def hold() -> None:
        with cache._lock:
            held.set()
            release.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if cache.get(URL, 3, "parent") == [AYR] else 2
            cache.put(URL, 3, "child", [BLY])
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    release.set()
    thread.join()
    assert cache.get(URL, 3, "child") == [BLY]


def test_the_other_retriever_is_asked_once(cache: SearchCache) -> None:
    other = Counting([AYR, BLY])
    retriever = CachedRetriever(other, URL, cache)
    assert (retriever.inline, retriever.timeout_s) == (False, 3.0)
    for _ in range(2):
        assert retriever.search("a", 2) == [AYR, BLY]
    assert retriever.search("a", 1) == [AYR]
    assert other.queries == ["a", "a"]
    assert CachedRetriever(other, "another", cache).search("a", 1) == [AYR]
    assert other.queries == ["a", "a", "a"]


def test_a_failure_is_not_kept(cache: SearchCache) -> None:
    class Failing(Counting):
        def search(self, query: str, top_k: int) -> list[Passage]:
            super().search(query, top_k)
            if len(self.queries) == 1:
                raise ToolFailure("down")
            return [AYR]

    retriever = CachedRetriever(Failing([]), URL, cache)
    with pytest.raises(ToolFailure):
        retriever.search("a", 1)
    assert retriever.search("a", 1) == [AYR]


def test_without_a_cache_only_what_is_known_is_not_asked_for() -> None:
    other = Counting([BLY])
    retriever = CachedRetriever(other, URL, known=ArpoSearchCache({"ayr": "Page 1: a\nPage 2: b"}))
    assert retriever.search("AYR", 1) == [Passage("Page 1", "a")]
    assert retriever.search("bly", 1) == retriever.search("bly", 1) == [BLY]
    assert other.queries == ["bly", "bly"]


# ARPO's files.

ENTRIES = {
    "search query: Who?": "Page 1: One. …\nPage 2: Two,\nin two lines.\n\nPage 3: See Page 4: no page",
    "who  WAS it": "Page 1: It",
    "Who was it": "Page 1: Exactly it",
    "Unknown": "No search results found.",
    "Empty": "",
}


def test_pages_are_passages() -> None:
    assert pages(ENTRIES["search query: Who?"]) == [
        Passage("Page 1", "One. …"),
        Passage("Page 2", "Two,\nin two lines."),
        Passage("Page 3", "See Page 4: no page"),
    ]
    assert pages("No search results found.") == pages("") == []


@given(st.text("Page 12:\n x"))
def test_any_text_has_pages(text: str) -> None:
    assert all(passage.title.startswith("Page ") for passage in pages(text))


def test_the_same_query_is_found_first_then_one_that_looks_alike() -> None:
    known = ArpoSearchCache(ENTRIES)
    assert known.lookup("who  WAS it") == [Passage("Page 1", "It")]
    assert known.lookup("Who was it") == [Passage("Page 1", "Exactly it")]
    assert known.lookup("\tWHO was\nIT ") == [Passage("Page 1", "It")]  # of two, the first in the file
    assert known.lookup("who was it?") is None
    assert known.lookup("unknown") == []
    assert normalised(" Straße\n A ") == "strasse a"


def test_it_is_a_retriever_of_its_own() -> None:
    known = ArpoSearchCache(ENTRIES)
    assert len(known.search("search query: who?", 2)) == 2
    assert known.search("never asked", 3) == []
    with pytest.raises(ValueError, match="top_k is 0"):
        known.search("unknown", 0)
    session = search_tool(known).new_session()
    assert session.call({"query": "who was it"}) == "Page 1: It"
    assert session.call({"query": "unknown"}) == session.call({"query": "never asked"}) == NO_RESULTS


def test_a_file_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "search_cache.json"
    path.write_text(json.dumps(ENTRIES), encoding="utf-8")
    known = load_arpo_cache(path)
    assert known.lookup("Who was it") == [Passage("Page 1", "Exactly it")]
    assert load_arpo_cache(str(path)) is known
    path.write_text(json.dumps({"a": "Page 1: b"}), encoding="utf-8")
    assert load_arpo_cache(path).lookup("a") == [Passage("Page 1", "b")]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"a": 1}', '{"a": "b"', '{"a": "\\ud800"}', "[" * 100_000, '{"a": null}']
)
def test_what_is_no_such_file_is_refused(content: str, tmp_path: Path) -> None:
    path = tmp_path / "search_cache.json"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected a JSON object of texts by query"):
        load_arpo_cache(path)
    with pytest.raises(FileNotFoundError):
        load_arpo_cache(tmp_path / "nowhere.json")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps(ENTRIES), True),
        (json.dumps(ENTRIES, indent=2), True),
        (json.dumps({'a "quoted" \\ query': "No search results found."}), True),
        ('{"id": "1", "contents": "Page\\ntext"}\n{"id": "2", "contents": "Page 1: x"}\n', False),
        ('{"title": "Page", "text": "Page 1: x"}', False),
        ('[{"title": "Page", "text": "x"}]', False),
        ("", False),
    ],
)
def test_such_a_file_is_told_from_a_corpus(content: str, expected: bool, tmp_path: Path) -> None:
    path = tmp_path / "file.json"
    path.write_text(content, encoding="utf-8")
    assert is_arpo_cache(path) is expected


def test_the_real_file(shared_data: Path) -> None:
    path = shared_data / "arpo" / "search_cache.json"
    assert is_arpo_cache(path)
    entries: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    known = load_arpo_cache(path)
    found = {query: known.lookup(query) for query in entries}
    # Four entries hold "No search results found.", and no text is lost.
    assert sum(passages == [] for passages in found.values()) == 4
    for query, passages in found.items():
        assert passages is not None
        if passages:
            assert "\n".join(f"{passage.title}: {passage.text}" for passage in passages) == entries[query].rstrip("\n")
    assert not is_arpo_cache(shared_data / "wiki2" / "corpus.json")
