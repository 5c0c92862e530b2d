"""A full training step against TRL's ``GRPOTrainer``: rollout, rewards, update and hand-over of the weights.

Both train the same model, a Qwen3 of 3.4 M parameters with random weights, in float32 by GRPO (clipped token ratios, a
mean within each trajectory, no KL term), with AdamW and one update a rollout, on the CPU. Work:

- single turn: 8 prompts x 8 rollouts x 128 tokens, with three lengths of prompt.
- multi-turn with tools: 4 prompts x 8 rollouts x 4 turns of 32 tokens; after each turn but the last a tool in memory is
  called, whose reply has 16 tokens; with four lengths of prompt.

With a byte-level BPE of 6,400 entries a question of GSM8K alone has 81 tokens in the mean, 220 in our prompt for tag
grammars, and 310 to 370 where a chat template like Qwen's describes one tool.

Every token is sampled from the whole distribution; no end token can be drawn, so all turns are as long as that. On both
sides a message is a call of the tool whatever it says, and nothing is parsed: random weights write no JSON. The reward
is the mean of the words' numbers, so that no two are the same and every sampled token is trained on. Both sides count
their tokens, and the numbers must agree.

- forkgym: ``train_step`` of the loop that ``scripts/train_arpo.py`` runs: the embedded agent with its cache kept from
  turn to turn, the tree forward, which computes a group's prompt once. No trajectory branches.
- forkgym, branching: ``arpo``, where half of a task's trajectories begin at its prompt and the others branch off at
  tool calls: as many trajectories, of the same length, and fewer sampled tokens. TRL has no such thing.
- TRL: its own loop with ``generate`` of transformers (its vLLM does not survive a weight sync on a CPU) and its own
  tool loop (``trl_steps.py``). Its defaults are kept but for bfloat16, which our side does not use either: once as it
  comes, with activation checkpointing, and once without, which is in its favour where memory is plenty. Not counted, in
  its favour: the parsing of calls, drawing the batch and logging.

glibc's allocator keeps freed memory on both sides. TRL is optional: without ``--trl`` our side is measured alone.

    python scripts/benchmarks/against_trl.py --trl TRL_VENV/bin/python
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table

from forkgym.agents.memory import NEVER, TOP_PAD, keep_freed_memory
from forkgym.agents.transformers_agent import TransformersAgent
from forkgym.envs.base import ToolEnv
from forkgym.envs.grammar import Call, ParsedTurn, Prompt, Reply
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.tools.base import Tool, as_tool
from forkgym.trainers.config import RolloutConfig, TrainerConfig
from forkgym.trainers.learner import make_learner
from forkgym.trainers.loop import Session, train_step
from forkgym.trainers.runs.checkpoint import Contents, TrainingState
from forkgym.trainers.runs.diagnostics import watch_from

sys.path.insert(0, str(Path(__file__).parents[2]))

from scripts.benchmarks.small_model import SMALL_MODEL, endless_tokenizer, random_model  # noqa: E402

REPLY = tuple(range(5, 21))  # tokens of the tool's reply
MARKERS = ("<lookup>",)
LEARNING_RATE = 1e-4
MICRO_BATCH_TOKENS = 4096  # a few per cent faster here than the default: a layer's activations stay in the cache
PARTS = ("time/rollout_s", "time/train_s", "time/sync_s")


@dataclass(frozen=True, slots=True)
class Config:
    """Options of the benchmark.

    Attributes:
        trl: Python of an environment that has TRL; without it our side is measured alone.
        trl_rows: Rows that TRL has in a pass.
        work: Measure only works whose name has this in it.
        threads: Threads of torch, on both sides.
        repetitions: Steps of each side, after one that is thrown away.
    """

    trl: str | None = None
    trl_rows: int = 8
    work: str = ""
    threads: int = 1
    repetitions: int = 5


@dataclass(frozen=True, slots=True)
class Work:
    """What a step samples and trains on."""

    name: str
    prompts: int
    rollouts: int
    turns: int
    turn_tokens: int
    prompt_tokens: int
    goal: float

    @property
    def tokens(self) -> int:
        """Tokens that are sampled, and trained on."""
        return self.prompts * self.rollouts * self.turns * self.turn_tokens


WORKS = tuple(
    Work(f"single turn, prompts of {prompt:,}", 8, 8, turns=1, turn_tokens=128, prompt_tokens=prompt, goal=1.8)
    for prompt in (64, 128, 256)
) + tuple(
    Work(f"multi-turn, prompts of {prompt:,}", 4, 8, turns=4, turn_tokens=32, prompt_tokens=prompt, goal=4.0)
    for prompt in (64, 320, 512, 1024)
)


@dataclass(frozen=True, slots=True)
class Seconds:
    """What a step took."""

    wall: float
    cpu: float


# Our side.


@dataclass(frozen=True, slots=True)
class EveryMessage:
    """A grammar in which every message is a call of the tool, or every message the answer."""

    answers: bool
    name: str = "every-message"

    def instructions(self, tools: Sequence[Tool]) -> str:
        """Nothing is said."""
        del tools
        return ""

    def prompt(self, tools: Sequence[Tool], question: str) -> Prompt:
        """The question."""
        del tools
        return Prompt("", question)

    def reply(self, observation: str, tool_names: tuple[str, ...]) -> Reply:
        """The observation."""
        del tool_names
        return Reply(observation, MARKERS)

    def stop_strings(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """None."""
        del tool_names
        return ()

    def markers(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """One that nobody writes."""
        del tool_names
        return MARKERS

    def parse(self, text: str, tool_names: tuple[str, ...]) -> ParsedTurn:
        """A call, or the answer."""
        return ParsedTurn(answer=text) if self.answers else ParsedTurn(calls=(Call(tool_names[0], text),))

    def escape(self, text: str, tool_names: tuple[str, ...]) -> str:
        """The text."""
        del tool_names
        return text

    def render_results(self, outputs: Sequence[str], tool_names: tuple[str, ...]) -> str:
        """The outputs."""
        del tool_names
        return " ".join(outputs)

    def render_step(self, step: SolutionStep, tools: Mapping[str, Tool]) -> str:
        """The argument."""
        del tools
        return step.argument


def lookup(text: str) -> str:
    """Look a text up."""
    del text
    return " ".join(f"w{token}" for token in REPLY)


class WordEnv(ToolEnv):
    """Random questions; every turn but the last is a call, and the last is scored."""

    def __init__(self, work: Work) -> None:
        super().__init__(
            tools=[as_tool(lookup, inline=True)], grammar=EveryMessage(answers=work.turns == 1), max_turns=work.turns
        )
        self.prompt_tokens = work.prompt_tokens

    def task(self, index: int) -> Task:
        """A question of random words."""
        rng = np.random.default_rng(index)
        words = rng.integers(0, SMALL_MODEL["vocab_size"], self.prompt_tokens).tolist()
        return Task(" ".join(f"w{word}" for word in words), answer="", uid=str(index))

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take the last turn for the answer."""
        self.grammar = EveryMessage(answers=len(self._transcript) + 1 == self.max_turns)
        return super().step(action)

    def score(self, answer: str, task: Task) -> dict[str, float]:
        """The mean of the words' numbers, as a share of the vocabulary."""
        del task
        numbers = [int(word[1:]) for word in answer.split()]
        return {"number": statistics.fmean(numbers) / SMALL_MODEL["vocab_size"]}


