"""Sets of questions to answer by searching: a row of a set, the tasks of its rows, and the environment over them.

A set is a record of its rows' layout, a `QuestionSet` and an environment of two lines: `hotpotqa` is the first one,
`search_sets` has the others.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from forkgym.envs.search_env import CORPUS, CorpusSearchEnv
from forkgym.envs.sources import DataError, LazyRows, Source, load_rows
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.tools.passages import Passage
from forkgym.tools.retrieval import BM25, DENSE
from forkgym.tools.search import PassageIndex, Retriever

logger = logging.getLogger(__name__)


def one_or_more(value: Any) -> Any:
    """Take one answer for a list of one."""
    return [value] if isinstance(value, str) else value


Answers = Annotated[list[Annotated[str, Field(min_length=1)]], BeforeValidator(one_or_more), Field(min_length=1)]


class QuestionRow(BaseModel):
    """A row of any set: a question, and one answer or a list of accepted ones.

    A set's own record adds its columns, and overrides what they say more about. Where the columns that are not here
    are missing, questions and answers alone will do with a corpus.
    """

    model_config = ConfigDict(frozen=True)
    question: str
    answer: Answers

    def text(self) -> str:
        """The question as the policy reads it."""
        return self.question

    def accepted(self) -> list[str]:
        """Every answer that counts as right, the reference first."""
        return self.answer

    def passages(self) -> list[Passage]:
        """The paragraphs that come with the question."""
        return []

    def supporting_titles(self) -> list[str]:
        """Titles of the paragraphs that the answer follows from, in the order of the reasoning, each once."""
        return []

    def metadata(self) -> dict[str, Any]:
        """Whatever else the row says, as JSON values."""
        return {}


@dataclass(frozen=True, slots=True)
class QuestionSet:
    """Where the rows of a set are, what they look like, and what an episode over one needs.

    Attributes:
        name: Begins the uid of each task.
        hub: Its name on the Hugging Face hub.
        row: The record that checks a row.
        config: Its configuration there.
        split: The split to evaluate on.
        splits: Other names of its splits: what a caller says, and what the hub calls it.
        keep: A column of booleans; rows where it is false are left out. None keeps all.
        tools: The tools by default.
        max_turns: Policy turns of an episode by default.
    """

    name: str
    hub: str
    row: type[QuestionRow]
    config: str | None = None
    split: str = "validation"
    splits: tuple[tuple[str, str], ...] = ()
    keep: str | None = None
    tools: tuple[str, ...] = ("search",)
    max_turns: int = 6


class QuestionTaskset:
    """The questions of one split."""

    def __init__(self, name: str, rows: Sequence[QuestionRow], split: str) -> None:
        self.name = name
        self.rows = rows
        self.split = split
        self._dense: dict[str, Retriever] = {}

    @property
    def size(self) -> int:
        """Number of questions."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Task:
        """Return task ``index``; its solution searches for each supporting title, where the row names them."""
        row = self.rows[index]
        answers, titles = row.accepted(), row.supporting_titles()
        searches = [SolutionStep(title, tool="search") for title in titles]
        return Task(
            question=row.text(),
            answer=answers[0],
            uid=f"{self.name}/{self.split}/{index}",
            metadata={"answers": answers, **row.metadata(), "supporting_titles": titles},
            solution=(*searches, SolutionStep(answers[0])) if searches else (),
        )

    @cached_property
    def paragraphs(self) -> tuple[Passage, ...]:
        """The distinct paragraphs of all questions.

        Raises:
            DataError: No question has any.
        """
        paragraphs = tuple(dict.fromkeys(passage for row in self.rows for passage in row.passages()))
        if not paragraphs:
            raise DataError(f"{self.name}/{self.split}: no row has paragraphs to search in; {CORPUS}")
        return paragraphs

    @cached_property
    def index(self) -> PassageIndex:
        """The BM25 index over the paragraphs, built when it is first asked for."""
        return PassageIndex(self.paragraphs)

    def retriever(self, name: str) -> Retriever:
        """What searches in the paragraphs, made once: "bm25", or "dense:ENCODER" as ``retriever_for`` takes it.

        Raises:
            DataError: No question has paragraphs, or there is no such retriever.
        """
        if name == BM25:
            return self.index
        if name not in self._dense:
            if not name.startswith(DENSE):
                raise DataError(f"unknown retriever {name!r}; expected {BM25} or {DENSE}MODEL")
            from forkgym.tools.corpora.dense import DenseIndex

            self._dense[name] = DenseIndex(self.paragraphs, name.removeprefix(DENSE))
        return self._dense[name]


