"""Measure an agent on held-out tasks of any registered environments, and write the table as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from forkgym.agents.config import AgentConfig
from forkgym.envs.config import EnvConfig
from forkgym.trainers.commands.command_line import parse_command_line, user_errors
from forkgym.trainers.config import EvaluationConfig, RolloutConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """An evaluation."""

    num_tasks: int = 400
    """Tasks of each environment, the first ones of the split."""
    samples_per_task: int = 1
    """Sampled episodes of each task, beside one greedy one."""
    output: str | None = None
    """File to write the results to, as JSON."""
    env: EnvConfig = field(default_factory=lambda: EnvConfig(split="held-out"))
    agent: AgentConfig = field(default_factory=AgentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_tasks", "samples_per_task"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")


def main(config: EvaluateConfig) -> int:
    """Evaluate, print the table, write the file."""
    from forkgym.agents.building import make_agent, use_threads
    from forkgym.agents.errors import AgentFailure
    from forkgym.agents.loading import quiet_libraries
    from forkgym.agents.memory import keep_freed_memory
    from forkgym.agents.openai_agent import NoNativeTools
    from forkgym.agents.scripted import NoSolution
    from forkgym.envs.config import make_held_out_envs
    from forkgym.tools.base import ToolFailure
    from forkgym.tools.durable import write_text
    from forkgym.trainers.evaluation import evaluate
    from forkgym.trainers.runs.notices import show_notices
    from forkgym.trainers.runs.reporting import print_table, result_table
    from forkgym.trainers.types import RewardError

    keep_freed_memory()
    show_notices()
    with user_errors():
        quiet_libraries()
        split = None if config.env.split == "held-out" else config.env.split
        envs = make_held_out_envs(replace(config.env, split="test"), split, config.env.path)
        use_threads(config.agent)
        agent = make_agent(config.agent)
        output = Path(config.output) if config.output is not None else None
        if output is not None and not output.parent.is_dir():
            raise ValueError(f"output {config.output!r}: there is no folder {str(output.parent)!r}")
        if output is not None and output.is_dir():
            raise ValueError(f"output {config.output!r} is a folder, expected a file")
    how = EvaluationConfig(num_tasks=config.num_tasks, samples_per_task=config.samples_per_task)
    rollout = config.rollout.for_agent(config.agent)
    try:
        results = evaluate(agent, envs, how, rollout, config.agent.temperature)
    except (AgentFailure, NoNativeTools, NoSolution, RewardError, ToolFailure) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print_table(result_table(results))
    if output is not None:
        write_text(output, json.dumps(results, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(parse_command_line(EvaluateConfig, description=__doc__)))
