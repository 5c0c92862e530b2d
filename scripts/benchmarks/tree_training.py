"""A training step's forward and backward over trees against padded rows: CPU time, and the peak of memory.

The model is a Qwen3 of 3.4 M parameters with random weights, in float32. A shape is a prompt and the branches at each
level, with turns of 64 tokens; all turns are trained on. Three ways, in turn, medians of CPU time:

- padded: all rows in one batch;
- by 4: the same in micro-batches of 4 rows;
- tree: each unique token once.

The limit is the ratio of floating-point operations of all rows, without padding, to those of the unique tokens that the
tree computes, a token's attention to its path being the same in both:

    F = sum over tokens (2 L + 4 h d n c) + sum over sampled tokens 2 H V

``L`` weights of all linear layers but the last; ``h d n`` attention heads x head size x layers; ``c`` the tokens that a
token sees; ``H V`` hidden size x vocabulary. Forward and backward together are 3 F on both sides.

Memory is compared at the same tokens: both in micro-batches of at most the tokens of a few padded rows, with the speed
that they then have. A peak is that of resident memory in a process of its own, above what is there before the step;
it repeats to some 0.2 MB.

    python scripts/benchmarks/tree_training.py --threads 1
    python scripts/benchmarks/tree_training.py --shape 1,024 --no-speed
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import numpy as np
import torch
import tyro
from rich.console import Console
from transformers import Qwen3Config

from forkgym.agents.memory import keep_freed_memory
from forkgym.trainers.forward.forwards import FORWARDS, micro_batches
from forkgym.trainers.forward.layout import grow_forest, lay_out, without_tails
from forkgym.trainers.forward.measures import ForwardSettings

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmarks.small_model import random_model  # noqa: E402

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from transformers import PreTrainedModel

TURN = 64  # tokens
M_MMAP_THRESHOLD = -3  # from glibc's malloc.h
MB = 10**6


@dataclass(frozen=True, slots=True)
class Config:
    """Options of the benchmark.

    Attributes:
        threads: Threads of torch.
        repetitions: Measurements of each way, after one that is thrown away.
        budget_rows: The tokens of a micro-batch where memory is measured are those of so many padded rows.
        shape: Measure only shapes whose name has this in it.
        speed: Whether to compare the speed of whole batches.
        memory: Whether to compare memory, and the speed in micro-batches.
        seed: Of tokens and lengths.
    """

    threads: int = 1
    repetitions: int = 7
    budget_rows: int = 4
    shape: str = ""
    speed: bool = True
    memory: bool = True
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Shape:
    """A tree: prompt tokens, branches per level, how far turns stray from their length, and how many such trees."""

    name: str
    prompt: int
    branches: tuple[int, ...]
    spread: float = 0.0
    trees: int = 1


SHAPES = (
    Shape("256; 2,2,2,2", 256, (2, 2, 2, 2)),
    Shape("256; 16,1,1,1", 256, (16, 1, 1, 1)),
    Shape("256; 8,2,1,1", 256, (8, 2, 1, 1)),
    Shape("1,024; 2,2,2,2", 1024, (2, 2, 2, 2)),
    Shape("256; 1,1,1,16", 256, (1, 1, 1, 16)),
    Shape("256; 2,2,2,2, ragged ± 50 %", 256, (2, 2, 2, 2), spread=0.5),
)
NO_SHARING = (
    Shape("16 prompts of 256; 1,1,1,1", 256, (1, 1, 1, 1), trees=16),
    Shape("the same, ragged ± 50 %", 256, (1, 1, 1, 1), spread=0.5, trees=16),
)


@dataclass(frozen=True, slots=True)
class Line:
    """One row for the forward; see `Row`."""

    tokens: tuple[int, ...]
    loss_mask: tuple[bool, ...]
    starts: tuple[int, ...]


Step = Callable[[], None]
Result = TypeVar("Result")


def make_rows(shape: Shape, rng: np.random.Generator) -> list[Line]:
    """Random tokens along the paths of a shape."""

    def draw(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(4, 1000, count).tolist())

    rows = [Line(draw(shape.prompt), (False,) * shape.prompt, ()) for _ in range(shape.trees)]
    for branches in shape.branches:
        grown = list[Line]()
        for row in rows:
            for _ in range(branches):
                turn = draw(round(TURN * (1 + shape.spread * rng.uniform(-1, 1))))
                starts = (*row.starts, len(row.tokens))
                grown.append(Line(row.tokens + turn, row.loss_mask + (True,) * len(turn), starts))
        rows = grown
    return rows


def flops(model: PreTrainedModel, rows: Sequence[Line], *, unique: bool) -> float:
    """The formula above, forward only."""
    config = model.config
    assert isinstance(config, Qwen3Config)
    layers: list[tuple[str, torch.nn.Module]] = list(cast("Any", model).named_modules())
    linear = sum(
        layer.weight.numel() for name, layer in layers if isinstance(layer, torch.nn.Linear) and name != "lm_head"
    )
    attention = 4 * config.num_attention_heads * config.head_dim * config.num_hidden_layers
    last = 2 * config.hidden_size * config.vocab_size
    if unique:
        forest = without_tails(grow_forest(rows), rows)
        stretches = [(node.depth, node.end - node.start) for node in forest.nodes]
        sampled = len(lay_out(forest, rows, torch.device("cpu")).targets_N)
    else:
        stretches = [(0, len(row.tokens)) for row in rows]
        sampled = sum(sum(row.loss_mask) for row in rows)
    seen = sum(size * depth + size * (size + 1) / 2 for depth, size in stretches)
    return 2 * linear * sum(size for _, size in stretches) + attention * seen + last * sampled


def make_step(model: PreTrainedModel, rows: Sequence[Line], parts: Sequence[Sequence[int]], name: str) -> Step:
    """Forward and backward of all parts with one forward, and weights of both signs for the log-probs."""
    total = sum(sum(row.loss_mask) for row in rows)
    longest = max(len(row.tokens) for row in rows)
    weights_BT = torch.randn((len(rows), longest), generator=torch.Generator().manual_seed(1)) / total

    def step() -> None:
        model.zero_grad()
        for part in parts:
            logprobs_BT = FORWARDS[name](model, [rows[row] for row in part], ForwardSettings(), 0).logprobs_BT
            (logprobs_BT * weights_BT[list(part), : logprobs_BT.shape[1]]).sum().backward()

    return step


def cpu_seconds(step: Step) -> float:
    """CPU time of one call."""
    gc.collect()
    start = time.process_time()
    step()
    return time.process_time() - start


def in_fork(measure: Callable[[], Result]) -> Result:
    """Measure in a fork of this process, so that what it leaves in memory is in the way of no other."""

    def run(pipe: Connection) -> None:
        pipe.send(measure())

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=run, args=(sender,))
    process.start()
    sender.close()  # so that nothing is waited for where the fork fails
    result: Result = receiver.recv()
    process.join()
    return result


def medians(steps: Sequence[Step], repetitions: int) -> list[float]:
    """Median CPU seconds of each step, measured in turn."""
    keep_freed_memory()
    seconds = [[cpu_seconds(step) for step in steps] for _ in range(repetitions + 1)]
    return [statistics.median(column[1:]) for column in zip(*seconds, strict=True)]


def peak_bytes(step: Step, warm_up: Step) -> int:
    """How much a step raises the peak of this process's resident memory, after a small step."""
    libc = ctypes.CDLL(None)
    # Every larger tensor is a mapping of its own, so that what counts is memory in use and not how it was cut up.
    libc.mallopt(M_MMAP_THRESHOLD, 2**13)
    warm_up()
    gc.collect()
    libc.malloc_trim(0)  # what is free and resident would be used again, and not count
    before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    step()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before


