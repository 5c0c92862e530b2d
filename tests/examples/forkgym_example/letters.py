"""Count a letter in a made-up word."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from forkgym.envs.base import ToolEnv
from forkgym.envs.grading import final_answer
from forkgym.envs.names import check_split, draw_names, seeded
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.tools.base import ToolError


def count_letter(word: str, letter: str) -> str:
    """Say how often a letter stands in a word."""
    if len(letter) != 1:
        raise ToolError(f"letter is {letter[:80]!r}, expected one letter")
    return str(word.count(letter))


class LettersEnv(ToolEnv):
    """How often does a letter stand in a word? Reward 1.0 for the right number; no word is in both splits."""

    reward_weights: ClassVar[Mapping[str, float]] = {"correct": 1.0}

    def __init__(self, *, split: str = "train", tools: Sequence[Any] = (count_letter,), **options: Any) -> None:
        check_split(split)
        self.split = split
        super().__init__(tools=tools, **options)

    def task(self, index: int) -> Task:
        """Task ``index``: a word, and one of its letters."""
        rng = seeded(self.split, index)
        word = draw_names(rng, self.split, 1)[0].lower()
        letter = word[int(rng.integers(len(word)))]
        answer = str(word.count(letter))
        call = SolutionStep(json.dumps({"word": word, "letter": letter}), tool="count_letter")
        uid = f"letters/{self.split}/{index}"
        return Task(f"How often is {letter} in {word}?", answer, uid, solution=(call, SolutionStep(answer)))

    def score(self, answer: str, task: Task) -> dict[str, float]:
        """Compare the answer with the number."""
        return {"correct": float(final_answer(answer) == task.answer)}
