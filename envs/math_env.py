"""Questions whose answer is one number: what GSM8K and generated word problems share."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import ClassVar

from forkgym.envs.base import ToolEnv
from forkgym.envs.grading import NoNumber, final_answer, number_in
from forkgym.envs.tasks import Task


class MathEnv(ToolEnv):
    r"""Scores an answer by value: ``correct`` is 1.0 where the last number in it equals the task's, else 0.0.

    ``final_answer`` and ``number_in`` say what is read: ``\boxed{72}``, ``#### $72``, ``72.``, ``72.0`` and
    ``1,000`` are numbers, and the last one counts. Values are exact fractions: 42.0000001 is not 42.
    """

    reward_weights: ClassVar[Mapping[str, float]] = {"correct": 1.0}

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """Compare the answer's number with the task's."""
        number, gold = answered_number(answer), number_in(task.answer)
        # Two failures to read a number may be equal to each other; they are no equal numbers.
        return {"correct": float(isinstance(number, Fraction) and number == gold)}

    def extraction_failure(self, answer: str) -> str:
        """Why no number could be read; empty where one could."""
        number = answered_number(answer)
        return "" if isinstance(number, Fraction) else number.value


@lru_cache(maxsize=8)  # score and extraction_failure ask for the same answer in turn
def answered_number(answer: str) -> Fraction | NoNumber:
    """The number that an answer gives, or why it gives none."""
    return number_in(final_answer(answer))