def show(console: Console, cells: Sequence[str]) -> None:
    """Print one line of a table."""
    console.print(f"{cells[0]:<30}" + "".join(f"{cell:>15}" for cell in cells[1:]), highlight=False, markup=False)


def compare_speed(console: Console, model: PreTrainedModel, shapes: Sequence[Shape], config: Config) -> None:
    """Measure each shape, and print a line as soon as it is known."""
    console.print("\nforward and backward, seconds of CPU time")
    headings = ("rows' → computed", "padded", "by 4", "tree", "tree / better", "FLOP ratio", "of the ratio")
    show(console, ("shape", *headings))
    shares = list[float]()
    for shape in shapes:
        rows = make_rows(shape, np.random.default_rng(config.seed))
        everything = range(len(rows))
        by_4 = [everything[start : start + 4] for start in range(0, len(rows), 4)]
        steps = [
            make_step(model, rows, [everything], "padded"),
            make_step(model, rows, by_4, "padded"),
            make_step(model, rows, [everything], "tree"),
        ]
        padded, fours, tree = in_fork(partial(medians, steps, config.repetitions))
        gain = min(padded, fours) / tree
        ratio = flops(model, rows, unique=False) / flops(model, rows, unique=True)
        shares.append(gain / ratio)
        computed = without_tails(grow_forest(rows), rows).num_tokens
        tokens = f"{sum(len(row.tokens) for row in rows):,} → {computed:,}"
        times = [f"{seconds:.3f}" for seconds in (padded, fours, tree)]
        show(console, (shape.name, tokens, *times, f"{gain:.2f}×", f"{ratio:.2f}", f"{gain / ratio:.2f}"))
    if len(shares) > 1:
        show(console, ("mean", *[""] * 6, f"{statistics.mean(shares):.2f}"))


