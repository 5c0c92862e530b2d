"""Forks: at every turn of random episodes, through wrappers and bare, with and without state in the tools."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TransformReward

import forkgym.envs
from forkgym.envs import fork
from forkgym.envs.base import ToolEnv
from forkgym.envs.checking import check_forks, check_snapshots, draw_actions
from forkgym.envs.math_env import MathEnv
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.tools.base import Tool, ToolError, as_tool

ENV_IDS = [env_id for env_id, _, _ in forkgym.envs.ENVS]
EPISODES = 200
THREADED_EPISODES = 20  # a call beside the caller costs a thread, or a process

MakeEnv = Callable[..., gym.Env[str, str]]


def bare_of(env: gym.Env[Any, Any]) -> ToolEnv:
    bare = env.unwrapped
    assert isinstance(bare, ToolEnv)
    return bare


def check_random_episodes(env: gym.Env[str, str], episodes: int) -> None:
    """Check forks of random episodes: through the wrappers in even ones, bare in odd ones; snapshots in some."""
    for seed in range(episodes):
        one = env if seed % 2 == 0 else env.unwrapped
        env.reset(seed=seed)
        rng = np.random.default_rng(seed)
        actions, others = (draw_actions(bare_of(env), rng) for _ in range(2))
        check_forks(one, seed, actions, others)
        if seed % 10 == 0:
            check_snapshots(one, seed, actions)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_forks_of_registered_environments(make_env: MakeEnv, env_id: str) -> None:
    env = make_env(env_id)
    check_random_episodes(env, EPISODES if bare_of(env).inline else THREADED_EPISODES)


class Notebook:
    """Write a line down, and read them all."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> str:
        """Write ``line`` down and return all lines; one that is empty is refused after it was written."""
        self.lines.append(line)
        if "\\" in line:
            raise ToolError(f"line {len(self.lines)} has a backslash")
        return "\n".join(self.lines)


class Notes:
    """Tasks of which each says what to write."""

    size = 5

    def __getitem__(self, index: int) -> Task:
        steps = (SolutionStep(f"line {index}", tool="notebook"), SolutionStep("more", tool="notebook"))
        return Task(f"Task {index}?", str(index), uid=f"notes/{index}", solution=(*steps, SolutionStep(str(index))))


def notes_env(tool: Tool, **arguments: Any) -> MathEnv:
    return MathEnv(taskset=Notes(), tools=[tool], **arguments)


def test_forks_with_a_stateful_tool() -> None:
    env = RecordEpisodeStatistics(notes_env(as_tool(Notebook, inline=True), malformed_penalty=0.1))
    # The statistics hold the time that an episode took, which no fork repeats.
    check_random_episodes(env.env, EPISODES)


def test_forks_with_a_stateful_tool_that_runs_beside_the_caller() -> None:
    check_random_episodes(notes_env(as_tool(Notebook)), THREADED_EPISODES)


def test_a_fork_keeps_the_wrappers_and_their_state() -> None:
    tenfold = TransformReward(notes_env(as_tool(Notebook, inline=True)), lambda reward: 10 * float(reward))
    env = RecordEpisodeStatistics(tenfold)
    env.reset(options={"index": 2})
    env.step("<notebook>a</notebook>")
    twin = fork(env)
    assert type(twin) is RecordEpisodeStatistics
    assert type(twin.env) is TransformReward
    assert twin.unwrapped is not env.unwrapped
    for one in (env, twin):
        _, reward, terminated, _, info = one.step("<answer>2</answer>")
        assert (reward, terminated) == (10.0, True)
        assert (info["episode"]["r"], info["episode"]["l"]) == (10.0, 2)
    assert list(twin.return_queue) == list(env.return_queue) == [10.0]
    twin.reset(options={"index": 2})
    twin.step("<answer>2</answer>")
    assert len(twin.return_queue) == 2
    assert len(env.return_queue) == 1


def test_what_a_wrapper_holds_of_the_environment_points_at_the_fork() -> None:
    class Peeking(gym.Wrapper[str, str, str, str]):
        def __init__(self, env: Any) -> None:
            super().__init__(env)
            self.held: dict[str, Any] = {"bare": env.unwrapped, "self": self, "next but one": env.env}

    env = Peeking(gym.make("forkgym/WordMath-v0"))
    env.reset(seed=0)
    twin = fork(env)
    inner: Any = twin.env
    assert twin.held == {"bare": twin.unwrapped, "self": twin, "next but one": inner.env}
    assert twin.held["bare"] is not env.held["bare"]


def test_samples_of_spaces_are_not_shared() -> None:
    env = gym.make("forkgym/WordMath-v0")
    env.reset(seed=0)
    env.action_space.seed(1)
    twins = [fork(env) for _ in range(2)]
    twins[0].action_space.sample()
    assert twins[1].action_space.sample() == env.action_space.sample()


def test_tasks_tools_and_grammar_are_shared() -> None:
    env = notes_env(as_tool(Notebook, inline=True))
    env.reset(seed=0)
    twin = env.fork()
    assert twin.current_task is env.current_task
    assert twin.taskset is env.taskset
    assert twin.tools is env.tools


def test_a_fork_draws_the_same_tasks_as_its_parent() -> None:
    env = gym.make("forkgym/WordMath-v0")
    env.reset(seed=0)
    twin = fork(env)
    drawn = [env.reset()[1]["task_index"] for _ in range(3)]
    assert [twin.reset()[1]["task_index"] for _ in range(3)] == drawn
    assert len(set(drawn)) == 3


def test_closing_a_fork_leaves_its_parent_open() -> None:
    env = notes_env(as_tool(Notebook, inline=True))
    env.reset(seed=0)
    env.fork().close()
    assert env.step("<notebook>a</notebook>")[0] == "<result>a</result>"


def test_only_a_tool_env_can_fork() -> None:
    with pytest.raises(TypeError, match="only a ToolEnv can fork, got CartPoleEnv"):
        fork(gym.make("CartPole-v1"))
