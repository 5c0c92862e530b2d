"""Attempts to earn a reward without an answer: whole episodes of the ``arpo`` grammar from the corpus."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from forkgym.envs.base import ToolEnv
from forkgym.envs.math_env import MathEnv
from forkgym.envs.search_env import SearchQAEnv
from forkgym.envs.tasks import Task
from forkgym.tools.base import Tool, as_tool

# What the corpus expects otherwise, and why this project does not do it.
ANSWERED_OTHERWISE = {
    "reward-gsm_spray": "the last number counts, so a list of guesses is one guess: its last",
    "reward-gold_unparsable": "a row without a gold number is refused when it is loaded, see test_gsm8k.py",
}


class OneTask:
    size = 1

    def __init__(self, answer: str) -> None:
        self.answer = answer

    def __getitem__(self, index: int) -> Task:
        return Task("The question?", self.answer, uid=f"one/{index}")


def canned_tool(name: str, outputs: Iterator[str]) -> Tool:
    """A tool that returns what the corpus says its tools returned."""

    def canned(text: str) -> str:
        """Return the next output."""
        return next(outputs, "")

    return as_tool(canned, name=name, inline=True)


def play(row: dict[str, Any], *, in_answer: bool = False) -> dict[str, Any]:
    """Play the policy's turns until the episode ends; return the last ``info``, with the sum of all rewards."""
    segments: list[list[str]] = row["input"]["segments"]
    results = (text.removeprefix("<result>").removesuffix("</result>") for author, text in segments if author == "tool")
    tools = [canned_tool(name, results) for name in ("python", "search")]
    kind: type[ToolEnv] = SearchQAEnv if row["input"]["task"] == "qa" else MathEnv
    env = kind(taskset=OneTask(row["input"]["gold"]), tools=tools)
    env.reset(seed=0)
    total, info = 0.0, {"accuracy": 0.0}
    for author, text in segments:
        if author == "policy":
            action = f"<answer>{text}</answer>" if in_answer else text
            _, reward, terminated, truncated, step_info = env.step(action)
            total += reward
            info = {"accuracy": 0.0, **step_info}
            if terminated or truncated:
                break
    return {**info, "total": total}


def corpus(shared_data: Path) -> list[dict[str, Any]]:
    lines = (shared_data.parent / "attacks" / "reward.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_corpus_of_attempts(shared_data: Path) -> None:
    rows = corpus(shared_data)
    wrong: list[str] = []
    for row in rows:
        expect = row["expect"]
        outcome = play(row, in_answer=row["input"]["task"] == "gsm8k")
        if row["id"] not in ANSWERED_OTHERWISE and outcome["accuracy"] != expect["correct"]:
            wrong.append(f"{row['id']}: accuracy is {outcome['accuracy']}, expected {expect}")
        if outcome["total"] > expect.get("max_total", 1.0):
            wrong.append(f"{row['id']}: the reward is {outcome['total']}, expected {expect}")
        if outcome.get("reward/f1", 0.0) > expect.get("max_f1", 1.0):
            wrong.append(f"{row['id']}: F1 is {outcome['reward/f1']}, expected {expect}")
        if expect.get("official_em") and outcome["reward/official_exact_match"] != 1.0:
            wrong.append(f"{row['id']}: the official exact match is not reported")
    assert wrong == []
    assert len(rows) == 22


@pytest.mark.parametrize("name", ["reward-gsm_first", "reward-gsm_spray"])
def test_numbers_outside_an_answer_earn_nothing(shared_data: Path, name: str) -> None:
    (row,) = (row for row in corpus(shared_data) if row["id"] == name)
    assert play(row)["total"] == 0.0


def test_what_is_answered_otherwise(shared_data: Path) -> None:
    rows = {row["id"]: row for row in corpus(shared_data)}
    assert ANSWERED_OTHERWISE.keys() <= rows.keys()
    # Gold is 5, and the list of guesses ends with it; any other place in the list earns nothing.
    assert play(rows["reward-gsm_spray"], in_answer=True)["accuracy"] == 1.0
    assert play(rows["reward-gsm_first"], in_answer=True)["accuracy"] == 0.0
    # Where such a row got past the loader all the same, nothing equals what cannot be read.
    assert play(rows["reward-gold_unparsable"])["accuracy"] == 0.0
