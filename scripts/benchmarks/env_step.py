"""CPU time of what an environment does in a rollout: a step, a step with a tool, an answer, a fork, a reset.

Run ``python scripts/benchmarks/env_step.py``. It prints medians in microseconds of process CPU time, for the bare
environment and through ``gymnasium.make``. The project's limit for a step without tools is 20 µs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
from rich.console import Console
from rich.table import Table

import forkgym.envs
from forkgym.envs.base import ToolEnv

ENV_ID = "forkgym/WordMath-v0"
REPEATS = 2_000
EPISODE_TURNS = 8
LIMIT_US = 20.0

THOUGHT = "<think>There are 3 bags with 5 apples each, so I multiply first.</think>"
CALL = f"{THOUGHT}<calculator>3*5</calculator>"
ANSWER = f"{THOUGHT}<answer>\\boxed{{15}}</answer>"

TextEnv = gym.Env[str, str]


def main() -> None:
    """Measure and print."""
    # No turn of an episode below is its last but where that is the point.
    arguments: dict[str, Any] = {"max_turns": 2 * EPISODE_TURNS, "max_malformed": 2 * EPISODE_TURNS}
    wrapped: TextEnv = gym.make(ENV_ID, **arguments)
    bare: TextEnv = gym.make(ENV_ID, **arguments).unwrapped
    assert isinstance(bare, ToolEnv)
    measurements: dict[str, Callable[[TextEnv], float]] = {
        f"step without a tool (limit {LIMIT_US:g})": lambda env: median_step(env, THOUGHT),
        "step with the calculator": lambda env: median_step(env, CALL),
        "step with an answer": median_answer,
        "fork": median_fork,
        "reset, task included": lambda env: median([lambda: env.reset(options={"index": 3})] * REPEATS),
    }
    table = Table("CPU time, µs (median)", "bare", "gymnasium.make")
    for name, measure in measurements.items():
        table.add_row(name, f"{measure(bare):.1f}", f"{measure(wrapped):.1f}")
    Console().print(table)


def median(actions: list[Callable[[], object]]) -> float:
    """The median CPU time of some actions, microseconds."""
    times_ns: list[int] = []
    for action in actions:
        start = time.process_time_ns()
        action()
        times_ns.append(time.process_time_ns() - start)
    return statistics.median(times_ns) / 1_000


def median_step(env: TextEnv, action: str) -> float:
    """Take the same action over and over, in episodes that do not end."""
    medians: list[float] = []
    for _ in range(REPEATS // EPISODE_TURNS):
        env.reset(options={"index": 3})
        medians.append(median([lambda: env.step(action)] * EPISODE_TURNS))
    return statistics.median(medians)


def median_answer(env: TextEnv) -> float:
    """Answer at once, episode after episode."""
    medians: list[float] = []
    for _ in range(REPEATS):
        env.reset(options={"index": 3})
        medians.append(median([lambda: env.step(ANSWER)]))
    return statistics.median(medians)


def median_fork(env: TextEnv) -> float:
    """Fork in the middle of an episode."""
    env.reset(seed=0)  # with a random state to copy
    for _ in range(EPISODE_TURNS // 2):
        env.step(CALL)
    return median([lambda: forkgym.envs.fork(env)] * REPEATS)


if __name__ == "__main__":
    main()
