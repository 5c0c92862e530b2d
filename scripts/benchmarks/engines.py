"""Tokens per second of each engine's rollouts, and what prefix caching and our own code do to vLLM's.

A Qwen3 of 3.4 M parameters with random weights samples at temperature 1, in float32. Work, with ``branches`` the turns
that follow each turn at every level, and as many tokens for every engine:

- single-turn: 8 prompts of 64 tokens; 8 rollouts of 128 tokens each.
- multi-turn: 4 prompts of 256 tokens; 4 rollouts each of 4 turns of 64 tokens, with replies of 16 tokens between.
- branching: 4 prompts of 256 tokens; branches 2, 2, 2, 2; turns of 64 tokens: 16 leaves of each.

Engines:

- generate: transformers' own on the whole batch, called again on whole contexts each turn;
- embedded agent, vLLM agent, vLLM server agent (one server on this machine): as the trainer drives them;
- vLLM agent, no prefix caching: the same engine without;
- bare core: calls of the core of vLLM's engine that the agent drives, asking for the same log-probs, and nothing else;
- bare vLLM: the same through vLLM's own `LLMEngine`.

Each is a process of its own. They work in turn, on other prompts each time so that nothing is cached; the table shows
medians. CPU time is that of a process and all that it started. What the vLLM agent's process spends outside its calls
of the engine is measured within each run, as a busy machine changes two runs by more than that.

    python scripts/benchmarks/engines.py --threads 1
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import psutil
import torch
import tyro
from rich.console import Console
from rich.table import Table

from forkgym.agents.base import Request
from forkgym.agents.loading import quiet_libraries

sys.path.insert(0, str(Path(__file__).parents[2]))  # also in the processes that this one starts

from scripts.benchmarks.engine_work import (  # noqa: E402
    Runner,
    Work,
    agent_runner,
    bare_runner,
    generate_runner,
    make_works,
)
from scripts.benchmarks.small_model import endless_tokenizer, random_model  # noqa: E402

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

SLOTS = 64
LOGPROBS = 1024  # of a vocabulary of this size the agent asks for every log-prob


@dataclass(frozen=True, slots=True)
class Config:
    """Options of the benchmark.

    Attributes:
        threads: Threads of each engine.
        repetitions: Measurements of each engine, after one that is thrown away.
        engines: Which; all by default.
    """

    threads: int = 1
    repetitions: int = 5
    engines: tuple[str, ...] = ()


def make_generate(folder: str) -> Runner:
    """The ``generate`` of transformers."""
    del folder
    model = random_model()
    assert model.generation_config is not None
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return generate_runner(model)


def make_embedded(folder: str) -> Runner:
    """The agent that samples with a model in its process."""
    from forkgym.agents.transformers_agent import TransformersAgent

    del folder
    model = random_model()
    return agent_runner(TransformersAgent(model, endless_tokenizer(model.config.vocab_size), slots=SLOTS))


class EngineClock:
    """CPU seconds within calls of the engine."""

    seconds = 0.0

    def timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, with its time added up."""

        def call(*arguments: Any) -> Any:
            begun = time.process_time()
            try:
                return function(*arguments)
            finally:
                self.seconds += time.process_time() - begun

        return call


ENGINE_CLOCK = EngineClock()


def make_vllm(folder: str) -> Runner:
    """The agent that samples with vLLM's engine in its process."""
    from forkgym.agents.vllm.vllm_agent import VllmAgent
    from forkgym.agents.vllm.vllm_engine import Engine

    del folder
    for name in ("add", "step", "abort"):
        setattr(Engine, name, ENGINE_CLOCK.timed(getattr(Engine, name)))
    model = random_model()
    return agent_runner(VllmAgent(model, endless_tokenizer(model.config.vocab_size), slots=SLOTS))


def make_vllm_uncached(folder: str) -> Runner:
    """The same without prefix caching, which no setting of ours switches off."""
    from forkgym.agents.vllm import vllm_engine

    start = vllm_engine.start_engine
    vllm_engine.start_engine = lambda model, arguments: start(model, {**arguments, "enable_prefix_caching": False})
    return make_vllm(folder)


def make_engine() -> Any:
    """The engine that the vLLM agent drives, with the model's weights."""
    from forkgym.agents.config import VllmConfig
    from forkgym.agents.vllm.vllm_engine import Engine

    model = random_model()
    engine = Engine(model, SLOTS, LOGPROBS, VllmConfig())
    engine.load(model)
    return engine


def make_bare_core(folder: str) -> Runner:
    """The core of vLLM's engine and nothing else."""
    del folder
    engine = make_engine()

    def add(name: str, context: tuple[int, ...], limit: int, seed: int) -> None:
        engine.add(name, Request(name, context, limit, (), seed=seed), limit)

    def step() -> Sequence[Any]:
        outputs = engine.step()
        return [(one.request_id, one.new_token_ids, one.new_logprobs) for one in outputs if one.new_token_ids]

    return bare_runner(add, step)


