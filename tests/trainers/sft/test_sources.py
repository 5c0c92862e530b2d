"""Demonstrations of environments' own solutions: which tasks are drawn, what they say, what is left out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forkgym.agents.codec import TokenizerCodec
from forkgym.envs.gsm8k import GSM8KEnv
from forkgym.envs.math_env import MathEnv
from forkgym.envs.mixture import MixtureEnv
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.envs.wordmath import WordMathEnv
from forkgym.trainers.rollouts.growth import Env
from forkgym.trainers.sft.demonstrations import Demonstration
from forkgym.trainers.sft.sources import Collected, collected, draw, from_environments
from tests.agents.tiny import byte_tokenizer

CODEC = TokenizerCodec(byte_tokenizer())
END = 260
T, F = True, False


def demonstrate(
    *envs: Env, count: int, weights: tuple[float, ...] | None = None, seed: int = 0
) -> list[Demonstration | str]:
    named = {f"env{place}": env for place, env in enumerate(envs)}
    return list(from_environments(named, weights, count, CODEC, END, np.random.default_rng(seed)))


def texts(found: Sequence[Demonstration | str]) -> list[str]:
    return [one if isinstance(one, str) else CODEC.decode(one.tokens) for one in found]


def written(demonstration: Demonstration | str) -> str:
    """What the policy writes, a bar between its turns."""
    assert isinstance(demonstration, Demonstration)
    turns: list[list[int]] = [[]]
    for token, own in zip(demonstration.tokens, demonstration.written, strict=True):
        if own:
            turns[-1].append(token)
        elif turns[-1]:
            turns.append([])
    return " | ".join(CODEC.decode(tuple(turn)) for turn in turns if turn)


class Sums:
    """As many tasks as there are solutions; a solution is the answer that an oracle gives, if any."""

    def __init__(self, name: str, answers: Sequence[str | None]) -> None:
        self.name = name
        self.answers = answers

    @property
    def size(self) -> int:
        return len(self.answers)

    def __getitem__(self, index: int) -> Task:
        answer = self.answers[index]
        solution = (SolutionStep(answer),) if answer is not None else ()
        return Task(f"{self.name}{index}", "7", uid=f"{self.name}/{index}", solution=solution)


def sums(name: str, *answers: str | None) -> MathEnv:
    return MathEnv(taskset=Sums(name, answers), tools=[])


def test_tasks_are_drawn_once_each() -> None:
    rng = np.random.default_rng(0)
    assert sorted(draw(5, 9, rng)) == [0, 1, 2, 3, 4]
    assert sorted(draw(5, None, rng)) == [0, 1, 2, 3, 4]
    assert len(set(draw(5, 3, rng))) == 3
    endless = draw(None, 1000, rng)
    assert len(set(endless)) == 1000
    assert max(endless) > 10**9
    assert draw(None, 10, np.random.default_rng(1)) == draw(None, 10, np.random.default_rng(1))


@pytest.mark.parametrize(("weights", "counts"), [(None, (2, 2)), ((3.0, 1.0), (3, 1))])
def test_they_are_shared_out_by_weight(weights: tuple[float, ...] | None, counts: tuple[int, int]) -> None:
    found = texts(demonstrate(sums("a", *"7" * 8), sums("b", *"7" * 8), count=4, weights=weights))
    prompts = [text.split("\n")[-2] for text in found]
    assert tuple(sum(prompt.startswith(name) for prompt in prompts) for name in "ab") == counts
    assert len(set(prompts)) == 4


def test_an_environment_with_few_tasks_gives_all_it_has() -> None:
    assert len(demonstrate(sums("a", "7"), sums("b", *"7" * 8), count=8)) == 1 + 4


def test_what_cannot_be_shown_is_left_out_with_the_reason() -> None:
    found = demonstrate(sums("a", "7", None, "8"), count=3)
    assert sorted(written(one) if isinstance(one, Demonstration) else one for one in found) == [
        "<answer>\\boxed{7}</answer>",
        "whose solution earns no full marks",
        "without a solution",
    ]


def test_the_annotations_of_gsm8k_become_calls(tmp_path: Path) -> None:
    answer = "She bakes 3*8=<<3*8=24>>24 rolls.\nThere are 24-4=<<24-4=20>>20 left.\n#### 20"
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps({"question": "Mia bakes 3 trays of 8 rolls and eats 4. How many?", "answer": answer}))
    (found,) = demonstrate(GSM8KEnv(split="train", path=str(path)), count=1)
    assert written(found) == (
        "<think>She bakes 3*8=</think><calculator>3*8</calculator> | "
        "<think>There are 24-4=</think><calculator>24-4</calculator> | <answer>\\boxed{20}</answer>"
    )
    assert texts([found])[0].endswith(
        "<calculator>3*8</calculator><result>24</result><think>There are 24-4=</think>"
        "<calculator>24-4</calculator><result>20</result><answer>\\boxed{20}</answer>"
    )


def test_the_real_annotations_are_shown_nearly_all(shared_data: Path) -> None:
    env = GSM8KEnv(split="train", path=str(shared_data / "gsm8k" / "train.jsonl"))
    found = demonstrate(env, count=100)
    assert len(found) == 100
    assert sum(isinstance(one, Demonstration) for one in found) >= 98


def test_a_mixture_is_shown_in_the_words_of_each_environment() -> None:
    env = MixtureEnv(envs={"forkgym/WordMath-v0": 1, "forkgym/MultiHop-v0": 1}, split="train")
    found = [written(one) for one in demonstrate(env, count=16)]
    assert 0 < sum("<search>" in text for text in found) < 16
    assert all(("<search>" in text) != ("<calculator>" in text) for text in found)


def test_the_seed_alone_decides() -> None:
    env = WordMathEnv(split="train")
    assert demonstrate(env, count=300) == demonstrate(env, count=300)
    assert demonstrate(env, count=3) != demonstrate(env, count=3, seed=1)


SHORT, LONG = Demonstration((1, 2), (F, T)), Demonstration((1, 2, 3, 4), (F, T, T, F))


def test_how_much_there_is_is_said_in_words() -> None:
    kept = collected(iter([SHORT, LONG, "without a solution", SHORT]), 3, "here")
    assert kept == Collected((SHORT, SHORT), {"too long (above 3 tokens)": 1, "without a solution": 1})
    assert str(kept) == (
        "2 demonstrations of 4 tokens, of which the policy writes 2 (50%) and learns from those alone. "
        "Left out: 1 of 4 (25.0%) too long (above 3 tokens), 1 of 4 (25.0%) without a solution."
    )
    assert str(collected(iter([LONG]), 4, "here")).endswith("Left out: none.")


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ([LONG], "sft.max_tokens is 3, but the shortest demonstration of here has 4 tokens"),
        (
            ["without a solution", "without a solution"],
            "here: no task can be demonstrated (2 without a solution), expected an environment whose tasks say how "
            "they are solved, or sft.conversations",
        ),
    ],
)
def test_where_nothing_is_left_the_reason_is_given(found: list[Any], message: str) -> None:
    with pytest.raises(ValueError) as refused:
        collected(iter(found), 3, "here")
    assert str(refused.value) == message