class QuestionSetEnv(CorpusSearchEnv):
    """The questions of a set, with a search over the paragraphs of all of them, or over a corpus.

    A subclass names its `QuestionSet`, and its ``held_out_split``, the set's own.

    Args:
        split: One of the set's; by default the one to evaluate on.
        path: A local file or folder, or another name on the hub, in the hub's layout; see `Source`.
        corpus: See `CorpusSearchEnv`; None for the questions' own paragraphs.
        retriever: See `CorpusSearchEnv`.
        top_k: Passages that a search returns, 1 or more.
        tools: See `ToolEnv`; "search" is this environment's. None for the set's own.
        **options: As `ToolEnv` takes them.

    Raises:
        DataError: The data or the corpus cannot be loaded, or is not in that layout.
        ValueError: See `ToolEnv`.
    """

    question_set: ClassVar[QuestionSet]
    held_out_split: ClassVar[str] = "validation"

    def __init__(  # noqa: PLR0913 - the keyword arguments of a Gymnasium id are flat
        self,
        *,
        split: str | None = None,
        path: str | None = None,
        corpus: str | None = None,
        retriever: str = BM25,
        top_k: int = 3,
        tools: Sequence[Any] | None = None,
        **options: Any,
    ) -> None:
        questions = self.question_set
        self.questions = question_taskset(questions, split, path)
        super().__init__(
            corpus=corpus,
            retriever=retriever,
            top_k=top_k,
            taskset=self.questions,
            tools=questions.tools if tools is None else tools,
            **{"max_turns": questions.max_turns, **options},
        )

    def own_passages(self) -> Retriever:
        """The paragraphs of all questions."""
        return self.questions.retriever(self.retriever)


def question_taskset(questions: QuestionSet, split: str | None = None, path: str | None = None) -> QuestionTaskset:
    """The taskset of a source, loaded once in a process for as long as its file stays the same.

    Args:
        questions: The set.
        split: One of its splits; by default the one to evaluate on.
        path: As `Source` takes it.

    Raises:
        DataError: See `load_rows`.
    """
    name = questions.split if split is None else split
    source = Source(questions.hub, questions.config, dict(questions.splits).get(name, name), path)
    return cached_taskset(questions, source, source.version())


@lru_cache(maxsize=16)
def cached_taskset(questions: QuestionSet, source: Source, version: tuple[int, int] | None) -> QuestionTaskset:
    """The taskset of one version of a source; the version only tells versions apart."""
    del version
    rows: Sequence[QuestionRow] = load_rows(source, questions.row)
    if questions.keep is not None:
        count = len(rows)
        rows = rows_where(rows, questions.keep)
        if len(rows) < count:
            left_out = f"{count - len(rows)} of {count} rows, which are not {questions.keep}"
            logger.warning("%s/%s: left out %s", questions.name, source.split, left_out)
    return QuestionTaskset(questions.name, rows, source.split)


def rows_where(rows: Sequence[QuestionRow], column: str) -> Sequence[QuestionRow]:
    """The rows in which a column is true; of a hub's table nothing but that column is read."""
    if not isinstance(rows, LazyRows):
        return [row for row in rows if getattr(row, column)]
    table = cast(Any, rows.table)
    if column not in table.column_names:  # the record has a default for it
        return rows
    places = [place for place, kept in enumerate(table[column]) if kept]
    return rows if len(places) == len(rows) else LazyRows(table.select(places), rows.record, rows.name)
