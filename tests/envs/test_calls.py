"""Calls of one turn: side by side, in order, within their limits; and what a failure of the infrastructure means."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from typing import Any

import pytest
from gymnasium.error import ResetNeeded

from forkgym.envs.base import ToolEnv
from forkgym.envs.calls import MAX_RESULT_CHARACTERS
from forkgym.envs.grammar import ParseError
from forkgym.envs.tasks import StopReason, Task
from forkgym.tools.base import ToolError, ToolFailure, ToolStop, as_tool


class Tally:
    """Count the calls of an episode."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, text: str) -> str:
        """Count."""
        self.count += 1
        return f"{text}{self.count}"


def echo(text: str) -> str:
    """Return the text."""
    if text == "bad":
        raise ToolError("not that")
    if text == "stop":
        raise ToolStop("Done.")
    if text == "down":
        raise ToolFailure("no route to host")
    return text


class CallEnv(ToolEnv):
    """Answers are right where they are "Y"; an answer "down" cannot be scored."""

    def task(self, index: int) -> Task:
        return Task("What?", "Y", uid=f"call/{index}")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        if "down" in answer:
            raise ToolFailure("no worker")
        return {"correct": float("Y" in answer)}


def message(*calls: tuple[str, str]) -> str:
    """A turn of several calls."""
    return "\n".join(
        f"<tool_call>{json.dumps({'name': name, 'arguments': {'text': text}})}</tool_call>" for name, text in calls
    )


def results(observation: str) -> list[str]:
    return (
        observation.removeprefix("<tool_response>\n")
        .removesuffix("\n</tool_response>")
        .split("\n</tool_response>\n<tool_response>\n")
    )


def make_env(**options: Any) -> CallEnv:
    options.setdefault("tools", [echo, Tally])
    env = CallEnv(grammar="hermes", **options)
    env.reset(seed=0)
    return env


def test_calls_of_a_message_return_in_order() -> None:
    env = make_env()
    observation, _, _, _, info = env.step(message(("echo", "a"), ("tally", "b"), ("echo", "bad"), ("tally", "c")))
    assert results(observation) == ["a", "b1", "Error: not that", "c2"]
    assert (info["tools"], info["tool_calls"], info["error"]) == ("echo,tally,echo,tally", 4.0, "")
    assert results(env.step(message(("tally", "d")))[0]) == ["d3"]


def test_calls_without_state_run_side_by_side() -> None:
    everybody = threading.Barrier(3)

    def meet(text: str) -> str:
        """Wait for the others."""
        everybody.wait(10)
        return text

    env = make_env(tools=[as_tool(meet)])
    observation = env.step(message(("meet", "a"), ("meet", "b"), ("meet", "c")))[0]
    assert results(observation) == ["a", "b", "c"]


def test_a_call_that_is_given_up_leaves_the_others_their_results() -> None:
    release = threading.Event()

    def wait(text: str) -> str:
        """Wait."""
        release.wait(10)
        return text

    env = make_env(tools=[as_tool(wait, timeout_s=0.05), echo, Tally])
    observation = env.step(message(("wait", "a"), ("echo", "b"), ("tally", "c")))[0]
    release.set()
    assert results(observation) == ["Error: wait took longer than 0.05 s; its session starts afresh.", "b", "c1"]


def test_arguments_that_do_not_fit_make_the_turn_malformed_and_the_others_run() -> None:
    env = make_env()
    bad = '<tool_call>{"name": "echo", "arguments": {"words": "a"}}</tool_call>'
    observation, _, _, _, info = env.step(bad + message(("tally", "b")))
    first, second = results(observation)
    assert first.startswith("Error: echo: ")
    assert second == "b1"
    assert (info["error"], info["tools"]) == (ParseError.BAD_ARGUMENTS, "tally")


