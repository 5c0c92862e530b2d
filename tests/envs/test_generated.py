"""The generated environments: right, seeded, without an end, and with nothing shared between the splits."""

from __future__ import annotations

import re
from fractions import Fraction
from typing import Any

import gymnasium as gym
import pytest

import forkgym.envs
from forkgym.envs.base import ToolEnv
from forkgym.envs.multihop import LEVELS as HOP_LEVELS
from forkgym.envs.multihop import MultiHopTaskset, volume_index
from forkgym.envs.names import split_of
from forkgym.envs.wordmath import LEVELS, WordMathTaskset
from forkgym.tools.calculator import evaluate

assert forkgym.envs.ENVS  # the import registers the ids
GENERATED = ("forkgym/WordMath-v0", "forkgym/MultiHop-v0")
ANNOTATION = re.compile(r"<<([^=]+)=([^>]+)>>")
NAME = re.compile(r"\b[A-Z](?:[a-z]{5})\b")


def make(env_id: str, **options: Any) -> ToolEnv:
    env: Any = gym.make(env_id, **options).unwrapped
    assert isinstance(env, ToolEnv)
    return env


@pytest.mark.parametrize("env_id", GENERATED)
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("difficulty", [1, 2, 3])
def test_the_oracle_solves_every_task(env_id: str, split: str, difficulty: int) -> None:
    env = make(env_id, split=split, difficulty=difficulty)
    for index in range(40):
        env.reset(options={"index": index})
        reward, terminated, info = 0.0, False, dict[str, Any]()
        for step in env.current_task.solution:
            _, reward, terminated, truncated, info = env.step(env.render_step(step))
            assert not truncated
            assert info["error"] == ""
        assert terminated
        assert reward == info["accuracy"] == 1.0


@pytest.mark.parametrize("env_id", GENERATED)
def test_answering_at_once_earns_nothing(env_id: str) -> None:
    env = make(env_id, split="train")
    for index in range(50):
        _, info = env.reset(options={"index": index})
        guess = re.findall(r"\d+|[A-Z][a-z]{5}", info["question"])[0]
        assert env.step(f"<answer>{guess}</answer>")[4]["accuracy"] == 0.0


@pytest.mark.parametrize("taskset", [WordMathTaskset, MultiHopTaskset])
def test_a_task_is_the_same_always(taskset: type[WordMathTaskset] | type[MultiHopTaskset]) -> None:
    first, second = taskset("train", 1), taskset("train", 1)
    assert [first[index] for index in (0, 5, 10**9)] == [second[index] for index in (0, 5, 10**9)]
    assert len({first[index].question for index in range(300)}) > 280


def test_splits_share_no_name() -> None:
    for split in ("train", "test"):
        for index in range(200):
            math, hop = WordMathTaskset(split, 1)[index], MultiHopTaskset(split, 1).row(index)
            people = NAME.findall(math.question)
            things = re.findall(r"How many ([a-z]{6})s ", math.question)
            titles = hop["context"]["title"]
            mentioned = NAME.findall(" ".join(text for texts in hop["context"]["sentences"] for text in texts))
            names = [name for name in (*people, *things, *titles, *mentioned) if is_made_up(name)]
            assert len(names) > 26
            assert {split_of(name) for name in names} == {split}


def is_made_up(name: str) -> bool:
    return all(letter in ("bdfgklmnprstvz", "aeiou")[place % 2] for place, letter in enumerate(name.lower()))


def test_word_problems_have_gsm8ks_layout() -> None:
    for difficulty, level in LEVELS.items():
        taskset = WordMathTaskset("train", difficulty)
        for index in range(100):
            row, task = taskset.row(index), taskset[index]
            annotations = ANNOTATION.findall(row["answer"])
            assert level.fewest_steps <= len(annotations) <= level.most_steps
            assert all(evaluate(expression) == Fraction(value) for expression, value in annotations)
            assert row["answer"].endswith(f"#### {task.answer}")
            assert row["question"] == task.question
            assert annotations[-1][1] == task.answer
            assert 0 < int(task.answer) <= level.largest_value


def test_questions_have_hotpotqas_layout() -> None:
    for difficulty, level in HOP_LEVELS.items():
        taskset = MultiHopTaskset("test", difficulty)
        for index in range(40):
            row = taskset.row(index)
            titles = row["supporting_facts"]["title"]
            assert len(titles) in level.hops
            assert len(set(titles)) == len(titles)
            assert set(titles) <= set(row["context"]["title"])
            # Each hop's article names the next entity; the last one names the answer.
            articles = dict(zip(row["context"]["title"], row["context"]["sentences"], strict=True))
            for title, following in zip(titles, [*titles[1:], row["answer"]], strict=True):
                assert following in articles[title][0]
            assert row["answer"] not in row["question"]


def test_a_search_for_an_entity_finds_its_article_first() -> None:
    for difficulty in HOP_LEVELS:
        volume, index = volume_index("train", difficulty, 3)
        for passage in volume.passages():
            assert index.search(passage.title, 2)[0] == passage


def test_a_search_covers_the_volume_of_the_task() -> None:
    env = make("forkgym/MultiHop-v0", split="train")
    for task in (0, 400):
        env.reset(options={"index": task})
        step = env.current_task.solution[0]
        other = make("forkgym/MultiHop-v0", split="train")
        other.reset(options={"index": 40_000})
        assert step.argument in env.step(env.render_step(step))[0]
        assert other.step(env.render_step(step))[0] == "<result>No results.</result>"


@pytest.mark.parametrize("env_id", GENERATED)
@pytest.mark.parametrize(("option", "value"), [("split", "validation"), ("difficulty", 4)])
def test_unknown_splits_and_difficulties_are_refused(env_id: str, option: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"{option} .*{value}.*expected one of"):
        make(env_id, **{option: value})
