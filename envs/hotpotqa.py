"""HotpotQA: questions over two paragraphs, with search. Yang et al. 2018, arXiv:1809.09600."""

from __future__ import annotations

import json
from typing import Annotated, Any, ClassVar, Self

from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, model_validator

from forkgym.envs.question_sets import QuestionRow, QuestionSet, QuestionSetEnv
from forkgym.tools.passages import Passage, context_passages


def is_pair(value: Any) -> bool:
    """Whether this is a list of two."""
    match value:
        case [_, _]:
            return True
        case _:
            return False


def pairs_to_columns(first: str, second: str) -> BeforeValidator:
    """Accept two more layouts than the hub's two columns: a list of pairs, as in HotpotQA's own files, and its JSON."""

    def convert(value: Any) -> Any:
        if isinstance(value, str):
            value = json.loads(value)
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
    sentences: list[list[str]] = Field(default=[], validation_alias=AliasChoices("sentences", "content"))

    @model_validator(mode="after")
    def as_many_of_each(self) -> Self:
        """Check that each paragraph has a title."""
        if len(self.title) != len(self.sentences):
            raise ValueError(f"{len(self.title)} titles and {len(self.sentences)} lists of sentences")
        return self


class HotpotQARow(QuestionRow):
    """A row as on the hub."""

    type: str = ""
    level: str = ""
    supporting_facts: Annotated[SupportingFacts, pairs_to_columns("title", "sent_id")] = SupportingFacts()
    context: Annotated[Context, pairs_to_columns("title", "sentences")] = Context()

    def passages(self) -> list[Passage]:
        """The question's paragraphs, of which two support the answer."""
        return context_passages(self.context.title, self.context.sentences)

    def supporting_titles(self) -> list[str]:
        """The titles in the order of the supporting facts."""
        return list(dict.fromkeys(self.supporting_facts.title))

    def metadata(self) -> dict[str, Any]:
        """The kind of question and how hard it is."""
        return {"type": self.type, "level": self.level}


HOTPOTQA = QuestionSet("hotpotqa", "hotpotqa/hotpot_qa", HotpotQARow, config="distractor")


class HotpotQAEnv(QuestionSetEnv):
    """HotpotQA, splits "train" and "validation"; for arguments and errors see `QuestionSetEnv`."""

    question_set: ClassVar[QuestionSet] = HOTPOTQA
    held_out_split: ClassVar[str] = HOTPOTQA.split
