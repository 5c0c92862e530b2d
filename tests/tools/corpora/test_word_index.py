"""The BM25 index: bm25s' scores to the last bit, with and without columns, in memory and mapped."""

from pathlib import Path
from typing import Any
from zlib import crc32

import bm25s
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.corpora.ranking import GROUPS
from forkgym.tools.corpora.word_index import StoredVocabulary, WordIndex


def made_up_texts(number: int) -> list[list[str]]:
    """Texts of 1 to 12 words, "w0" very common and "w59" rare."""
    rng = np.random.default_rng(3)
    shares = np.cumsum(1 / np.arange(1, 61))
    lengths: list[int] = rng.integers(1, 13, size=number).tolist()
    draws = [rng.random(length) * shares[-1] for length in lengths]
    words: list[list[int]] = [np.searchsorted(shares, drawn).tolist() for drawn in draws]
    return [[f"w{word}" for word in text] for text in words]


MANY = made_up_texts(2_500)
INDEX = WordIndex.build(MANY)


def queries() -> list[list[str]]:
    """Queries of 1 to 8 words, some of them unknown, some twice."""
    rng = np.random.default_rng(4)
    sizes: list[int] = rng.integers(1, 9, size=60).tolist()
    return [[f"w{number}" for number in rng.integers(0, 65, size=size)] for size in sizes]


@pytest.fixture(scope="module")
def expected() -> list[list[float]]:
    """The scores of each query as bm25s itself computes them."""
    vocabulary: dict[str, int] = {}
    numbers = [[vocabulary.setdefault(word, len(vocabulary)) for word in words] for words in MANY]
    reference: Any = bm25s.BM25(method="lucene", k1=1.5, b=0.75, backend="numpy")
    reference.index((numbers, vocabulary), show_progress=False)
    ids = [[vocabulary[word] for word in query if word in vocabulary] for query in queries()]
    return [reference.get_scores_from_ids(known).tolist() if known else [0.0] * len(MANY) for known in ids]


def test_scores_are_those_of_bm25s_to_the_last_bit(expected: list[list[float]]) -> None:
    assert 3 <= len(INDEX.common) < 60  # columns and lists both take part
    for query, of_query in zip(queries(), expected, strict=True):
        scores = INDEX.score(query)
        assert ([0.0] * len(MANY) if scores is None else scores[: len(MANY)].tolist()) == of_query


def test_the_best_are_the_head_of_a_stable_sort(expected: list[list[float]]) -> None:
    for query, of_query in zip(queries(), expected, strict=True):
        hits = [place for place, score in enumerate(of_query) if score]
        order = sorted(hits, key=of_query.__getitem__, reverse=True)  # still stable
        for top_k in (1, 3, 100, GROUPS, GROUPS + 1, 5_000):
            assert INDEX.best(query, top_k) == order[:top_k]


def test_common_words_of_many_texts_have_columns() -> None:
    texts = [["every", "third" if number % 3 == 0 else "other", f"own{number}"] for number in range(GROUPS)]
    assert len(WordIndex.build(texts).common) == 0  # as many texts as groups: lists are as quick
    # 1,025 texts: 342 with "third", 683 with "other"; a word has a column from 86 texts on, as 86 * 12 > 1,025.
    index = WordIndex.build([*texts, ["other"] + ["rare"] * 85])
    assert set(index.common.tolist()) == {index.vocabulary.get(word) for word in ("every", "third", "other")}
    assert index.columns.shape == (3, 1_025)


def test_a_stored_index_finds_the_same(tmp_path: Path) -> None:
    for name, index in {
        "columns": INDEX,
        "no columns": WordIndex.build(MANY[:50]),
        "empty": WordIndex.build([]),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        index.save(folder)
        stored = WordIndex.load(folder)
        assert stored.num_texts == index.num_texts
        for query in queries():
            assert stored.best(query, 7) == index.best(query, 7)
        for array in ("scores", "texts", "starts", "columns", "common"):
            assert np.array_equal(getattr(stored, array), getattr(index, array))


def test_files_that_do_not_belong_together(tmp_path: Path) -> None:
    INDEX.save(tmp_path)
    np.save(tmp_path / "texts.npy", INDEX.texts[:-1])
    with pytest.raises(ValueError, match="do not belong together"):
        WordIndex.load(tmp_path)
    np.save(tmp_path / "word_hashes.npy", np.zeros(2, np.uint32))
    with pytest.raises(ValueError, match="the vocabulary's files in .* do not belong together"):
        WordIndex.load(tmp_path)


def test_words_with_the_same_hash_are_told_apart(tmp_path: Path) -> None:
    assert crc32(b"plumless") == crc32(b"buckeroo")  # a known collision
    StoredVocabulary.write(tmp_path, {"plumless": 0, "ayr": 1, "buckeroo": 2})
    vocabulary = StoredVocabulary(tmp_path)
    assert [vocabulary.get(word) for word in ("plumless", "buckeroo", "ayr", "bly")] == [0, 2, 1, None]
    StoredVocabulary.write(tmp_path, {"plumless": 0})
    assert StoredVocabulary(tmp_path).get("buckeroo") is None


TEXT = st.text(st.characters(exclude_categories=["Cs"]))


@given(st.dictionaries(TEXT, st.integers(0, 2**40)), TEXT)
def test_a_stored_vocabulary_is_the_dictionary(
    tmp_path_factory: pytest.TempPathFactory, words: dict[str, int], other: str
) -> None:
    folder = tmp_path_factory.mktemp("vocabulary")
    StoredVocabulary.write(folder, words)
    vocabulary = StoredVocabulary(folder)
    assert {word: vocabulary.get(word) for word in words} == words
    assert vocabulary.get(other) == words.get(other)
