"""Dense retrieval: what is found, in which order, with functions and with a model of sentence-transformers."""

import math
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.tools.base import ToolFailure
from forkgym.tools.corpora import dense
from forkgym.tools.corpora.dense import DenseIndex, Encoder, cached_dense_index, dense_index_for, encoder_for
from forkgym.tools.passages import Passage
from forkgym.tools.references import load_reference
from forkgym.tools.search import search_tool

AYR = Passage("Ayr", "a town")
BLY = Passage("Bly", "a river")
SEA = Passage("", "a town by the sea, with a river", id="3")
CORPUS = [AYR, BLY, SEA]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FORKGYM_CACHE", str(tmp_path / "cache"))
    yield
    cached_dense_index.cache_clear()


def counts(texts: list[str]) -> list[list[float]]:
    """How often a text names a town, a river and the sea."""
    return [[float(text.count(word)) for word in ("town", "river", "sea")] for text in texts]


def test_the_highest_inner_product_comes_first() -> None:
    index = DenseIndex(CORPUS, counts)
    assert index.vectors.tolist() == [[1, 0, 0], [0, 1, 0], [1, 1, 1]]
    # Products with (1, 2, 0): 1, 2 and 3; with (-1, ...): negative ones are ranked as well.
    assert index.search("town river river", 2) == [SEA, BLY]
    contrary = DenseIndex(CORPUS, Encoder(lambda texts: [[-1.0, -2.0, 0.0]] * len(texts), counts))
    assert contrary.search("", 9) == [AYR, BLY, SEA]


def test_equal_passages_come_in_their_order() -> None:
    passages = [Passage(str(number), "town") for number in range(3_000)]
    index = DenseIndex(passages, counts)
    assert index.search("town", 4) == passages[:4]
    assert index.search("nothing of it", 3_000) == passages


@given(st.lists(st.lists(st.integers(-3, 3), min_size=2, max_size=2), min_size=1, max_size=30), st.integers(1, 40))
def test_results_are_the_head_of_a_stable_sort(rows: list[list[int]], top_k: int) -> None:
    passages = [Passage(str(number), "") for number in range(len(rows))]
    vectors = np.array(rows, np.float32)
    index = DenseIndex(passages, lambda texts: [[1.0, -2.0]] * len(texts), vectors)
    order = sorted(range(len(rows)), key=lambda place: -(rows[place][0] - 2 * rows[place][1]))
    assert index.search("?", top_k) == [passages[place] for place in order[:top_k]]


def test_blocks_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["town", "river", "town river", "sea", "town town", "river sea", "sea sea sea"]
    passages = [Passage(text, text) for text in texts]
    whole = DenseIndex(passages, counts)
    monkeypatch.setattr(dense, "ENCODED_AT_ONCE", 3)
    monkeypatch.setattr(dense, "SCORED_AT_ONCE", 2)
    pieces = DenseIndex(passages, counts)
    assert np.array_equal(pieces.vectors, whole.vectors)
    for query in texts:
        assert pieces.search(query, 3) == whole.search(query, 3)


def test_no_passages() -> None:
    assert DenseIndex([], counts).search("town", 3) == []


def test_a_query_is_any_text() -> None:
    seen: list[str] = []

    def encode(texts: list[str]) -> list[list[float]]:
        seen.extend(texts)
        return counts(texts)

    DenseIndex(CORPUS, encode).search("\ud83d town\0", 1)
    assert seen[-1] == "\ufffd town\0"
    with pytest.raises(ValueError, match="top_k is 0"):
        DenseIndex(CORPUS, encode).search("town", 0)


def test_titles_are_a_line_of_their_own() -> None:
    seen: list[str] = []

    def encode(texts: list[str]) -> list[list[float]]:
        seen.extend(texts)
        return counts(texts)

    DenseIndex(CORPUS, encode)
    assert seen == ["Ayr\na town", "Bly\na river", "a town by the sea, with a river"]


