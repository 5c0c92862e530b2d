"""CPU time of what an environment does in a rollout: a step, a step with a tool, an answer, a copy, a reset.

    python scripts/benchmarks/env_step.py
    python scripts/benchmarks/env_step.py --peers gem=/tmp/gem/bin/python skyrl-gym=/tmp/skyrl/bin/python

The first table holds this package's own figures against the project's limits. The second compares it with other suites
at the same work, each in a Python of its own in which it is installed: ``pip install gem-llm datasets pylatexenc``,
``pip install skyrl-gym``, ``pip install "verifiers<0.3"`` (later versions have no environment in the process). What is
not given is said to be not installed. ``suites.py`` says what is measured; all suites are measured in turn, round after
round, and the tables show medians over the rounds, microseconds of CPU time.

The suites do not do the same for it: this one parses the turn as a whole and says what is wrong with it, validates the
arguments of a call against a schema, and escapes markers in what a tool returned. SkyRL-gym and GEM search the turn for
one tag. SkyRL-gym compares the text after ``####`` with the reference; GEM asks math-verify.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

SUITES = Path(__file__).with_name("suites.py")
PEERS = ("gem", "skyrl-gym", "verifiers")
OWN = ("forkgym", "forkgym-made", "forkgym-tools")

COMPARED = {
    "reset": "start of an episode",
    "no call": "step, no call",
    "call": "step, one call",
    "answer": "step, answer graded",
    "copy": "copy in mid-episode",
    "vector": "step, one call, of 32 in a vector",
}

Figures = Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True)
class Config:
    """Options of the benchmark.

    Attributes:
        peers: Other suites, each as NAME=PYTHON, an interpreter in which it is installed; gem, skyrl-gym, verifiers.
        rounds: How often everything is measured.
    """

    peers: Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME=PYTHON")] = ()
    rounds: int = 11


class Suite:
    """A process in which one suite is measured, once for each request."""

    def __init__(self, name: str, python: str) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
        self.process = subprocess.Popen(
            [python, str(SUITES), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.name = name
        self.version = str(self.answer()["version"])

    def answer(self) -> dict[str, float | str]:
        """Read its next line; RuntimeError where it ended instead (its own errors are on the terminal)."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} cannot be measured: its process ended with {self.process.wait()}")
        answer: dict[str, float | str] = json.loads(line)
        return answer

    def measure(self) -> dict[str, float]:
        """Measure everything once; microseconds by row."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return {row: float(value) for row, value in self.answer().items()}

    def close(self) -> None:
        """Let it end."""
        self.process.communicate()


def main(config: Config) -> None:
    """Measure and print."""
    pythons: dict[str, str] = {name: sys.executable for name in OWN}
    for peer in config.peers:
        name, equals, python = peer.partition("=")
        if name not in PEERS or not equals:
            raise SystemExit(f"--peers {peer}: expected NAME=PYTHON, NAME one of {', '.join(PEERS)}")
        pythons[name] = python
    with ExitStack() as stack:
        suites = {name: Suite(name, python) for name, python in pythons.items()}
        for suite in suites.values():
            stack.callback(suite.close)
        rounds = [{name: suite.measure() for name, suite in suites.items()} for _ in range(config.rounds)]
        versions = {name: suite.version for name, suite in suites.items()}
    medians = {
        name: {row: statistics.median(one[name][row] for one in rounds) for row in rounds[0][name]} for name in suites
    }
    console = Console()
    console.print(own_table(medians))
    console.print(comparison(medians, versions))


def own_table(medians: Figures) -> Table:
    """This package's figures, with the project's limits where it has set one."""
    bare, made, tools = (medians[name] for name in OWN)
    rows: list[tuple[str, float, float | None]] = [
        ("a step without a call", bare["no call"], 10),
        ("the same through gymnasium.make", made["no call"], 10),
        ("a step with the calculator, beyond its own time", beyond(tools, "calculator"), 60),
        ("    the calculator alone", tools["calculator alone"], None),
        ("a step with a search of 30 articles, beyond its own time", beyond(tools, "search"), 60),
        ("    the search alone", tools["search alone"], None),
        ("a fork in mid-episode", bare["copy"], 50),
        ("the same through gymnasium.make", made["copy"], 50),
        ("grading an answer to GSM8K", tools["grading"], 10),
    ]
    table = Table("CPU time, µs", "median", "limit", title="forkgym")
    for name, value, limit in rows:
        table.add_row(name, f"{value:.1f}", "" if limit is None else f"{limit:g}")
    return table


def beyond(tools: Mapping[str, float], tool: str) -> float:
    """What a step with a tool takes beyond the tool's own time."""
    return tools[f"step with the {tool}"] - tools[f"{tool} alone"]


def comparison(medians: Figures, versions: Mapping[str, str]) -> Table:
    """The same work in every suite; a dash where a suite has no counterpart."""
    titles = {"forkgym": "forkgym", "forkgym-made": "forkgym, gymnasium.make"} | {peer: peer for peer in PEERS}
    table = Table("CPU time, µs", *COMPARED.values(), title="The same work in other suites")
    for name, title in titles.items():
        if name in medians:
            values = [medians[name].get(row) for row in COMPARED]
            table.add_row(f"{title} {versions[name]}", *("-" if value is None else f"{value:.1f}" for value in values))
        else:
            table.add_row(title, "not installed")
    return table


if __name__ == "__main__":
    main(tyro.cli(Config))
