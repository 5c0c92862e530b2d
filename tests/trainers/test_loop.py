"""The training loop: steps that are not finite are skipped, and stop a run that has too many of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import gymnasium as gym
import pytest
import safetensors.torch
import torch

from forkgym.agents.base import Request
from forkgym.agents.loading import load_tokenizer
from forkgym.agents.scripted import ScriptedAgent
from forkgym.trainers.algorithms.config import CreditConfig
from forkgym.trainers.config import RolloutConfig, TrainerConfig
from forkgym.trainers.learner import make_learner
from forkgym.trainers.loop import Session, train
from forkgym.trainers.runs.checkpoint import Contents, TrainingState, list_checkpoints
from forkgym.trainers.runs.reporting import NoProgress
from forkgym.trainers.runs.run_folder import RunFolder, config_hash
from forkgym.trainers.update import TrainingError
from tests.trainers.logprobs import PAD, tiny_qwen
from tests.trainers.rollouts.test_rollout import ShoutEnv

BYTES = 256  # the vocabulary of the scripted agent
ROLLOUT = RolloutConfig(num_generations=2, initial_generations=2, tasks_per_step=1)


@dataclass(frozen=True)
class Settings:
    """Of a run."""

    trainer: TrainerConfig = field(default_factory=TrainerConfig)


class Listening(ScriptedAgent):
    """Says when it is given weights, which is at the end of each step."""

    def __init__(self, replies: Callable[[Request, int], str], listener: Callable[[int], None]) -> None:
        super().__init__(replies)
        self._listener = listener

    def load_weights(self, model: torch.nn.Module, version: int) -> None:
        """Tell the listener."""
        super().load_weights(model, version)
        self._listener(version)


@dataclass
class Plan:
    """What happens in each step, the first being 1: ``.`` an update, ``!`` a gradient of nan, ``=`` no signal."""

    steps: str
    now: int = 0

    @property
    def kind(self) -> str:
        return self.steps[self.now]

    def reply(self, request: Request, turn: int) -> str:
        """The first of two trajectories is right, or neither is."""
        del turn
        first = request.uid.endswith("t0d0")
        return "<answer>Y</answer>" if first and self.kind != "=" else "<answer>N</answer>"

    def spoil(self, gradient: torch.Tensor) -> torch.Tensor:
        """Of one parameter."""
        return gradient * math.nan if self.kind == "!" else gradient

    def listen(self, version: int) -> None:
        """The step is over."""
        self.now = min(version, len(self.steps) - 1)


@contextmanager
def session_of(plan: Plan, path: Path, trainer: TrainerConfig) -> Generator[tuple[Session, TrainingState]]:
    model = tiny_qwen(BYTES)
    learner, scheduler = make_learner(model, PAD, 1.0, trainer)
    learner.parameters[0].register_hook(plan.spoil)
    settings = Settings(trainer)
    envs: dict[str, gym.Env[str, str]] = {"shout": ShoutEnv()}
    contents = Contents(model, load_tokenizer("embedded"), learner.optimizer, scheduler)
    with RunFolder.create(path, settings) as folder:
        agent = Listening(plan.reply, plan.listen)
        yield Session(learner, scheduler, contents, agent, envs, folder, seed=0), TrainingState(config_hash(settings))


def checkpoints(session: Session) -> list[str]:
    assert session.folder is not None
    return [path.name for path in list_checkpoints(session.folder.checkpoints)]


def column(session: Session, name: str) -> list[float | None]:
    assert session.folder is not None
    return [row[name] for row in session.folder.read_metrics()]


def config(steps: str, **changes: object) -> TrainerConfig:
    return TrainerConfig(num_steps=len(steps), warmup_steps=0, **changes)  # type: ignore[arg-type]  # fields by name


def test_three_steps_in_a_row_that_are_not_finite_stop_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = ".!!!.."
    with session_of(Plan(steps), tmp_path / "run", config(steps)) as (session, start):
        with (
            caplog.at_level(logging.WARNING, logger="forkgym.trainers.loop"),
            pytest.raises(TrainingError, match="not finite in 3 steps in a row"),
        ):
            train(session, ROLLOUT, config(steps), start, NoProgress())
        assert column(session, "step_non_finite") == [0, 1, 1, 1]
        assert column(session, "step_skipped") == [0, 1, 1, 1]
        assert column(session, "grad_norm")[1:] == [None] * 3  # json has no nan
        assert sum("the step is skipped" in message for message in caplog.messages) == 3
        assert checkpoints(session) == ["step-000004"]
        assert session.scheduler.last_epoch == 1  # the steps that were skipped used up no learning rate


def test_the_checkpoint_that_is_left_has_the_last_good_weights(tmp_path: Path) -> None:
    steps = "..!!!"
    with session_of(Plan(steps), tmp_path / "run", config(steps)) as (session, start):
        kept: list[torch.Tensor] = []

        def remember(module: torch.nn.Module) -> None:
            kept.append(torch.cat([parameter.detach().flatten().clone() for parameter in module.parameters()]))

        remember(session.learner.model)
        with pytest.raises(TrainingError):
            train(session, ROLLOUT, config(steps), start, NoProgress())
        remember(session.learner.model)
        assert torch.isfinite(kept[1]).all()
        assert not torch.equal(kept[0], kept[1])
        assert session.folder is not None
        (path,) = list_checkpoints(session.folder.checkpoints)
        saved = safetensors.torch.load_file(next(path.rglob("model.safetensors")))
        for name, parameter in session.learner.model.named_parameters():
            assert torch.equal(saved[name], parameter.detach())


@pytest.mark.parametrize("steps", ["!!.!!.", "!.!.!."])
def test_a_step_that_is_finite_begins_the_count_anew(tmp_path: Path, steps: str) -> None:
    with session_of(Plan(steps), tmp_path / "run", config(steps)) as (session, start):
        state = train(session, ROLLOUT, config(steps), start, NoProgress())
        assert state.step == 6
        assert state.skipped_steps == steps.count("!")
        assert column(session, "step_non_finite") == [float(one == "!") for one in steps]


def test_a_step_without_a_signal_does_not(tmp_path: Path) -> None:
    # Nothing is computed in it, so it says nothing about whether numbers are finite again.
    steps = "!=!==!.."
    with session_of(Plan(steps), tmp_path / "run", config(steps)) as (session, start):
        with pytest.raises(TrainingError):
            train(session, ROLLOUT, config(steps), start, NoProgress())
        assert column(session, "step_skipped") == [1.0] * 6
        assert column(session, "step_non_finite") == [1.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def test_a_step_without_a_signal_changes_nothing_and_the_run_goes_on(tmp_path: Path) -> None:
    steps = ".=."
    with session_of(Plan(steps), tmp_path / "run", config(steps)) as (session, start):
        state = train(session, ROLLOUT, config(steps), start, NoProgress())
        assert (state.step, state.version, state.skipped_steps) == (3, 3, 1)
        assert column(session, "step_skipped") == [0, 1, 0]
        assert session.scheduler.last_epoch == 2


def test_too_few_groups_with_a_signal_are_made_up_for_before_the_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    steps = "=."
    trainer = config(steps, credit=CreditConfig(min_valid_fraction=1.0, extra_rounds=2))
    with (
        session_of(Plan(steps), tmp_path / "run", trainer) as (session, start),
        caplog.at_level(logging.WARNING, logger="forkgym.trainers.rollouts.collection"),
    ):
        train(session, ROLLOUT, trainer, start, NoProgress())
        assert column(session, "groups/replaced") == [2, 0]
        assert len(caplog.messages) == 1


@pytest.mark.parametrize("algorithm", ["remax", "ppo", "gspo"])
def test_algorithms_run_from_rollout_to_weights(tmp_path: Path, algorithm: str) -> None:
    trainer = config("..", algorithm=algorithm)
    with session_of(Plan(".."), tmp_path / "run", trainer) as (session, start):
        assert train(session, ROLLOUT, trainer, start, NoProgress()).skipped_steps == 0