@pytest.mark.parametrize(
    "returned", [[1.0, 2.0, 3.0], [[1.0], [2.0]], [[1.0], [2.0], [float("nan")]], [[1.0], [2.0], [float("inf")]]]
)
def test_what_an_encoder_must_not_return(returned: Any) -> None:
    with pytest.raises(ValueError, match=r"the encoder returned an array of shape \(.*\) for 3 texts"):
        DenseIndex(CORPUS, lambda _: returned)


def test_vectors_of_different_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    index = DenseIndex(CORPUS, Encoder(lambda texts: [[1.0]] * len(texts), counts))
    with pytest.raises(ValueError, match="returned 1 numbers for a query and 3 for a passage"):
        index.search("town", 1)
    monkeypatch.setattr(dense, "ENCODED_AT_ONCE", 1)
    with pytest.raises(ValueError, match="returned vectors of 10 and of 7 numbers"):
        DenseIndex([AYR, Passage("", "a river")], lambda texts: [[1.0] * len(texts[0])])


def test_the_time_limit_is_the_infrastructures_fault() -> None:
    index = DenseIndex(CORPUS, counts, timeout_s=1e-9)
    with pytest.raises(ToolFailure, match="dense search over 3 passages took longer than 1e-09 s"):
        index.search("town", 1)
    tool = search_tool(index)
    assert (tool.inline, tool.keeps_limit, tool.timeout_s) == (False, True, 1e-9)


def written_corpus(folder: Path) -> Path:
    path = folder / "corpus.jsonl"
    path.write_text(
        '{"title": "Ayr", "text": "a town"}\n{"title": "Bly", "text": "a river"}\n'
        '{"id": 3, "title": "", "text": "a town by the sea, with a river"}\n',
        encoding="utf-8",
    )
    return path


ENCODER_FILE = """
CALLS = []

def encode(texts):
    CALLS.append(len(texts))
    return [[float(text.count(word)) for word in WORDS] for text in texts]
"""


def written_encoder(folder: Path, words: list[str]) -> str:
    folder.mkdir()
    (folder / "encoder.py").write_text(f"WORDS = {words!r}\n{ENCODER_FILE}")
    return f"{folder / 'encoder.py'}:encode"


def test_passages_are_encoded_once_and_mapped(tmp_path: Path) -> None:
    corpus, name = written_corpus(tmp_path), written_encoder(tmp_path / "a", ["town", "river"])
    first = dense_index_for(corpus, name)
    assert dense_index_for(str(corpus), name) is first
    assert first.search("river", 3) == [BLY, SEA, AYR]
    calls: list[int] = load_reference(name.replace(":encode", ":CALLS"), "list of calls")
    assert calls == [3, 3, 3, 1]  # the probes, the passages, the probes again on loading, the query
    cached_dense_index.cache_clear()
    second = dense_index_for(corpus, name)
    assert calls[4:] == [3]  # the probes
    assert second.search("river", 3) == [BLY, SEA, AYR]
    assert isinstance(second.vectors.base, np.memmap)


def test_another_encoder_of_the_same_name_encodes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    corpus, name = written_corpus(tmp_path), "model"
    words = ["town"]

    def changing(texts: list[str]) -> list[list[float]]:
        return [[float(len(text) % 7), *(float(text.count(word)) for word in words)] for text in texts]

    monkeypatch.setattr(dense, "sentence_transformer", {name: Encoder(changing, changing)}.__getitem__)
    assert dense_index_for(corpus, name).vectors[:, 1].tolist() == [1, 0, 1]  # towns
    words[0] = "42"
    cached_dense_index.cache_clear()
    assert dense_index_for(corpus, name).vectors[:, 1].tolist() == [0, 0, 0]
    assert "the encoder is not the one that made the vectors" in caplog.text


def test_encoders_that_cannot_be_loaded(tmp_path: Path) -> None:
    name = written_encoder(tmp_path / "a", [])
    for source, problem in {
        f"{name}s": "encoder .* has no attribute 'encodes'",
        name.replace(":encode", ":WORDS"): r"is \[\], expected a function from texts to vectors",
        "no_such_module:encode": "there is no module 'no_such_module'",
    }.items():
        with pytest.raises(ValueError, match=problem):
            encoder_for(source)


