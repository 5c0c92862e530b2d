"""A training step's forward and backward over trees against padded rows: CPU time, and the peak of memory.

The model is a Qwen3 of 3.4 M parameters with random weights, in float32. A shape is a prompt and the branches at each
level, with turns of 64 tokens; all turns are trained on. Three ways, in turn, medians of CPU time:

- padded: all rows in one batch;
- by 4: the same in micro-batches of 4 rows;
- tree: each unique token once.

The limit is the ratio of floating-point operations of all rows, without padding, to those of the unique tokens, a
token's attention to its path being the same in both:

    F = sum over tokens (2 L + 4 h d n c) + sum over sampled tokens 2 H V

``L`` weights of all linear layers but the last; ``h d n`` attention heads x head size x layers; ``c`` the tokens that a
token sees; ``H V`` hidden size x vocabulary. Forward and backward together are 3 F on both sides.

    python scripts/benchmarks/tree_training.py --threads 1
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from transformers import Qwen3Config, Qwen3ForCausalLM

from forkgym.agents.memory import keep_freed_memory
from forkgym.trainers.forward.forwards import FORWARDS, micro_batches
from forkgym.trainers.forward.layout import grow_forest
from forkgym.trainers.forward.measures import ForwardSettings

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from transformers import PreTrainedModel

TURN = 64  # tokens
M_MMAP_THRESHOLD = -3  # from glibc's malloc.h


@dataclass(frozen=True, slots=True)
class Config:
    """Options of the benchmark.

    Attributes:
        threads: Threads of torch.
        repetitions: Measurements of each way, after one that is thrown away.
        budget_rows: The tokens of a micro-batch where memory is measured are those of so many padded rows.
        memory: Whether to measure memory as well.
        seed: Of tokens and lengths.
    """

    threads: int = 1
    repetitions: int = 7
    budget_rows: int = 4
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


def random_model() -> PreTrainedModel:
    """A Qwen3 of 3.4 M parameters: hidden size 256, 4 layers, vocabulary 1,024."""
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=1024,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
    )
    model = Qwen3ForCausalLM(config)
    model.eval()
    return model


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
    forest = grow_forest(rows)
    # A stretch counts once, or once for each row that goes through it.
    visits = [int(unique)] * len(forest.nodes)
    if not unique:
        for path in forest.paths:
            for number in path:
                visits[number] += 1
    total = 0.0
    for node, times in zip(forest.nodes, visits, strict=True):
        size = node.end - node.start
        seen = size * node.depth + size * (size + 1) / 2
        total += times * (2 * linear * size + attention * seen + (last * size if node.depth else 0))
    return total


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


def medians(steps: Sequence[Step], repetitions: int) -> list[float]:
    """Median CPU seconds of each step, measured in turn."""
    seconds = [[cpu_seconds(step) for step in steps] for _ in range(repetitions + 1)]
    return [statistics.median(column[1:]) for column in zip(*seconds, strict=True)]


def compare_speed(model: PreTrainedModel, shapes: Sequence[Shape], config: Config) -> Table:
    """Measure each shape; one row of the table each."""
    table = Table(title="forward and backward, seconds of CPU time")
    for heading in ("shape", "leaf → unique", "padded", "by 4", "tree", "tree / better", "FLOP ratio", "of the ratio"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
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
        padded, fours, tree = medians(steps, config.repetitions)
        gain = min(padded, fours) / tree
        ratio = flops(model, rows, unique=False) / flops(model, rows, unique=True)
        shares.append(gain / ratio)
        tokens = f"{sum(len(row.tokens) for row in rows):,} → {grow_forest(rows).num_tokens:,}"
        times = [f"{seconds:.3f}" for seconds in (padded, fours, tree)]
        table.add_row(shape.name, tokens, *times, f"{gain:.2f}×", f"{ratio:.2f}", f"{gain / ratio:.2f}")
    table.add_section()
    table.add_row("mean", *[""] * 6, f"{statistics.mean(shares):.2f}")
    return table


def peak_bytes(step: Step, warm_up: Step) -> int:
    """How much a step raises the peak of resident memory, measured in a fork of this process after a small step."""

    def measure(pipe: Connection) -> None:
        # Every larger tensor is a mapping of its own, so that what counts is memory in use and not how it was cut up.
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**16)
        warm_up()
        gc.collect()
        before = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
        step()
        pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before)

    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=measure, args=(sender,))
    process.start()
    sender.close()  # so that nothing is waited for where the fork fails
    peak: int = receiver.recv()
    process.join()
    return peak


def memory_steps(model: PreTrainedModel, shape: Shape, config: Config) -> tuple[Step, Step]:
    """Steps over padded rows and over trees, both in micro-batches of the same number of tokens."""
    rows = make_rows(shape, np.random.default_rng(config.seed))
    budget = config.budget_rows * max(len(row.tokens) for row in rows)
    padded, tree = (make_step(model, rows, micro_batches(rows, budget, name), name) for name in ("padded", "tree"))
    return padded, tree


def compare_memory(
    model: PreTrainedModel, peaks: Sequence[tuple[int, ...]], shapes: Sequence[Shape], config: Config
) -> Table:
    """Peaks, and the speed under the same budget beside them."""
    title = (
        f"micro-batches of the tokens of {config.budget_rows} padded rows: peak above what the model takes, CPU seconds"
    )
    table = Table(title=title)
    for heading in ("shape", "padded MiB", "tree MiB", "tree / padded", "padded s", "tree s", "speed"):
        table.add_column(heading, justify="left" if heading == "shape" else "right")
    for shape, (padded_peak, tree_peak) in zip(shapes, peaks, strict=True):
        padded, tree = medians(memory_steps(model, shape, config), max(3, config.repetitions // 2))
        table.add_row(
            shape.name,
            *(f"{peak / 2**20:.0f}" for peak in (padded_peak, tree_peak)),
            f"{tree_peak / padded_peak:.2f}",
            *(f"{seconds:.3f}" for seconds in (padded, tree)),
            f"{padded / tree:.2f}×",
        )
    return table


def main(config: Config) -> None:
    """Measure and print the tables."""
    torch.set_num_threads(config.threads)
    model = random_model()
    shapes = (*SHAPES, NO_SHARING[0])
    # Before anything else: a fork starts with the peak that its parent has had.
    small = memory_steps(model, Shape("small", 4, (2, 2)), config)
    peaks = [tuple(map(peak_bytes, memory_steps(model, shape, config), small)) for shape in shapes if config.memory]
    keep_freed_memory()
    console = Console(width=140)
    console.print(
        f"{sum(parameter.numel() for parameter in model.parameters()):,} parameters, {config.threads} threads"
    )
    console.print(compare_speed(model, SHAPES, config))
    console.print(compare_speed(model, NO_SHARING, config))
    if config.memory:
        console.print(compare_memory(model, peaks, shapes, config))


if __name__ == "__main__":
    main(tyro.cli(Config))
