"""The contract of an environment as code, for its author: `check_tool_env` says in words what is broken."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, cast
from unittest.mock import patch

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env

from forkgym.envs.base import ToolEnv
from forkgym.envs.forking import fork
from forkgym.envs.grammar import ParseError
from forkgym.envs.tasks import SolutionStep, StopReason
from forkgym.tools.base import ToolFailure, ToolSession

TextEnv = gym.Env[str, str]
Outcome = tuple[str, float, bool, bool, dict[str, Any]]

# What stands between an answer's markers may be anything.
ODD_ANSWERS = ("", " ", "nan", "-1e999999999", "9" * 10_000, "\\boxed{", "}" * 1_000, "\ud800", "\0", "\u0663", "####")


def check_tool_env(env: TextEnv, *, episodes: int = 5, seed: int = 0) -> None:
    """Check that an environment keeps the contract of `ToolEnv`, on random episodes.

    Its wrappers are checked with it. The environment is reset many times, and not put back as it was.

    Args:
        env: The environment, bare or as ``gymnasium.make`` returns it.
        episodes: How many episodes to draw; 1 or more.
        seed: Seeds the first episode; each next one has the next seed.

    Raises:
        AssertionError: It does not keep the contract; the message says how. Gymnasium's own checker may raise others.
    """
    tool_env = env.unwrapped
    require(isinstance(tool_env, ToolEnv), f"{type(tool_env).__name__} is no ToolEnv")
    assert isinstance(tool_env, ToolEnv)
    check_env(tool_env, skip_render_check=tool_env.spec is None)
    for number in range(seed, seed + episodes):
        env.reset(seed=number)
        check_score(tool_env)
        check_task(tool_env)
        check_forgery(env, number)
        rng = np.random.default_rng(number)
        actions, others = (draw_actions(tool_env, rng) for _ in range(2))
        check_outcomes(env, play(env, number, actions))
        check_repeats(env, number, actions)
        check_forks(env, number, actions, others)
        check_snapshots(env, number, actions)
        check_tool_output(env, number)


def require(condition: bool, sentence: str) -> None:
    """Raise an AssertionError that says what is broken, also where Python ignores ``assert``."""
    if not condition:
        raise AssertionError(sentence)


# Episodes to check on.


def draw_actions(env: ToolEnv, rng: np.random.Generator) -> list[str]:
    """Draw as many actions as an episode of the current task can take: the oracle's, malformed ones and garbage."""
    solution = list(env.current_task.solution)
    actions: list[str] = []
    for _ in range(env.max_turns):
        if solution and rng.random() < 0.6:
            actions.append(env.render_step(solution.pop(0)))
        else:
            odd = odd_actions(env, rng)
            actions.append(odd[int(rng.integers(len(odd)))])
    return actions


