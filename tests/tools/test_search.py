"""Search: what is found, in which order, and how it is written."""

import json
import math
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.base import ToolError, ToolSession
from forkgym.tools.passages import Passage, load_passages
from forkgym.tools.search import MAX_QUERY_CHARACTERS, NO_RESULTS, PassageIndex, Retriever, index_for, search_tool


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORKGYM_CACHE", str(tmp_path / "cache"))


AYR = Passage("Ayr", "Ayr is a town on the coast.")
BLY = Passage("Bly River", "The river runs to the coast.")
COL = Passage("Café Çolak", "A café in ÅRHUS; owner: Zoë.")
TOWNS = PassageIndex([AYR, BLY, COL])


def asker(index: PassageIndex, top_k: int = 3, max_chars: int = 600) -> Callable[[str], str]:
    """What the tool answers to the text of a call."""
    tool = search_tool(index, top_k=top_k, max_chars=max_chars)
    session: ToolSession = tool.new_session()
    return lambda text: session.call(tool.arguments_from_text(text))


def test_scores_are_lucenes_bm25() -> None:
    # Two passages without titles: lengths 3 and 1, mean 2. Of "a" there are two in the first, none in the second.
    index = PassageIndex([Passage("", "a a b"), Passage("", "c")])
    scores = index.words.score(["a"])
    assert scores is not None
    (score, zero) = scores.tolist()
    # idf = ln(1 + (2 - 1 + 0.5) / (1 + 0.5)) = ln 2; tf = 2 / (2 + 1.5 * (0.25 + 0.75 * 3 / 2)) = 2 / 4.0625
    assert score == pytest.approx(math.log(2) * 2 / 4.0625, rel=1e-6)
    assert zero == 0


def test_the_best_passage_comes_first_and_others_that_share_a_word_follow() -> None:
    assert TOWNS.search("the river to the coast", 3) == [BLY, AYR]
    assert TOWNS.search("the river to the coast", 1) == [BLY]
    assert TOWNS.search("Ayr", 3) == [AYR]


def test_words_are_unicode_and_case_does_not_matter() -> None:
    assert TOWNS.search("AYR?", 3) == [AYR]
    assert TOWNS.search("ÇOLAK", 3) == [COL]
    assert TOWNS.search("århus", 3) == [COL]
    assert TOWNS.search("zoë's", 3) == [COL]


def test_titles_are_searched_and_count_more_than_text() -> None:
    inside = Passage("Other", "Lopi is named here.")
    titled = Passage("Lopi", "Something is named here.")
    assert PassageIndex([inside, titled]).search("lopi", 2) == [titled, inside]


def test_titles_of_common_words_are_found() -> None:
    band = Passage("Was (Not Was)", "A group.")
    assert PassageIndex([AYR, BLY, band]).search("was not was", 1) == [band]


def test_a_query_without_a_known_word_finds_nothing() -> None:
    for query in ("", "  ", "?!", "zebra", "\ud800"):
        assert TOWNS.search(query, 3) == []


def test_indexes_without_words() -> None:
    assert PassageIndex([]).search("ayr", 3) == []
    assert PassageIndex([Passage("", ""), Passage("?", "!")]).search("ayr", 3) == []


def test_equal_passages_come_in_their_order() -> None:
    same = [Passage("Town", f"Equal words {number}") for number in range(40)]
    for top_k in (1, 3, 39, 40, 100):
        assert PassageIndex(same).search("town", top_k) == same[:top_k]
    # The better one first although it is the last, then the equal ones in order.
    best = Passage("Town", "Town town town")
    assert PassageIndex([*same, best]).search("town", 3) == [best, same[0], same[1]]


def test_top_k_must_be_positive() -> None:
    with pytest.raises(ValueError, match="top_k is 0"):
        TOWNS.search("ayr", 0)
    with pytest.raises(ValueError, match="top_k is 0"):
        search_tool(TOWNS, top_k=0)
    with pytest.raises(ValueError, match="max_chars is 0"):
        search_tool(TOWNS, max_chars=0)


WORDS = st.lists(st.sampled_from("abcdef"), max_size=6).map(" ".join)


@given(st.lists(st.builds(Passage, WORDS, WORDS), max_size=12), WORDS, st.integers(1, 5))
def test_results_are_the_head_of_a_stable_sort_by_score(passages: list[Passage], query: str, top_k: int) -> None:
    index = PassageIndex(passages)
    found = index.words.score(query.split())
    scores = [0.0] * len(passages) if found is None else found.tolist()
    order = sorted((position for position in range(len(passages)) if scores[position]), key=lambda at: -scores[at])
    assert index.search(query, top_k) == [passages[position] for position in order[:top_k]]


def test_threads_share_an_index() -> None:
    passages = [Passage(f"Town {number}", f"word{number % 7} word{number % 11} coast") for number in range(300)]
    index = PassageIndex(passages)
    queries = [f"word{number} coast town" for number in range(11)] * 20
    with ThreadPoolExecutor(4) as pool:
        side_by_side = list(pool.map(index.search, queries, [5] * len(queries)))
    assert side_by_side == [index.search(query, 5) for query in queries]


