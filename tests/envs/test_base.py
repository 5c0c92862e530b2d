"""`ToolEnv`: episodes, limits, rewards, and what no text can do."""

import json
import threading
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from hypothesis import given
from hypothesis import strategies as st

from forkgym.envs.base import ToolEnv
from forkgym.envs.calls import MAX_RESULT_CHARACTERS
from forkgym.envs.grammar import ParseError
from forkgym.envs.math_env import MathEnv
from forkgym.envs.tasks import SolutionStep, StopReason, Task
from forkgym.tools.base import Tool, ToolError, as_tool


class Sums:
    """Task ``i`` asks for ``i + i``."""

    def __init__(self, size: int | None = 10) -> None:
        self.size = size

    def __getitem__(self, index: int) -> Task:
        return Task(question=f"{index} + {index}?", answer=str(2 * index), uid=f"sums/{index}")


def echo(text: str) -> str:
    """Return the text."""
    return text


def fail(text: str) -> str:
    """Refuse everything."""
    raise ToolError(f"not {text}")


def add(left: int, right: int) -> str:
    """Add two numbers."""
    return str(left + right)


class Counter:
    """Count the calls."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, text: str) -> str:
        """Count."""
        self.count += 1
        return f"{text} {self.count}"


def inline(source: Callable[..., Any]) -> Tool:
    return as_tool(source, inline=True)


def make_env(**arguments: Any) -> MathEnv:
    arguments.setdefault("taskset", Sums())
    arguments.setdefault("tools", [inline(source) for source in (echo, fail, add, Counter)])
    return MathEnv(**arguments)


def test_reset_gives_the_instructions_and_the_question() -> None:
    env = make_env(tools=[inline(echo)])
    observation, info = env.reset(options={"index": 3})
    assert observation == f"{env.instructions}\n\n3 + 3?\n"
    assert info == {"instructions": env.instructions, "question": "3 + 3?", "task_index": 3.0, "task_uid": "sums/3"}
    assert "<echo>text</echo>: Return the text." in env.instructions


def test_an_episode_from_call_to_answer() -> None:
    env = make_env()
    env.reset(options={"index": 3})
    observation, reward, terminated, truncated, info = env.step("<think>so</think><echo>3 + 3</echo>")
    assert (observation, reward, terminated, truncated) == ("<result>3 + 3</result>", 0.0, False, False)
    assert info == {
        "stop_reason": None,
        "turns": 1.0,
        "tool_calls": 1.0,
        "malformed": 0.0,
        "error": "",
        "failure": "",
        "tools": "echo",
    }
    observation, reward, terminated, truncated, info = env.step("<answer>\\boxed{6}</answer>")
    assert (observation, reward, terminated, truncated) == ("", 1.0, True, False)
    assert info == {
        "stop_reason": "answered",
        "turns": 2.0,
        "tool_calls": 1.0,
        "malformed": 0.0,
        "error": "",
        "failure": "",
        "tools": "",
        "reward/format": 1.0,
        "reward/correct": 1.0,
        "accuracy": 1.0,
        "extraction": "",
    }


@pytest.mark.parametrize(
    ("action", "error", "said"),
    [
        ("", ParseError.NOTHING, "no complete call"),
        ("<echo>a", ParseError.UNCLOSED, "not closed"),
        ("<bash>ls</bash>", ParseError.UNKNOWN_TOOL, "no tool bash; the tools are: echo, fail, add, counter"),
        ("<add>1 and 2</add>", ParseError.BAD_ARGUMENTS, "add takes a JSON object with left, right"),
        ('<add>{"left": 1}</add>', ParseError.BAD_ARGUMENTS, "right"),
        ('<add>{"left": 1, "right": "x"}</add>', ParseError.BAD_ARGUMENTS, "right"),
        ("<add>" + "[" * 100_000 + "</add>", ParseError.BAD_ARGUMENTS, "JSON"),
        ("\0\ud800", ParseError.NOTHING, "no complete call"),
    ],
)
def test_a_malformed_turn_is_corrected_counted_and_costs_the_penalty(action: str, error: str, said: str) -> None:
    env = make_env(malformed_penalty=0.25)
    env.reset(seed=0)
    observation, reward, terminated, truncated, info = env.step(action)
    assert observation.startswith("<result>Error: ") and said in observation
    assert (reward, terminated, truncated) == (-0.25, False, False)
    assert (info["error"], info["malformed"], info["tool_calls"]) == (error, 1.0, 0.0)


def test_the_tools_own_refusal_is_a_well_formed_turn() -> None:
    env = make_env(malformed_penalty=0.25)
    env.reset(seed=0)
    observation, reward, _, _, info = env.step("<fail>this</fail>")
    assert (observation, reward) == ("<result>Error: not this</result>", 0.0)
    assert (info["error"], info["malformed"], info["tool_calls"]) == ("", 0.0, 1.0)


def test_malformed_turns_in_a_row_end_the_episode() -> None:
    env = make_env(max_malformed=2, malformed_penalty=0.5)
    env.reset(seed=0)
    for action, ended in (("", False), ("<echo>a</echo>", False), ("", False), ("", True)):
        _, reward, terminated, truncated, info = env.step(action)
        assert (terminated, truncated) == (False, ended)
    assert (info["stop_reason"], info["malformed"], reward) == (StopReason.MALFORMED, 3.0, -0.5)
    assert (info["reward/correct"], info["reward/format"], info["accuracy"]) == (0.0, 0.0, 0.0)
    assert info["extraction"] == "no answer"


def test_a_call_in_the_last_turn_is_not_run() -> None:
    env = make_env(max_turns=2)
    env.reset(seed=0)
    env.step("<echo>a</echo>")
    observation, reward, terminated, truncated, info = env.step("<echo>b</echo>")
    assert (observation, reward, terminated, truncated) == ("", 0.0, False, True)
    assert (info["stop_reason"], info["tool_calls"], info["turns"]) == (StopReason.TURN_LIMIT, 1.0, 2.0)


def test_an_answer_in_the_last_turn_terminates() -> None:
    env = make_env(max_turns=1)
    env.reset(options={"index": 1})
    _, reward, terminated, truncated, _ = env.step("<answer>2</answer>")
    assert (reward, terminated, truncated) == (1.0, True, False)


def test_format_is_the_part_for_an_episode_without_a_malformed_turn() -> None:
    env = make_env(reward_weights={"format": 0.25})
    for first, format_part in (("<echo>a</echo>", 1.0), ("", 0.0)):
        env.reset(options={"index": 1})
        env.step(first)
        _, reward, _, _, info = env.step("<answer>2</answer>")
        assert (info["reward/format"], reward) == (format_part, 1.0 + 0.25 * format_part)


def test_finished_closed_and_fresh_environments_refuse_to_step() -> None:
    env = make_env()
    with pytest.raises(ResetNeeded):
        env.step("<echo>a</echo>")
    with pytest.raises(ResetNeeded):
        _ = env.current_task
    env.reset(seed=0)
    env.step("<answer>1</answer>")
    with pytest.raises(ResetNeeded):
        env.step("<answer>1</answer>")
    env.reset(seed=0)
    env.close()
    env.close()
    with pytest.raises(ResetNeeded):
        env.step("<echo>a</echo>")


def test_an_action_is_a_string() -> None:
    env = make_env()
    env.reset(seed=0)
    not_text: Any = 3
    with pytest.raises(TypeError, match="an action is a string, got int"):
        env.step(not_text)


def test_a_bug_in_a_tool_propagates() -> None:
    def broken(text: str) -> str:
        """Fail for a reason that is not the model's."""
        raise ZeroDivisionError(text)

    env = make_env(tools=[broken])
    env.reset(seed=0)
    with pytest.raises(ZeroDivisionError):
        env.step("<broken>a</broken>")