def test_long_results_share_one_limit() -> None:
    env = make_env()
    size = MAX_RESULT_CHARACTERS
    observation = env.step(message(("echo", "a" * size), ("echo", "b")))[0]
    first, second = results(observation)
    assert first == "a" * (size // 2) + f"\n[cut: {size} characters, {size // 2} shown]"
    assert second == "b"


def test_a_tool_ends_the_episode_beside_others() -> None:
    observation, _, terminated, _, info = make_env().step(message(("echo", "a"), ("echo", "stop")))
    assert (results(observation), terminated, info["stop_reason"]) == (["a", "Done."], True, StopReason.TOOL_STOP)


def test_a_failure_of_the_infrastructure_truncates_and_pays_nothing() -> None:
    env = make_env(malformed_penalty=0.5, reward_weights={"format": 1.0})
    observation, reward, terminated, truncated, info = env.step(message(("echo", "a"), ("echo", "down")))
    assert results(observation) == ["a", "Error: echo does not work at the moment."]
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert (info["stop_reason"], info["failure"]) == (StopReason.TOOL_FAILURE, "echo: no route to host")
    assert (info["accuracy"], info["reward/format"], info["error"]) == (0.0, 0.0, "")


def test_an_answer_that_cannot_be_scored_is_not_scored() -> None:
    env = make_env()
    _, reward, terminated, truncated, info = env.step("down")
    assert (reward, terminated, truncated) == (0.0, False, True)
    assert (info["stop_reason"], info["failure"]) == (StopReason.TOOL_FAILURE, "score: no worker")
    assert (info["accuracy"], info["reward/correct"]) == (0.0, 0.0)


class DownEnv(ToolEnv):
    """Nothing can be scored, and nobody has said what the parts are called."""

    def task(self, index: int) -> Task:
        return Task("What?", "Y", uid=f"down/{index}")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        raise ToolFailure("no worker")


def test_where_nothing_can_be_scored_no_step_raises() -> None:
    env = DownEnv(tools=[echo], max_turns=1)
    env.reset(seed=0)
    _, reward, terminated, truncated, info = env.step("<answer>Y</answer>")
    assert (reward, terminated, truncated, info["accuracy"]) == (0.0, False, True, 0.0)
    assert (info["stop_reason"], info["failure"]) == (StopReason.TOOL_FAILURE, "score: no worker")
    env.reset(seed=0)
    info = env.step("<echo>a</echo>")[4]  # there was nothing to score
    assert (info["stop_reason"], info["failure"]) == (StopReason.TURN_LIMIT, "")


class Flaky:
    """Wait for an answer that never comes, from a server that is then down."""

    opened = 0
    answer = threading.Event()

    def __init__(self) -> None:
        Flaky.opened += 1
        if Flaky.opened % 2 == 0:
            raise ToolFailure("no server")

    def __call__(self, text: str) -> str:
        """Wait."""
        self.answer.wait(10)
        return text


def test_a_session_that_cannot_start_afresh_is_a_failure_of_the_infrastructure() -> None:
    Flaky.opened = 0
    env = make_env(tools=[as_tool(Flaky, timeout_s=0.05)])
    _, reward, _, truncated, info = env.step(message(("flaky", "a")))
    Flaky.answer.set()
    assert (reward, truncated, info["stop_reason"]) == (0.0, True, StopReason.TOOL_FAILURE)
    assert info["failure"] == "flaky: no server"


def test_after_a_reset_that_fails_no_episode_is_under_way() -> None:
    Flaky.opened = 0
    env = make_env(tools=[Flaky])
    with pytest.raises(ToolFailure, match="no server"):
        env.reset()
    with pytest.raises(ResetNeeded):
        env.step("Y")


def test_a_bug_beside_other_calls_propagates() -> None:
    def broken(text: str) -> str:
        """Raise."""
        raise RuntimeError(f"a bug with {text}")

    with pytest.raises(RuntimeError, match="a bug with b"):
        make_env(tools=[echo, broken]).step(message(("echo", "a"), ("broken", "b")))


def test_calls_beyond_the_limit_are_malformed_and_the_episode_goes_on() -> None:
    env = make_env(max_tool_calls=3)
    env.step(message(("echo", "a"), ("echo", "b")))
    observation, _, terminated, truncated, info = env.step(message(("echo", "c"), ("echo", "d")))
    assert results(observation) == ["Error: 1 more calls are allowed, the turn has 2; it is time to answer."]
    assert (terminated, truncated, info["error"], info["tool_calls"]) == (False, False, ParseError.CALL_LIMIT, 2.0)
    assert results(env.step(message(("echo", "c")))[0]) == ["c"]
    assert env.step(message(("echo", "d")))[4]["error"] == ParseError.CALL_LIMIT
    assert env.step("Y")[1] == 1.0
    with pytest.raises(ValueError, match="max_tool_calls is -1, expected at least 0"):
        make_env(max_tool_calls=-1)


def test_the_corpus_budget_of_ten_calls() -> None:
    env = CallEnv(tools=[echo], max_tool_calls=10, max_turns=20)  # the row "parse-budget" of the hostile turns
    env.reset(seed=0)
    errors = [env.step("<echo>q</echo>")[4]["error"] for _ in range(11)]
    assert errors == [""] * 10 + [ParseError.CALL_LIMIT]