@pytest.mark.parametrize(("similarity", "normalised"), [("cosine", True), ("dot", False)])
def test_a_model_is_asked_in_its_own_way(similarity: str, normalised: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, list[str], bool]] = []

    class Model:
        similarity_fn_name = similarity

        def __init__(self, name: str) -> None:
            assert name == f"some/{similarity}-model"

        def encode_query(self, texts: list[str], *, normalize_embeddings: bool, show_progress_bar: bool) -> Any:
            asked.append(("query", texts, normalize_embeddings))
            return np.ones((len(texts), 2))

        def encode_document(self, texts: list[str], *, normalize_embeddings: bool, show_progress_bar: bool) -> Any:
            asked.append(("document", texts, normalize_embeddings))
            return np.ones((len(texts), 2))

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Model))
    assert DenseIndex(CORPUS[:1], f"some/{similarity}-model").search("sea", 1) == CORPUS[:1]
    assert asked == [("document", ["Ayr\na town"], normalised), ("query", ["sea"], normalised)]


def test_a_model_with_another_distance_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        similarity_fn_name = "manhattan"

        def __init__(self, name: str) -> None:
            pass

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=Model))
    with pytest.raises(ValueError, match="compares by the manhattan distance, expected cosine or dot product"):
        encoder_for("some/manhattan-model")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of sentence-transformers whose vector of a text is the mean of its words'."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import StaticEmbedding
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    words = {"[UNK]": 0, "town": 1, "river": 2, "sea": 3, "ask": 4}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    rows = torch.tensor([[0, 0, 0], [3, 0, 0], [0, 4, 0], [0, 0, 1], [0, 8, 0]], dtype=torch.float32)
    model = SentenceTransformer(
        modules=[StaticEmbedding(tokenizer, embedding_weights=rows.numpy())],
        prompts={"query": "ask ", "document": ""},
        device="cpu",
    )
    folder = tmp_path_factory.mktemp("model")
    model.save(str(folder))
    return folder


@pytest.mark.slow  # the library takes ten seconds to import
def test_a_model_of_sentence_transformers(model_folder: Path, tmp_path: Path) -> None:
    encoder = encoder_for(str(model_folder))
    # The cosine is the default, so vectors have length 1; the query's prompt "ask " adds its own word: (3, 8) / 2.
    assert np.allclose(encoder.encode_document(["town", "town river"]), [[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
    assert np.allclose(encoder.encode_query(["town"]), [[3 / math.sqrt(73), 8 / math.sqrt(73), 0.0]])
    index = dense_index_for(written_corpus(tmp_path), str(model_folder))
    # a town: (1, 0, 0); a river: (0, 1, 0); both and the sea: (3, 4, 1) / 26 ** 0.5. Times (3, 8, 0): 3, 8, 8.04.
    assert index.search("town", 3) == [SEA, BLY, AYR]
    for query in ("", "\0", "\ud800 sea"):
        assert len(index.search(query, 2)) == 2


@pytest.mark.slow  # the library takes ten seconds to import
def test_threads_share_a_model(model_folder: Path) -> None:
    index = DenseIndex(CORPUS, str(model_folder))
    queries = ["town", "river", "sea town"] * 20
    with ThreadPoolExecutor(4) as pool:
        side_by_side = list(pool.map(index.search, queries, [2] * len(queries)))
    assert side_by_side == [index.search(query, 2) for query in queries]


@pytest.mark.slow  # the library takes ten seconds to import
def test_models_that_cannot_be_used(tmp_path: Path, model_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"encoder '.*nowhere' cannot be loaded: "):
        encoder_for(str(tmp_path / "nowhere"))
    config = model_folder / "config_sentence_transformers.json"
    other = tmp_path / "euclidean"
    other.mkdir()
    for file in model_folder.iterdir():
        text = file.read_bytes()
        (other / file.name).write_bytes(text.replace(b'"cosine"', b'"euclidean"') if file == config else text)
    with pytest.raises(ValueError, match="compares by the euclidean distance, expected cosine or dot product"):
        encoder_for(str(other))


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sentence_transformers", None)
    with pytest.raises(ValueError, match=r"needs the extra dense: pip install 'forkgym\[dense\]'"):
        encoder_for("some/model")
