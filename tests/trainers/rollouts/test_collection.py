"""The trees of a step: groups without a signal are replaced, those with one never dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import pytest
from accelerate import Accelerator

from forkgym.agents.base import Request
from forkgym.agents.scripted import ScriptedAgent
from forkgym.trainers.algorithms.config import CreditConfig
from forkgym.trainers.algorithms.credit import CreditRule
from forkgym.trainers.algorithms.table import Algorithm
from forkgym.trainers.config import RolloutConfig
from forkgym.trainers.rollouts.collection import Collection, Collector, markers_of
from forkgym.trainers.rollouts.rollout import RolloutSettings, TaskRef
from tests.trainers.rollouts.test_rollout import ShoutEnv

RIGHT, WRONG = "<answer>Y</answer>", "<answer>N</answer>"
ENVS = ("loud", "louder")


def number_of(request: Request) -> int:
    """The index of a request's task."""
    assert request.task is not None
    return int(request.task.uid.removeprefix("shout/"))


def mixed(request: Request, turn: int) -> str:
    """Tasks whose index divides by three have a signal: their first trajectory is right. So have a third of all tasks.

    Greedily, tasks with an even index are right.
    """
    del turn
    if request.temperature == 0.0:
        return RIGHT if number_of(request) % 2 == 0 else WRONG
    first = request.uid.partition("/")[2].startswith("t0d")
    return RIGHT if number_of(request) % 3 == 0 and first else WRONG


class PenalisingEnv(ShoutEnv):
    """A malformed turn costs a quarter."""

    def __init__(self) -> None:
        super().__init__()
        self.malformed_penalty = 0.25


def collector_of(replies: Callable[[Request, int], str] = mixed, *, max_turns: int = 6) -> Collector:
    envs: dict[str, gym.Env[str, str]] = {name: ShoutEnv(max_turns=max_turns) for name in ENVS}
    return Collector(ScriptedAgent(replies), envs, Accelerator())


def settings(seed: int = 0) -> RolloutSettings:
    config = RolloutConfig(num_generations=2, initial_generations=2)
    return RolloutSettings(config, branching="none", temperature=1.0, seed=(seed,))


def rule(share: float, rounds: int, **config: Any) -> CreditRule:
    """A group's mean is its baseline, and so many groups need a signal."""
    return CreditRule(Algorithm(min_valid_fraction=share), CreditConfig(extra_rounds=rounds, **config))


def collect(indices: Sequence[int], share: float, rounds: int, seed: int = 0) -> Collection:
    tasks = [TaskRef(ENVS[place % 2], index) for place, index in enumerate(indices)]
    return collector_of().collect(tasks, settings(seed), rule(share, rounds))


def uids(found: Collection) -> list[str]:
    return [group.task_uid for group in found.groups]


def test_without_a_threshold_nothing_is_replaced() -> None:
    found = collect([1, 2, 3, 4], 0.0, 4)
    assert uids(found) == ["shout/1", "shout/2", "shout/3", "shout/4"]
    assert (found.replaced, found.spare, found.unusable) == ((), (), ())
    assert found.all_groups == found.groups


def test_where_enough_have_a_signal_nothing_is_replaced() -> None:
    assert uids(collect([3, 1, 6, 2], 0.5, 4)) == ["shout/3", "shout/1", "shout/6", "shout/2"]


@pytest.mark.parametrize("seed", range(5))
def test_every_group_with_a_signal_is_kept_in_its_place(seed: int) -> None:
    found = collect([3, 1, 2, 6, 4, 5], 1.0, 40, seed)
    assert all(group.is_valid for group in found.groups)  # forty rounds: (2/3)^40 for each
    assert len(found.groups) == 6
    assert (uids(found)[0], uids(found)[3]) == ("shout/3", "shout/6")
    # what was rolled out and has a signal is in the step; what was left out has none
    assert not any(group.is_valid for group in (*found.replaced, *found.spare))
    # those that lost their place, and those that came for one in vain
    assert {group.task_uid for group in found.replaced} == {"shout/1", "shout/2", "shout/4", "shout/5"}
    assert found.all_groups == (*found.groups, *found.replaced, *found.spare)
    # new tasks are of the environment whose task they replace, and stand beside their own trees
    assert [task.env_id for task in found.tasks] == [*ENVS] * 3
    assert [f"shout/{task.index}" for task in found.tasks] == uids(found)
    assert [group.env_id for group in found.groups] == [*ENVS] * 3


def test_it_stops_as_soon_as_there_are_enough() -> None:
    indices = [1, 2, 4, 5, 7, 8]
    for seed in range(5):
        found = collect(indices, 0.5, 40, seed)
        assert len(found.groups) == 6
        assert sum(group.is_valid for group in found.groups) >= 3
        by_rounds = (collect(indices, 0.5, rounds, seed) for rounds in range(41))
        enough = next(one for one in by_rounds if sum(group.is_valid for group in one.groups) >= 3)
        assert len(found.all_groups) == len(enough.all_groups)


