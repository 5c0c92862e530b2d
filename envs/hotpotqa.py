"""HotpotQA: questions over two paragraphs, with search. Yang et al. 2018, arXiv:1809.09600."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from forkgym.envs.search_env import SearchQAEnv
from forkgym.envs.sources import DataError, Source, load_rows
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.tools.base import Tool
from forkgym.tools.passages import context_passages
from forkgym.tools.registry import resolve_tool
from forkgym.tools.search import PassageIndex, index_for, search_tool

HUB, CONFIG = "hotpotqa/hotpot_qa", "distractor"


def one_or_more(value: Any) -> Any:
    """Take one answer for a list of one."""
    return [value] if isinstance(value, str) else value


def is_pair(value: Any) -> bool:
    """Whether this is a list of two."""
    match value:
        case [_, _]:
            return True
        case _:
            return False


def pairs_to_columns(first: str, second: str) -> BeforeValidator:
    """Accept the layout of HotpotQA's own files too: a list of pairs where the hub has two columns."""

    def convert(value: Any) -> Any:
        match value:
            case [*pairs] if all(is_pair(pair) for pair in pairs):
                return {first: [pair[0] for pair in pairs], second: [pair[1] for pair in pairs]}
            case _:
                return value  # the columns, or what cannot be read

    return BeforeValidator(convert)


class SupportingFacts(BaseModel):
    """The sentences that support the answer: the title of each one's paragraph, and its place in there."""

    title: list[str] = []
    sent_id: list[int] = []


class Context(BaseModel):
    """The paragraphs of a question: the title of each one, and its sentences."""

    title: list[str] = []
    sentences: list[list[str]] = []

    @model_validator(mode="after")
    def as_many_of_each(self) -> Self:
        """Check that each paragraph has a title."""
        if len(self.title) != len(self.sentences):
            raise ValueError(f"{len(self.title)} titles and {len(self.sentences)} lists of sentences")
        return self


class HotpotQARow(BaseModel):
    """A row as on the hub. Questions with answers only, one or a list of accepted ones, will do with a corpus."""

    model_config = ConfigDict(frozen=True)
    question: str
    answer: Annotated[list[str], BeforeValidator(one_or_more), Field(min_length=1)]
    type: str = ""
    level: str = ""
    supporting_facts: Annotated[SupportingFacts, pairs_to_columns("title", "sent_id")] = SupportingFacts()
    context: Annotated[Context, pairs_to_columns("title", "sentences")] = Context()


class HotpotQATaskset:
    """The questions of one split."""

    def __init__(self, rows: Sequence[HotpotQARow], split: str) -> None:
        self.rows = rows
        self.split = split

    @property
    def size(self) -> int:
        """Number of questions."""
        return len(self.rows)

    def __getitem__(self, index: int) -> Task:
        """Return task ``index``; its solution searches for each supporting title, where the row names them."""
        row = self.rows[index]
        titles = list(dict.fromkeys(row.supporting_facts.title))
        searches = [SolutionStep(title, tool="search") for title in titles]
        return Task(
            question=row.question,
            answer=row.answer[0],
            uid=f"hotpotqa/{self.split}/{index}",
            metadata={"answers": row.answer, "type": row.type, "level": row.level, "supporting_titles": titles},
            solution=(*searches, SolutionStep(row.answer[0])) if searches else (),
        )

    @cached_property
    def index(self) -> PassageIndex:
        """The index over the distinct paragraphs of all questions, built when it is first asked for."""
        contexts = (row.context for row in self.rows)
        paragraphs = dict.fromkeys(
            passage for context in contexts for passage in context_passages(context.title, context.sentences)
        )
        if not paragraphs:
            raise DataError(f"hotpotqa/{self.split}: no row has paragraphs to search in; expected a corpus as well")
        return PassageIndex(paragraphs)


class HotpotQAEnv(SearchQAEnv):
    """HotpotQA with a search over the paragraphs of all its questions, or over a corpus.

    Args:
        split: "train" or "validation".
        path: A local file or folder, or another name on the hub, in the hub's layout; see `Source`.
        corpus: A file of passages to search in, see ``load_passages``; None for the questions' own paragraphs.
        top_k: Passages that a search returns, 1 or more.
        tools: See `ToolEnv`; "search" is this environment's.
        **options: As `ToolEnv` takes them.

    Raises:
        DataError: The data or the corpus cannot be loaded, or is not in that layout.
        ValueError: See `ToolEnv`.
    """

    held_out_split: ClassVar[str] = "validation"

    def __init__(
        self,
        *,
        split: str = "validation",
        path: str | None = None,
        corpus: str | None = None,
        top_k: int = 3,
        tools: Sequence[Any] = ("search",),
        **options: Any,
    ) -> None:
        self.questions = hotpotqa_taskset(split, path)
        self.corpus = corpus
        self.top_k = top_k
        super().__init__(taskset=self.questions, tools=tools, **options)

    def resolve_tool(self, source: str | Callable[..., Any] | Tool) -> Tool:
        """Supply ``search``."""
        if source != "search":
            return resolve_tool(source)
        return search_tool(self.questions.index if self.corpus is None else corpus_index(self.corpus), self.top_k)


def corpus_index(path: str) -> PassageIndex:
    """The index of a corpus file, built once in a process.

    Raises:
        DataError: There is no such file, or it holds no passages.
    """
    try:
        return index_for(path)
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error


def hotpotqa_taskset(split: str, path: str | None = None) -> HotpotQATaskset:
    """The taskset of a source, loaded once in a process for as long as its file stays the same.

    Raises:
        DataError: See `load_rows`.
    """
    source = Source(HUB, CONFIG, split, path)
    return cached_taskset(source, source.version())


@lru_cache(maxsize=8)
def cached_taskset(source: Source, version: tuple[int, int] | None) -> HotpotQATaskset:
    """The taskset of one version of a source; the version only tells versions apart."""
    del version
    return HotpotQATaskset(load_rows(source, HotpotQARow), source.split)