class OurSide:
    """Training steps of this package on a work."""

    def __init__(self, work: Work, *, branches: bool) -> None:
        self.name = "forkgym, branching" if branches else "forkgym"
        self.tokens = {"tokens/trained": work.tokens} | ({} if branches else {"tokens/sampled": work.tokens})
        self.parts: list[tuple[float, ...]] = []
        model = random_model()
        assert model.generation_config is not None
        model.generation_config.eos_token_id = None
        tokenizer = endless_tokenizer(SMALL_MODEL["vocab_size"])
        self.trainer = TrainerConfig(
            algorithm="arpo" if branches else "grpo",
            num_steps=10_000,
            warmup_steps=0,
            learning_rate=LEARNING_RATE,
            micro_batch_tokens=MICRO_BATCH_TOKENS,
            log_rollouts_every=0,
        )
        self.rollout = RolloutConfig(
            num_generations=work.rollouts,
            initial_generations=work.rollouts // 2,
            tasks_per_step=work.prompts,
            max_turn_tokens=work.turn_tokens,
        )
        learner, scheduler = make_learner(model, 0, 1.0, self.trainer)
        self.session = Session(
            learner=learner,
            scheduler=scheduler,
            saved=Contents(model, tokenizer, learner.optimizer, scheduler),
            agent=TransformersAgent(model, tokenizer, slots=work.prompts * work.rollouts),
            envs={"words": WordEnv(work)},
            folder=None,
            seed=0,
        )
        if self.session.agent.codec.encode_reply(Reply(lookup(""), MARKERS), ()) != REPLY:
            raise RuntimeError(f"the tool's reply is not the tokens {REPLY}")
        self.state = TrainingState(config_hash="")
        self.watch = watch_from(self.session.diagnostics, ())

    def step(self) -> Seconds:
        """Take a step."""
        wall, cpu = time.perf_counter(), time.process_time()
        self.state, self.watch, metrics = train_step(self.session, self.rollout, self.trainer, self.state, self.watch)
        seconds = Seconds(time.perf_counter() - wall, time.process_time() - cpu)
        for name, expected in self.tokens.items():
            if metrics[name] != expected:
                raise RuntimeError(f"{name} is {metrics[name]}, expected {expected}")
        self.parts.append(tuple(float(metrics[name]) for name in ("tokens/sampled", *PARTS)))
        return seconds

    @property
    def described(self) -> str:
        """Its name, tokens sampled, and the wall-clock seconds of a step's parts."""
        sampled, *parts = (statistics.median(column) for column in zip(*self.parts[1:], strict=True))
        times = ", ".join(f"{name[5:-2]} {part:.2f}" for name, part in zip(PARTS, parts, strict=True))
        return f"{self.name}: {sampled:,.0f} sampled; {times}"

    def close(self) -> None:
        """Nothing is left open."""


