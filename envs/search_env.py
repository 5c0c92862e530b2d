"""Questions whose answer is a short text, found by searching: how it is scored, and what is searched in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from forkgym.envs.base import ToolEnv
from forkgym.envs.grading import exact_match, f1, final_answer, normalize_answer, official_exact_match
from forkgym.envs.sources import DataError
from forkgym.envs.tasks import Task
from forkgym.tools.base import Tool
from forkgym.tools.retrieval import BM25, retriever_for
from forkgym.tools.search import Retriever, search_tool

CORPUS = "expected a corpus as well: a file of passages, or the address of a search server"


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


class CorpusSearchEnv(SearchQAEnv):
    """Searches in a corpus that the caller names, or in passages of the subclass's own.

    Args:
        corpus: What to search in: a file of passages, or the address of a search server (``http://...``), as
            ``retriever_for`` takes it; None for the environment's own passages.
        retriever: How passages of a file are found: "bm25", or "dense:MODEL"; see ``retriever_for``.
        top_k: Passages that a search returns, 1 or more.
        **options: As `ToolEnv` takes them; the tool "search" is this environment's.

    Raises:
        DataError: The corpus cannot be loaded, or there is neither one nor passages of the environment's own.
        ValueError: See `ToolEnv`.
    """

    def __init__(self, *, corpus: str | None = None, retriever: str = BM25, top_k: int = 3, **options: Any) -> None:
        self.corpus = corpus
        self.retriever = retriever
        self.top_k = top_k
        super().__init__(**options)

    def own_passages(self) -> Retriever:
        """What is searched where no corpus is given.

        Raises:
            DataError: There is nothing.
        """
        raise DataError(f"{type(self).__name__} has no passages to search in; {CORPUS}")

    def own_tool(self, name: str) -> Tool | None:
        """Supply ``search``; what it searches in is loaded here, so an environment without it needs no corpus."""
        if name != "search":
            return None
        if self.corpus is None:
            return search_tool(self.own_passages(), self.top_k)
        return search_tool(corpus_retriever(self.corpus, self.retriever), self.top_k)


def corpus_retriever(corpus: str, retriever: str) -> Retriever:
    """What searches in a corpus, see ``retriever_for``.

    Raises:
        DataError: It cannot be loaded, or there is no such retriever.
    """
    try:
        return retriever_for(corpus, retriever)
    except (OSError, ValueError) as error:
        raise DataError(str(error)) from error


def accepted_answers(task: Task) -> Sequence[str]:
    """Every answer that the task accepts: ``metadata["answers"]``, or its one answer where there is no such list."""
    answers: Any = task.metadata.get("answers")
    return answers or (task.answer,)
