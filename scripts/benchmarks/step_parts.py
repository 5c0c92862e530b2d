"""What of an update is not the model: rows, credit, splitting, padding and layout, as shares of its time.

An update of ``arpo-gpg`` by the tree forward, on trees with prompts of 256 tokens, branches 8,2,1,1 and turns of 64
tokens: 16 trajectories of 512 tokens each. The model is a Qwen3 of 3.4 M parameters with random weights, in float32.
Each part is called by itself as `update` calls it, and the whole is `update`; medians of CPU time, at two sizes.

- rows: where segments begin, and trajectories laid out in rows;
- credit: rewards to advantages and weights of tokens;
- split: micro-batches;
- pad: what the loss takes, as tensors;
- layout: the tree of unique tokens, and the plan of its attention.

    python scripts/benchmarks/step_parts.py --threads 1
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from forkgym.agents.base import FinishReason
from forkgym.agents.memory import keep_freed_memory
from forkgym.envs.tasks import StopReason
from forkgym.trainers.algorithms.credit import CreditRule, Paid, make_samples
from forkgym.trainers.algorithms.segments import segment_begins
from forkgym.trainers.config import TrainerConfig
from forkgym.trainers.forward.forwards import micro_batches
from forkgym.trainers.forward.layout import grow_forest, lay_out
from forkgym.trainers.forward.tree_attention import TreePlan
from forkgym.trainers.learner import Learner, make_learner
from forkgym.trainers.packing import make_row, pad
from forkgym.trainers.types import Group, Row, Sample, Trajectory, Turn
from forkgym.trainers.update import update

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmarks.small_model import random_model  # noqa: E402

CPU = torch.device("cpu")
PROMPT, TURN, BRANCHES = 256, 64, (8, 2, 1, 1)


@dataclass(frozen=True, slots=True)
class Config:
    """Options of the benchmark.

    Attributes:
        trees: Trees of a step, one number for each size.
        threads: Threads of torch.
        repetitions: Measurements of each part, after one that is thrown away.
        seed: Of tokens and rewards.
    """

    trees: tuple[int, ...] = (1, 4)
    threads: int = 1
    repetitions: int = 5
    seed: int = 0


def make_group(number: int, rng: np.random.Generator) -> Group:
    """A tree with random tokens and rewards, the sampled ones as likely as any."""
    turns: list[Turn] = []
    parents: list[str | None] = [None]
    for depth, width in enumerate(BRANCHES):
        grown: list[str | None] = []
        for parent in parents:
            for _ in range(width):
                uid, last = f"t{len(grown)}d{depth}", depth + 1 == len(BRANCHES)
                turns.append(
                    Turn(
                        uid=uid,
                        parent=parent,
                        tokens=tuple(rng.integers(4, 1000, TURN).tolist()),
                        logprobs=(-6.9,) * TURN,
                        entropies=(6.9,) * TURN,
                        text="",
                        finish_reason=FinishReason.STOP,
                        version=0,
                        reward=float(rng.random()) if last else 0.0,
                    )
                )
                grown.append(uid)
        parents = grown
    by_uid = {turn.uid: turn for turn in turns}
    trajectories = tuple(
        Trajectory(uid, by_uid[uid].reward, 0.0, StopReason.ANSWERED) for uid in parents if uid is not None
    )
    prompt = tuple(rng.integers(4, 1000, PROMPT).tolist())
    return Group("toy", f"toy/{number}", "?", "!", prompt, tuple(turns), trajectories, num_initial=BRANCHES[0])


class Parts:
    """Each part of an update by itself, on the results of those before it."""

    def __init__(self, groups: Sequence[Group], config: TrainerConfig, learner: Learner) -> None:
        self.groups, self.config, self.learner = groups, config, learner
        self.rows_PG: list[list[Row]] = []
        self.samples: list[Sample] = []
        self.parts: list[list[int]] = []

    def rows(self) -> None:
        """Lay trajectories out."""
        rng = np.random.default_rng(0)
        self.rows_PG = []
        for group in self.groups:
            begins = segment_begins(group, self.config.settings.segments, self.config.segments, rng)
            self.rows_PG.append([make_row(group, trajectory, begins) for trajectory in group.trajectories])

    def credit(self) -> None:
        """Make samples of rows."""
        rule = CreditRule(self.config.settings, self.config.credit, 4096)
        self.samples = make_samples(self.groups, self.rows_PG, [Paid(group.rewards) for group in self.groups], rule)

    def split(self) -> None:
        """Split into micro-batches."""
        rows = [sample.row for sample in self.samples]
        self.parts = micro_batches(rows, self.config.micro_batch_tokens, self.config.forward)

    def pad(self) -> None:
        """Make tensors."""
        for part in self.parts:
            pad([self.samples[place] for place in part], CPU)

    def layout(self) -> None:
        """Make the trees of unique tokens and their plans."""
        for part in self.parts:
            rows = [self.samples[place].row for place in part]
            forest = grow_forest(rows)
            lay_out(forest, rows, CPU)
            TreePlan(forest, CPU)

    def whole(self) -> None:
        """Update the weights."""
        update(self.learner, self.groups, [group.rewards for group in self.groups], self.config)

    @property
    def leaf_tokens(self) -> int:
        """Tokens of all rows."""
        return sum(len(row.tokens) for rows_G in self.rows_PG for row in rows_G)


NAMES = ("rows", "credit", "split", "pad", "layout", "whole")


def cpu_seconds(action: Callable[[], None]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    action()
    return time.process_time() - start


def measure(trees: int, config: Config) -> tuple[int, list[float]]:
    """Leaf tokens, and median seconds of each part and of the whole."""
    rng = np.random.default_rng(config.seed)
    trainer = TrainerConfig(algorithm="arpo-gpg")
    learner, _ = make_learner(random_model(), 0, 1.0, trainer)
    parts = Parts([make_group(number, rng) for number in range(trees)], trainer, learner)
    seconds = [[cpu_seconds(getattr(parts, name)) for name in NAMES] for _ in range(config.repetitions + 1)]
    return parts.leaf_tokens, [statistics.median(column) for column in zip(*seconds[1:], strict=True)]


def main(config: Config) -> None:
    """Measure and print the table."""
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    table = Table(title=f"CPU milliseconds of an update's parts, {config.threads} threads, medians")
    for heading in ("leaf tokens", *NAMES[:-1], "together", "update", "share", "µs a token"):
        table.add_column(heading, justify="right")
    for trees in config.trees:
        tokens, seconds = measure(trees, config)
        *parts, whole = seconds
        together = sum(parts)
        times = [f"{1000 * part:,.1f}" for part in (*parts, together, whole)]
        table.add_row(f"{tokens:,}", *times, f"{together / whole:.2%}", f"{1e6 * together / tokens:.2f}")
    Console(width=140).print(table)


if __name__ == "__main__":
    main(tyro.cli(Config))