# TRL.


class TrlSide:
    """Training steps of TRL on a work, in its own Python."""

    def __init__(self, work: Work, config: Config, *, checkpointing: bool) -> None:
        assert config.trl is not None
        self.work, self.checkpointing = work, checkpointing
        described = {
            **asdict(work),
            "reply": REPLY,
            "rows_at_once": config.trl_rows,
            "activation_checkpointing": checkpointing,
            "learning_rate": LEARNING_RATE,
            "threads": config.threads,
            "model": SMALL_MODEL,
        }
        allocator = {"MALLOC_MMAP_MAX_": 0, "MALLOC_TRIM_THRESHOLD_": NEVER, "MALLOC_TOP_PAD_": TOP_PAD}
        threads = {"OMP_NUM_THREADS": config.threads}
        self.process = subprocess.Popen(
            [config.trl, str(Path(__file__).with_name("trl_steps.py")), json.dumps(described)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **{name: str(value) for name, value in (allocator | threads).items()}},
            text=True,
        )
        self.versions = self.read()

    def read(self) -> dict[str, Any]:
        """The next line."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"TRL ended with status {self.process.wait()}: run trl_steps.py by hand to see why")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def step(self) -> Seconds:
        """Take a step."""
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        answer = self.read()
        if answer["tokens"] != self.work.tokens:
            raise RuntimeError(f"TRL trained on {answer['tokens']} tokens, expected {self.work.tokens}")
        return Seconds(answer["wall"], answer["cpu"])

    @property
    def described(self) -> str:
        """Its version and how it was run."""
        way = "as it comes" if self.checkpointing else "without activation checkpointing"
        return f"TRL {self.versions['trl']}, {way}"

    def close(self) -> None:
        """Let it end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def median(steps: Sequence[Seconds]) -> Seconds:
    """Of each of the two, over all steps but the first."""
    return Seconds(*(statistics.median(getattr(step, name) for step in steps[1:]) for name in ("wall", "cpu")))


def compare(work: Work, config: Config) -> Table:
    """Measure all sides in turn."""
    sides: list[OurSide | TrlSide] = [OurSide(work, branches=False)]
    if work.turns > 1:
        sides.append(OurSide(work, branches=True))
    theirs = [] if config.trl is None else [TrlSide(work, config, checkpointing=on) for on in (True, False)]
    sides += theirs
    steps = [[side.step() for side in sides] for _ in range(config.repetitions + 1)]
    for side in sides:
        side.close()
    found = [median(column) for column in zip(*steps, strict=True)]
    table = Table(title=f"{work.name}: seconds of a step, and TRL's CPU time over ours; the goal is {work.goal}×")
    for heading in ("side", "wall s", "CPU s", *(f"over {side.name}" for side in sides if isinstance(side, OurSide))):
        table.add_column(heading, justify="left" if heading == "side" else "right")
    ours = [one.cpu for side, one in zip(sides, found, strict=True) if isinstance(side, OurSide)]
    for side, one in zip(sides, found, strict=True):
        ratios = [f"{one.cpu / own:.2f}×" for own in ours] if isinstance(side, TrlSide) else []
        table.add_row(side.described, f"{one.wall:.2f}", f"{one.cpu:.2f}", *ratios)
    return table


def main(config: Config) -> None:
    """Measure and print the tables."""
    console = Console(width=140)
    if config.trl is None:
        console.print("TRL is not measured: --trl names no Python that has it.")
    torch.set_num_threads(config.threads)
    keep_freed_memory()
    console.print(f"{config.threads} threads, medians of {config.repetitions}")
    for work in WORKS:
        if config.work in work.name:
            before = os.getloadavg()[0]
            console.print(compare(work, config))
            console.print(f"Load average before and after: {before:.1f}, {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(tyro.cli(Config))
