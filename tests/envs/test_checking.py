"""`check_tool_env` passes every environment of ours, and says what is wrong with broken ones."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from gymnasium.utils.env_checker import check_env

import forkgym.envs
from forkgym.envs.base import ToolEnv
from forkgym.envs.checking import check_tool_env
from forkgym.envs.math_env import MathEnv
from forkgym.envs.tag_grammar import TagGrammar
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.tools.base import ToolError, as_tool

ENV_IDS = [env_id for env_id, _, _ in forkgym.envs.ENVS]
REAL_FILES = {
    "forkgym/GSM8K-v0": ("gsm8k", "test.jsonl"),
    "forkgym/HotpotQA-v0": ("hotpotqa", "dev_distractor_100.json"),
}

MakeEnv = Callable[..., gym.Env[str, str]]


# Warnings are errors in every test.


@pytest.mark.parametrize("env_id", ENV_IDS)
def test_gymnasiums_own_checker_passes(make_env: MakeEnv, env_id: str) -> None:
    check_env(make_env(env_id).unwrapped)
    check_env(make_env(env_id, render_mode="ansi").unwrapped)


@pytest.mark.parametrize("env_id", ENV_IDS)
@pytest.mark.parametrize(
    "arguments",
    [{}, {"grammar": "search_r1", "malformed_penalty": 0.1, "max_malformed": 2}, {"grammar": "hermes"}],
)
def test_registered_environments_pass(make_env: MakeEnv, env_id: str, arguments: dict[str, Any]) -> None:
    env = make_env(env_id, **arguments)
    check_tool_env(env)
    check_tool_env(env.unwrapped)


@pytest.mark.parametrize("env_id", sorted(REAL_FILES))
def test_environments_on_real_data_pass(shared_data: Path, env_id: str) -> None:
    env = gym.make(env_id, path=str(shared_data.joinpath(*REAL_FILES[env_id])))
    check_env(env.unwrapped)
    check_tool_env(env, episodes=20)


# An environment as short as one can be.

METRES = {"m": 1.0, "km": 1000.0, "mi": 1609.344}


def careless_convert(argument: str) -> str:
    """Convert a length; the argument is '<number> <from> <to>', such as '3 mi km'."""
    number, source, target = argument.split()
    return f"{float(number) * METRES[source] / METRES[target]:.6g} {target}"


def convert(argument: str) -> str:
    """Convert a length; the argument is '<number> <from> <to>', such as '3 mi km'."""
    try:
        return careless_convert(argument)
    except (ValueError, KeyError) as error:
        raise ToolError(f"expected '<number> <from> <to>', got {argument!r}") from error


class LengthEnv(ToolEnv):
    """Kilometres in metres, without a taskset."""

    def __init__(self, tool: Callable[[str], str]) -> None:
        super().__init__(tools=[as_tool(tool, name="convert")], max_turns=4)

    def task(self, index: int) -> Task:
        return Task(f"How many metres are {index} km?", answer=str(1000 * index))

    def score(self, answer: str, task: Task) -> dict[str, float]:
        return {"right": float(answer.strip() == task.answer)}


def test_a_short_environment_of_a_users_own_passes() -> None:
    check_tool_env(LengthEnv(convert))


def test_a_tool_that_raises_for_what_the_model_wrote_is_found() -> None:
    with pytest.raises(
        AssertionError, match=r"step\('.*<convert>.*'\) raises KeyError.*; a tool refuses with ToolError"
    ):
        check_tool_env(LengthEnv(careless_convert))


# Broken environments.


class Numbers:
    size = 3

    def __getitem__(self, index: int) -> Task:
        steps = (SolutionStep("a", tool="log"), SolutionStep(str(index)))
        return Task(f"Say {index}.", str(index), uid=f"numbers/{index}", solution=steps)


class Log:
    """Keep what was said."""

    shared: list[str] = []

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> str:
        """Say how much was said."""
        self.lines.append(line)
        return str(len(self.lines))


class NumbersEnv(MathEnv):
    """What each broken environment below is but for one thing."""

    def __init__(self, tool: Callable[..., Any] = Log, **arguments: Any) -> None:
        super().__init__(taskset=Numbers(), tools=[as_tool(tool, name="log", inline=True)], **arguments)


def test_the_environment_that_is_broken_below_passes() -> None:
    check_tool_env(NumbersEnv())


class LeakyForks(NumbersEnv):
    def fork(self) -> ToolEnv:
        twin = super().fork()
        twin._sessions = self._sessions
        return twin


class ForgetfulForks(NumbersEnv):
    def fork(self) -> ToolEnv:
        twin = super().fork()
        twin._transcript = []
        return twin


class CountingEnv(NumbersEnv):
    """Has state of its own, and neither forks nor snapshots it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        self.seen = []
        return super().reset(seed=seed, options=options)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        self.seen.append(action)
        return observation, reward, terminated, truncated, {**info, "seen": float(len(self.seen))}


