"""`ToolEnv`: a Gymnasium environment over text, in which a policy calls tools and then answers."""

from __future__ import annotations

import copy
import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, SupportsIndex

import gymnasium as gym
import numpy as np
from gymnasium.error import ResetNeeded

from forkgym.envs.grammar import Call, Grammar, ParseError, resolve_grammar
from forkgym.envs.space import TextSpace
from forkgym.envs.tasks import StopReason, Task, Taskset
from forkgym.tools.base import Tool, ToolError, ToolSession, ToolStop
from forkgym.tools.limits import ToolTimeout, call_within_limit
from forkgym.tools.registry import resolve_tool

INFINITE_TASK_RANGE = 2**31
MAX_OBSERVATION_CHARACTERS = 1_000_000
MAX_RESULT_CHARACTERS = 100_000


@dataclass(frozen=True, slots=True)
class CallsDone:
    """What came of a turn's calls: the reply, the tools that ran, what was wrong, and whether a tool ended it all."""

    observation: str = ""
    tools: tuple[str, ...] = ()
    error: ParseError | None = None
    stopped: bool = False


class ToolEnv(gym.Env[str, str]):
    """Turns of text: the action is what the policy wrote, the observation is what is new to it.

    A subclass says where tasks come from (a ``taskset``, or ``task``) and how an answer is scored (``score``).

    A subclass with mutable state of its own also extends ``fork``, ``snapshot`` and ``restore``; `check_tool_env` finds
    out where one does not.

    Only the policy's text is parsed and scored. A malformed call gets a corrective observation, counts towards
    ``max_malformed`` in a row and may cost ``malformed_penalty``; no text raises. An answer terminates, and so does a
    tool that raises `ToolStop`; a limit truncates. ``info["stop_reason"]`` says which; it is None while the episode
    runs.

    The reward comes with the last step: the sum of ``reward_weights`` times the parts that ``score`` returns, each of
    which is in ``info`` as ``reward/NAME``. ``info["accuracy"]`` is the first part. ``reward/format`` is 1.0 where
    the episode was answered without a malformed turn; its weight is 0 unless given.

    Args:
        tools: Names, functions, classes or `Tool` objects.
        taskset: The tasks; None where the subclass overrides ``task``.
        grammar: A preset's name or a grammar object.
        max_turns: Policy turns of an episode, 1 or more.
        max_malformed: Malformed turns in a row that end the episode, 1 or more.
        malformed_penalty: Subtracted from the reward at each malformed turn, 0 or more.
        time_limit_s: Wall-clock time of an episode, seconds; it ends with the turn that reaches it. None for no limit,
            which keeps episodes deterministic.
        reward_weights: Weights by name of part, over the class's own.
        render_mode: None or "ansi" (``render`` returns the transcript).

    Raises:
        ValueError: A limit is out of range, a tool, grammar or part of the reward is unknown, or a tool's name has a
            meaning already.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # Gymnasium warns where there is no rate
    reward_weights: ClassVar[Mapping[str, float]] = {}
    held_out_split: ClassVar[str] = "test"  # the split that scripts evaluate on

    def __init__(  # noqa: PLR0913 - the keyword arguments of a Gymnasium id are flat
        self,
        *,
        tools: Sequence[str | Callable[..., Any] | Tool] = (),
        taskset: Taskset | None = None,
        grammar: str | Grammar = "arpo",
        max_turns: int = 6,
        max_malformed: int = 3,
        malformed_penalty: float = 0.0,
        time_limit_s: float | None = None,
        reward_weights: Mapping[str, float] | None = None,
        render_mode: str | None = None,
    ) -> None:
        for name, value, least in (
            ("max_turns", max_turns, 1),
            ("max_malformed", max_malformed, 1),
            ("malformed_penalty", malformed_penalty, 0),
            ("time_limit_s", 0 if time_limit_s is None else time_limit_s, 0),
        ):
            if value < least:
                raise ValueError(f"{name} is {value}, expected at least {least}")
        if render_mode not in (None, "ansi"):
            raise ValueError(f"render_mode is {render_mode!r}, expected None or 'ansi'")
        self.grammar = resolve_grammar(grammar)
        resolved = [self.resolve_tool(tool) for tool in tools]
        self.tools = {tool.name: tool for tool in resolved}
        self.tool_names = tuple(tool.name for tool in resolved)
        self._check_names()
        self.taskset = taskset
        self.max_turns = max_turns
        self.max_malformed = max_malformed
        self.malformed_penalty = malformed_penalty
        self.time_limit_s = time_limit_s
        self.weights = self._resolve_weights(reward_weights or {})
        self.render_mode = render_mode
        self.action_space = TextSpace()
        self.observation_space = TextSpace(max_length=MAX_OBSERVATION_CHARACTERS)
        self.instructions = self.grammar.instructions(tuple(self.tools.values()))
        self._running = False
        self._begun_s = 0.0
        self._task_index = 0
        self._task: Task | None = None
        self._transcript: list[tuple[str, str]] = []
        self._tool_calls = 0
        self._malformed = 0
        self._malformed_in_a_row = 0
        self._sessions: dict[str, ToolSession] = {}

    # What a subclass fills in.

    def resolve_tool(self, source: str | Callable[..., Any] | Tool) -> Tool:
        """Find a tool; a subclass that brings tools of its own by name overrides this."""
        return resolve_tool(source)

    def task(self, index: int) -> Task:
        """Return task ``index``; the taskset's by default."""
        if self.taskset is None:
            raise TypeError(f"{type(self).__name__} has no taskset and does not override task()")
        return self.taskset[index]

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """Score what stood between the answer's markers: named parts, the first of which is the accuracy.

        Any string is possible; what cannot be read earns 0.0, it never raises.
        """
        raise TypeError(f"{type(self).__name__} does not say how to score an answer: override score()")

    def extraction_failure(self, answer: str) -> str:
        """Why nothing could be read out of an answer; empty where something could."""
        del answer
        return ""

    def open_sessions(self, task: Task) -> dict[str, ToolSession]:
        """Start the tools' sessions for an episode of ``task``."""
        del task
        return {name: tool.new_session() for name, tool in self.tools.items()}

    # The Gymnasium contract.

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """Strings that end a policy turn."""
        return self.grammar.stop_strings(self.tool_names)

    @property
    def markers(self) -> tuple[str, ...]:
        """Strings that mean something to the grammar; tool output holds none of them inside its own markers."""
        return self.grammar.markers(self.tool_names)

    @property
    def current_task(self) -> Task:
        """The task of the running or last episode."""
        if self._task is None:
            raise ResetNeeded("no task yet: call reset() first")
        return self._task

    @property
    def num_tasks(self) -> int | None:
        """How many tasks there are, or None where they never end."""
        return self.taskset.size if self.taskset is not None else None

    @property
    def inline(self) -> bool:
        """Whether every tool is bounded in time and runs in the caller's thread."""
        return all(tool.inline for tool in self.tools.values())

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode.

        Args:
            seed: Seeds the draw of the task.
            options: ``{"index": i}`` names the task instead of drawing it.

        Returns:
            The instructions and the question, and ``info`` with both apart, the task's index and its ``uid``.

        Raises:
            ValueError: An unknown option, or an index that is not a whole number of 0 or more.
            IndexError: The index is past the end of the taskset.
        """
        super().reset(seed=seed)
        index = self._choose_index(options or {})
        self._task_index, self._task = index, self.task(index)
        self._transcript = []
        self._tool_calls = self._malformed = self._malformed_in_a_row = 0
        self._close_sessions()
        self._sessions = self.open_sessions(self._task)
        self._running = True
        self._begun_s = time.monotonic()
        info = {
            "instructions": self.instructions,
            "question": self._task.question,
            "task_index": float(index),
            "task_uid": self._task.uid,
        }
        return f"{self.instructions}\n\n{self._task.question}\n", info

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Take one turn of policy text.

        Returns:
            The new text (empty after an answer), the reward, terminated, truncated, ``info``.

        Raises:
            ResetNeeded: The episode is over, or none was started.
            TypeError: ``action`` is not a string.
        """
        if not self._running:
            raise ResetNeeded("the episode is over: call reset() before step()")
        if not isinstance(action, str):  # pyright: ignore[reportUnnecessaryIsInstance] - callers may have no types
            raise TypeError(f"an action is a string, got {type(action).__name__}")
        turn = self.grammar.parse(action, self.tool_names)
        last = len(self._transcript) + 1 >= self.max_turns
        done = CallsDone(error=turn.error)
        if turn.calls and not last:
            done = self._run(turn.calls)
        elif turn.error is not None:
            done = replace(
                done, observation=self.grammar.render_results([f"Error: {turn.correction}"], self.tool_names)
            )
        observation, error = done.observation, done.error
        malformed = error is not None
        self._malformed += malformed
        self._malformed_in_a_row = self._malformed_in_a_row + 1 if malformed else 0
        self._transcript.append((action, observation))

        stop = (
            StopReason.ANSWERED if turn.answer is not None else StopReason.TOOL_STOP if done.stopped else self._limit()
        )
        info: dict[str, Any] = {
            "stop_reason": None if stop is None else stop.value,
            "turns": float(len(self._transcript)),
            "tool_calls": float(self._tool_calls),
            "malformed": float(self._malformed),
            "error": "" if error is None else error.value,
            "tools": ",".join(done.tools),
        }
        reward = 0.0 - self.malformed_penalty if malformed else 0.0
        if stop is not None:
            self._running = False
            reward += self._final_reward(turn.answer, info)
        terminated = stop in (StopReason.ANSWERED, StopReason.TOOL_STOP)
        return observation, reward, terminated, stop is not None and not terminated, info

    def render(self) -> str | None:
        """Return the transcript so far in mode "ansi", None without a mode."""
        if self.render_mode is None:
            return None
        question = self.current_task.question
        return "\n".join([question, *(text for pair in self._transcript for text in pair if text)])

    def close(self) -> None:
        """Close the tools' sessions; a running episode ends."""
        self._running = False
        self._close_sessions()

    # Fork, snapshot, restore.

    def fork(self) -> ToolEnv:
        """Return an exact and independent copy, mid-episode: history, counters, random state, tool sessions.

        Tasks, tools and grammar are shared: they never change.
        """
        twin = copy.copy(self)
        twin.action_space = copy.deepcopy(self.action_space)  # a space draws samples from a generator of its own
        twin.observation_space = copy.deepcopy(self.observation_space)
        twin._transcript = list(self._transcript)
        twin._sessions = {name: session.fork() for name, session in self._sessions.items()}
        if self._np_random is not None:
            twin._np_random = generator_at(self._np_random.bit_generator.state)
        return twin

    def snapshot(self) -> dict[str, Any]:
        """Return the whole state of the episode as a JSON value."""
        return {
            "task_index": None if self._task is None else self._task_index,
            "running": self._running,
            "transcript": [list(pair) for pair in self._transcript],
            "tool_calls": self._tool_calls,
            "malformed": self._malformed,
            "malformed_in_a_row": self._malformed_in_a_row,
            "elapsed_s": None if self.time_limit_s is None else time.monotonic() - self._begun_s,
            "sessions": {name: session.snapshot() for name, session in self._sessions.items()},
            "random": None if self._np_random is None else dict(self._np_random.bit_generator.state),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take on a state that ``snapshot`` returned, in this process or another with the same arguments.

        Raises:
            KeyError: ``state`` is not a snapshot.
        """
        index = state["task_index"]
        self._task_index, self._task = (0, None) if index is None else (index, self.task(index))
        self._running = state["running"]
        self._transcript = [(action, observation) for action, observation in state["transcript"]]
        self._tool_calls = state["tool_calls"]
        self._malformed = state["malformed"]
        self._malformed_in_a_row = state["malformed_in_a_row"]
        self._begun_s = time.monotonic() - (state["elapsed_s"] or 0.0)
        self._close_sessions()
        if self._task is not None and state["sessions"]:
            self._sessions = self.open_sessions(self._task)
        for name, session_state in state["sessions"].items():
            self._sessions[name].restore(session_state)
        self._np_random = None if state["random"] is None else generator_at(state["random"])

    # Details.

    def _check_names(self) -> None:
        for place, name in enumerate(self.tool_names):
            own = self.grammar.markers((name,))
            if name in self.tool_names[:place] or len(set(own)) < len(own):
                raise ValueError(f"tool {name!r}: expected a name that no other tool or marker has")

    def _resolve_weights(self, given: Mapping[str, float]) -> dict[str, float]:
        weights = {"format": 0.0, **self.reward_weights}
        unknown = set(given) - set(weights)
        # A class that lists no weights leaves the names of its parts to ``score``.
        if unknown and self.reward_weights:
            raise ValueError(f"reward_weights has {min(unknown)!r}, expected some of {', '.join(sorted(weights))}")
        return {**weights, **given}

    def _choose_index(self, options: Mapping[str, Any]) -> int:
        unknown = set(options) - {"index"}
        if unknown:
            raise ValueError(f"reset option {sorted(unknown)[0]!r}: expected only 'index'")
        size = self.num_tasks
        if "index" not in options:
            return int(self.np_random.integers(size if size is not None else INFINITE_TASK_RANGE))
        index = options["index"]
        if isinstance(index, bool) or not isinstance(index, SupportsIndex) or operator.index(index) < 0:
            raise ValueError(f"reset option 'index' is {index!r}, expected a whole number of 0 or more")
        if size is not None and operator.index(index) >= size:
            raise IndexError(f"reset option 'index' is {index}, but there are {size} tasks")
        return operator.index(index)

    def _limit(self) -> StopReason | None:
        """Return the limit that the episode has reached, if any."""
        if self._malformed_in_a_row >= self.max_malformed:
            return StopReason.MALFORMED
        if len(self._transcript) >= self.max_turns:
            return StopReason.TURN_LIMIT
        if self.time_limit_s is not None and time.monotonic() - self._begun_s > self.time_limit_s:
            return StopReason.TIME_LIMIT
        return None

    def _run(self, calls: Sequence[Call]) -> CallsDone:
        outputs: list[str] = []
        tools: list[str] = []
        error: ParseError | None = None
        stopped = False
        for call in calls:
            tool = self.tools[call.tool]
            try:
                arguments = tool.arguments_from_text(call.text)
            except ToolError as mistake:
                outputs.append(f"Error: {mistake}")
                error = ParseError.BAD_ARGUMENTS
                continue
            self._tool_calls += 1
            tools.append(call.tool)
            try:
                outputs.append(call_within_limit(tool, self._sessions[call.tool], arguments))
            except ToolError as mistake:
                outputs.append(f"Error: {mistake}")
            except ToolStop as stop:
                outputs.append(str(stop))
                stopped = True
            except ToolTimeout as timeout:
                outputs.append(f"Error: {timeout}; its session starts afresh.")
                self._renew_session(call.tool)
        observation = self.grammar.render_results([shortened(output) for output in outputs], self.tool_names)
        return CallsDone(observation, tuple(tools), error, stopped)

    def _renew_session(self, name: str) -> None:
        """Replace a session whose call was given up: that call may still be at work in it, so it is not closed."""
        fresh = self.open_sessions(self.current_task)
        self._sessions[name] = fresh.pop(name)
        for session in fresh.values():
            session.close()

    def _final_reward(self, answer: str | None, info: dict[str, Any]) -> float:
        """Score the episode, write the parts into ``info`` and return their weighted sum."""
        parts: dict[str, float] = {name: 0.0 for name in self.weights}
        accuracy = 0.0
        extraction = "no answer"
        if answer is not None:
            scored = {name: float(value) for name, value in self.score(answer, self.current_task).items()}
            accuracy = next(iter(scored.values()), 0.0)
            parts |= scored
            parts["format"] = float(self._malformed == 0)
            extraction = self.extraction_failure(answer)
        elif not self.reward_weights:  # only ``score`` knows the names of the parts
            parts |= dict.fromkeys(self.score("", self.current_task), 0.0)
        info |= {f"reward/{name}": value for name, value in parts.items()}
        info["accuracy"] = accuracy
        info["extraction"] = extraction
        return sum(self.weights.get(name, 1.0) * value for name, value in parts.items())

    def _close_sessions(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions = {}


def shortened(output: str) -> str:
    """Cut a tool's output to what fits into an observation, and say so."""
    if len(output) <= MAX_RESULT_CHARACTERS:
        return output
    return f"{output[:MAX_RESULT_CHARACTERS]}\n[cut: {len(output)} characters, {MAX_RESULT_CHARACTERS} shown]"


def generator_at(state: Mapping[str, Any]) -> np.random.Generator:
    """A generator in this state, as Gymnasium makes them; three times as fast as a deep copy of one."""
    generator = np.random.Generator(np.random.PCG64(0))
    generator.bit_generator.state = state
    return generator
