"""Episodes that a tool or the clock ends."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import Task
from forkgym.tools.base import ToolStop, as_tool


def submit(text: str) -> str:
    """Hand something in; that ends the episode."""
    raise ToolStop(f"received {text}")


def shout(text: str) -> str:
    """Say it louder."""
    return text.upper()


class SubmitEnv(ToolEnv):
    """A tool ends the episode."""

    def __init__(self, time_limit_s: float | None = None) -> None:
        tools = [as_tool(submit, inline=True), as_tool(shout, inline=True)]
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


def test_the_clock_ends_the_episode_also_after_a_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("forkgym.envs.base.time.monotonic", lambda: now[0])
    env, twin = SubmitEnv(time_limit_s=3.0), SubmitEnv(time_limit_s=3.0)
    env.reset(options={"index": 0})
    now[0] = 102.0
    assert env.step("<shout>a</shout>")[3] is False
    state = env.snapshot()
    now[0] = 500.0  # another process, another clock
    twin.restore(state)
    now[0] = 501.5  # 2 s before, 1.5 s after
    _, _, terminated, truncated, info = twin.step("<shout>b</shout>")
    assert (terminated, truncated, info["stop_reason"]) == (False, True, "time_limit")


def test_a_negative_time_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"time_limit_s is -1"):
        SubmitEnv(time_limit_s=-1)
