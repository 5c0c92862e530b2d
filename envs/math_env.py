"""Questions whose answer is one number, as GSM8K's are, or mathematics of any kind: how an answer is scored."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from functools import lru_cache
from typing import Any, ClassVar

from forkgym.envs.base import ToolEnv
from forkgym.envs.grading import NoNumber, final_answer, number_in
from forkgym.envs.tasks import Task
from forkgym.envs.verification.math_text import choice, key, restates, sides, tidy
from forkgym.envs.verification.verifier import Verdict, verdict_on
from forkgym.envs.verification.verify_process import shared_process
from forkgym.tools.base import ToolFailure


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


class VerifiedMathEnv(ToolEnv):
    """Scores an answer as mathematics: ``correct`` is 1.0 where it means the same as the task's, else 0.0.

    `verifier` says what means the same. An expression that is copied out of the question instead of worked out earns
    nothing, and neither does one whose comparison takes longer than its limit; ``reward/grading_timeout`` is 1.0 then,
    with weight 0, so that metrics count it.

    An episode whose gold answer nothing can be held against, or whose comparison fails for a reason that is not the
    model's, ends with the stop reason ``tool_failure``: it is not scored.
    """

    reward_weights: ClassVar[Mapping[str, float]] = {"correct": 1.0, "grading_timeout": 0.0}

    @property
    def inline(self) -> bool:
        """False: an answer may have to wait for the program that compares it."""
        return False

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Start an episode; see `ToolEnv`. The program that compares answers starts as well, beside the first turn."""
        shared_process().open()
        return super().reset(seed=seed, options=options)

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """Compare the answer with the task's.

        Raises:
            ToolFailure: The answers cannot be compared, see the class.
        """
        verdict = verdict_on(task.answer, answer)
        if verdict is Verdict.UNVERIFIABLE:
            raise ToolFailure(f"task {task.uid}: no answer can be held against the gold answer {task.answer[:60]!r}")
        correct = verdict is Verdict.EQUAL and not copied(answer, task)
        return {"correct": float(correct), "grading_timeout": float(verdict is Verdict.TIMEOUT)}

    def extraction_failure(self, answer: str) -> str:
        """Why the answer could not be compared; empty where it could."""
        verdict = verdict_on(self.current_task.answer, answer)
        return "" if verdict in (Verdict.EQUAL, Verdict.DIFFERENT) else verdict.value


def copied(answer: str, task: Task) -> bool:
    """Whether an answer is an expression of the question, and not the gold answer as it stands."""
    expression, gold = tidy(answer), tidy(task.answer)
    if expression is None or gold is None:
        return False
    expression, gold = choice(expression)[1], choice(gold)[1]
    if key(expression) == key(gold):
        return False
    return any(restates(part, task.question) for part in (expression, sides(expression)[-1]))


@lru_cache(maxsize=8)  # score and extraction_failure ask for the same answer in turn
def answered_number(answer: str) -> Fraction | NoNumber:
    """The number that an answer gives, or why it gives none."""
    return number_in(final_answer(answer))