def test_the_tool_writes_a_line_for_each_passage() -> None:
    ask = asker(TOWNS)
    assert ask(" the river to the coast ") == (
        "Bly River: The river runs to the coast.\nAyr: Ayr is a town on the coast."
    )
    assert asker(TOWNS, top_k=1)("coast") == "Ayr: Ayr is a town on the coast."
    assert ask("zebra") == NO_RESULTS == "No results."


def test_lines_are_cut_after_a_whole_word() -> None:
    # "Ayr: Ayr is a town" has 18 characters.
    assert asker(TOWNS, max_chars=18)("ayr") == "Ayr: Ayr is a town"
    assert asker(TOWNS, max_chars=17)("ayr") == "Ayr: Ayr is a"
    assert asker(TOWNS, max_chars=31)("ayr") == "Ayr: Ayr is a town on the"
    assert asker(TOWNS, max_chars=32)("ayr") == "Ayr: Ayr is a town on the coast."
    assert asker(TOWNS, max_chars=2)("ayr") == "Ay"


def test_a_passage_of_several_lines_becomes_one() -> None:
    index = PassageIndex([Passage("A\nB", "one\n\n two\tthree ")])
    assert asker(index)("two") == "A B: one two three"


def test_what_the_model_gets_wrong_is_a_tool_error() -> None:
    ask = asker(TOWNS)
    with pytest.raises(ToolError, match="the query is empty"):
        ask(" \n")
    assert ask("x" * MAX_QUERY_CHARACTERS) == NO_RESULTS
    with pytest.raises(ToolError, match="the query has 1001 characters; at most 1000"):
        ask("x" * (MAX_QUERY_CHARACTERS + 1))


@given(st.text())
def test_any_text_is_a_query(text: str) -> None:
    try:
        asker(TOWNS)(text)
    except ToolError as error:
        assert not text.strip(), error


def test_the_tool_runs_inline_without_state() -> None:
    tool = search_tool(TOWNS)
    assert (tool.name, tool.inline, tool.text_parameter) == ("search", True, "query")
    session = tool.new_session()
    assert session.snapshot() is None
    assert session.fork().call({"query": "ayr"}) == session.call({"query": "ayr"})


class SlowRetriever:
    """A retriever that is not in this thread's memory, and says what it was asked."""

    inline = False
    timeout_s = 2.5

    def search(self, query: str, top_k: int) -> list[Passage]:
        return [Passage(query, f"asked for {top_k}")]


def test_any_retriever_makes_a_tool() -> None:
    retriever: Retriever = SlowRetriever()
    tool = search_tool(retriever, top_k=7)
    assert (tool.inline, tool.keeps_limit, tool.timeout_s) == (False, True, 2.5)
    assert tool.new_session().call({"query": "ayr"}) == "ayr: asked for 7"
    inline = search_tool(TOWNS)
    assert (inline.inline, inline.keeps_limit) == (True, False)


def test_no_half_of_a_surrogate_pair_reaches_the_model() -> None:
    assert asker(PassageIndex([Passage("\ud83d", "half \udc00 ç")]))("half") == "\ufffd: half \ufffd ç"


def test_an_index_is_built_once_for_a_file_and_again_when_it_changes(tmp_path: Path) -> None:
    path = tmp_path / "corpus.json"
    path.write_text(json.dumps([{"title": "Ayr", "text": "A town."}]))
    first = index_for(path)
    assert index_for(str(path)) is first
    assert index_for(tmp_path / ".." / tmp_path.name / "corpus.json") is first
    path.write_text(json.dumps([{"title": "Bly", "text": "A river."}]))
    os.utime(path, ns=(0, 0))  # a clock may be too coarse to tell the two writes apart
    second = index_for(path)
    assert second.search("bly", 1) == [Passage("Bly", "A river.")]


def test_a_corpus_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; expected JSON"):
        index_for(tmp_path / "nowhere.json")


def test_supporting_paragraphs_of_hotpotqa_are_found_by_title(shared_data: Path) -> None:
    path = shared_data / "hotpotqa" / "dev_distractor_100.json"
    rows = json.loads(path.read_text(encoding="utf-8"))
    titles = sorted({title for row in rows for title in row["supporting_facts"]["title"]})
    index = index_for(path)
    assert (len(index.passages), len(titles)) == (991, 200)
    found = sum(any(passage.title == title for passage in index.search(title, 5)) for title in titles)
    assert found / len(titles) >= 0.9


def test_a_corpus_of_thousands_is_found_by_title(shared_data: Path) -> None:
    path = shared_data / "wiki2" / "corpus.json"
    index, passages = index_for(path), load_passages(path)[::20]
    found = sum(any(hit.title == passage.title for hit in index.search(passage.title, 5)) for passage in passages)
    assert found / len(passages) >= 0.9