def test_the_limit_is_kept_and_said(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="forkgym"):
        found = Collector(ScriptedAgent([WRONG]), collector_of().envs, Accelerator()).collect(
            [TaskRef("loud", 1), TaskRef("loud", 2)], settings(), rule(0.5, 3)
        )
    assert uids(found) == ["shout/1", "shout/2"]  # no worse one took their place
    assert (len(found.replaced), len(found.spare)) == (0, 3 * 2)
    assert len(found.all_groups) == 4 * 2
    assert caplog.messages == ["0 % of this step's groups have a signal after 3 more rounds, expected 50 %"]


def test_no_more_rounds_are_taken_than_are_allowed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="forkgym"):
        assert collect([1, 3], 1.0, 0).all_groups == collect([1, 3], 0.0, 0).groups
    assert caplog.messages == ["50 % of this step's groups have a signal after 0 more rounds, expected 100 %"]


def test_new_tasks_follow_from_the_seed() -> None:
    assert uids(collect([1, 2], 1.0, 40, seed=1)) == uids(collect([1, 2], 1.0, 40, seed=1))
    assert uids(collect([1, 2], 1.0, 40, seed=1)) != uids(collect([1, 2], 1.0, 40, seed=2))
    found = collect([1, 2, 4, 5], 1.0, 40)
    drawn = [group.task_uid for group in found.all_groups]
    assert len(set(drawn)) == len(drawn)  # each round draws others


def test_a_task_that_leaves_no_room_is_left_out_with_its_trees(caplog: pytest.LogCaptureFixture) -> None:
    # Task 5 can't be answered by a single token.
    def silent(request: Request, turn: int) -> str:
        return "" if number_of(request) == 5 else mixed(request, turn)

    collector = collector_of(silent, max_turns=1)
    tasks = [TaskRef("loud", index) for index in (5, 3, 4)]
    with caplog.at_level(logging.WARNING, logger="forkgym"):
        found = collector.collect(tasks, settings(), rule(0.0, 4))
    assert [task.index for task in found.tasks] == [3, 4]
    assert uids(found) == ["shout/3", "shout/4"]
    assert [group.task_uid for group in found.unusable] == ["shout/5"]
    assert len(found.all_groups) == 3
    assert [message.partition(":")[0] for message in caplog.messages] == ["shout/5"]


def test_a_task_that_leaves_no_room_has_no_signal() -> None:
    # Of task 5 the second trajectory is paid for saying nothing.
    def silent(request: Request, turn: int) -> str:
        return "" if number_of(request) == 5 else mixed(request, turn)

    collector = collector_of(silent, max_turns=1)
    found = collector.collect([TaskRef("loud", index) for index in (5, 3)], settings(), rule(1.0, 40))
    assert uids(found)[1] == "shout/3"
    assert [group.task_uid for group in found.replaced] == ["shout/5"]
    assert found.unusable == ()


def paid_at_once(request: Request, turn: int) -> str:
    """The first trajectory is malformed at its first turn, the second at its second; then both are right."""
    first = request.uid.partition("/")[2].startswith("t0d")
    return "<shout>a" if turn == (0 if first else 1) else RIGHT if turn == 2 else "<shout>a</shout>"


def test_what_has_a_signal_is_what_the_step_makes_of_it() -> None:
    # Both trajectories of every task earn 1 less the penalty; what is to go differs at the second turn.
    envs: dict[str, gym.Env[str, str]] = {"loud": PenalisingEnv()}
    collector = Collector(ScriptedAgent(paid_at_once), envs, Accelerator())
    tasks = [TaskRef("loud", index) for index in (1, 2)]
    by_turn = collector.collect(tasks, settings(), rule(1.0, 2, return_to_go=True))
    assert [group.rewards for group in by_turn.groups] == [(0.75, 0.75)] * 2
    assert by_turn.all_groups == by_turn.groups
    whole = collector.collect(tasks, settings(), rule(1.0, 2))
    assert (uids(whole), len(whole.spare)) == (["shout/1", "shout/2"], 4)


def test_greedy_rewards_are_those_of_the_tasks_that_the_step_is_taken_on() -> None:
    collector = collector_of()
    found = collector.collect([TaskRef("loud", index) for index in (1, 3, 2, 5, 4)], settings(), rule(0.8, 40))
    greedy = collector.greedy_rewards(found.tasks, settings())
    assert greedy == [float(task.index % 2 == 0) for task in found.tasks]
    assert collector.greedy_rewards([TaskRef("loud", 2), TaskRef("loud", 3)], settings()) == [1.0, 0.0]


def test_the_markers_of_all_environments_once() -> None:
    envs = collector_of().envs
    assert {"<shout>", "</shout>", "<answer>", "<think>"} <= set(markers_of(envs))
    assert len(set(markers_of(envs))) == len(markers_of(envs))
