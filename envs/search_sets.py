"""More sets of questions with search: 2WikiMultihopQA, MuSiQue, Bamboogle and WebWalkerQA."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import AliasChoices, BaseModel, Field

from forkgym.envs.grading import f1, final_answer
from forkgym.envs.hotpotqa import HotpotQARow
from forkgym.envs.question_sets import Answers, QuestionRow, QuestionSet, QuestionSetEnv
from forkgym.envs.search_env import SearchQAEnv, accepted_answers
from forkgym.envs.tasks import Task
from forkgym.tools.base import Tool
from forkgym.tools.passages import Passage

MAX_LINKS = 30  # that a visit lists: enough for a site's menu
# Characters of scripts that are written without spaces between words, and the marks that go with them.
IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff]")
WIDE_PUNCTUATION = re.compile("[\u3000-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65]")


class TwoWikiRow(HotpotQARow):
    """A row as on the hub or as in the set's own files: HotpotQA's columns, sentences without spaces around them."""

    def passages(self) -> list[Passage]:
        """The question's paragraphs."""
        context = zip(self.context.title, self.context.sentences, strict=True)
        return [Passage(title, " ".join(sentence.strip() for sentence in sentences)) for title, sentences in context]


class MuSiQueParagraph(BaseModel):
    """A paragraph of a question of MuSiQue."""

    idx: int
    title: str
    paragraph_text: str
    is_supporting: bool = False


class MuSiQueHop(BaseModel):
    """One of the questions that a question of MuSiQue is composed of, and the paragraph that answers it."""

    paragraph_support_idx: int | None = None


class MuSiQueRow(QuestionRow):
    """A row as on the hub and in the set's own files."""

    answer_aliases: list[str] = []
    answerable: bool = True
    paragraphs: list[MuSiQueParagraph] = []
    question_decomposition: list[MuSiQueHop] = []

    def accepted(self) -> list[str]:
        """The answer, then its aliases."""
        return list(dict.fromkeys([*self.answer, *self.answer_aliases]))

    def passages(self) -> list[Passage]:
        """The question's paragraphs, of which two to four support the answer."""
        return [Passage(paragraph.title, paragraph.paragraph_text) for paragraph in self.paragraphs]

    def supporting_titles(self) -> list[str]:
        """The titles in the order of the hops."""
        titles = {paragraph.idx: paragraph.title for paragraph in self.paragraphs if paragraph.is_supporting}
        hops = [hop.paragraph_support_idx for hop in self.question_decomposition]
        return list(dict.fromkeys(titles[place] for place in hops if place in titles))

    def metadata(self) -> dict[str, Any]:
        """How many questions it is composed of."""
        return {"hops": len(self.question_decomposition)}


class BamboogleRow(QuestionRow):
    """A row as on the hub, which writes its columns with a capital letter."""

    question: str = Field(validation_alias=AliasChoices("Question", "question"))
    answer: Answers = Field(validation_alias=AliasChoices("Answer", "answer"))


class WebWalkerQARow(QuestionRow):
    """A row as on the hub: the question is about one website."""

    root_url: str = ""
    info: Mapping[str, Any] = {}

    def text(self) -> str:
        """The question and the page to start from."""
        return f"{self.question}\nStart from {self.root_url}" if self.root_url else self.question

    def metadata(self) -> dict[str, Any]:
        """The page to start from, and what the set says of the question: domain, language, difficulty, path."""
        return {"root_url": self.root_url, "info": dict(self.info)}


TWO_WIKI = QuestionSet("2wikimultihopqa", "framolfese/2WikiMultihopQA", TwoWikiRow)
MUSIQUE = QuestionSet("musique", "dgslibisey/MuSiQue", MuSiQueRow, keep="answerable", max_turns=8)
BAMBOOGLE = QuestionSet("bamboogle", "chiayewken/bamboogle", BamboogleRow, split="test")
WEBWALKERQA = QuestionSet(
    "webwalkerqa",
    "callanwu/WebWalkerQA",
    WebWalkerQARow,
    split="main",
    splits=(("train", "silver"), ("test", "main")),
    tools=("search", "visit"),
    max_turns=12,
)


class TwoWikiEnv(QuestionSetEnv):
    """2WikiMultihopQA, splits "train" and "validation" (the answers of "test" are not public).

    Ho et al. 2020, arXiv:2011.01060. For arguments and errors see `QuestionSetEnv`. The hub's name is that of a copy
    in parquet; the authors' own one needs a loading script, which ``datasets`` refuses to run.
    """

    question_set: ClassVar[QuestionSet] = TWO_WIKI
    held_out_split: ClassVar[str] = TWO_WIKI.split


class MuSiQueEnv(QuestionSetEnv):
    """MuSiQue, splits "train" and "validation": questions of two to four hops that cannot be cut short.

    Trivedi et al. 2022, arXiv:2108.00573. An answer's aliases count as right. Rows that have no answer in their
    paragraphs (``answerable`` is false, in MuSiQue-Full) are left out, and a warning says how many. For arguments and
    errors see `QuestionSetEnv`.
    """

    question_set: ClassVar[QuestionSet] = MUSIQUE
    held_out_split: ClassVar[str] = MUSIQUE.split


class BamboogleEnv(QuestionSetEnv):
    """Bamboogle, split "test" alone: 125 questions of two hops, without paragraphs, so a corpus is needed.

    Press et al. 2023, arXiv:2210.03350. For arguments and errors see `QuestionSetEnv`.
    """

    question_set: ClassVar[QuestionSet] = BAMBOOGLE
    held_out_split: ClassVar[str] = BAMBOOGLE.split


class WebWalkerQAEnv(QuestionSetEnv):
    """WebWalkerQA: questions about websites in English and Chinese, with search and ``visit``, which lists links.

    Wu et al. 2025, arXiv:2501.07572. Splits "main" (680 questions, checked by people; also called "test") and
    "silver" (about 15,000, for training; also called "train"). The question ends with the address to start from. A
    corpus is needed for ``search``; ``tools=["visit"]`` does without.

    Reference answers are sentences, so the reward is F1 over words, with each Chinese or Japanese character a word;
    ``exact_match``, which is the accuracy, hardly ever holds. **Papers report what a language model judges to be
    right: figures of this environment cannot be compared with theirs.** For arguments and errors see
    `QuestionSetEnv`.
    """

    question_set: ClassVar[QuestionSet] = WEBWALKERQA
    held_out_split: ClassVar[str] = WEBWALKERQA.split
    reward_weights: ClassVar[Mapping[str, float]] = {**SearchQAEnv.reward_weights, "exact_match": 0.0, "f1": 1.0}

    def own_tool(self, name: str) -> Tool | None:
        """Supply ``visit`` as well, with the links of a page: answers are some pages away from the first one."""
        if name != "visit":
            return super().own_tool(name)
        from forkgym.tools.visit import visit_tool

        return visit_tool(max_links=MAX_LINKS)

    def score(self, answer: str, task: Task) -> Mapping[str, float]:
        """Compare the answer with the reference, words apart."""
        parts = super().score(answer, task)
        golds = accepted_answers(task)
        return {**parts, "f1": max(f1(words_apart(final_answer(answer)), words_apart(gold)) for gold in golds)}


def words_apart(text: str) -> str:
    """Put blanks around each Chinese or Japanese character and in place of wide punctuation; other text stays.

    >>> words_apart("2025年3月。")
    '2025 年 3 月  '
    """
    return WIDE_PUNCTUATION.sub(" ", IDEOGRAPH.sub(r" \g<0> ", text))
