"""The trees of a step: groups without a signal are replaced, those with one never dropped."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import gymnasium as gym
import pytest
from accelerate import Accelerator

from forkgym.agents.base import Request
from forkgym.agents.scripted import ScriptedAgent
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


def collector_of(replies: Callable[[Request, int], str] = mixed, *, max_turns: int = 6) -> Collector:
    envs: dict[str, gym.Env[str, str]] = {name: ShoutEnv(max_turns=max_turns) for name in ENVS}
    return Collector(ScriptedAgent(replies), envs, Accelerator())


def settings(seed: int = 0) -> RolloutSettings:
    config = RolloutConfig(num_generations=2, initial_generations=2)
    return RolloutSettings(config, branching="none", temperature=1.0, seed=(seed,))


def collect(indices: Sequence[int], share: float, rounds: int, seed: int = 0) -> Collection:
    tasks = [TaskRef(ENVS[place % 2], index) for place, index in enumerate(indices)]
    return collector_of().collect(tasks, settings(seed), share, rounds)


def uids(found: Collection) -> list[str]:
    return [group.task_uid for group in found.groups]


def test_without_a_threshold_nothing_is_replaced() -> None:
    found = collect([1, 2, 3, 4], 0.0, 4)
    assert uids(found) == ["shout/1", "shout/2", "shout/3", "shout/4"]
    assert (found.replaced, found.unusable) == ((), ())
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
    assert not any(group.is_valid for group in found.replaced)
    assert {"shout/1", "shout/2", "shout/4", "shout/5"} <= {group.task_uid for group in found.replaced}
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
            [TaskRef("loud", 1), TaskRef("loud", 2)], settings(), 0.5, 3
        )
    assert uids(found) == ["shout/1", "shout/2"]  # no worse one took their place
    assert len(found.replaced) == 3 * 2
    assert caplog.messages == ["0 % of this step's groups have a signal after 3 more rounds, expected 50 %"]


def test_no_more_rounds_are_taken_than_are_allowed(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="forkgym"):
        assert collect([1, 3], 1.0, 0).replaced == ()
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
        found = collector.collect(tasks, settings(), 0.0, 4)
    assert [task.index for task in found.tasks] == [3, 4]
    assert uids(found) == ["shout/3", "shout/4"]
    assert [group.task_uid for group in found.unusable] == ["shout/5"]
    assert len(found.all_groups) == 3
    assert [message.partition(":")[0] for message in caplog.messages] == ["shout/5"]


def test_greedy_rewards_are_those_of_the_tasks_that_the_step_is_taken_on() -> None:
    collector = collector_of()
    found = collector.collect([TaskRef("loud", index) for index in (1, 3, 2, 5, 4)], settings(), 0.8, 40)
    greedy = collector.greedy_rewards(found.tasks, settings())
    assert greedy == [float(task.index % 2 == 0) for task in found.tasks]
    assert collector.greedy_rewards([TaskRef("loud", 2), TaskRef("loud", 3)], settings()) == [1.0, 0.0]


def test_the_markers_of_all_environments_once() -> None:
    envs = collector_of().envs
    assert {"<shout>", "</shout>", "<answer>", "<think>"} <= set(markers_of(envs))
    assert len(set(markers_of(envs))) == len(markers_of(envs))
