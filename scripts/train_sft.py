"""Fine-tune a policy on demonstrations, as a cold start for train_arpo.py.

The policy learns what it is to write, and nothing of what it reads. With no arguments: the small policy that comes with
the package, on episodes of generated word problems and multi-hop questions that are solved as their tasks say. With
--env.id forkgym/GSM8K-v0 that data set's own annotations are carried out with the calculator, and
--sft.conversations FILE.jsonl takes conversations with tool calls.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forkgym.agents.config import AgentConfig
from forkgym.envs.config import EnvConfig
from forkgym.trainers.commands.command_line import parse_command_line, user_errors
from forkgym.trainers.commands.conversion import words_of
from forkgym.trainers.sft.config import SftConfig

if TYPE_CHECKING:
    from forkgym.agents.building import Policy
    from forkgym.trainers.runs.run_folder import RunFolder
    from forkgym.trainers.sft.demonstrations import Demonstration
    from forkgym.trainers.sft.sources import Collected

MODEL = "model"  # folder in a run's folder
REPORT_EVERY = 10  # steps


@dataclass(frozen=True)
class SftRunConfig:
    """A cold start."""

    seed: int = 0
    """Seeds which demonstrations are drawn, and their order; the same seed gives the same model."""
    run_dir: str | None = None
    """Folder of the run, whose folder model holds the fine-tuned policy; by default runs/ and the time of the start."""
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    sft: SftConfig = field(default_factory=SftConfig)

    def __post_init__(self) -> None:
        """Check what no section checks for itself."""
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        if self.agent.kind != "transformers":
            raise ValueError(f"agent.kind is {self.agent.kind!r}, expected transformers: nothing is sampled here")
        count = self.sft.num_demonstrations
        if self.sft.conversations is not None:
            if self.env != EnvConfig():
                raise ValueError("sft.conversations takes the place of environments, expected no env settings with it")
        elif count is not None and count < len(self.env.id):
            raise ValueError(
                f"sft.num_demonstrations is {count}, expected at least one for each of the {len(self.env.id)} "
                "environments"
            )


def main(config: SftRunConfig) -> int:
    """Collect demonstrations, fine-tune, save the model."""
    from forkgym.agents.building import load_policy, use_threads
    from forkgym.agents.loading import quiet_libraries
    from forkgym.agents.memory import keep_freed_memory
    from forkgym.tools.base import ToolFailure
    from forkgym.trainers.runs.notices import show_notices
    from forkgym.trainers.runs.run_folder import RunFolder
    from forkgym.trainers.sft.training import SftError, fine_tune, prepare

    keep_freed_memory()
    show_notices()
    with user_errors():
        quiet_libraries()
        use_threads(config.agent)
        path = Path(config.run_dir) if config.run_dir is not None else Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
        check_new(path)
        policy = load_policy(config.agent)
        pad_token = policy.tokenizer.pad_token_id
        assert isinstance(pad_token, int)
        tuning = prepare(policy.model, pad_token, config.sft.for_agent(config.agent), config.seed, path)
        print("Making demonstrations ...", flush=True)
        try:
            material = collect(config, policy)
        except ToolFailure as error:
            print(f"error: {error}", file=sys.stderr)
            return 1
        schedule = config.sft.schedule(len(material.demonstrations))
        folder = RunFolder.create(path, replace(config, run_dir=str(path)))
    print(f"{material}\n{schedule}", flush=True)
    begun, stopped = time.perf_counter(), False
    with folder:
        try:
            fine_tune(tuning, material.demonstrations, reporter(folder, begun))
        except KeyboardInterrupt:
            stopped = True
        except SftError as error:
            print(f"error: {error}; no model is saved", file=sys.stderr)
            return 1
        save(policy, path / MODEL)
    print(f"{'Stopped' if stopped else 'Done'} after {time.perf_counter() - begun:.0f} s. The model: {path / MODEL}")
    print(f"Measure it: {evaluation_command(config, path / MODEL)}")
    return 130 if stopped else 0


def check_new(path: Path) -> None:
    """Raise ValueError where there is something in the place of a run's folder."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"run_dir {path} holds something already, expected a new folder; name another --run_dir")


def collect(config: SftRunConfig, policy: Policy) -> Collected:
    """Make the demonstrations.

    Raises:
        ValueError: Something of the config can't be used, or there is no demonstration.
        ToolFailure: The tools of an environment fail again and again.
    """
    import numpy as np

    from forkgym.agents.codec import TokenizerCodec
    from forkgym.agents.slot_model import longest_context
    from forkgym.envs.config import make_envs
    from forkgym.trainers.sft import sources
    from forkgym.trainers.sft.conversations import make_renderer
    from forkgym.trainers.sft.demonstrations import message_end

    rng = np.random.default_rng(config.seed)
    codec = TokenizerCodec(policy.tokenizer)
    end = message_end(policy.model, codec)
    found: Iterator[Demonstration | str]
    if config.sft.conversations is not None:
        where = config.sft.conversations
        renderer = make_renderer(codec, end, config.agent.model)
        found = sources.from_conversations(where, config.sft.num_demonstrations, renderer, rng)
    else:
        where = ", ".join(config.env.id)
        count = config.sft.num_demonstrations or sources.DEFAULT_COUNT
        found = sources.from_environments(make_envs(config.env), config.env.weights, count, codec, end, rng)
    return sources.collected(found, min(config.sft.max_tokens, longest_context(policy.model, None)), where)


def reporter(folder: RunFolder, begun: float) -> Callable[[Mapping[str, float]], None]:
    """Write down the figures of each step, and show some."""
    trained = 0.0

    def report(metrics: Mapping[str, float]) -> None:
        nonlocal trained
        trained += metrics["tokens/trained"]
        folder.append_metrics(metrics)
        if metrics["step"] == 1 or metrics["step"] % REPORT_EVERY == 0:
            speed = trained / (time.perf_counter() - begun)
            print(f"step {metrics['step']}: loss {metrics['loss']:.4f}, {speed:,.0f} policy tokens/s", flush=True)

    return report


def save(policy: Policy, folder: Path) -> None:
    """Write the model, adapters merged in, and its tokenizer, as --agent.model reads them."""
    from forkgym.trainers.runs.saved_model import write_model

    folder.mkdir(parents=True, exist_ok=True)
    write_model(folder, policy.model)
    policy.tokenizer.save_pretrained(folder)


def evaluation_command(config: SftRunConfig, model: Path) -> str:
    """The command line that measures the model on held-out tasks; their file has to be named, where they have one."""
    words = ["python", "scripts/evaluate.py", "--agent.model", str(model)]
    if config.sft.conversations is not None:
        return f"{shlex.join(words)} --env.grammar hermes --env.id ..."
    for one in fields(EnvConfig):
        value: object = getattr(config.env, one.name)
        if one.name == "id" or (one.name not in ("split", "weights", "path") and value != one.default):
            words += [f"--env.{one.name}", *words_of(value)]
    return shlex.join(words) + (" --env.path ..." if config.env.path is not None else "")


if __name__ == "__main__":
    sys.exit(main(parse_command_line(SftRunConfig, description=__doc__)))
