"""Questions whose answer is a short text, found by searching: what HotpotQA and generated questions share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from forkgym.envs.base import ToolEnv
from forkgym.envs.grading import exact_match, f1, final_answer, normalize_answer, official_exact_match
from forkgym.envs.tasks import Task


class SearchQAEnv(ToolEnv):
    """Scores an answer as HotpotQA does; the first part, ``exact_match``, is the reward.

    ``exact_match`` is the official one with two guards: an empty normalised answer equals nothing, and numbers are
    compared as numbers (officially ``1.5`` equals ``15``). ``official_exact_match`` and ``f1`` are the official
    numbers, for reports; their weight is 0 unless given.

    A task may accept several answers: ``metadata["answers"]`` lists them all, and each part is the best over them.
    """

    reward_weights: ClassVar[Mapping[str, float]] = {"exact_match": 1.0, "f1": 0.0, "official_exact_match": 0.0}

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """Compare the answer with each accepted one."""
        prediction, golds = final_answer(answer), accepted_answers(task)
        return {
            "exact_match": max(float(exact_match(prediction, gold)) for gold in golds),
            "f1": max(f1(prediction, gold) for gold in golds),
            "official_exact_match": max(float(official_exact_match(prediction, gold)) for gold in golds),
        }

    def extraction_failure(self, answer: str) -> str:
        """Say ``empty`` where nothing is left of the answer after normalisation."""
        return "" if normalize_answer(final_answer(answer)) else "empty"


def accepted_answers(task: Task) -> Sequence[str]:
    """Every answer that the task accepts: ``metadata["answers"]``, or its one answer where there is no such list."""
    answers: Any = task.metadata.get("answers")
    return answers or (task.answer,)
