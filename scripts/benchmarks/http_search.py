"""Searches a second through our own server on loopback, from many environments at once, with and without batches.

Run ``python scripts/benchmarks/http_search.py CORPUS``. The server is a process of its own; each environment has a
thread, which calls the tool ``search`` turn after turn with the titles of the corpus. The project's figure is at least
1,500 queries a second from 32 environments, on two cores with nothing else to do. CPU time is printed as well: it
changes less where the machine has something else to do.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import psutil
import tyro
from rich.console import Console
from rich.table import Table

from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import Task
from forkgym.tools.passages import load_passages
from forkgym.tools.search import search_tool
from forkgym.tools.web.remote_search import RemoteRetriever

SCRIPT = Path(__file__).resolve().parents[1] / "serve_search.py"
GOAL = 1_500
EPISODE_TURNS = 100
WARM_UP_QUERIES = 10


@dataclass(frozen=True)
class Arguments:
    """What to measure."""

    corpus: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="CORPUS")]
    """File of passages."""
    num_envs: int = 32
    """Environments, each in a thread."""
    queries_per_env: int = 300
    """Searches of each environment."""
    repeats: int = 3
    """Measurements, of which the best and the median are printed."""


class EndlessQuestion(ToolEnv):
    """Never ends while it searches."""

    def task(self, index: int) -> Task:
        """The same task always."""
        return Task("Which?", answer="this")

    def score(self, answer: str, task: Task) -> dict[str, float]:
        """Nobody answers."""
        return {"right": float(answer == task.answer)}


@dataclass(frozen=True)
class Measured:
    """One measurement: queries a second of wall time, CPU microseconds a query here and in the server."""

    rate: float
    client_us: float
    server_us: float


def main(arguments: Arguments) -> None:
    """Measure and print."""
    queries = [passage.title for passage in load_passages(arguments.corpus)]
    table = Table("", "queries/s: best", "median", "CPU µs/query: client", "server")
    with serving(arguments.corpus) as (server, url):
        ways = {
            f"in batches (goal {GOAL:,})": RemoteRetriever(url, "search_r1"),
            "one query a request": RemoteRetriever(url, "search_r1", max_batch=1),
            "SkyRL's protocol, which has no batches": RemoteRetriever(url, "skyrl"),
        }
        for name, retriever in ways.items():
            measure(retriever, server, queries, arguments.num_envs, WARM_UP_QUERIES)
            found = [
                measure(retriever, server, queries, arguments.num_envs, arguments.queries_per_env)
                for _ in range(arguments.repeats)
            ]
            found.sort(key=lambda one: one.rate)
            best, median = found[-1], found[len(found) // 2]
            table.add_row(
                name, f"{best.rate:,.0f}", f"{median.rate:,.0f}", f"{best.client_us:.0f}", f"{best.server_us:.0f}"
            )
            retriever.close()
    Console().print(table)


@contextmanager
def serving(corpus: Path) -> Generator[tuple[psutil.Process, str]]:
    """Our server as a process, and its URL."""
    command = [sys.executable, str(SCRIPT), str(corpus), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found is not None, "the server did not start"
            yield psutil.Process(process.pid), found[0]
        finally:
            process.terminate()


def measure(
    retriever: RemoteRetriever, server: psutil.Process, queries: Sequence[str], num_envs: int, queries_per_env: int
) -> Measured:
    """Let every environment search, all at once."""
    start = threading.Barrier(num_envs + 1)
    threads = [
        threading.Thread(target=work, args=(retriever, queries[number::num_envs], queries_per_env, start))
        for number in range(num_envs)
    ]
    for thread in threads:
        thread.start()
    server_s, client_s = cpu_s(server), time.process_time()
    start.wait()
    begun_s = time.perf_counter()
    for thread in threads:
        thread.join()
    took_s = time.perf_counter() - begun_s
    searches = num_envs * queries_per_env
    return Measured(
        rate=searches / took_s,
        client_us=1e6 * (time.process_time() - client_s) / searches,
        server_us=1e6 * (cpu_s(server) - server_s) / searches,
    )


def work(retriever: RemoteRetriever, queries: Sequence[str], searches: int, start: threading.Barrier) -> None:
    """Search turn after turn, in one environment."""
    env = EndlessQuestion(tools=[search_tool(retriever)], max_turns=EPISODE_TURNS + 1)
    env.reset(seed=0)
    start.wait()
    for turn in range(searches):
        if turn % EPISODE_TURNS == 0:
            env.reset()
        observation = env.step(f"<search>{queries[turn % len(queries)]}</search>")[0]
        assert "Error:" not in observation, observation


def cpu_s(process: psutil.Process) -> float:
    """The CPU time of a process so far, seconds."""
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main(tyro.cli(Arguments, description=__doc__, use_underscores=True))