def make_bare_vllm(folder: str) -> Runner:
    """The `LLMEngine` that vLLM's documentation describes."""
    del folder
    engine = make_engine()
    own: Any = engine._llm  # started as the agent's

    # After the engine, which quiets vLLM.
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    def add(name: str, context: tuple[int, ...], limit: int, seed: int) -> None:
        params = SamplingParams(
            temperature=1.0,
            seed=seed,
            logprobs=LOGPROBS,
            max_tokens=limit,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        own.add_request(name, {"prompt_token_ids": list(context)}, params)

    def step() -> Sequence[Any]:
        with torch.compiler.set_stance("force_eager"):  # as the agent does
            outputs = own.step()
        return [(one.request_id, one.outputs[0].token_ids, one.outputs[0].logprobs) for one in outputs]

    return bare_runner(add, step)


def make_server(folder: str) -> Runner:
    """The agent that samples with a server, which it starts."""
    from forkgym.agents.building import load_policy
    from forkgym.agents.config import AgentConfig

    config: Any = AgentConfig
    return agent_runner(load_policy(config(kind="vllm-server", model=folder, slots=SLOTS, servers=1)).agent)


ENGINES: Mapping[str, Callable[[str], Runner]] = {
    "generate": make_generate,
    "embedded agent": make_embedded,
    "vLLM agent, no prefix caching": make_vllm_uncached,
    "vLLM agent": make_vllm,
    "bare core": make_bare_core,
    "bare vLLM": make_bare_vllm,
    "vLLM server agent": make_server,
}


def cpu_seconds() -> float:
    """CPU time so far of this process and all that it has started."""
    own = psutil.Process()
    times = [process.cpu_times() for process in (own, *own.children(recursive=True))]
    return sum(one.user + one.system for one in times)


def serve(name: str, folder: str, threads: int, connection: Connection) -> None:
    """Be one engine: make it, then do each work that comes and send back its seconds, as in `Medians`."""
    torch.set_num_threads(threads)
    quiet_libraries()
    try:
        run = ENGINES[name](folder)
    except (ValueError, TypeError) as error:
        connection.send(str(error))
        return
    connection.send(None)
    while True:
        request: tuple[Work, int] | None = connection.recv()
        if request is None:
            return
        wall, cpu, engine = time.perf_counter(), cpu_seconds(), ENGINE_CLOCK.seconds
        run(*request)
        connection.send((time.perf_counter() - wall, cpu_seconds() - cpu, ENGINE_CLOCK.seconds - engine))


@dataclass(frozen=True, slots=True)
class Medians:
    """Seconds of one engine at one work: by the clock, of CPU time, and of that within vLLM where an agent calls it."""

    wall: float
    cpu: float
    engine: float


def measure(config: Config, folder: str) -> dict[tuple[str, str], Medians]:
    """Medians by engine and work; an engine that can't be made is left out, and why is printed."""
    context = multiprocessing.get_context("spawn")
    ends: dict[str, Connection] = {}
    processes: list[Any] = []
    for name in config.engines or tuple(ENGINES):
        ours, theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, folder, config.threads, theirs))
        process.start()
        problem = ours.recv()
        if problem is None:
            ends[name] = ours
            processes.append(process)
        else:
            print(f"{name} is left out: {problem}")
            process.join()
    seconds: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    for repetition in range(config.repetitions + 1):
        for work in make_works(repetition):
            for name, end in ends.items():
                end.send((work, repetition))
                found = end.recv()
                if repetition:
                    seconds.setdefault((name, work.name), []).append(found)
    for end in ends.values():
        end.send(None)
    for process in processes:
        process.join()
    return {key: Medians(*map(statistics.median, zip(*found, strict=True))) for key, found in seconds.items()}


def show(config: Config, medians: Mapping[tuple[str, str], Medians]) -> None:
    """Print rates, then what was asked of vLLM."""
    console = Console(width=150)
    works = make_works(0)
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    table = Table(title=f"Tokens per second (of CPU time), {config.threads} threads, medians; load {load}")
    table.add_column("engine")
    for work in works:
        table.add_column(f"{work.name}, {work.tokens:,} tokens", justify="right")
    for name in ENGINES:
        if (name, works[0].name) in medians:
            found = [(work.tokens, medians[name, work.name]) for work in works]
            table.add_row(name, *(f"{tokens / one.wall:,.0f} ({tokens / one.cpu:,.0f})" for tokens, one in found))
    console.print(table)
    for label, slow, fast in (
        ("prefix caching, times as fast", "vLLM agent, no prefix caching", "vLLM agent"),
        ("agent's time over bare core's", "vLLM agent", "bare core"),
        ("agent's time over bare vLLM's", "vLLM agent", "bare vLLM"),
    ):
        for work in works:
            if (slow, work.name) in medians and (fast, work.name) in medians:
                one, other = medians[slow, work.name], medians[fast, work.name]
                print(f"{label}, {work.name}: {one.wall / other.wall:.2f} (CPU time {one.cpu / other.cpu:.2f})")
    for work in works:
        ours = medians.get(("vLLM agent", work.name))
        if ours is not None:
            print(f"agent's CPU time over that of its calls of vLLM, {work.name}: {ours.cpu / ours.engine:.3f}")


def main(config: Config) -> None:
    """Measure and print."""
    unknown = set(config.engines) - set(ENGINES)
    if unknown:
        raise SystemExit(f"engines are {', '.join(sorted(unknown))}, expected some of {', '.join(ENGINES)}")
    quiet_libraries()
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # read by torch of the processes that are started
    with TemporaryDirectory(prefix="forkgym-engines-") as folder:
        model = random_model()
        model.save_pretrained(folder)
        endless_tokenizer(model.config.vocab_size).save_pretrained(folder)
        show(config, measure(config, folder))


if __name__ == "__main__":
    main(tyro.cli(Config))
