"""Tokens per second of the transformers agent against calling ``generate`` of transformers on the whole batch.

Both sample with temperature 1 from the same model in one process, in turn, and the table shows medians. Work:

- multi-turn: 4 tasks of 256 tokens x 16 rollouts x 4 turns of 64 tokens, with replies of 16 tokens between. The
  agent keeps its cache; ``generate`` is called again on the whole contexts each turn.
- multi-turn, ragged: the same with turns of 1 to 64 tokens. ``generate`` gets left-padded contexts and runs until the
  longest turn of the batch is over; tokens past a turn's own end are not counted.
- single-turn: 8 prompts of 64 tokens x 8 rollouts x 128 tokens.

    python scripts/benchmarks/rollout.py --threads 1
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from forkgym.agents.base import Completion, Request
from forkgym.agents.loading import load_model, quiet_libraries
from forkgym.agents.transformers_agent import TransformersAgent

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmarks.small_model import endless_tokenizer, random_model  # noqa: E402

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Config:
    """Options of the benchmark.

    Attributes:
        model: ``embedded``, a folder, a hub name, or ``random``: a Qwen3 of 3.4 M parameters with random weights.
        threads: Threads of torch.
        repetitions: Measurements of each kind, after one that is thrown away.
        slots: Slots of the agent.
        seed: Of prompts, replies and turn lengths.
    """

    model: str = "embedded"
    threads: int = 1
    repetitions: int = 5
    slots: int = 64
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Work:
    """What is to be sampled: prompts by rollout, turn lengths [rollouts, turns] and the tokens of a reply."""

    name: str
    prompts: list[list[int]]
    turn_lengths: np.ndarray[Any, np.dtype[np.int64]]
    reply: list[int]

    @property
    def tokens(self) -> int:
        """Tokens that count."""
        return int(self.turn_lengths.sum())


def make_work(name: str, rng: np.random.Generator, *, shape: tuple[int, int, int, int, int], ragged: bool) -> Work:
    """Random prompts and replies; ``shape`` is tasks, rollouts of each, prompt tokens, turns, tokens of a turn."""
    tasks, rollouts, prompt_tokens, turns, turn_tokens = shape
    prompts = [prompt for prompt in rng.integers(4, 500, (tasks, prompt_tokens)).tolist() for _ in range(rollouts)]
    low = 1 if ragged else turn_tokens
    lengths = rng.integers(low, turn_tokens, (len(prompts), turns), dtype=np.int64, endpoint=True)
    return Work(name, prompts, lengths, rng.integers(4, 500, 16).tolist())


def run_agent(agent: TransformersAgent, work: Work, version: int) -> None:
    """Sample with the agent; every call starts with an empty cache, as after an update of the weights."""
    agent.load_weights(agent.model, version)
    contexts: dict[str, tuple[int, ...]] = {}
    for rollout, prompt in enumerate(work.prompts):
        length = int(work.turn_lengths[rollout, 0])
        request = Request(f"{rollout}/0", tuple(prompt), length, (), seed=rollout)
        contexts[request.uid] = request.tokens
        agent.submit(request)
    while contexts:
        for event in agent.step():
            assert isinstance(event, Completion)
            context = contexts.pop(event.uid) + event.tokens + tuple(work.reply)
            rollout, turn = map(int, event.uid.split("/"))
            assert len(event.tokens) == work.turn_lengths[rollout, turn]
            if turn + 1 == work.turn_lengths.shape[1]:
                agent.release(event.uid)
                continue
            length = int(work.turn_lengths[rollout, turn + 1])
            uid = f"{rollout}/{turn + 1}"
            contexts[uid] = context
            agent.submit(Request(uid, context, length, (), seed=rollout, continues=event.uid))


def run_generate(model: PreTrainedModel, work: Work) -> None:
    """Sample by ``generate`` on the whole batch, once a turn."""
    contexts = [list(prompt) for prompt in work.prompts]
    generate: Any = model.generate
    for lengths in work.turn_lengths.T:
        width = max(map(len, contexts))
        ids = torch.tensor([[0] * (width - len(context)) + context for context in contexts])
        mask = torch.tensor([[0] * (width - len(context)) + [1] * len(context) for context in contexts])
        with torch.inference_mode():
            output = generate(
                ids, attention_mask=mask, max_new_tokens=int(lengths.max()), do_sample=True, temperature=1.0, top_k=0
            )
        sampled = output[:, width:].tolist()
        for context, tokens, length in zip(contexts, sampled, lengths, strict=True):
            context += tokens[:length] + work.reply


def measure(function: Callable[[], None]) -> tuple[float, float]:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def main(config: Config) -> None:
    """Measure and print the table."""
    quiet_libraries()
    torch.set_num_threads(config.threads)
    model = random_model() if config.model == "random" else load_model(config.model, torch.float32)
    model.eval()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    agent = TransformersAgent(model, endless_tokenizer(model.config.vocab_size), slots=config.slots)
    rng = np.random.default_rng(config.seed)
    works = [
        make_work("multi-turn", rng, shape=(4, 16, 256, 4, 64), ragged=False),
        make_work("multi-turn, ragged", rng, shape=(4, 16, 256, 4, 64), ragged=True),
        make_work("single-turn", rng, shape=(8, 8, 64, 1, 128), ragged=False),
    ]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    table = Table(title=f"{config.model}, {parameters:,} parameters, {config.threads} threads, medians")
    for heading in ("work", "tokens", "agent tokens/s", "generate tokens/s", "ratio", "ratio of CPU time"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    for work in works:
        table.add_row(*compare(agent, model, work, config.repetitions))
    Console().print(table)


def compare(agent: TransformersAgent, model: PreTrainedModel, work: Work, repetitions: int) -> list[str]:
    """Measure both in turn; one row of the table."""
    seconds: dict[str, list[tuple[float, float]]] = {"agent": [], "generate": []}
    for version in range(repetitions + 1):
        ours = measure(lambda version=version: run_agent(agent, work, version))  # type: ignore[misc]
        theirs = measure(lambda: run_generate(model, work))
        if version:
            seconds["agent"].append(ours)
            seconds["generate"].append(theirs)
    (wall, cpu), (their_wall, their_cpu) = (
        [statistics.median(column) for column in zip(*seconds[who], strict=True)] for who in ("agent", "generate")
    )
    rates = [f"{work.tokens / wall:,.0f}", f"{work.tokens / their_wall:,.0f}"]
    return [work.name, f"{work.tokens:,}", *rates, f"{their_wall / wall:.2f}", f"{their_cpu / cpu:.2f}"]


if __name__ == "__main__":
    main(tyro.cli(Config))
