r"""Competition mathematics: MATH, MATH-500 and AIME, with a calculator and Python at hand.

One record reads the rows of all of them, one class scores them; a further set is a `Competition` and an environment of
two lines.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, ClassVar

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from forkgym.envs.grading import final_answer
from forkgym.envs.math_env import VerifiedMathEnv
from forkgym.envs.sources import DataError, Source, load_rows
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.envs.verification.math_text import is_verifiable

MAX_TURNS = 8

logger = logging.getLogger(__name__)


def text_of(value: Any) -> Any:
    """Take a whole number for its digits, and null for nothing: sets differ in the types of their columns."""
    if value is None:
        return ""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


Text = Annotated[str, BeforeValidator(text_of)]


class CompetitionRow(BaseModel):
    r"""A row of any of the sets, under the names that their columns have on the hub.

    MATH has no column for the answer: it stands in the solution's last ``\boxed{}``.
    """

    model_config = ConfigDict(frozen=True)
    problem: str = Field(min_length=1, validation_alias=AliasChoices("problem", "Problem"))
    solution: Text = Field(default="", validation_alias=AliasChoices("solution", "Solution"))
    answer: Text = Field(default="", validation_alias=AliasChoices("answer", "Answer"))
    subject: Text = Field(default="", validation_alias=AliasChoices("subject", "type"))
    level: Text = ""
    source_id: Text = Field(default="", validation_alias=AliasChoices("unique_id", "ID", "id"))

    @property
    def gold(self) -> str:
        """The reference answer; empty where the row has none."""
        if self.answer:
            return self.answer.strip()
        boxed = final_answer(self.solution)
        return "" if boxed == self.solution.strip() else boxed


@dataclass(frozen=True, slots=True)
class Competition:
    """Where the rows of a set are.

    Attributes:
        name: Begins the uid of each task.
        hub: Its name on the Hugging Face hub.
        splits: Other names of its splits: what a caller says, and what the hub calls it.
    """

    name: str
    hub: str
    splits: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class CompetitionTaskset:
    """The problems of one split that have an answer to hold others against.

    Attributes:
        name: Of the set.
        split: Of the set.
        rows: Each with its place in the source.
    """

    name: str
    split: str
    rows: Sequence[tuple[int, CompetitionRow]]

    @property
    def size(self) -> int:
        """Number of problems."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Task:
        """Return task ``index``; its uid names the place of its row in the source, its solution is the answer alone."""
        place, row = self.rows[index]
        return Task(
            question=row.problem,
            answer=row.gold,
            uid=f"{self.name}/{self.split}/{place}",
            metadata={
                "solution": row.solution,
                "subject": row.subject,
                "level": row.level,
                "source_id": row.source_id,
            },
            solution=(SolutionStep(row.gold),),
        )


class CompetitionMathEnv(VerifiedMathEnv):
    """The problems of a set, scored as `VerifiedMathEnv` says; a subclass names the `Competition`.

    Rows without a verifiable answer (see `is_verifiable`) are left out, and a warning says how many.

    Args:
        split: One of the set's.
        path: A local file or folder, or another name on the hub, in the hub's layout; see `Source`.
        tools: See `ToolEnv`.
        max_turns: Policy turns of an episode.
        **options: As `ToolEnv` takes them.

    Raises:
        DataError: The data cannot be loaded, is not in that layout, or has no row with a verifiable answer.
        ValueError: See `ToolEnv`.
    """

    competition: ClassVar[Competition]

    def __init__(
        self,
        *,
        split: str = "test",
        path: str | None = None,
        tools: Sequence[Any] = ("calculator", "python"),
        max_turns: int = MAX_TURNS,
        **options: Any,
    ) -> None:
        taskset = competition_taskset(self.competition, split, path)
        super().__init__(taskset=taskset, tools=tools, max_turns=max_turns, **options)


def competition_taskset(competition: Competition, split: str, path: str | None = None) -> CompetitionTaskset:
    """The taskset of a source, loaded once in a process for as long as its file stays the same.

    Raises:
        DataError: See `CompetitionMathEnv`.
    """
    on_hub = dict(competition.splits).get(split, split) if path in (None, competition.hub) else split
    source = Source(competition.hub, None, on_hub, path)
    return cached_taskset(competition.name, source, source.version())


@lru_cache(maxsize=8)
def cached_taskset(name: str, source: Source, version: tuple[int, int] | None) -> CompetitionTaskset:
    """The taskset of one version of a source; the version only tells versions apart."""
    del version
    rows = list(load_rows(source, CompetitionRow))
    kept = [(place, row) for place, row in enumerate(rows) if is_verifiable(row.gold)]
    if len(kept) < len(rows):
        left_out = f"{len(rows) - len(kept)} of {len(rows)} rows, which have no verifiable answer"
        logger.warning("%s/%s: left out %s", name, source.split, left_out)
    if not kept:
        raise DataError(f"{name}/{source.split}: no row has an answer that others can be held against")
    return CompetitionTaskset(name, source.split, kept)


class MATHEnv(CompetitionMathEnv):
    """MATH, splits "train" (7,500 problems) and "test" (5,000). Hendrycks et al. 2021, arXiv:2103.03874.

    The hub's name is that of a copy with all subjects in one table; ``path="EleutherAI/hendrycks_math:algebra"`` is
    one subject. For arguments and errors see `CompetitionMathEnv`.
    """

    competition: ClassVar[Competition] = Competition("math", "DigitalLearningGmbH/MATH-lighteval")


class MATH500Env(CompetitionMathEnv):
    """MATH-500, split "test" alone: the 500 problems of MATH that Lightman et al. 2023, arXiv:2305.20050, held out.

    For arguments and errors see `CompetitionMathEnv`.
    """

    competition: ClassVar[Competition] = Competition("math500", "HuggingFaceH4/MATH-500")


class AIMEEnv(CompetitionMathEnv):
    """The American Invitational Mathematics Examination of 2024, 30 problems; answers are whole numbers to 999.

    There is one split, "test", which the hub calls "train". ``path="math-ai/aime25"`` is the one of 2025. For
    arguments and errors see `CompetitionMathEnv`.
    """

    competition: ClassVar[Competition] = Competition("aime", "Maxwell-Jia/AIME_2024", splits=(("test", "train"),))
