"""Episodes that a tool or the clock ends."""

from __future__ import annotations

import time
from collections.abc import Mapping

import pytest

from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import Task
from forkgym.tools.base import ToolStop, as_tool


def submit(text: str) -> str:
    """Hand something in; that ends the episode."""
    raise ToolStop(f"received {text}")


def nap(text: str) -> str:
    """Sleep for a moment."""
    time.sleep(0.02)
    return text


class SubmitEnv(ToolEnv):
    """A tool ends the episode."""

    def __init__(self, time_limit_s: float | None = None) -> None:
        tools = [as_tool(submit, inline=True), as_tool(nap, inline=True)]
        super().__init__(tools=tools, time_limit_s=time_limit_s)

    def task(self, index: int) -> Task:
        return Task("?", "!")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        return {"correct": 1.0}


def test_a_tool_ends_the_episode() -> None:
    env = SubmitEnv()
    env.reset(options={"index": 0})
    observation, reward, terminated, truncated, info = env.step("<submit>x</submit>")
    assert (observation, reward, terminated, truncated) == ("<result>received x</result>", 0.0, True, False)
    assert info["stop_reason"] == "tool_stop"
    assert info["accuracy"] == 0.0


def test_the_clock_ends_the_episode_also_after_a_restore() -> None:
    env = SubmitEnv(time_limit_s=0.03)
    env.reset(options={"index": 0})
    assert env.step("<nap>a</nap>")[3] is False
    twin = SubmitEnv(time_limit_s=0.03)
    twin.restore(env.snapshot())
    for one in (env, twin):
        _, _, terminated, truncated, info = one.step("<nap>b</nap>")
        assert (terminated, truncated, info["stop_reason"]) == (False, True, "time_limit")


def test_a_negative_time_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"time_limit_s is -1"):
        SubmitEnv(time_limit_s=-1)
