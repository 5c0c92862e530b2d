"""Trees whose environment holds processes: branches keep the variables that they left, and nothing is left over."""

from __future__ import annotations

from collections.abc import Mapping

import gymnasium as gym
import pytest

from forkgym.agents.base import Request
from forkgym.agents.scripted import ScriptedAgent
from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import Task
from forkgym.tools.sandbox.client import SandboxServer
from forkgym.trainers.config import BranchingConfig, RolloutConfig
from forkgym.trainers.rollouts.rollout import RolloutSettings, TaskRef, roll_out


class CountEnv(ToolEnv):
    """Every answer is right; code has variables."""

    def __init__(self) -> None:
        super().__init__(tools=["python"])

    def task(self, index: int) -> Task:
        """Task ``index``: always the same question."""
        return Task("What?", "Y", uid=f"count/{index}")

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """1.0 for anything."""
        return {"correct": 1.0}


def write(request: Request, turn: int) -> str:
    """Define a variable, double it twice, answer; a trajectory's own seed shows in what it doubles by."""
    if turn == 0:
        return "<python>import random\nx = 3\nrandom.random()</python>"
    if turn < 3:
        return f"<python>x *= 2\n(x, {request.seed % 2}, random.random())</python>"
    return "<answer>Y</answer>"


class Ledger:
    """Which sessions of the sandbox are open."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened: set[int] = set()
        self.closed: set[int] = set()
        new_session, close_session = SandboxServer.new_session, SandboxServer.close_session

        def note_new(server: SandboxServer) -> int:
            session = new_session(server)
            self.opened.add(session)
            return session

        def note_closed(server: SandboxServer, session: int) -> None:
            self.closed.add(session)
            close_session(server, session)

        monkeypatch.setattr(SandboxServer, "new_session", note_new)
        monkeypatch.setattr(SandboxServer, "close_session", note_closed)


def test_branches_go_on_from_the_variables_that_they_left(monkeypatch: pytest.MonkeyPatch) -> None:
    ledger = Ledger(monkeypatch)
    envs: dict[str, gym.Env[str, str]] = {"count": CountEnv()}
    config = RolloutConfig(
        num_generations=8, initial_generations=2, branching=BranchingConfig(rule="threshold", threshold=0.4, tokens=4)
    )
    settings = RolloutSettings(config, branching="entropy", temperature=1.0, seed=(0,))
    rollout = roll_out(ScriptedAgent(write), envs, [TaskRef("count", 0), TaskRef("count", 1)], settings)
    assert rollout.tool_failures == 0
    for group in rollout.groups:
        assert len(group.trajectories) == 8
        assert len([turn for turn in group.turns if turn.parent is None]) == 2  # six branched off
        first = group.turns[0].observation
        for trajectory in group.trajectories:
            path = group.path(trajectory.leaf)
            # Sessions begin with the same randomness, and a fork goes on with the same.
            assert path[0].observation == first
            assert [turn.observation.startswith(f"<result>({3 * 2**k}, ") for k, turn in enumerate(path[1:3], 1)] == [
                True,
                True,
            ]
        draws = {turn.observation.rpartition(", ")[2] for turn in group.turns if turn.uid.endswith("d1")}
        assert len(draws) == 1
    # Each trajectory of both trees has a session, a branch one of its own; all are given back.
    assert len(ledger.opened) >= 16
    assert ledger.closed == ledger.opened
