"""Dense retrieval: passages found by the inner product of vectors, each one looked at, in memory or memory-mapped.

An encoder is a model of sentence-transformers (the extra ``dense``), by its name on the hub or its folder, or any
function from a list of texts to an array with a row for each.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from forkgym.tools.base import DEFAULT_TIMEOUT_S, ToolFailure
from forkgym.tools.corpora.index_cache import CorpusVersion, load_or_build, short_hash
from forkgym.tools.corpora.passage_table import FORMAT, PassageTable, passage_table
from forkgym.tools.corpora.ranking import Floats, best_places, thread_buffer
from forkgym.tools.passages import SURROGATE, Passage, corpus_file
from forkgym.tools.references import is_reference, load_reference

Encode = Callable[[list[str]], npt.ArrayLike]

CACHED_INDEXES = 8
ENCODED_AT_ONCE = 1_024  # passages; an encoder makes its own batches of them
SCORED_AT_ONCE = 65_536  # passages; between two such blocks a query looks at the clock
# What an encoder makes of these is stored beside its vectors, and tells whether it is the one that made them.
PROBES = ["Ayr: a town on the coast of Scotland.", "The river runs to the sea.", "42"]
PROBE_TOLERANCE = 0.01  # of the longest vector's length; other hardware or batches move a value by less


@dataclass(frozen=True, slots=True)
class Encoder:
    """Two functions from texts to vectors; the inner product of a query's and a passage's says how well they fit."""

    encode_query: Encode
    encode_document: Encode


class DenseIndex:
    """Passages and their vectors, which never change, so threads and forks may share them.

    Search is exact: a query is compared to all N passages, in 4 N D bytes of memory that is read once.

    Args:
        passages: What to search in.
        encode: An encoder, one function for queries and passages alike, or what `encoder_for` takes.
        vectors: The passages' vectors, (N, D) float32, where they are encoded already.
        timeout_s: Limit of one query, seconds. It is looked at between blocks of passages, not inside the encoder.

    Raises:
        ValueError: See `encoder_for`; or the encoder does not return finite vectors of one length.
    """

    inline = False

    def __init__(
        self,
        passages: Iterable[Passage],
        encode: Encoder | Encode | str,
        vectors: Floats | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> None:
        self.passages = passages if isinstance(passages, PassageTable) else tuple(passages)
        self.encoder = encoder_for(encode)
        self.timeout_s = timeout_s
        self.vectors = np.concatenate(list(vector_blocks(self.passages, self.encoder))) if vectors is None else vectors

    def search(self, query: str, top_k: int) -> list[Passage]:
        """Find the passages whose vectors fit a query's best.

        Returns:
            ``top_k`` passages, or all where there are fewer, the best first; of equal ones, the first in the index.

        Raises:
            ValueError: ``top_k`` is not positive, or the encoder returns something else than for passages.
            ToolFailure: It took longer than ``timeout_s``.
        """
        if top_k < 1:
            raise ValueError(f"top_k is {top_k}, expected at least 1")
        deadline = time.monotonic() + self.timeout_s
        vector = encoded(self.encoder.encode_query, [SURROGATE.sub("\ufffd", query)])[0]
        num_passages, width = self.vectors.shape
        if len(vector) != width:
            raise ValueError(f"the encoder returned {len(vector)} numbers for a query and {width} for a passage")
        scores = thread_buffer(num_passages, -np.inf)
        for start in range(0, num_passages, SCORED_AT_ONCE):
            if time.monotonic() > deadline:
                raise ToolFailure(f"dense search over {num_passages} passages took longer than {self.timeout_s:g} s")
            end = min(start + SCORED_AT_ONCE, num_passages)
            np.dot(self.vectors[start:end], vector, out=scores[start:end])
        return [self.passages[place] for place in best_places(scores, top_k, above=-np.inf)]


def dense_index_for(path: str | Path, encoder: str) -> DenseIndex:
    """The dense index of a corpus file, for as long as the file stays the same.

    The passages are encoded once on a machine, and their vectors mapped from the cache's folder by every process; see
    `forkgym.tools.corpora.index_cache`. They are encoded again where an encoder of the same name returns other vectors.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: See `read_passages`, `encoder_for` and `DenseIndex`.
        OSError: The cache's folder cannot be written.
    """
    place = Path(encoder)
    return cached_dense_index(CorpusVersion.now(corpus_file(path)), str(place.resolve()) if place.is_dir() else encoder)


@lru_cache(maxsize=CACHED_INDEXES)
def cached_dense_index(corpus: CorpusVersion, name: str) -> DenseIndex:
    """The index of one version of a file."""
    encoder = encoder_for(name)
    passages = passage_table(corpus)

    def build(folder: Path) -> None:
        write_vectors(folder, passages, encoder)

    def load(folder: Path) -> Floats:
        return load_vectors(folder, len(passages), encoder)

    kind = f"dense-{short_hash(name.encode())}"
    return DenseIndex(passages, encoder, load_or_build(corpus, kind, f"1 {FORMAT}", build, load))


def write_vectors(folder: Path, passages: Sequence[Passage], encoder: Encoder) -> None:
    """Encode passages, block by block, into a file."""
    np.save(folder / "probes.npy", encoded(encoder.encode_document, PROBES))
    file: Floats | None = None
    end = 0
    for block in vector_blocks(passages, encoder):
        if file is None:
            shape = (len(passages), block.shape[1])
            file = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=shape)
        start, end = end, end + len(block)
        file[start:end] = block


def load_vectors(folder: Path, num_passages: int, encoder: Encoder) -> Floats:
    """Map the vectors that `write_vectors` wrote.

    Raises:
        OSError: A file is missing.
        ValueError: A file is damaged, or the vectors are of other passages or another encoder.
    """
    vectors: Floats = np.asarray(np.load(folder / "vectors.npy", mmap_mode="r"))
    before: Floats = np.load(folder / "probes.npy")
    now = encoded(encoder.encode_document, PROBES)
    if vectors.shape != (num_passages, before.shape[1]):
        raise ValueError(f"found vectors of shape {vectors.shape} for {num_passages} passages")
    tolerance = PROBE_TOLERANCE * np.linalg.norm(now, axis=1).max()
    if now.shape != before.shape or not np.allclose(now, before, rtol=0.0, atol=tolerance):
        raise ValueError("the encoder is not the one that made the vectors")
    return vectors


def vector_blocks(passages: Sequence[Passage], encoder: Encoder) -> Iterable[Floats]:
    """Yield the vectors of passages, (at most `ENCODED_AT_ONCE`, D) at a time; one empty block where there are none."""
    if not passages:
        yield encoded(encoder.encode_document, PROBES)[:0]
    width: int | None = None
    for start in range(0, len(passages), ENCODED_AT_ONCE):
        texts = [document_text(passage) for passage in passages[start : start + ENCODED_AT_ONCE]]
        block = encoded(encoder.encode_document, texts)
        width = block.shape[1] if width is None else width
        if block.shape[1] != width:
            raise ValueError(f"the encoder returned vectors of {width} and of {block.shape[1]} numbers")
        yield block


def document_text(passage: Passage) -> str:
    """What an encoder sees of a passage: the title's line and the text, as in Search-R1's corpora."""
    return f"{passage.title}\n{passage.text}" if passage.title else passage.text


def encoded(encode: Encode, texts: list[str]) -> Floats:
    """Encode texts, (len(texts), D), and check what comes back."""
    vectors = np.asarray(encode(texts), np.float32)
    if vectors.ndim != 2 or len(vectors) != len(texts) or not np.isfinite(vectors).all():
        raise ValueError(
            f"the encoder returned an array of shape {vectors.shape} for {len(texts)} texts; "
            "expected finite numbers, a row for each text"
        )
    return vectors


def encoder_for(source: Encoder | Encode | str) -> Encoder:
    """Make an encoder.

    Args:
        source: An encoder; a function for queries and passages alike; a ``module:function`` or ``path/to/file.py:name``
            that leads to one of these; or a model of sentence-transformers: a folder, or a name on the hub.

    Raises:
        ValueError: There is no such model or function, or the extra ``dense`` is not installed.
    """
    if isinstance(source, Encoder):
        return source
    if not isinstance(source, str):
        return Encoder(source, source)
    if not is_reference(source) or Path(source).is_dir():
        return sentence_transformer(source)
    found = load_reference(source, "encoder")
    if not isinstance(found, Encoder) and not callable(found):
        raise ValueError(f"encoder {source!r} is {found!r}, expected a function from texts to vectors")
    return encoder_for(cast("Encoder | Encode", found))


@lru_cache(maxsize=CACHED_INDEXES)
def sentence_transformer(name: str) -> Encoder:
    """A model of sentence-transformers, with its own prompts for queries and for documents, loaded once in a process.

    Vectors have length 1 where the model compares by the cosine.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise ValueError(f"encoder {name!r} needs the extra dense: pip install 'forkgym[dense]'") from error
    try:
        model: Any = SentenceTransformer(name)
    except (OSError, ValueError) as error:
        raise ValueError(f"encoder {name!r} cannot be loaded: {error}") from error
    if model.similarity_fn_name not in ("cosine", "dot"):
        raise ValueError(
            f"encoder {name!r} compares by the {model.similarity_fn_name} distance, expected cosine or dot product"
        )
    lock = threading.Lock()  # fast tokenizers refuse to work for two threads at once
    options = {"normalize_embeddings": model.similarity_fn_name == "cosine", "show_progress_bar": False}

    def encode_with(function: Callable[..., Any]) -> Encode:
        def encode(texts: list[str]) -> npt.ArrayLike:
            with lock:
                return cast(Floats, function(texts, **options))

        return encode

    return Encoder(encode_with(model.encode_query), encode_with(model.encode_document))