class UnforkedSnapshots(CountingEnv):
    """Forks its state, but leaves it out of its snapshots."""

    def fork(self) -> ToolEnv:
        twin = super().fork()
        assert isinstance(twin, UnforkedSnapshots)
        twin.seen = list(self.seen)
        return twin


class SetInSnapshot(NumbersEnv):
    def snapshot(self) -> dict[str, Any]:
        return {**super().snapshot(), "set": {1}}


class WholeNumbersInInfo(NumbersEnv):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "turns": len(self._transcript)}


class SilentEnd(NumbersEnv):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, {**info, "stop_reason": None}


class GoesOn(NumbersEnv):
    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        if not self._running:
            return "", 0.0, True, False, {}
        return super().step(action)


class Lucky(NumbersEnv):
    calls = 0

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        Lucky.calls += 1
        return {"correct": float(Lucky.calls)}


class NotANumber(NumbersEnv):
    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        return super().score(answer, task) if answer else {"correct": math.nan}


class OtherParts(NumbersEnv):
    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        return super().score(answer, task) if answer else {"empty": 0.0}


class UnlistedPart(NumbersEnv):
    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        return {**super().score(answer, task), "style": 0.5}


class RaisingScore(NumbersEnv):
    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        return {"correct": float(answer)}


class BareScore(NumbersEnv):
    def score(self, answer: str, task: Task) -> Any:
        return 1.0


class NoReason(NumbersEnv):
    def extraction_failure(self, answer: str) -> Any:
        return None


class BelievesResults(NumbersEnv):
    """Scores whatever the turn says, as suites do that look for an answer in the whole transcript."""

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + float(self.current_task.answer in action), terminated, truncated, info


class ShiftingTasks(NumbersEnv):
    asked = 0

    def task(self, index: int) -> Task:
        ShiftingTasks.asked += 1
        return Task(f"{index} {ShiftingTasks.asked}", str(index))


class UnescapedResults(TagGrammar):
    def escape(self, text: str, tool_names: tuple[str, ...]) -> str:
        return text


class BelievesTools(NumbersEnv):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward + ("####" in observation), terminated, truncated, info


class StopsWithTools(NumbersEnv):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated or "####" in observation, truncated, info


class PaysForFailures(NumbersEnv):
    def step(self, action: str) -> Any:
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward - (info["stop_reason"] == "tool_failure"), terminated, truncated, info


class WrongSolution(NumbersEnv):
    def task(self, index: int) -> Task:
        return Task("Say 1.", "1", solution=(SolutionStep("2"),))


class LongSolution(NumbersEnv):
    def task(self, index: int) -> Task:
        return Task("Say 1.", "1", solution=(SolutionStep("a", tool="log"),) * 6 + (SolutionStep("1"),))


class SharedLog(Log):
    """Keep what was said in any episode."""

    def __call__(self, line: str) -> str:
        """Say how much was said."""
        self.shared.append(line)
        return str(len(self.shared))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (LeakyForks, "turn 1 of"),
        (ForgetfulForks, "of a fork is"),
        (CountingEnv, "of a fork is|without forks it is"),
        (UnforkedSnapshots, "the episode goes on with"),
        (SetInSnapshot, "the snapshot at turn 0 is no JSON value: .*set"),
        (WholeNumbersInInfo, r"info\['turns'\] is 1, expected a string, a float or None"),
        (SilentEnd, r"info\['stop_reason'\] is None at the end"),
        (GoesOn, "a finished episode can be stepped"),
        (Lucky, "differs when it is repeated|accuracy"),
        (NotANumber, r"score\(''\) is {'correct': nan}, expected finite"),
        (OtherParts, r"score\(''\) returns the parts {'empty'}, expected {'correct'}"),
        (UnlistedPart, "score.. returns {'style'}, which reward_weights does not list"),
        (RaisingScore, r"score\('.*'\) raises ValueError\(.*; what cannot be read earns 0.0"),
        (BareScore, r"score\('.*'\) returns 1.0, expected numbers by name"),
        (NoReason, r"extraction_failure\(''\) is None, expected a string"),
        (BelievesResults, "is no answer, and yet it earned 1.0"),
        (lambda: NumbersEnv(grammar=UnescapedResults("bare")), "the tool's output .* is shown with its '</?answer>'"),
        (BelievesTools, "the tool's output .* earned 1.0"),
        (StopsWithTools, "the tool's output .* ended the episode"),
        (PaysForFailures, "where a tool raises ToolFailure, the turn ends with reward -1.0 .* expected it truncated"),
        (ShiftingTasks, "is not the same|non-deterministic"),
        (WrongSolution, "the solution of task . ends with .*expected to terminate with accuracy 1.0"),
        (LongSolution, "takes 7 turns, max_turns is 6"),
        (lambda: NumbersEnv(SharedLog), "differs when it is repeated|not equivalent|without forks it is"),
        (lambda: gym.make("CartPole-v1"), "CartPoleEnv is no ToolEnv"),
    ],
)
def test_broken_environments_are_found(make: Callable[[], gym.Env[str, str]], said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        check_tool_env(make())
