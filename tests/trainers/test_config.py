"""Settings of rollouts: what is left open, and what does not go with a branching strategy."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from forkgym.trainers.algorithms.table import Branching
from forkgym.trainers.config import BRANCHING_USES, BranchingConfig, RolloutConfig
from tests.test_scripts import load

STRATEGIES: tuple[Branching, ...] = ("entropy", "random", "fixed")


@pytest.mark.parametrize(("budget", "expected"), [(16, 8), (5, 3), (2, 1), (1, 1)])
def test_half_of_the_budget_starts_from_the_prompt_by_default(budget: int, expected: int) -> None:
    config = RolloutConfig(num_generations=budget)
    for strategy in STRATEGIES:
        assert config.first_turns(strategy) == expected
        assert replace(config, initial_generations=1).first_turns(strategy) == 1
    assert config.first_turns("none") == replace(config, initial_generations=1).first_turns("none") == budget


def test_more_initial_trajectories_than_the_budget_are_refused_where_something_branches() -> None:
    config = RolloutConfig(num_generations=4, initial_generations=8)
    assert config.first_turns("none") == 4
    message = "rollout.initial_generations is 8, expected at most rollout.num_generations, 4"
    for strategy in STRATEGIES:
        with pytest.raises(ValueError, match=re.escape(message)):
            config.first_turns(strategy)
        with pytest.raises(ValueError, match=re.escape(message)):
            config.check_branching(strategy, "arpo-gpg")
    with pytest.raises(ValueError, match=r"rollout\.initial_generations is 0, expected at least 1"):
        RolloutConfig(initial_generations=0)


CHANGED: dict[str, Any] = {
    "rule": "threshold",
    "scale": "vocabulary",
    "alpha": 0.25,
    "beta": 0.0,
    "threshold": 0.25,
    "tokens": 1,
    "width": 3,
}


@pytest.mark.parametrize(
    ("strategy", "accepted"),
    [
        ("entropy", {"rule", "scale", "alpha", "beta", "tokens", "width"}),
        ("random", {"alpha", "width"}),
        ("fixed", {"width"}),
        ("none", set[str]()),
    ],
)
def test_numbers_that_a_strategy_does_not_use_are_refused(strategy: Branching, accepted: set[str]) -> None:
    assert {use.setting for use in BRANCHING_USES} == {f"rollout.branching.{name}" for name in CHANGED}
    RolloutConfig().check_branching(strategy, "gpg")
    for name, value in CHANGED.items():
        config = RolloutConfig(branching=BranchingConfig(**{name: value}))
        if name in accepted:
            config.check_branching(strategy, "gpg")
            continue
        default = getattr(BranchingConfig(), name)
        chosen = "rule sample" if name == "threshold" else f"strategy {strategy}"
        message = (
            f"rollout.branching.{name} is {value}, expected {default} with rollout.branching.{chosen} (trainer.alg"
        )
        with pytest.raises(ValueError, match=re.escape(message)):
            config.check_branching(strategy, "gpg")


def test_the_threshold_is_for_its_rule() -> None:
    RolloutConfig(branching=BranchingConfig(rule="threshold", threshold=0.25)).check_branching("entropy", "arpo-gpg")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_the_weight_of_an_entropy_change_is_a_number(value: float) -> None:
    with pytest.raises(ValueError, match=rf"rollout\.branching\.beta is {value}, expected a finite number"):
        BranchingConfig(beta=value)
    assert BranchingConfig(beta=-3.0).beta == -3.0


# From the command line, where the algorithm decides whether something branches.


def read(*arguments: str) -> Any:
    return load("train_arpo").read_config(list(arguments))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as stop:
        read(*arguments)
    assert stop.value.code == 2
    return capsys.readouterr().err.strip()


@pytest.mark.parametrize(("algorithm", "expected"), [("grpo", 4), ("gpg", 4), ("arpo", 2), ("arpo-gpg", 2)])
def test_the_budget_alone_can_be_given(algorithm: str, expected: int) -> None:
    config = read("--trainer.algorithm", algorithm, "--rollout.num_generations", "4")
    assert config.rollout.first_turns(config.trainer.settings.branching) == expected


def test_one_file_serves_algorithms_that_branch_and_that_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("rollout: {num_generations: 8, initial_generations: 4}\n")
    assert read("--config", str(path), "--trainer.algorithm", "grpo", "--rollout.num_generations", "2")
    said = refused(capsys, "--config", str(path), "--rollout.num_generations", "2")
    assert said.endswith(": rollout.initial_generations is 4, expected at most rollout.num_generations, 2")
    assert str(path) in said


def test_what_the_algorithm_on_the_command_line_has_no_use_for_is_to_be_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("rollout: {branching: {tokens: 1}}\ntrainer: {algorithm: arpo, loss: {clip_high: 0.28}}\n")
    assert read("--config", str(path)).trainer.settings.clip_high == 0.28
    assert refused(capsys, "--config", str(path), "--trainer.algorithm", "arpo-gpg") == (
        f"error: command line and {path}: trainer.loss.clip_high is 0.28, expected none with trainer.loss.surrogate "
        "gradient (trainer.algorithm arpo-gpg): leave it out, or choose clipped or truncated there"
    )
    assert refused(capsys, "--config", str(path), "--trainer.algorithm", "dapo") == (
        f"error: {path} and command line: rollout.branching.tokens is 1, expected 20 with rollout.branching.strategy "
        "none (trainer.algorithm dapo): leave it out, or choose entropy there"
    )


def test_others_need_two_first_turns(capsys: pytest.CaptureFixture[str]) -> None:
    others = ("--trainer.algorithm", "arpo-gpg", "--trainer.credit.baseline", "others", "--rollout.num_generations")
    said = refused(capsys, *others, "2")
    assert "rollout.num_generations is 2 with trainer.credit.baseline others, expected at least 3, of which by " in said
    said = refused(capsys, *others, "4", "--rollout.initial_generations", "1")
    assert "rollout.initial_generations is 1 with trainer.credit.baseline others, expected at least 2: " in said
    assert read(*others, "3").rollout.first_turns("entropy") == 2
    alone = ("--trainer.algorithm", "rloo", "--rollout.num_generations", "1")
    assert "rollout.num_generations is 1 with trainer.credit.baseline others" in refused(capsys, *alone)
