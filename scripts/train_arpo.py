"""Train a tool-using agent with ARPO and Group Policy Gradient.

With no arguments: the small policy that comes with the package, on generated word problems and multi-hop questions,
on the CPU, in minutes. Ctrl-C leaves a checkpoint that --resume continues.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from forkgym.agents.config import AgentConfig
from forkgym.envs.config import EnvConfig
from forkgym.trainers.command_line import parse_command_line, user_errors
from forkgym.trainers.config import EvaluationConfig, RolloutConfig, TrainerConfig

if TYPE_CHECKING:
    from forkgym.trainers.checkpoint import TrainingState
    from forkgym.trainers.evaluation import Result
    from forkgym.trainers.loop import Session
    from forkgym.trainers.tree import Env


@dataclass(frozen=True)
class TrainConfig:
    """A training run."""

    seed: int = 0
    """Seeds every draw of the run; the same seed gives the same run."""
    run_dir: str | None = None
    """Folder of the run; by default runs/ and the time of the start."""
    resume: bool = False
    """Continue the run in run_dir from its newest checkpoint."""
    env: EnvConfig = field(default_factory=EnvConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        """Check what no section checks for itself."""
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        if self.resume and self.run_dir is None:
            raise ValueError("resume is true, expected run_dir to say which run")
        if self.rollout.tasks_per_step < len(self.env.id):
            raise ValueError(
                f"rollout.tasks_per_step is {self.rollout.tasks_per_step}, expected at least one for each of the "
                f"{len(self.env.id)} environments"
            )


def main(config: TrainConfig) -> int:
    """Evaluate, train, evaluate again, and leave the run's folder."""
    from forkgym.agents.errors import AgentFailure
    from forkgym.agents.loading import quiet_libraries
    from forkgym.agents.memory import keep_freed_memory
    from forkgym.tools.base import ToolFailure
    from forkgym.trainers.evaluation import evaluate
    from forkgym.trainers.loop import train
    from forkgym.trainers.notices import show_notices
    from forkgym.trainers.reporting import Progress, draw_learning_curve, evaluation_table, print_table
    from forkgym.trainers.update import TrainingError

    keep_freed_memory()
    show_notices()
    with user_errors():
        quiet_libraries()
        session, state, held_out = set_up(config)
        results = session.folder.read_evaluation()
    rollout = config.rollout.for_agent(config.agent)
    begun = time.perf_counter()

    def measure() -> dict[str, Result]:
        if not config.evaluation.num_tasks:
            return {}
        return evaluate(session.agent, held_out, config.evaluation, rollout, config.agent.temperature)

    with session.folder:
        try:
            if "before" not in results:
                print(f"Measuring accuracy on {evaluated_tasks(config)} ...", flush=True)
                results = {"before": measure()}
                session.folder.write_evaluation(results)
            with Progress(config.trainer.num_steps) as progress:
                state = train(session, rollout, config.trainer, state, progress)
            if state.step < config.trainer.num_steps:
                raise KeyboardInterrupt
            results = {**results, "after": measure()}
        except KeyboardInterrupt:
            print(f"Stopped. Go on with: --run_dir {session.folder.path} --resume")
            return 130
        except (TrainingError, ToolFailure) as error:
            print(f"error: {error}; the last good state is in {session.folder.checkpoints}", file=sys.stderr)
            return 1
        except AgentFailure as error:
            print(f"error: {error}; the newest checkpoint is in {session.folder.checkpoints}", file=sys.stderr)
            return 1
        session.folder.write_evaluation(results)
        picture = session.folder.learning_curve
        draw_learning_curve(session.folder.read_metrics(), results, picture)
    print_table(evaluation_table(results["before"], results["after"]))
    print(f"{time.perf_counter() - begun:.0f} s. Everything is in {session.folder.path}; the curve is {picture.name}.")
    return 0


def evaluated_tasks(config: TrainConfig) -> str:
    """Say what accuracy is measured on: tasks are held out only where they are others."""
    from forkgym.envs.config import trained_on

    same = trained_on(config.env, config.evaluation.split, config.evaluation.path)
    if not same:
        return "held-out tasks"
    return f"tasks that are also trained on, for {', '.join(same)} (--evaluation.path or .split names others)"


def set_up(config: TrainConfig) -> tuple[Session, TrainingState, dict[str, Env]]:
    """Make all that a run needs; the run's folder comes last, so that a mistake leaves no trace.

    Raises:
        ValueError: Something of the config can't be used; names it, and what was expected.
    """
    import torch

    from forkgym.agents.building import load_policy, use_threads
    from forkgym.envs.config import make_envs, make_held_out_envs
    from forkgym.trainers.checkpoint import Contents, TrainingState, load_latest
    from forkgym.trainers.loop import Session, make_learner, save
    from forkgym.trainers.run_folder import RunFolder

    use_threads(config.agent)
    torch.manual_seed(config.seed)
    envs = make_envs(config.env)
    held_out = make_held_out_envs(config.env, config.evaluation.split, config.evaluation.path)
    policy = load_policy(config.agent)
    pad_token = policy.tokenizer.pad_token_id
    assert isinstance(pad_token, int)
    learner, scheduler = make_learner(policy.model, pad_token, config.agent.temperature, config.trainer)
    path = Path(config.run_dir) if config.run_dir is not None else Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
    recorded = replace(config, run_dir=str(path), resume=False)
    saved = Contents(policy.model, policy.tokenizer, learner.optimizer, scheduler)
    if config.resume:
        folder = RunFolder.resume(path, recorded)
        checkpoint = load_latest(folder.checkpoints, folder.config_hash)
        checkpoint.restore(policy.model, learner.optimizer, scheduler)
        state = checkpoint.state
        folder.truncate_metrics(state.step)
        policy.agent.load_weights(policy.model, state.version)
    else:
        folder = RunFolder.create(path, recorded)
        state = TrainingState(config_hash=folder.config_hash)
    session = Session(learner, scheduler, saved, policy.agent, envs, folder, config.seed, config.env.weights)
    if not config.resume:
        save(session, state)  # so that a run can be resumed from its first moment on
    return session, state, held_out


def read_config(arguments: list[str]) -> TrainConfig:
    """Read the command line; a run that is resumed has its own settings where nothing else is said."""
    config = parse_command_line(TrainConfig, description=__doc__, arguments=arguments)
    if config.resume and config.run_dir is not None and (Path(config.run_dir) / "config.yaml").is_file():
        own = ["--config", str(Path(config.run_dir) / "config.yaml")]
        config = parse_command_line(TrainConfig, description=__doc__, arguments=[*own, *arguments])
    return config


if __name__ == "__main__":
    sys.exit(main(read_config(sys.argv[1:])))
