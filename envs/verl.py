"""Tasks in verl's layout, such as ARPO's training set: mathematics and questions to search for, mixed in one file.

Of a row ``{"prompt": [messages], "ability": "math", "reward_model": {"ground_truth": ...}, "extra_info": {...}}`` the
question is ``extra_info.question``, or the last message of the user where there is none. The row's system prompt is
not used: it teaches one set of markers, and here the grammar writes the instructions. ``ability`` says which rows are
an environment's tasks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict

from forkgym.envs.math_env import VerifiedMathEnv
from forkgym.envs.search_env import CorpusSearchEnv
from forkgym.envs.sources import DataError, Source, load_rows
from forkgym.envs.tasks import SolutionStep, Task
from forkgym.envs.verification.math_text import is_verifiable
from forkgym.tools.retrieval import BM25

ANSWER_SEPARATOR = "<|answer_split|>"  # ARPO joins accepted answers with it

logger = logging.getLogger(__name__)


class Message(BaseModel):
    """A message of a prompt."""

    role: str
    content: str


def last_of_user(prompt: list[Message]) -> list[Message]:
    """Keep the last message of the user alone: a long system prompt in each of 100,000 rows would fill the memory."""
    return [message for message in prompt if message.role == "user"][-1:]


def accepted_answers_in(value: Any) -> Any:
    """Take the accepted answers out of a ground truth.

    It is a text, a number, a list of texts, ``{"target": either}`` as in Search-R1, or nothing.
    """
    match value:
        case {"target": target}:
            return accepted_answers_in(target)
        case None:
            return []
        case int() | float() if not isinstance(value, bool):
            return [str(value)]
        case str():
            return [part.strip() for part in value.split(ANSWER_SEPARATOR) if part.strip()]
        case _:
            return value


class RewardModel(BaseModel):
    """What an answer is compared with; empty where the row has no answer."""

    ground_truth: Annotated[list[str], BeforeValidator(accepted_answers_in)]


class ExtraInfo(BaseModel):
    """What a row says beside."""

    question: str | None = None


class VerlRow(BaseModel):
    """A row of verl's layout; columns that are not here are ignored."""

    model_config = ConfigDict(frozen=True)
    prompt: Annotated[list[Message], AfterValidator(last_of_user)]
    ability: str
    reward_model: RewardModel
    data_source: str = ""
    extra_info: ExtraInfo | None = None

    @property
    def question(self) -> str:
        """The question; empty where there is none."""
        own = self.extra_info.question if self.extra_info is not None else None
        return own or (self.prompt[0].content if self.prompt else "")


@dataclass(frozen=True, slots=True)
class VerlTask:
    """A row that is a task: its place in the file, and the answers that count as right, one or more."""

    place: int
    row: VerlRow
    answers: list[str]


@dataclass(frozen=True, slots=True)
class VerlTaskset:
    """The rows of one ability; ``split`` is part of the tasks' uids."""

    tasks: Sequence[VerlTask]
    split: str

    @property
    def size(self) -> int:
        """Number of rows."""
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        """Return task ``index``; its uid names the place of its row in the file, its solution is the answer alone."""
        task = self.tasks[index]
        return Task(
            question=task.row.question,
            answer=task.answers[0],
            uid=f"verl/{self.split}/{task.place}",
            metadata={"answers": task.answers, "ability": task.row.ability, "data_source": task.row.data_source},
            solution=(SolutionStep(task.answers[0]),),
        )


