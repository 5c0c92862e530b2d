"""Without tools and with one turn: the first thing that the policy says is its answer, in every environment."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import pytest

import forkgym.envs
from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import SolutionStep, StopReason

ENV_IDS = [env_id for env_id, _, _ in forkgym.envs.ENVS]
GRAMMARS = ("arpo", "search_r1", "hermes")

MakeEnv = Callable[..., gym.Env[str, str]]


@pytest.mark.parametrize("grammar", GRAMMARS)
@pytest.mark.parametrize("env_id", ENV_IDS)
def test_the_first_turn_is_the_answer(make_env: MakeEnv, env_id: str, grammar: str) -> None:
    env = make_env(env_id, tools=[], max_turns=1, grammar=grammar)
    bare = env.unwrapped
    assert isinstance(bare, ToolEnv)
    observation, _ = env.reset(seed=0)
    assert bare.current_task.question in observation
    answer = bare.render_step(SolutionStep(bare.current_task.answer))
    nothing, reward, terminated, truncated, info = env.step(answer)
    assert (nothing, reward, terminated, truncated) == ("", 1.0, True, False)
    assert (info["stop_reason"], info["accuracy"]) == (StopReason.ANSWERED.value, 1.0)


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_a_turn_without_an_answer_is_the_last(make_env: MakeEnv, env_id: str) -> None:
    env = make_env(env_id, tools=[], max_turns=1)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step("<think>Well.</think>")
    assert (reward, terminated, truncated, info["stop_reason"]) == (0.0, False, True, StopReason.TURN_LIMIT.value)


@pytest.mark.parametrize("grammar", ["arpo", "search_r1"])
def test_the_prompt_speaks_of_no_tools(make_env: MakeEnv, grammar: str) -> None:
    _, info = make_env("forkgym/GSM8K-v0", tools=[], grammar=grammar).reset(seed=0)
    example = "\\boxed{...}" if grammar == "arpo" else "..."
    assert info["instructions"] == f"Reason inside <think>...</think>.\nFinish with <answer>{example}</answer>."


def test_a_call_of_a_tool_that_is_not_there_is_a_mistake(make_env: MakeEnv) -> None:
    env = make_env("forkgym/GSM8K-v0", tools=[])
    env.reset(seed=0)
    observation, _, terminated, truncated, info = env.step("<calculator>1+1</calculator>")
    assert (terminated, truncated, info["error"], info["tool_calls"]) == (False, False, "unknown_tool", 0.0)
    assert "There is no tool calculator" in observation


def test_several_turns_without_tools_leave_room_for_a_second_try(make_env: MakeEnv) -> None:
    env = make_env("forkgym/GSM8K-v0", tools=[])
    env.reset(options={"index": 2})
    env.step("Four, I think.")
    outcome: Any = env.step("<answer>\\boxed{4}</answer>")
    assert (outcome[1], outcome[2], outcome[4]["reward/format"]) == (1.0, True, 0.0)
