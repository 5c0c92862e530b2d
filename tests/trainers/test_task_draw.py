"""Which tasks a step gets: environments in turn, or by weight over the whole run."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from forkgym.envs.config import EnvConfig, held_out_config, make_envs
from forkgym.trainers.rollouts.collection import draw_tasks
from forkgym.trainers.rollouts.growth import Env
from tests.test_scripts import TINY_RUN, load

WORDMATH, MULTIHOP = "forkgym/WordMath-v0", "forkgym/MultiHop-v0"


@pytest.fixture(scope="module")
def envs() -> dict[str, Env]:
    return make_envs(EnvConfig())


def drawn(envs: dict[str, Env], steps: int, count: int, weights: tuple[float, ...] | None) -> list[str]:
    return [
        task.env_id
        for step in range(steps)
        for task in draw_tasks(envs, count, (0, 0, step), weights, first=step * count)
    ]


def test_without_weights_every_step_begins_anew(envs: dict[str, Env]) -> None:
    assert drawn(envs, 2, 3, None) == [WORDMATH, MULTIHOP, WORDMATH] * 2


def test_weights_hold_over_the_run_also_where_a_step_is_short(envs: dict[str, Env]) -> None:
    # Three to one: the times of the first are 1/6, 3/6 and 5/6, of the second 1/2; of equal ones the first comes first.
    assert drawn(envs, 4, 1, (3, 1)) == [WORDMATH, WORDMATH, MULTIHOP, WORDMATH]
    assert drawn(envs, 4, 3, (3, 1)) == [WORDMATH, WORDMATH, MULTIHOP, WORDMATH] * 3
    assert Counter(drawn(envs, 25, 4, (0.7, 0.3))) == {WORDMATH: 70, MULTIHOP: 30}


def test_indices_follow_from_the_seed_alone(envs: dict[str, Env]) -> None:
    plain, weighted = (draw_tasks(envs, 8, (0, 0, 3), weights, first=24) for weights in (None, (3.0, 1.0)))
    assert [task.index for task in plain] == [task.index for task in weighted]
    assert draw_tasks(envs, 8, (0, 0, 4)) != plain


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ((1.0,), "env.weights are '1.0', expected one for each of forkgym/WordMath-v0, forkgym/MultiHop-v0"),
        ((1.0, 0.0), "env.weights are '1.0 0.0', expected one or more, each above 0"),
        ((1.0, float("nan")), "env.weights are '1.0 nan', expected one or more, each above 0"),
    ],
)
def test_weights_are_checked(weights: tuple[float, ...], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        EnvConfig(weights=weights)


def test_weights_on_the_command_line(tmp_path: Path) -> None:
    script = load("train_arpo")
    arguments = ["--env.weights", "1", "5", "--trainer.log_rollouts_every", "1", "--run_dir", str(tmp_path / "run")]
    assert script.main(script.read_config([*TINY_RUN, *arguments])) == 0
    files = sorted((tmp_path / "run" / "rollouts").glob("*.jsonl"))
    ids = [json.loads(line)["env_id"] for file in files for line in file.read_text().splitlines()]
    # One to five: the time of the first is 1/2, of the second 1/10, 3/10, 5/10, 7/10 and 9/10. Two tasks a step.
    assert ids == [MULTIHOP, MULTIHOP, WORDMATH, MULTIHOP, MULTIHOP, MULTIHOP]


def test_each_environment_is_evaluated_by_itself() -> None:
    config = EnvConfig(weights=(0.7, 0.3))
    assert make_envs(config).keys() == {WORDMATH, MULTIHOP}
    assert held_out_config(config, MULTIHOP, None, None).weights is None
