"""The training loop: steps that are not finite are skipped, and stop a run that has too many of them."""

from __future__ import annotations

import logging
import math
import shutil
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import gymnasium as gym
import pytest
import safetensors.torch
import torch

from forkgym.agents.base import Request
from forkgym.agents.loading import load_tokenizer
from forkgym.agents.scripted import ScriptedAgent
from forkgym.envs.tasks import Task
from forkgym.trainers.algorithms.config import CreditConfig, LossConfig
from forkgym.trainers.config import RolloutConfig, TrainerConfig
from forkgym.trainers.learner import ValueHead, make_learner
from forkgym.trainers.loop import Session, train
from forkgym.trainers.runs.checkpoint import Contents, TrainingState, list_checkpoints, load_latest, pack_state
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
    """What happens in each step, the first being 1.

    ``.`` updates, ``!`` a gradient of nan, ``?`` one after the first update, ``=`` no signal, ``x`` a reward of nan.
    """

    steps: str
    now: int = 0
    updates: int = 0

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
        self.updates += 1
        return gradient * math.nan if self.kind == "!" or (self.kind == "?" and self.updates > 1) else gradient

    def listen(self, version: int) -> None:
        """The step is over."""
        self.now = min(version, len(self.steps) - 1)
        self.updates = 0


class PlannedEnv(ShoutEnv):
    """Its rewards are no numbers in some steps."""

    def __init__(self, plan: Plan) -> None:
        super().__init__()
        self.plan = plan

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """As before, or nan."""
        return {name: math.nan if self.plan.kind == "x" else one for name, one in super().score(answer, task).items()}


@contextmanager
def session_of(plan: Plan, path: Path, trainer: TrainerConfig) -> Generator[tuple[Session, TrainingState]]:
    model = tiny_qwen(BYTES)
    learner, scheduler = make_learner(model, PAD, 1.0, trainer)
    learner.parameters[0].register_hook(plan.spoil)
    settings = Settings(trainer)
    envs: dict[str, gym.Env[str, str]] = {"shout": PlannedEnv(plan)}
    head = cast("ValueHead | None", learner.value_head)
    contents = Contents(model, load_tokenizer("embedded"), learner.optimizer, scheduler, head)
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
            caplog.at_level(logging.WARNING, logger="forkgym.trainers.update"),
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
        # The new ones of the first step have no signal either: nobody's place was taken.
        assert column(session, "groups/replaced") == [0, 0]
        assert column(session, "groups/spare") == [2, 0]
        assert len(caplog.messages) == 1


def test_steps_that_are_cut_short_count_as_well(tmp_path: Path) -> None:
    steps = ".????"
    trainer = config(steps, algorithm="grpo", updates_per_rollout=2)
    with session_of(Plan(steps), tmp_path / "run", trainer) as (session, start):
        with pytest.raises(TrainingError, match="not finite in 3 steps in a row"):
            train(session, ROLLOUT, trainer, start, NoProgress())
        assert column(session, "step_non_finite") == [0, 1, 1, 1]
        assert column(session, "step_skipped") == [0, 0, 0, 0]
        assert all(norm is not None for norm in column(session, "grad_norm"))  # of the update that was made
        assert session.scheduler.last_epoch == 4
        assert checkpoints(session) == ["step-000004"]


@pytest.mark.parametrize("algorithm", ["gpg", "dapo", "remax", "ppo"])
def test_a_reward_that_is_no_number_ends_the_run_with_a_checkpoint(tmp_path: Path, algorithm: str) -> None:
    # dapo would replace a group whose rewards are not known to differ.
    steps = "..x."
    trainer = config(steps, algorithm=algorithm)
    with session_of(Plan(steps), tmp_path / "run", trainer) as (session, start):
        with pytest.raises(TrainingError, match=r"task shout/\d+: turn t0d0 of trajectory t0 was paid nan, expected a"):
            train(session, ROLLOUT, trainer, start, NoProgress())
        assert checkpoints(session) == ["step-000002"]
        assert column(session, "step") == [1, 2]


def everything(session: Session) -> dict[str, object]:
    """All that decides how a run goes on, in a form that compares to the bit."""
    parts = {"model": session.saved.model, **session.saved.updated}
    tensors: dict[str, torch.Tensor] = {}
    packed = {name: pack_state(dict(part.state_dict()), name, tensors) for name, part in parts.items()}
    return {**packed, **{name: tensor.tolist() for name, tensor in tensors.items()}}


def test_a_critic_that_is_saved_and_resumed_goes_on_to_the_bit(tmp_path: Path) -> None:
    steps = "...."
    trainer = config(steps, algorithm="ppo", loss=LossConfig(value_learning_rate=0.1), checkpoint_every=2)
    with session_of(Plan(steps), tmp_path / "unbroken", trainer) as (session, start):
        train(session, ROLLOUT, trainer, start, NoProgress())
        unbroken, figures = everything(session), [column(session, name) for name in ("loss", "value/squared_error")]
        assert session.folder is not None
        saved = load_latest(session.folder.checkpoints, start.config_hash)
        assert saved.state.step == 4
        shutil.rmtree(saved.path)
        kept = session.folder.checkpoints
    with session_of(Plan(steps, now=2), tmp_path / "resumed", trainer) as (session, start):
        newest = load_latest(kept, start.config_hash)
        assert newest.state.step == 2
        newest.restore(session.saved)
        head = session.learner.value_head
        assert head is not None
        assert any(bool((one != 0.0).any()) for one in head.parameters())  # where a new one says 0
        assert everything(session) != unbroken
        train(session, ROLLOUT, trainer, newest.state, NoProgress())
        assert everything(session) == unbroken
        assert [column(session, name) for name in ("loss", "value/squared_error")] == [one[2:] for one in figures]


@pytest.mark.parametrize("algorithm", ["remax", "ppo", "gspo"])
def test_algorithms_run_from_rollout_to_weights(tmp_path: Path, algorithm: str) -> None:
    trainer = config("..", algorithm=algorithm)
    with session_of(Plan(".."), tmp_path / "run", trainer) as (session, start):
        assert train(session, ROLLOUT, trainer, start, NoProgress()).skipped_steps == 0
