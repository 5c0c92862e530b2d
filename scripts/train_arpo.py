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
from forkgym.trainers.commands.command_line import parse_command_line, user_errors
from forkgym.trainers.config import EvaluationConfig, RolloutConfig, TrainerConfig
from forkgym.trainers.runs.diagnostics_config import DiagnosticsConfig

if TYPE_CHECKING:
    from forkgym.trainers.evaluation import Result
    from forkgym.trainers.loop import Session
    from forkgym.trainers.rollouts.growth import Env
    from forkgym.trainers.runs.checkpoint import TrainingState


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
    diagnostics: DiagnosticsConfig = field(default_factory=DiagnosticsConfig)

    def __post_init__(self) -> None:
        """Check what no section checks for itself."""
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        if self.resume and self.run_dir is None:
            raise ValueError("resume is true, expected run_dir to say which run")
        settings = self.trainer.settings
        strategy = self.rollout.branching.strategy or settings.branching
        self.rollout.check_branching(strategy, self.trainer.algorithm)
        first_turns = self.rollout.first_turns(strategy)
        if settings.baseline == "others" and first_turns < 2:
            halved = strategy != "none" and self.rollout.initial_generations is None
            name = "num_generations" if halved or strategy == "none" else "initial_generations"
            least = "3, of which by default half, rounded up, start from the prompt" if halved else "2"
            raise ValueError(
                f"rollout.{name} is {getattr(self.rollout, name)} with trainer.credit.baseline others, expected at "
                f"least {least}: each first turn is the others' baseline"
            )
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
    from forkgym.trainers.processes import is_first_process
    from forkgym.trainers.runs.notices import show_notices
    from forkgym.trainers.runs.reporting import Progress, draw_learning_curve, evaluation_table, print_table
    from forkgym.trainers.types import RewardError
    from forkgym.trainers.update import TrainingError

    keep_freed_memory()
    if is_first_process():
        show_notices()
    rollout = config.rollout.for_agent(config.agent)
    with user_errors():
        quiet_libraries()
        session, state, held_out = set_up(config)
        folder = session.folder
        results = {} if folder is None else folder.read_evaluation()
    if folder is None:
        return assist(session, rollout, config.trainer, state)
    begun = time.perf_counter()

    def measure() -> dict[str, Result]:
        if not config.evaluation.num_tasks:
            return {}
        print(f"Measuring accuracy on {evaluated_tasks(config)} ...", flush=True)
        return evaluate(session.agent, held_out, config.evaluation, rollout, config.agent.temperature)

    with folder:
        try:
            if "before" not in results:
                results = {"before": measure()}
                folder.write_evaluation(results)
            with Progress(config.trainer.num_steps) as progress:
                state = train(session, rollout, config.trainer, state, progress)
            if state.step < config.trainer.num_steps:
                raise KeyboardInterrupt
            results = {**results, "after": measure()}
        except KeyboardInterrupt:
            print(f"Stopped. Go on with: --run_dir {folder.path} --resume")
            return 130
        except (AgentFailure, RewardError, TrainingError, ToolFailure) as error:
            kept = "newest checkpoint" if isinstance(error, AgentFailure) else "last good state"
            print(f"error: {error}; the {kept} is in {folder.checkpoints}", file=sys.stderr)
            return 1
        folder.write_evaluation(results)
        picture = folder.learning_curve
        draw_learning_curve(folder.read_metrics(), results, picture)
    print_table(evaluation_table(results["before"], results["after"]))
    print(f"{time.perf_counter() - begun:.0f} s. Everything is in {folder.path}; the curve is {picture.name}.")
    return 0


def assist(session: Session, rollout: RolloutConfig, trainer: TrainerConfig, state: TrainingState) -> int:
    """Train along with the first process, which measures, shows and writes what there is to."""
    from forkgym.trainers.loop import train
    from forkgym.trainers.runs.reporting import NoProgress

    train(session, rollout, trainer, state, NoProgress())
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
    from forkgym.trainers.learner import make_learner
    from forkgym.trainers.loop import Session, save
    from forkgym.trainers.rollouts.collection import markers_of
    from forkgym.trainers.runs.checkpoint import Contents, TrainingState, load_latest
    from forkgym.trainers.runs.run_folder import CHECKPOINTS, RunFolder, config_hash

    use_threads(config.agent)
    torch.manual_seed(config.seed)
    envs = make_envs(config.env)
    held_out = make_held_out_envs(config.env, config.evaluation.split, config.evaluation.path)
    policy = load_policy(config.agent)
    pad_token = policy.tokenizer.pad_token_id
    assert isinstance(pad_token, int)
    learner, scheduler = make_learner(policy.model, pad_token, config.agent.temperature, config.trainer)
    accelerator = learner.accelerator
    if accelerator.num_processes > 1 and config.agent.kind == "vllm-server" and config.agent.server.urls:
        raise ValueError(
            f"agent.server.urls names servers for {accelerator.num_processes} processes, whose weights each would "
            "replace; expected none, so that each process starts agent.servers of its own"
        )
    path = Path(config.run_dir) if config.run_dir is not None else Path("runs") / time.strftime("%Y-%m-%d-%H%M%S")
    recorded = replace(config, run_dir=str(path), resume=False)
    saved = Contents(policy.model, policy.tokenizer, learner.optimizer, scheduler, learner.value_head)
    state, folder = TrainingState(config_hash=config_hash(recorded)), None
    if accelerator.is_main_process:
        folder = RunFolder.resume(path, recorded) if config.resume else RunFolder.create(path, recorded)
    session = Session(
        learner,
        scheduler,
        saved,
        policy.agent,
        envs,
        folder,
        config.seed,
        config.env.weights,
        markers_of(envs),
        config.diagnostics,
    )
    if not config.resume:
        save(session, state)  # so that a run can be resumed from its first moment on
        return session, state, held_out
    with accelerator.main_process_first():  # which sets aside what is broken
        checkpoint = load_latest(path / CHECKPOINTS, state.config_hash)
    checkpoint.restore(saved)
    if folder is not None:
        folder.truncate_metrics(checkpoint.state.step)
    policy.agent.load_weights(policy.model, checkpoint.state.version)
    return session, checkpoint.state, held_out


def read_config(arguments: list[str]) -> TrainConfig:
    """Read the command line; a run that is resumed has its own settings where nothing else is said."""
    config = parse_command_line(TrainConfig, description=__doc__, arguments=arguments)
    if config.resume and config.run_dir is not None and (Path(config.run_dir) / "config.yaml").is_file():
        own = ["--config", str(Path(config.run_dir) / "config.yaml")]
        config = parse_command_line(TrainConfig, description=__doc__, arguments=[*own, *arguments])
    return config


if __name__ == "__main__":
    sys.exit(main(read_config(sys.argv[1:])))
