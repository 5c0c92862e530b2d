"""The training loop: roll out, update, hand the weights to the agent, write down what happened."""

from __future__ import annotations

import logging
import signal
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import FrameType
from typing import Protocol

from torch.optim.lr_scheduler import LambdaLR

from forkgym.agents.base import Agent
from forkgym.tools.base import ToolFailure
from forkgym.trainers.algorithms.credit import CreditRule, shuffled_rewards
from forkgym.trainers.algorithms.segments import Marking
from forkgym.trainers.config import RolloutConfig, TrainerConfig
from forkgym.trainers.learner import Learner
from forkgym.trainers.processes import gathered
from forkgym.trainers.rollouts.collection import Collector, draw_tasks
from forkgym.trainers.rollouts.growth import Env
from forkgym.trainers.rollouts.rollout import RolloutSettings
from forkgym.trainers.runs import checkpoint
from forkgym.trainers.runs.checkpoint import TrainingState
from forkgym.trainers.runs.diagnostics import Watch, rules_for, watch_from
from forkgym.trainers.runs.diagnostics_config import DiagnosticsConfig
from forkgym.trainers.runs.metrics import rollout_metrics
from forkgym.trainers.runs.run_folder import RunFolder
from forkgym.trainers.seeding import derive_seed
from forkgym.trainers.types import RewardError
from forkgym.trainers.update import Circumstances, TrainingError, update

TASKS, ROLLOUT, SHUFFLE, SEGMENTS = 0, 1, 2, 3  # what a seed is for
NON_FINITE_STEPS = 3  # in a row: one may be a bad batch, three are no chance

logger = logging.getLogger(__name__)


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
        folder: Takes metrics, rollouts and checkpoints; None in a process that leaves this to another.
        seed: Every draw of the run derives from it.
        weights: How often tasks of each environment come, in the environments' order; None for equally often.
        markers: The environments' markers, at which segments may begin.
        diagnostics: When the run's figures raise an alarm.
    """

    learner: Learner
    scheduler: LambdaLR
    saved: checkpoint.Contents
    agent: Agent
    envs: dict[str, Env]
    folder: RunFolder | None
    seed: int
    weights: tuple[float, ...] | None = None
    markers: tuple[str, ...] = ()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()


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
        TrainingError: `NON_FINITE_STEPS` steps in a row had a loss or gradient that was not finite, or a reward is no
            finite number; a checkpoint of the last good state is left.
        ToolFailure: See ``roll_out``; as well. After any other exception, which may come from the middle of a step, the
            newest checkpoint is the one before.
    """
    state = start
    saved = start.step
    non_finite = 0
    history = session.folder.read_metrics() if session.folder is not None else ()
    watch = watch_from(session.diagnostics, history, rules_for(trainer.settings))
    with stop_on_interrupt() as stop:
        while state.step < trainer.num_steps and not any(gathered(session.learner.accelerator, [stop.requested])):
            try:
                state, watch, metrics = train_step(session, rollout, trainer, state, watch)
                if metrics["step_non_finite"] or not metrics["step_skipped"]:  # without a signal nothing was tried
                    non_finite = non_finite + 1 if metrics["step_non_finite"] else 0
                if non_finite == NON_FINITE_STEPS:
                    raise TrainingError(f"the loss or its gradient was not finite in {non_finite} steps in a row")
            except (TrainingError, ToolFailure, RewardError) as error:
                if saved != state.step:
                    save(session, state)
                if isinstance(error, RewardError):
                    raise TrainingError(str(error)) from error
                raise
            progress.update(state.step, metrics)
            if state.step % trainer.checkpoint_every == 0:
                save(session, state)
                saved = state.step
    if saved != state.step:
        save(session, state)
    return state


def train_step(
    session: Session, rollout: RolloutConfig, trainer: TrainerConfig, state: TrainingState, watch: Watch
) -> tuple[TrainingState, Watch, Mapping[str, float]]:
    """Take one step: tasks, trees, update, weights to the agent, metrics to the folder."""
    step, begun, algorithm = state.step, time.perf_counter(), trainer.settings
    count = rollout.tasks_per_step
    tasks = draw_tasks(session.envs, count, (session.seed, TASKS, step), session.weights, first=step * count)
    settings = RolloutSettings(
        config=rollout,
        branching=rollout.branching.strategy or algorithm.branching,
        temperature=session.learner.temperature,
        seed=(session.seed, ROLLOUT, step),
        scale=state.entropy_scale,
    )
    collector = Collector(session.agent, session.envs, session.learner.accelerator)
    rule = CreditRule(algorithm, trainer.credit, rollout.max_total_tokens)
    found = collector.collect(tasks, settings, rule)
    circumstances = Circumstances(
        greedy_rewards=collector.greedy_rewards(found.tasks, settings) if algorithm.baseline == "greedy" else (),
        marking=Marking(session.markers, lambda token: session.agent.codec.decode((token,))),
        seed=(session.seed, SEGMENTS, step),
        most_tokens=rollout.max_total_tokens,
    )
    session.agent.pause()
    sampled = time.perf_counter()

    rewards_PG: Sequence[Sequence[float]] = [group.rewards for group in found.groups]
    if trainer.credit.shuffle_rewards:
        rewards_PG = shuffled_rewards(found.groups, derive_seed(session.seed, SHUFFLE, step))
    learning_rate = float(session.scheduler.get_last_lr()[0])
    outcome = update(session.learner, found.groups, rewards_PG, trainer, circumstances)
    if not outcome["step_skipped"]:
        session.scheduler.step()
    session.learner.forget_gradients()  # the engine may need their memory for its rollout
    trained = time.perf_counter()

    session.agent.load_weights(session.saved.model, state.version + 1)
    metrics = {
        "step": step + 1,
        **rollout_metrics(found.all_groups, session.markers, rule),
        # Trees without a signal that others took the place of, trees that were rolled out for that and have none
        # either, and trees whose prompt left no room to answer.
        "groups/replaced": len(found.replaced),
        "groups/spare": len(found.spare),
        "groups/unusable": len(found.unusable),
        "tool_failures": found.tool_failures,  # trajectories that were redone: the infrastructure failed them
        **outcome,
        "learning_rate": learning_rate,
        # What the agent measures of itself; its `figures` say what each name means.
        **{f"agent/{name}": value for name, value in session.agent.figures().items()},
        "time/rollout_s": sampled - begun,
        "time/train_s": trained - sampled,
        "time/sync_s": time.perf_counter() - trained,
    }
    watch, alarms = watch.after(metrics)
    metrics["alarms"] = len(watch.standing)  # that have begun and are not over
    if session.folder is not None:
        for alarm in alarms:
            logger.log(alarm.level, "step %d: %s", step + 1, alarm.sentence)
        session.folder.append_metrics(metrics)
        if trainer.log_rollouts_every and (step + 1) % trainer.log_rollouts_every == 0:
            session.folder.write_rollouts(step + 1, found.all_groups)
    after = replace(
        state,
        step=step + 1,
        version=state.version + 1,
        entropy_scale=state.entropy_scale.including(found.entropy_changes),
        skipped_steps=state.skipped_steps + int(outcome["step_skipped"]),
    )
    return after, watch, metrics


def save(session: Session, state: TrainingState) -> None:
    """Leave a checkpoint."""
    if session.folder is not None:
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