class VerlMathEnv(VerifiedMathEnv):
    """Mathematics out of a file in verl's layout, scored as `VerifiedMathEnv` does; any accepted answer counts.

    Rows without an answer that others can be held against (see `is_verifiable`) are left out, and a warning says how
    many.

    Args:
        path: A local file or folder, or a name on the hub; see `Source`.
        split: Of a folder or of a name on the hub; a file has none.
        ability: The rows that are its tasks, whatever its case: other files say "MATH".
        tools: See `ToolEnv`.
        max_turns: Policy turns of an episode.
        **options: As `ToolEnv` takes them.

    Raises:
        DataError: No path is given, the data cannot be loaded, is not in that layout, or has no such row.
        ValueError: See `ToolEnv`.
    """

    def __init__(
        self,
        *,
        path: str | None = None,
        split: str = "train",
        ability: str = "math",
        tools: Sequence[Any] = ("calculator", "python"),
        **options: Any,
    ) -> None:
        super().__init__(taskset=verl_taskset(path, split, ability, is_verifiable), tools=tools, **options)

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """Compare the answer with each accepted one, until one is right."""
        first, *others = task.metadata["answers"]
        parts = super().score(answer, replace(task, answer=first))
        for gold in others:
            if next(iter(parts.values())) == 1.0:
                break
            parts = super().score(answer, replace(task, answer=gold))
        return parts


class VerlSearchEnv(CorpusSearchEnv):
    """Questions to search for out of a file in verl's layout; the file has no passages, so a corpus is needed.

    Args:
        path: See `VerlMathEnv`.
        split: See `VerlMathEnv`.
        ability: The rows that are its tasks, whatever its case; Search-R1's files say "fact-reasoning".
        corpus: See `CorpusSearchEnv`.
        retriever: See `CorpusSearchEnv`.
        top_k: Passages that a search returns, 1 or more.
        tools: See `ToolEnv`; "search" is this environment's.
        **options: As `ToolEnv` takes them.

    Raises:
        DataError: As for `VerlMathEnv`, or the corpus is missing or cannot be loaded.
        ValueError: See `ToolEnv`.
    """

    def __init__(  # noqa: PLR0913 - the keyword arguments of a Gymnasium id are flat
        self,
        *,
        path: str | None = None,
        split: str = "train",
        ability: str = "qa",
        corpus: str | None = None,
        retriever: str = BM25,
        top_k: int = 3,
        tools: Sequence[Any] = ("search",),
        **options: Any,
    ) -> None:
        taskset = verl_taskset(path, split, ability)
        super().__init__(corpus=corpus, retriever=retriever, top_k=top_k, taskset=taskset, tools=tools, **options)


def verl_taskset(path: str | None, split: str, ability: str, is_usable: Callable[[str], bool] = bool) -> VerlTaskset:
    """The rows of one ability, loaded once in a process for as long as the file stays the same.

    Args:
        path: See `VerlMathEnv`.
        split: See `VerlMathEnv`.
        ability: What the rows say.
        is_usable: Whether an answer is one; rows without any are left out, and a warning says how many.

    Raises:
        DataError: See `VerlMathEnv`.
    """
    if path is None:
        raise DataError("path is None: expected a file in verl's layout, which is a data set of your own")
    source = Source(path, None, split, path)
    return cached_taskset(source, source.version(), ability, is_usable)


@lru_cache(maxsize=8)
def cached_taskset(
    source: Source, version: tuple[int, int] | None, ability: str, is_usable: Callable[[str], bool]
) -> VerlTaskset:
    """The taskset of one version of a source."""
    rows = cached_rows(source, version)
    own = [
        VerlTask(place, row, [answer for answer in row.reward_model.ground_truth if is_usable(answer)])
        for place, row in enumerate(rows)
        if row.ability.casefold() == ability.casefold()
    ]
    kept = [task for task in own if task.row.question and task.answers]
    if len(kept) < len(own):
        left_out = f"{len(own) - len(kept)} of {len(own)} rows without a question or a usable answer"
        logger.warning("%s, ability %r: left out %s", source.path, ability, left_out)
    if not kept:
        found = ", ".join(sorted({repr(row.ability) for row in rows}))
        raise DataError(f"{source.path}: no row has the ability {ability!r} and an answer; it has rows of {found}")
    return VerlTaskset(kept, source.split)


@lru_cache(maxsize=4)
def cached_rows(source: Source, version: tuple[int, int] | None) -> Sequence[VerlRow]:
    """All rows of one version of a source: several environments take theirs out of one file."""
    del version
    return list(load_rows(source, VerlRow))
