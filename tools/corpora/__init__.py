"""Corpora on disk: passages and indexes that are memory-mapped from a cache, by words and by meaning."""
