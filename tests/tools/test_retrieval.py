"""Retrievers by name."""

from pathlib import Path

import pytest

from forkgym.tools.corpora.dense import DenseIndex
from forkgym.tools.passages import Passage
from forkgym.tools.retrieval import retriever_for
from forkgym.tools.search import PassageIndex, Retriever, search_tool
from forkgym.tools.web.remote_search import RemoteRetriever

AYR = Passage("Ayr", "A town.", "7")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKGYM_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    path = tmp_path / "corpus.jsonl"
    path.write_text('{"id": "7", "contents": "\\"Ayr\\"\\nA town."}\n', encoding="utf-8")
    return str(path)


def test_a_corpus_by_words(corpus: str) -> None:
    found: Retriever = retriever_for(corpus)
    assert isinstance(found, PassageIndex)
    assert found.search("town", 3) == [AYR]
    assert retriever_for(corpus, "bm25") is found


def test_a_corpus_by_meaning(corpus: str, tmp_path: Path) -> None:
    file = tmp_path / "encoder.py"
    file.write_text("def encode(texts):\n    return [[float(len(text))] for text in texts]\n", encoding="utf-8")
    found: Retriever = retriever_for(corpus, f"dense:{file}:encode")
    assert isinstance(found, DenseIndex)
    assert found.search("anything", 3) == [AYR]
    assert retriever_for(corpus, f"dense:{file}:encode") is found
    assert search_tool(found).new_session().call({"query": "x"}) == "Ayr: A town."


def test_a_server() -> None:
    found = retriever_for("http://127.0.0.1:9/retrieve")
    assert isinstance(found, RemoteRetriever)
    assert retriever_for("http://127.0.0.1:9/retrieve") is found
    with pytest.raises(ValueError, match=r"retriever 'dense:x': the server http://127\.0\.0\.1:9/ finds passages in"):
        retriever_for("http://127.0.0.1:9/", "dense:x")


@pytest.mark.parametrize("name", ["", "bm26", "dense", "dense:"])
def test_unknown_retrievers(corpus: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"unknown retriever '{name}'; expected bm25, dense:MODEL or dense:module:fun"):
        retriever_for(corpus, name)


def test_a_corpus_that_is_not_there(tmp_path: Path) -> None:
    for retriever in ("bm25", "dense:math:sqrt"):
        with pytest.raises(FileNotFoundError, match="no such file"):
            retriever_for(str(tmp_path / "nowhere.jsonl"), retriever)


def test_a_search_cache_of_arpos_is_a_corpus(shared_data: Path) -> None:
    found = retriever_for(str(shared_data / "arpo" / "search_cache.json"))
    assert found.search("Amy Smart film debut Campfire Tales", 1)[0].text.startswith("The film is made up of three")
    assert found.search("what nobody asked for", 1) == []
