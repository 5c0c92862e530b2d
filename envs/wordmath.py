"""WordMath: generated word problems in GSM8K's layout, without an end and without a data file."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from forkgym.envs.math_env import MathEnv
from forkgym.envs.names import check_split, draw_names, seeded
from forkgym.envs.tasks import SolutionStep, Task

WORDMATH_SEED = 1  # keeps these draws apart from those of the other generated environment


@dataclass(frozen=True, slots=True)
class Level:
    """One difficulty: how many calculations a problem takes, and the largest number in its text and as its result."""

    fewest_steps: int
    most_steps: int
    largest_number: int
    largest_value: int


LEVELS = {
    1: Level(2, 3, 20, 200),
    2: Level(3, 5, 90, 2_000),
    3: Level(5, 8, 900, 100_000),
}


@dataclass(frozen=True, slots=True)
class Story:
    """A problem while it is told: its sentences, its calculations as (left, operator, right, value), its state."""

    sentences: tuple[str, ...]
    calculations: tuple[tuple[int, str, int, int], ...]
    value: int

    def told(self, sentence: str, *pairs: tuple[int, str, int]) -> Story:
        """Continue with a sentence and the calculations that it asks for; the last one's value is the new state."""
        done = tuple((left, operator, right, calculate(left, operator, right)) for left, operator, right in pairs)
        return Story((*self.sentences, sentence), self.calculations + done, done[-1][3])


def calculate(left: int, operator: str, right: int) -> int:
    """Apply one of ``+ - * /`` to whole numbers; a division leaves no rest."""
    if operator == "+":
        return left + right
    if operator == "-":
        return left - right
    if operator == "*":
        return left * right
    assert left % right == 0
    return left // right


GAINS = ("{b} more are found", "{b} more are bought", "{b} more arrive")
LOSSES = ("{b} are given away", "{b} get lost", "{b} are sold")
GROUPS = ("{k} boxes of {b} are bought", "{k} friends bring {b} each")


def begin(rng: np.random.Generator, level: Level, thing: str) -> Story:
    """Tell how many things there are at first: a number, or some bags of as many each."""
    if rng.random() < 0.5:
        start = int(rng.integers(5, level.largest_number + 1))
        return Story((f"{{name}} has {start} {thing}.",), (), start)
    bags = int(rng.integers(2, 7))
    each = int(rng.integers(2, max(3, level.largest_number // 2)))
    return Story((), (), 0).told(f"{{name}} has {bags} bags with {each} {thing} each.", (bags, "*", each))


def go_on(rng: np.random.Generator, level: Level, story: Story) -> Story:
    """Tell one more event: something found, lost, bought in groups, multiplied or shared."""
    value = story.value
    number = int(rng.integers(2, level.largest_number + 1))
    kind = rng.choice(["gain", "loss", "groups", "times", "share"], p=[0.26, 0.3, 0.14, 0.15, 0.15])
    if kind == "loss" and value > 3:
        number = int(rng.integers(2, min(value, level.largest_number + 1)))
        return story.told(f"Then {rng.choice(LOSSES).format(b=number)}.", (value, "-", number))
    if kind == "groups":
        groups, each = int(rng.integers(2, 6)), int(rng.integers(2, 11))
        added = groups * each
        sentence = f"Then {rng.choice(GROUPS).format(k=groups, b=each)}."
        return story.told(sentence, (groups, "*", each), (value, "+", added))
    factor = int(rng.integers(2, 5))
    if kind == "times" and value * factor <= level.largest_value:
        return story.told(f"Then the number grows {factor} times.", (value, "*", factor))
    divisors = [divisor for divisor in range(2, 7) if value % divisor == 0 and value > divisor]
    if kind == "share" and divisors:
        parts = int(rng.choice(divisors))
        return story.told(f"Then {parts} equal parts are made and one is kept.", (value, "/", parts))
    return story.told(f"Then {rng.choice(GAINS).format(b=number)}.", (value, "+", number))


def tell(rng: np.random.Generator, level: Level, thing: str) -> Story:
    """Tell a whole problem with as many calculations as the level asks for."""
    steps = int(rng.integers(level.fewest_steps, level.most_steps + 1))
    while True:
        story = begin(rng, level, thing)
        while len(story.calculations) < steps:
            story = go_on(rng, level, story)
        if len(story.calculations) == steps and story.value <= level.largest_value:
            return story


class WordMathTaskset:
    """Word problems without an end.

    Args:
        split: "train" or "test"; they share no name, so no task.
        difficulty: A key of ``LEVELS``.
    """

    size: int | None = None

    def __init__(self, split: str = "train", difficulty: int = 1) -> None:
        check_split(split)
        if difficulty not in LEVELS:
            raise ValueError(f"difficulty {difficulty!r}: expected one of {', '.join(map(str, LEVELS))}")
        self.split = split
        self.difficulty = difficulty

    def __getitem__(self, index: int) -> Task:
        """Return task ``index``, the same always."""
        question, story, _ = self._tell(index)
        answer = str(story.value)
        calls = [f"{left}{operator}{right}" for left, operator, right, _ in story.calculations]
        return Task(
            question=question,
            answer=answer,
            uid=f"wordmath-{self.difficulty}/{self.split}/{index}",
            solution=(*(SolutionStep(call, "calculator") for call in calls), SolutionStep(answer)),
        )

    def row(self, index: int) -> dict[str, str]:
        """Return task ``index`` as a row in GSM8K's layout, with its calculator annotations."""
        question, story, thing = self._tell(index)
        lines = [
            f"{left}{operator}{right}=<<{left}{operator}{right}={value}>>{value} {thing}"
            for left, operator, right, value in story.calculations
        ]
        return {"question": question, "answer": "\n".join([*lines, f"#### {story.value}"])}

    def _tell(self, index: int) -> tuple[str, Story, str]:
        """Make up the question, the story behind it, and what it counts."""
        rng = seeded(self.split, WORDMATH_SEED, self.difficulty, index)
        name, thing = draw_names(rng, self.split, 2)
        thing = thing.lower() + "s"
        story = tell(rng, LEVELS[self.difficulty], thing)
        question = " ".join((*story.sentences, f"How many {thing} does {{name}} have?")).format(name=name)
        return question, story, thing


@lru_cache(maxsize=16)
def wordmath_taskset(split: str, difficulty: int) -> WordMathTaskset:
    """Return the taskset, one object a process."""
    return WordMathTaskset(split, difficulty)


class WordMathEnv(MathEnv):
    """Generated word problems of several steps, with a calculator at hand.

    Args:
        split: "train" or "test".
        difficulty: 1 takes two or three calculations with small numbers, 2 three to five, 3 five to eight.
        max_turns: Policy turns of an episode.
        **options: As `ToolEnv` takes them.
    """

    def __init__(
        self, *, split: str = "train", difficulty: int = 1, max_turns: int | None = None, **options: Any
    ) -> None:
        taskset = wordmath_taskset(split, difficulty)
        turns = LEVELS[difficulty].most_steps + 3 if max_turns is None else max_turns
        options.setdefault("tools", ("calculator",))
        super().__init__(taskset=taskset, max_turns=turns, **options)