def memory_steps(model: PreTrainedModel, shape: Shape, config: Config) -> list[Step]:
    """Steps over padded rows and over trees, both in micro-batches of the same number of tokens."""
    rows = make_rows(shape, np.random.default_rng(config.seed))
    budget = config.budget_rows * max(len(row.tokens) for row in rows)
    return [make_step(model, rows, micro_batches(rows, budget, name), name) for name in ("padded", "tree")]


def compare_memory(console: Console, model: PreTrainedModel, shapes: Sequence[Shape], config: Config) -> None:
    """Measure peaks and the speed under the same budget, and print a line as soon as it is known."""
    console.print(f"\nmicro-batches of the tokens of {config.budget_rows} padded rows: peak of a step, CPU seconds")
    show(console, ("shape", "padded, MB", "tree, MB", "tree / padded", "padded, s", "tree, s", "speed"))
    small = memory_steps(model, Shape("small", 4, (2, 2)), config)
    for shape in shapes:
        steps = memory_steps(model, shape, config)
        peaks = [in_fork(partial(peak_bytes, *pair)) for pair in zip(steps, small, strict=True)]
        times = in_fork(partial(medians, steps, max(3, config.repetitions // 2)))
        cells = [f"{peak / MB:.1f}" for peak in peaks] + [f"{peaks[1] / peaks[0]:.4f}"]
        show(console, (shape.name, *cells, *(f"{seconds:.3f}" for seconds in times), f"{times[0] / times[1]:.2f}×"))


def main(config: Config) -> None:
    """Measure and print the tables.

    Raises:
        ValueError: No shape has this name.
    """
    torch.set_num_threads(config.threads)
    model = random_model()
    sharing, none_shared = (
        [shape for shape in shapes if config.shape in shape.name] for shapes in (SHAPES, NO_SHARING)
    )
    if not sharing + none_shared:
        names = "; ".join(repr(shape.name) for shape in (*SHAPES, *NO_SHARING))
        raise ValueError(f"no shape's name has {config.shape!r} in it; there are {names}")
    console = Console(width=140)
    console.print(
        f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {config.threads} threads"
    )
    for shapes in (sharing, none_shared):
        if config.speed and shapes:
            compare_speed(console, model, shapes, config)
    if config.memory:
        compare_memory(console, model, sharing + none_shared, config)


if __name__ == "__main__":
    main(tyro.cli(Config))
