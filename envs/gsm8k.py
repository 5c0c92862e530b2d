"""GSM8K: grade-school word problems with a calculator. Cobbe et al. 2021, arXiv:2110.14168."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from forkgym.envs.grading import NoNumber, number_in
from forkgym.envs.math_env import MathEnv
from forkgym.envs.sources import Source, load_rows
from forkgym.envs.tasks import SolutionStep, Task

HUB, CONFIG = "openai/gsm8k", "main"
# The longest solution takes nine calculations; an answer, and two turns to spare.
MAX_TURNS = 12
GOLD = re.compile(r"####([^\n]*)\s*\Z")
ANNOTATION = re.compile(r"<<([^<>=]*)=[^<>]*>>")


class GSM8KRow(BaseModel):
    """A row as on the hub: ``answer`` holds the solution, its ``<<a+b=c>>`` annotations and ``#### gold``."""

    model_config = ConfigDict(frozen=True)
    question: str
    answer: str

    @field_validator("answer")
    @classmethod
    def ends_with_gold(cls, answer: str) -> str:
        """Check that the solution ends with the gold answer."""
        found = GOLD.search(answer)
        if found is None or isinstance(number_in(found[1]), NoNumber):
            raise ValueError("expected the last line '#### NUMBER'")
        return answer

    @property
    def solution_and_gold(self) -> tuple[str, str]:
        """The solution, and the gold answer after its ``####``."""
        solution, _, gold = self.answer.rpartition("####")
        return solution, gold.strip()


class GSM8KTaskset:
    """The problems of one split."""

    def __init__(self, rows: Sequence[GSM8KRow], split: str) -> None:
        self.rows = rows
        self.split = split

    @property
    def size(self) -> int:
        """Number of problems."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Task:
        """Return task ``index``; its solution sends every annotation through the calculator."""
        row = self.rows[index]
        solution, gold = row.solution_and_gold
        return Task(
            question=row.question,
            answer=gold,
            uid=f"gsm8k/{self.split}/{index}",
            metadata={"answer": row.answer},
            solution=(*annotated_calls(solution), SolutionStep(gold)),
        )


def annotated_calls(solution: str) -> list[SolutionStep]:
    """One calculator call for each annotation, in order; what the line says before it is the thought.

    >>> annotated_calls("Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 duck eggs a day.")
    [SolutionStep(argument='16-3-4', tool='calculator', thought='Janet sells 16 - 3 - 4 =')]
    """
    steps: list[SolutionStep] = []
    for line in solution.split("\n"):
        start = 0
        for annotation in ANNOTATION.finditer(line):
            thought = line[start : annotation.start()].strip()
            steps.append(SolutionStep(annotation[1].strip(), tool="calculator", thought=thought))
            start = annotation.end()
    return steps


class GSM8KEnv(MathEnv):
    """GSM8K with a calculator at hand; reward 1.0 where the answer equals the gold by value.

    Args:
        split: "train" or "test".
        path: A local file or folder, or another name on the hub, in the hub's layout; see `Source`.
        tools: See `ToolEnv`.
        max_turns: Policy turns of an episode; the longest solution needs ten.
        **options: As `ToolEnv` takes them.

    Raises:
        DataError: The data cannot be loaded, or is not in that layout.
        ValueError: See `ToolEnv`.
    """

    def __init__(
        self,
        *,
        split: str = "test",
        path: str | None = None,
        tools: Sequence[Any] = ("calculator",),
        max_turns: int = MAX_TURNS,
        **options: Any,
    ) -> None:
        super().__init__(taskset=gsm8k_taskset(split, path), tools=tools, max_turns=max_turns, **options)


def gsm8k_taskset(split: str, path: str | None = None) -> GSM8KTaskset:
    """The taskset of a source, loaded once in a process for as long as its file stays the same.

    Raises:
        DataError: See `load_rows`.
    """
    source = Source(HUB, CONFIG, split, path)
    return cached_taskset(source, source.version())


@lru_cache(maxsize=8)
def cached_taskset(source: Source, version: tuple[int, int] | None) -> GSM8KTaskset:
    """The taskset of one version of a source; the version only tells versions apart."""
    del version
    return GSM8KTaskset(load_rows(source, GSM8KRow), source.split)