def test_a_call_that_takes_too_long_is_given_up_and_its_session_renewed() -> None:
    release = threading.Event()
    made: list[Any] = []

    class Slow:
        """Take a while."""

        def __init__(self) -> None:
            self.calls = 0
            self.closed = False
            made.append(self)

        def __call__(self, text: str) -> str:
            """Wait where the text says so."""
            self.calls += 1
            if text == "wait":
                release.wait(10)
            return str(self.calls)

        def close(self) -> None:
            """Note it."""
            self.closed = True

    env = make_env(tools=[as_tool(Slow, timeout_s=0.05), as_tool(Slow, name="other", timeout_s=10)])
    env.reset(seed=0)
    assert env.step("<other>go</other>")[0] == "<result>1</result>"
    observation, _, _, _, info = env.step("<slow>wait</slow>")
    assert observation.startswith("<result>Error: slow took longer than 0.05 s")
    assert info["error"] == ""
    release.set()
    assert env.step("<slow>go</slow>")[0] == "<result>1</result>"  # a session of its own
    assert env.step("<other>go</other>")[0] == "<result>2</result>"  # the others go on
    # The two of the episode, then two when the first was renewed, of which the second was not needed.
    assert [one.closed for one in made] == [False, False, False, True]


def test_long_output_is_cut_and_says_so() -> None:
    def long(text: str) -> str:
        """Return a lot."""
        return "<answer>" * MAX_RESULT_CHARACTERS

    env = make_env(tools=[inline(long)])
    env.reset(seed=0)
    observation, *_ = env.step("<long>a</long>")
    assert observation.endswith(
        f"[cut: {8 * MAX_RESULT_CHARACTERS} characters, {MAX_RESULT_CHARACTERS} shown]</result>"
    )
    assert observation in env.observation_space