def odd_actions(env: ToolEnv, rng: np.random.Generator) -> list[str]:
    """Actions of all kinds that are no oracle's."""
    markers = env.markers
    tool = str(rng.choice(env.tool_names or ("none",)))
    is_text = tool not in env.tools or env.tools[tool].text_parameter is not None
    call = env.render_step(SolutionStep("1 + 1" if is_text else "{}", tool=tool))
    return [
        call,
        call[: len(call) // 2],
        call[len(call) // 2 :],
        call + call,
        env.render_step(SolutionStep("rm -rf /", tool="no_such_tool")),
        env.render_step(SolutionStep(str(rng.integers(100)))),
        "".join(rng.choice(markers, size=5)),
        "".join(chr(number) for number in rng.integers(1, 0xD800, size=20)),
        "",
    ]


def play(env: TextEnv, seed: int, actions: Sequence[str]) -> list[Outcome]:
    """Reset, take the actions until the episode ends, and return what each led to."""
    env.reset(seed=seed)
    return proceed(env, actions)


def proceed(env: TextEnv, actions: Sequence[str]) -> list[Outcome]:
    """Take the actions until the episode ends, and return what each led to."""
    outcomes: list[Outcome] = []
    for action in actions:
        outcomes.append(take(env, action))
        if over(outcomes[-1]):
            break
    return outcomes


def take(env: TextEnv, action: str) -> Outcome:
    """Take one action; no text may raise."""
    try:
        observation, reward, terminated, truncated, info = env.step(action)
    except ResetNeeded:
        raise
    except Exception as error:
        raise AssertionError(f"step({action[:60]!r}) raises {error!r}; a tool refuses with ToolError") from error
    return observation, float(reward), terminated, truncated, info


def over(outcome: Outcome) -> bool:
    """Whether the episode has ended."""
    return outcome[2] or outcome[3]


# The contract, point by point.


def check_task(env: ToolEnv) -> None:
    """A task is the same each time, and its solution, where it has one, is right."""
    task, index = env.current_task, env.snapshot()["task_index"]
    require(env.task(index) == task, f"task {index} is not the same when it is asked for again")
    if not task.solution:
        return
    require(
        len(task.solution) <= env.max_turns,
        f"the solution of task {index} takes {len(task.solution)} turns, max_turns is {env.max_turns}",
    )
    env.reset(options={"index": index})
    outcomes = proceed(env, [env.render_step(step) for step in task.solution])
    require(
        outcomes[-1][2] and outcomes[-1][4]["accuracy"] == 1.0,
        f"the solution of task {index} ends with {outcomes[-1]}, expected to terminate with accuracy 1.0",
    )


def check_score(env: ToolEnv) -> None:
    """Any answer is scored, with the same parts, as finite numbers."""
    task = env.current_task
    parts = set(scored_parts(env, task.answer))
    require(bool(parts), "score() returns no part")
    unlisted = parts - set(env.reward_weights)
    require(not (env.reward_weights and unlisted), f"score() returns {unlisted}, which reward_weights does not list")
    for answer in ODD_ANSWERS:
        scored = scored_parts(env, answer)
        require(set(scored) == parts, f"score({answer[:20]!r}) returns the parts {set(scored)}, expected {parts}")
        finite = all(math.isfinite(value) for value in scored.values())
        require(finite, f"score({answer[:20]!r}) is {scored}, expected finite numbers")
        failure: Any = env.extraction_failure(answer)
        require(isinstance(failure, str), f"extraction_failure({answer[:20]!r}) is {failure!r}, expected a string")


def scored_parts(env: ToolEnv, answer: str) -> Mapping[str, float]:
    """Score an answer to the current task, and say so where that raises or returns something else than parts."""
    try:
        parts: Any = env.score(answer, env.current_task)
    except ToolFailure:  # the infrastructure's fault, of which the environment is right to say so
        raise
    except Exception as error:
        raise AssertionError(f"score({answer[:20]!r}) raises {error!r}; what cannot be read earns 0.0") from error
    require(isinstance(parts, Mapping), f"score({answer[:20]!r}) returns {parts!r}, expected numbers by name")
    return cast(Mapping[str, float], parts)


def check_forgery(env: TextEnv, seed: int) -> None:
    """What looks like a tool's output, and an answer outside its markers, earns and ends nothing."""
    env.reset(seed=seed)
    tool_env = tool_env_of(env)
    names = tool_env.tool_names
    answer = tool_env.current_task.answer
    actions = [tool_env.grammar.render_results([tool_env.render_step(SolutionStep(answer))], names)]
    # In some grammars a whole message is the answer.
    if tool_env.grammar.parse(answer, names).answer is None:
        actions.append(answer)
    for action in actions:
        env.reset(seed=seed)
        _, reward, terminated, _, info = take(env, action)
        require(not terminated, f"{action[:60]!r} is no answer, and yet it ended the episode")
        require(reward <= 0, f"{action[:60]!r} is no answer, and yet it earned {reward}")
        require(info["error"] in set(ParseError), f"info['error'] is {info['error']!r}, expected the name of an error")


class Echo(ToolSession):
    """Returns a text, or raises, whatever it is asked."""

    def __init__(self, reply: str | ToolFailure) -> None:
        self.reply = reply

    def call(self, arguments: Mapping[str, Any]) -> str:
        """Return the text, or raise."""
        if isinstance(self.reply, ToolFailure):
            raise self.reply
        return self.reply


def check_tool_output(env: TextEnv, seed: int) -> None:
    """A tool that writes the answer, or calls, earns and ends nothing; one that fails ends the episode unscored."""
    env.reset(seed=seed)
    tool_env = tool_env_of(env)
    steps = [step for step in tool_env.current_task.solution if step.tool is not None]
    if not steps or tool_env.max_turns == 1:
        return  # nobody knows arguments that fit, or the calls of the last turn are not run
    call = tool_env.render_step(steps[0])
    answer = tool_env.render_step(SolutionStep(tool_env.current_task.answer))
    for text in (answer, call, f"{''.join(tool_env.markers)} {answer} #### {tool_env.current_task.answer}"):
        observation, reward, terminated, _, info = take_with_tools(env, seed, call, text)
        require(not terminated and info["stop_reason"] is None, f"the tool's output {text[:60]!r} ended the episode")
        require(reward <= 0, f"the tool's output {text[:60]!r} earned {reward}")
        frame = tool_env.grammar.render_results([""], tool_env.tool_names)
        for marker in tool_env.markers:
            escaped = observation.count(marker) == frame.count(marker)
            require(escaped, f"the tool's output {text[:60]!r} is shown with its {marker!r}, which means something")
    _, reward, terminated, truncated, info = take_with_tools(env, seed, call, ToolFailure("nothing listens there"))
    require(
        truncated and not terminated and info["stop_reason"] == StopReason.TOOL_FAILURE and reward == 0,
        f"where a tool raises ToolFailure, the turn ends with reward {reward} and {info}, expected it truncated for "
        f"the stop reason {StopReason.TOOL_FAILURE.value} with reward 0",
    )


def take_with_tools(env: TextEnv, seed: int, action: str, reply: str | ToolFailure) -> Outcome:
    """Take one action in an episode whose tools reply in this way."""
    tool_env = tool_env_of(env)
    sessions = {name: Echo(reply) for name in tool_env.tool_names}
    with patch.object(tool_env, "open_sessions", return_value=sessions):
        env.reset(seed=seed)
    return take(env, action)


def tool_env_of(env: TextEnv) -> ToolEnv:
    """The bare environment."""
    bare = env.unwrapped
    assert isinstance(bare, ToolEnv)
    return bare


def check_outcomes(env: TextEnv, outcomes: Sequence[Outcome]) -> None:
    """Observations are in their space, ``info`` can be batched and written, the last step says why it is the last."""
    for observation, reward, _, _, info in outcomes:
        require(observation in env.observation_space, f"the observation {observation[:60]!r} is not in its space")
        require(math.isfinite(reward), f"the reward is {reward}, expected a finite number")
        for key, value in info.items():
            # A vector environment makes an array of the first value's type: a 0.5 after an int becomes 0.
            require(
                isinstance(value, (str, float, type(None))),
                f"info[{key!r}] is {value!r}, expected a string, a float or None",
            )
        json.dumps(info, allow_nan=False)
    last = outcomes[-1]
    require(over(last), f"the episode goes on after {len(outcomes)} turns, more than max_turns")
    require(isinstance(last[4]["stop_reason"], str), "info['stop_reason'] is None at the end of an episode")
    require(all(outcome[4]["stop_reason"] is None for outcome in outcomes[:-1]), "info['stop_reason'] comes too early")
    check_finished(env)


def check_finished(env: TextEnv) -> None:
    """An environment whose episode is over refuses to step."""
    try:
        env.step("")
    except ResetNeeded:
        return
    raise AssertionError("a finished episode can be stepped, expected ResetNeeded")


def check_repeats(env: TextEnv, seed: int, actions: Sequence[str]) -> None:
    """The same seed and actions give the same episode."""
    first, second = play(env, seed, actions), play(env, seed, actions)
    for turn, (one, other) in enumerate(zip(first, second, strict=False)):
        require(one == other, f"turn {turn} differs when it is repeated with the same seed: {one} and {other}")
    require(len(first) == len(second), "an episode that is repeated with the same seed has another length")


def check_forks(env: TextEnv, seed: int, actions: Sequence[str], others: Sequence[str]) -> None:
    """At every turn, a fork that gets the same actions does the same; one that gets others disturbs nobody.

    All forks of an episode are alive at the same time and take their turns in between each other's.

    Args:
        env: The environment.
        seed: Of the episode.
        actions: Of the parent and of the forks that follow it.
        others: Of the forks that go their own way, from the turn of the fork on.

    Raises:
        AssertionError: See `check_tool_env`.
    """
    expected = play(env, seed, actions)
    strayed = [play(env, seed, [*actions[:turn], *others])[turn:] for turn in range(len(expected))]
    env.reset(seed=seed)
    followers: list[TextEnv] = []
    strays: list[tuple[TextEnv, list[Outcome]]] = []
    for turn, right in enumerate(expected):
        followers.append(fork(env))
        strays.append((fork(env), []))
        for own, (stray, outcomes) in zip(strayed, strays, strict=False):
            if len(outcomes) < len(own):
                outcomes.append(take(stray, others[len(outcomes)]))
        for name, one in [("the parent", env), *(("a fork", follower) for follower in followers)]:
            outcome = take(one, actions[turn])
            require(outcome == right, f"turn {turn} of {name} is {outcome}, without forks it is {right}")
    for turn, (own, (stray, outcomes)) in enumerate(zip(strayed, strays, strict=True)):
        outcomes += proceed(stray, others[len(outcomes) : len(own)])
        require(outcomes == own, f"a fork at turn {turn} went on with {outcomes}, without forks it is {own}")


def check_snapshots(env: TextEnv, seed: int, actions: Sequence[str]) -> None:
    """At every turn, a snapshot survives JSON, and another environment that restores it goes on in the same way."""
    expected = play(env, seed, actions)
    for turn in range(len(expected) + 1):
        env.reset(seed=seed)
        proceed(env, actions[:turn])
        source, other = tool_env_of(env), tool_env_of(fork(env))
        state = source.snapshot()
        try:
            text = json.dumps(state, allow_nan=False)
        except (TypeError, ValueError) as error:
            raise AssertionError(f"the snapshot at turn {turn} is no JSON value: {error}") from error
        other.reset(seed=seed + 1)
        other.restore(json.loads(text))
        again = other.snapshot()
        require(again == json.loads(text), f"the snapshot at turn {turn} is {again} once restored, it was {state}")
        if turn < len(expected):
            outcomes = proceed(other, actions[turn : len(expected)])
            require(outcomes == expected[turn:], f"restored at turn {turn}, the episode goes on with {outcomes}")
        else:
            check_finished(other)
