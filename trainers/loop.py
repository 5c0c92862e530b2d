"""The training loop: roll out, update, hand the weights to the agent, write down what happened."""

from __future__ import annotations

import signal
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Protocol, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch.optim.lr_scheduler import LambdaLR

from forkgym.agents.base import Agent
from forkgym.envs.base import INFINITE_TASK_RANGE, ToolEnv
from forkgym.envs.shares import shares_of
from forkgym.tools.base import ToolFailure
from forkgym.trainers import checkpoint
from forkgym.trainers.algorithms import ALGORITHMS, shuffled_rewards
from forkgym.trainers.checkpoint import TrainingState
from forkgym.trainers.config import RolloutConfig, TrainerConfig
from forkgym.trainers.metrics import rollout_metrics
from forkgym.trainers.rollout import RolloutSettings, TaskRef, roll_out
from forkgym.trainers.run_folder import RunFolder
from forkgym.trainers.seeding import derive_seed
from forkgym.trainers.tree import Env
from forkgym.trainers.update import Learner, TrainingError, update

TASKS, ROLLOUT, SHUFFLE = 0, 1, 2  # what a seed is for


class ProgressDisplay(Protocol):
    """Shows how a run is getting on."""

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a finished step, the first being 1."""
        ...


@dataclass(frozen=True, slots=True)
class Session:
    """All that a training run works with.

    Attributes:
        learner: Model, optimizer and accelerator.
        scheduler: Sets the learning rate.
        saved: The same, with the tokenizer, as checkpoints hold them.
        agent: Samples from the learner's model.
        envs: Training environments by id.
        folder: Takes metrics, rollouts and checkpoints.
        seed: Every draw of the run derives from it.
        weights: How often tasks of each environment come, in the environments' order; None for equally often.
    """

    learner: Learner
    scheduler: LambdaLR
    saved: checkpoint.Contents
    agent: Agent
    envs: dict[str, Env]
    folder: RunFolder
    seed: int
    weights: tuple[float, ...] | None = None


def make_learner(
    model: torch.nn.Module, pad_token: int, temperature: float, config: TrainerConfig
) -> tuple[Learner, LambdaLR]:
    """Prepare a model for training: AdamW without weight decay, linear warm-up, then a linear fall.

    Raises:
        ValueError: Several processes were launched; this trainer uses one.
    """
    accelerator = Accelerator()
    if accelerator.num_processes > 1:
        raise ValueError(f"{accelerator.num_processes} processes were launched; this trainer runs in one")
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, weight_decay=0.0)

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        left = (config.num_steps - step) / max(1, config.num_steps - config.warmup_steps)
        return config.final_learning_rate + (1.0 - config.final_learning_rate) * max(0.0, left)

    scheduler = LambdaLR(optimizer, factor)
    prepared = cast("tuple[torch.nn.Module, torch.optim.Optimizer]", accelerator.prepare(model, optimizer))
    return Learner(accelerator, *prepared, pad_token, temperature), scheduler


def draw_tasks(
    envs: Mapping[str, Env], count: int, seed: Sequence[int], weights: tuple[float, ...] | None = None, first: int = 0
) -> list[TaskRef]:
    """Draw a step's tasks: environments in turn, indices at random.

    Args:
        envs: Environments by id.
        count: Tasks of the step.
        seed: Numbers that the indices derive from.
        weights: Of the environments, in their order; None takes them one after the other, beginning anew at each step.
        first: Tasks of the steps before. With weights the turns go on from there, so that the shares hold over the
            run, also where a step is too short for them.
    """
    rng = np.random.default_rng(list(seed))
    tasks: list[TaskRef] = []
    for place in range(count):
        turn = place % len(envs) if weights is None else shares_of(weights).at(first + place)[0]
        env_id = list(envs)[turn]
        bare = envs[env_id].unwrapped
        assert isinstance(bare, ToolEnv)
        size = bare.num_tasks
        tasks.append(TaskRef(env_id, int(rng.integers(size if size is not None else INFINITE_TASK_RANGE))))
    return tasks


def train(
    session: Session,
    rollout: RolloutConfig,
    trainer: TrainerConfig,
    start: TrainingState,
    progress: ProgressDisplay,
) -> TrainingState:
    """Train from a state to the last step, or to Ctrl-C; a checkpoint is left in either case.

    Args:
        session: What to train with.
        rollout: How to roll out.
        trainer: How to learn.
        start: Where to begin; its checkpoint is there already.
        progress: Shows each step.

    Returns:
        The state reached; its step is below ``trainer.num_steps`` where the run was interrupted.

    Raises:
        TrainingError: See ``update``; a checkpoint of the last good state is left.
        ToolFailure: See ``roll_out``; as well. After any other exception, which may come from the middle of a step, the
            newest checkpoint is the one before.
    """
    state = start
    saved = start.step
    with stop_on_interrupt() as stop:
        while state.step < trainer.num_steps and not stop.requested:
            try:
                state, metrics = train_step(session, rollout, trainer, state)
            except (TrainingError, ToolFailure):
                if saved != state.step:
                    save(session, state)
                raise
            progress.update(state.step, metrics)
            if state.step % trainer.checkpoint_every == 0:
                save(session, state)
                saved = state.step
    if saved != state.step:
        save(session, state)
    return state


def train_step(
    session: Session, rollout: RolloutConfig, trainer: TrainerConfig, state: TrainingState
) -> tuple[TrainingState, Mapping[str, float]]:
    """Take one step: tasks, trees, update, weights to the agent, metrics to the folder."""
    step, begun = state.step, time.perf_counter()
    count = rollout.tasks_per_step
    tasks = draw_tasks(session.envs, count, (session.seed, TASKS, step), session.weights, first=step * count)
    settings = RolloutSettings(
        config=rollout,
        branches=ALGORITHMS[trainer.algorithm].branches,
        temperature=session.learner.temperature,
        seed=(session.seed, ROLLOUT, step),
        scale=state.entropy_scale,
    )
    rolled = roll_out(session.agent, session.envs, tasks, settings)
    sampled = time.perf_counter()

    rewards_PG: Sequence[Sequence[float]] = [group.rewards for group in rolled.groups]
    if trainer.shuffle_rewards:
        rewards_PG = shuffled_rewards(rolled.groups, derive_seed(session.seed, SHUFFLE, step))
    learning_rate = float(session.scheduler.get_last_lr()[0])
    outcome = update(session.learner, rolled.groups, rewards_PG, trainer)
    if not outcome["step_skipped"]:
        session.scheduler.step()
    trained = time.perf_counter()

    session.agent.load_weights(session.saved.model, state.version + 1)
    metrics = {
        "step": step + 1,
        **rollout_metrics(rolled.groups),
        "tool_failures": rolled.tool_failures,  # trajectories that were redone: the infrastructure failed them
        **outcome,
        "learning_rate": learning_rate,
        # What the agent measures of itself; its `figures` say what each name means.
        **{f"agent/{name}": value for name, value in session.agent.figures().items()},
        "time/rollout_s": sampled - begun,
        "time/train_s": trained - sampled,
        "time/sync_s": time.perf_counter() - trained,
    }
    session.folder.append_metrics(metrics)
    if trainer.log_rollouts_every and (step + 1) % trainer.log_rollouts_every == 0:
        session.folder.write_rollouts(step + 1, rolled.groups)
    after = replace(
        state,
        step=step + 1,
        version=state.version + 1,
        entropy_scale=state.entropy_scale.including(rolled.entropy_changes),
        skipped_steps=state.skipped_steps + int(outcome["step_skipped"]),
    )
    return after, metrics


def save(session: Session, state: TrainingState) -> None:
    """Leave a checkpoint."""
    checkpoint.save_checkpoint(session.folder.checkpoints, session.saved, state)


class StopSwitch:
    """Whether a stop was asked for."""

    requested = False


@contextmanager
def stop_on_interrupt() -> Generator[StopSwitch]:
    """Let the first Ctrl-C end the run after the step at hand; a second one ends it at once."""
    switch = StopSwitch()
    before = signal.getsignal(signal.SIGINT)

    def request(number: int, frame: FrameType | None) -> None:
        del number, frame
        switch.requested = True
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, request)
    try:
        yield switch
    finally:
        signal.signal(signal.SIGINT, before)