MARKUP = st.lists(
    st.sampled_from(
        ["<result>", "</result>", "<answer>", "</answer>", "\\boxed{6}", "6", "<echo>", "</echo>", "<think>"]
    ),
    max_size=8,
).map("".join)


@given(MARKUP)
def test_markers_in_a_tools_output_neither_earn_nor_end_anything(output: str) -> None:
    def page(text: str) -> str:
        """Return a page."""
        return output

    env = make_env(tools=[inline(page), inline(echo)])
    env.reset(options={"index": 3})
    observation, reward, terminated, truncated, info = env.step("<page>a</page>")
    assert (reward, terminated, truncated, info["error"]) == (0.0, False, False, "")
    assert sum(observation.count(marker) for marker in env.markers) == 2
    # Not even where the policy opens an answer before the call and closes it after.
    env.reset(options={"index": 3})
    env.step("<answer><page>a</page>")
    _, reward, terminated, _, _ = env.step("</answer>")
    assert (reward, terminated) == (0.0, False)


@given(st.lists(st.one_of(MARKUP, st.text()), min_size=1))
def test_any_text_is_a_valid_action(actions: list[str]) -> None:
    env = make_env()
    env.reset(options={"index": 3})
    for action in actions:
        assert action in env.action_space
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert reward in (0.0, 1.0)
        json.dumps(info, allow_nan=False)
        if terminated or truncated:
            return


# Tasks.


def test_the_seed_draws_the_task_and_an_index_names_it() -> None:
    env = make_env()
    drawn = [env.reset(seed=seed)[1]["task_index"] for seed in (5, 5, 6, 7, 8)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) > 1
    assert env.reset(options={"index": np.int64(9)})[1]["task_uid"] == "sums/9"


def test_all_tasks_are_drawn_sooner_or_later() -> None:
    env = make_env()
    env.reset(seed=0)
    assert {env.reset()[1]["task_index"] for _ in range(200)} == set(map(float, range(10)))


