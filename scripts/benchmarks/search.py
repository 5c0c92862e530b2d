"""CPU time of a search in memory, and what it takes to build and to load the index.

    python scripts/benchmarks/search.py                                       # over passages made up here
    python scripts/benchmarks/search.py --num-passages 1000000 --folder /tmp/million
    python scripts/benchmarks/search.py --corpus my_corpus.jsonl

The words of made-up passages follow Zipf's law, as those of a language do, so that queries hold very common words and
very rare ones. A process of its own builds the index and another one loads it, both in a fresh cache in ``--folder``
(a temporary one by default); a second run on the same folder finds the index there. The project's limits are 300 µs a
query over 6,119 passages, 20 ms over a million, and 3 s to load.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

# Before numpy is imported, here and in the processes that are started: one thread, as an environment has.
os.environ["OMP_NUM_THREADS"] = "1"

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from forkgym.tools.corpora.index_cache import CACHE_VARIABLE
from forkgym.tools.search import index_for

NUM_WORDS = 200_000
PASSAGE_WORDS = (40, 120)
QUERY_WORDS = 12
NUM_QUERIES = 500
TOP_K = 3

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Queries:
    """Times of queries, microseconds of CPU: of the first round, which reads the files, and of those after it."""

    load_s: float
    first_us: float
    median_us: float
    high_us: float


def main(corpus: Path | None = None, num_passages: int = 6_119, folder: Path | None = None) -> None:
    """Measure and print.

    Args:
        corpus: A file of passages; made up where there is none.
        num_passages: How many to make up.
        folder: Where the made-up passages and the cache are kept.
    """
    with tempfile.TemporaryDirectory() as temporary:
        place = Path(temporary) if folder is None else folder
        place.mkdir(parents=True, exist_ok=True)
        if corpus is None:
            corpus = place / f"passages-{num_passages}.jsonl"
            if not corpus.exists():
                write_corpus(corpus, num_passages)
        os.environ[CACHE_VARIABLE] = str(place)
        size, build_s, peak_gib = in_new_process(build, corpus)
        times = in_new_process(query, corpus)
    table = Table("what", "figure")
    table.add_row("passages", f"{size:,}")
    table.add_row("build or load, CPU s", f"{build_s:.2f}")
    table.add_row("... peak memory, GiB", f"{peak_gib:.2f}")
    table.add_row("load from the cache, CPU s", f"{times.load_s:.4f}")
    table.add_row("query, CPU µs, median", f"{times.median_us:.0f}")
    table.add_row("... 95th percentile", f"{times.high_us:.0f}")
    table.add_row("... median of the first round", f"{times.first_us:.0f}")
    Console().print(table)


def in_new_process(function: Callable[[Path], Result], corpus: Path) -> Result:
    """Call a function in a process that has nothing in memory yet."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, corpus).result()


def build(corpus: Path) -> tuple[int, float, float]:
    """Build the index where there is none: the number of passages, CPU seconds, and the peak of memory in GiB."""
    start = time.process_time()
    index = index_for(corpus)
    seconds = time.process_time() - start
    return len(index.passages), seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def query(corpus: Path) -> Queries:
    """Load the index and ask each query four times."""
    start = time.process_time()
    index = index_for(corpus)
    load_s = time.process_time() - start
    rng = np.random.default_rng(1)
    texts = [index.passages[int(place)].text.split() for place in rng.integers(len(index.passages), size=NUM_QUERIES)]
    queries = [" ".join(words[:QUERY_WORDS]) for words in texts]
    rounds = [[cpu_us(partial(index.search, text, TOP_K)) for text in queries] for _ in range(4)]
    later = sorted(time_us for one in rounds[1:] for time_us in one)
    return Queries(load_s, statistics.median(rounds[0]), statistics.median(later), later[len(later) * 95 // 100])


def cpu_us(action: Callable[[], object]) -> float:
    """The CPU time of an action, microseconds."""
    start = time.process_time_ns()
    action()
    return (time.process_time_ns() - start) / 1_000


def write_corpus(path: Path, num_passages: int) -> None:
    """Make up passages; word number ``i`` comes ``1 / i`` times as often as the first."""
    rng = np.random.default_rng(0)
    words = np.array([f"w{number:x}" for number in range(NUM_WORDS)])
    shares = np.cumsum(1 / np.arange(1, NUM_WORDS + 1))
    partial = path.with_suffix(".partial")
    with partial.open("w", encoding="utf-8") as file:
        for number in range(num_passages):
            draws = rng.random(rng.integers(*PASSAGE_WORDS)) * shares[-1]
            text = " ".join(words[np.searchsorted(shares, draws)].tolist())
            file.write(json.dumps({"id": str(number), "contents": f'"Passage {number}"\n{text}'}) + "\n")
    partial.rename(path)


if __name__ == "__main__":
    tyro.cli(main)
