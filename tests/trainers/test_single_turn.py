"""An environment without tools is trained like any other: one turn is the whole trajectory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from forkgym.envs.base import ToolEnv
from forkgym.envs.tasks import SolutionStep, Task
from tests.test_scripts import TINY_RUN, load

WORDS = ("harbour", "lantern", "meadow", "thimble", "orchard")


class FirstLetterEnv(ToolEnv):
    """What does a word begin with? Reward 1.0 where the answer is its first letter, a part of it for any letter."""

    reward_weights: ClassVar[Mapping[str, float]] = {"correct": 1.0, "one_letter": 0.1}

    def __init__(self, *, split: str = "train", grammar: str = "arpo") -> None:
        super().__init__(grammar=grammar, max_turns=1)
        self.split = split

    def task(self, index: int) -> Task:
        """Task ``index``: one of five words."""
        word = WORDS[index % len(WORDS)]
        question = f"What is the first letter of {word}?"
        return Task(question, word[0], uid=f"letters/{self.split}/{index}", solution=(SolutionStep(word[0]),))

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """Compare the letter."""
        return {"correct": float(answer.strip() == task.answer), "one_letter": float(len(answer.strip()) == 1)}


def test_a_run_of_single_turns(tmp_path: Path) -> None:
    script = load("train_arpo")
    run = tmp_path / "run"
    arguments = ["--env.id", f"{__name__}:FirstLetterEnv", "--run_dir", str(run)]
    assert script.main(script.read_config([*TINY_RUN, *arguments])) == 0
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["turns/mean"] == 1.0 and row["tool_calls/mean"] == 0.0 for row in rows)
    assert all(row["branches/fraction"] == 0.0 for row in rows)  # there is no tool boundary to branch at
    assert all(row["tokens/sampled"] == row["tokens/in_trajectories"] > 0 for row in rows)
    results = json.loads((run / "evaluation.json").read_text())
    assert results["after"][f"{__name__}:FirstLetterEnv"]["turns/mean"] == 1.0