def test_naming_a_task_leaves_the_draws_alone() -> None:
    one, other = make_env(taskset=Sums(None)), make_env(taskset=Sums(None))
    one.reset(seed=0)
    other.reset(seed=0)
    one.reset(options={"index": 1})
    assert one.reset()[1] == other.reset()[1]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"index": 10}, IndexError, "'index' is 10, but there are 10 tasks"),
        ({"index": -1}, ValueError, "'index' is -1, expected a whole number"),
        ({"index": 1.0}, ValueError, "'index' is 1.0, expected a whole number"),
        ({"index": True}, ValueError, "'index' is True, expected a whole number"),
        ({"index": "1"}, ValueError, "'index' is '1', expected a whole number"),
        ({"task": 1}, ValueError, "reset option 'task': expected only 'index'"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make_env().reset(options=options)


# Arguments.


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"max_turns": 0}, "max_turns is 0, expected at least 1"),
        ({"max_malformed": 0}, "max_malformed is 0, expected at least 1"),
        ({"malformed_penalty": -0.1}, "malformed_penalty is -0.1, expected at least 0"),
        ({"render_mode": "human"}, "render_mode is 'human', expected None or 'ansi'"),
        ({"grammar": "xml"}, "grammar 'xml': expected one of"),
        ({"tools": ["hammer"]}, "unknown tool 'hammer'"),
        ({"tools": "hammer"}, r"tools is 'hammer', expected a list, such as \['hammer'\]"),
        ({"tools": [echo, echo]}, "tool 'echo': expected a name that no other tool or marker has"),
        ({"tools": [as_tool(echo, name="think")]}, "tool 'think': expected a name"),
        ({"tools": [as_tool(echo, name="answer")]}, "tool 'answer': expected a name"),
        ({"reward_weights": {"corect": 1.0}}, "reward_weights has 'corect', expected some of correct, format"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        make_env(**arguments)


def test_a_score_that_is_no_number_is_named() -> None:
    class Forgetful(ToolEnv):
        def score(self, answer: str, task: Task) -> dict[str, float]:
            return {"correct": None}  # type: ignore[dict-item]

    env = Forgetful(taskset=Sums())
    env.reset(options={"index": 3})
    with pytest.raises(TypeError, match=r"Forgetful\.score gives None for 'correct' of task 'sums/3'"):
        env.step("<answer>6</answer>")


def test_an_environment_without_tasks_or_score_says_what_is_missing() -> None:
    with pytest.raises(TypeError, match="ToolEnv has no taskset and does not override task"):
        ToolEnv().reset(seed=0)
    env = ToolEnv(taskset=Sums())
    env.reset(seed=0)
    with pytest.raises(TypeError, match="ToolEnv does not say how to score an answer"):
        env.step("<answer>1</answer>")


def test_parts_that_a_class_does_not_list_are_named_without_an_answer_too() -> None:
    class Rated(ToolEnv):
        def score(self, answer: str, task: Task) -> Mapping[str, float]:
            return {"right": float(answer == task.answer), "short": 0.5}

    env = Rated(taskset=Sums(), max_turns=1, reward_weights={"short": 2.0})
    env.reset(options={"index": 1})
    _, reward, _, _, info = env.step("<answer>2</answer>")
    assert (reward, info["accuracy"]) == (1.0 + 2.0 * 0.5, 1.0)  # a part without a weight counts once
    env.reset(options={"index": 1})
    _, reward, _, _, info = env.step("nothing")
    assert (reward, info["reward/right"], info["reward/short"], info["accuracy"]) == (0.0, 0.0, 0.0, 0.0)


def test_a_solution_keeps_to_the_tools_that_there_are() -> None:
    class Solved(Sums):
        def __getitem__(self, index: int) -> Task:
            steps = (SolutionStep("1", "echo"), SolutionStep("2", "nowhere"), SolutionStep("3"))
            return Task("?", "3", solution=steps)

    def solution(tools: list[Tool]) -> list[str]:
        return [step.argument for step in make_env(taskset=Solved(), tools=tools).task(0).solution]

    assert solution([inline(echo)]) == ["1", "3"]
    assert solution([]) == ["3"]


def test_rendering() -> None:
    env = make_env(render_mode="ansi")
    env.reset(options={"index": 3})
    env.step("<echo>a</echo>")
    env.step("<answer>6</answer>")
    assert env.render() == "3 + 3?\n<echo>a</echo>\n<result>a</result>\n<answer>6</answer>"
    assert make_env().render() is None


# Snapshots.


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(state, allow_nan=False))
    return value


def test_a_snapshot_carries_a_stateful_tool_and_the_random_state() -> None:
    env, other = make_env(), make_env()
    env.reset(seed=3)
    env.step("<counter>a</counter>")
    env.step("")
    other.restore(through_json(env.snapshot()))
    for one in (env, other):
        assert one.step("<counter>b</counter>")[0] == "<result>b 2</result>"
    assert env.step("<answer>1</answer>") == other.step("<answer>1</answer>")
    assert env.reset() == other.reset()


def test_snapshots_before_the_first_reset_and_after_the_end() -> None:
    env, other = make_env(), make_env()
    other.reset(seed=0)
    other.restore(through_json(env.snapshot()))
    with pytest.raises(ResetNeeded):
        _ = other.current_task
    env.reset(seed=0)
    env.step("<answer>1</answer>")
    other.restore(through_json(env.snapshot()))
    with pytest.raises(ResetNeeded):
        other.step("<echo>a</echo>")
    assert other.current_task == env.current_task


def test_what_is_no_snapshot_is_refused() -> None:
    with pytest.raises(KeyError):
        make_env().restore({})


def test_an_oracles_solution_may_use_any_tool() -> None:
    env = make_env()
    env.reset(options={"index": 3})
    observation, *_ = env.step(env.render_step(SolutionStep("x", tool="echo", thought="y")))
    assert observation == "<result>x</result>"


def test_inline_says_whether_all_tools_run_in_the_callers_thread() -> None:
    assert make_env().inline
    assert not make_env(tools=[echo]).inline
