"""Retrievers by name: a corpus on this machine or a server, and how its passages are found."""

from __future__ import annotations

from functools import lru_cache

from forkgym.tools.search import Retriever, index_for

BM25 = "bm25"
DENSE = "dense:"
CACHED_SERVERS = 8
SERVERS = ("http://", "https://")


def retriever_for(corpus: str, retriever: str = BM25) -> Retriever:
    """Find what to search in, opened once in a process for as long as a corpus file stays the same.

    Args:
        corpus: A file of passages, see `read_passages`; a search cache of ARPO's, which knows the queries in it and
            no other; or the address of a search server, such as ``http://127.0.0.1:8000/retrieve``, which has its own
            way to find them.
        retriever: ``bm25``, by words; or ``dense:ENCODER``, by meaning, where ENCODER is a model of
            sentence-transformers (a folder, or a name on the hub), ``module:function`` or ``path/to/file.py:name``.

    Raises:
        FileNotFoundError: There is no such corpus.
        ValueError: The corpus or the encoder cannot be loaded, or ``retriever`` is neither.
        OSError: The cache of indexes cannot be written; see `forkgym.tools.corpora.index_cache`.
    """
    if corpus.startswith(SERVERS):
        if retriever != BM25:
            raise ValueError(f"retriever {retriever!r}: the server {corpus} finds passages in its own way")
        return remote_retriever(corpus)
    if retriever == BM25:
        from forkgym.tools.web.search_cache import is_arpo_cache, load_arpo_cache

        return load_arpo_cache(corpus) if is_arpo_cache(corpus) else index_for(corpus)
    encoder = retriever.removeprefix(DENSE)
    if encoder in ("", retriever):
        raise ValueError(f"unknown retriever {retriever!r}; expected {BM25}, {DENSE}MODEL or {DENSE}module:function")
    from forkgym.tools.corpora.dense import dense_index_for

    return dense_index_for(corpus, encoder)


@lru_cache(maxsize=CACHED_SERVERS)
def remote_retriever(url: str) -> Retriever:
    """The one client of a server; its threads share connections."""
    from forkgym.tools.web.remote_search import search_server  # brings an HTTP client, which few need

    return search_server(url)
