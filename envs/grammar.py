"""The grammar of turns: the markers of thoughts, calls, results and answers, and all that follows from them.

One object drives the instructions in the prompt, the strings at which an agent stops, the parser, the rendering and
escaping of tool output, and how an oracle writes. `tag_grammar` and `hermes` are the two kinds, `grammars` the presets
by name. Both are total and linear: any string gives calls, an answer or a named error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any, Protocol

from forkgym.envs.tasks import SolutionStep
from forkgym.tools.base import Tool

# Of the presets' thoughts, results, answers and calls. They are escaped in every grammar: a model that was trained on
# one takes its tags seriously in another.
KNOWN_TAGS = ("think", "result", "information", "answer", "tool_call", "tool_response")


class ParseError(StrEnum):
    """Why a turn holds neither a call that can be run nor an answer."""

    NOTHING = "nothing"
    UNCLOSED = "unclosed"
    UNOPENED = "unopened"
    NESTED = "nested"
    IN_THOUGHT = "in_thought"
    FORGED_RESULT = "forged_result"
    EMPTY_CALL = "empty_call"
    NOT_JSON = "not_json"
    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGUMENTS = "bad_arguments"
    CALL_LIMIT = "call_limit"


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the policy wrote it.

    Attributes:
        tool: The tool's name.
        text: The untouched text between the markers.
        arguments: The object of arguments, where the grammar's calls are JSON; None where ``text`` is the argument.
    """

    tool: str
    text: str
    arguments: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class ParsedTurn:
    """What one turn of policy text means: calls, or an answer, or an error with a sentence that says what to do.

    Example: ``<think>16 - 3</think><calculator>16-3</calculator>`` gives
    ``ParsedTurn(calls=(Call("calculator", "16-3"),))``.
    """

    calls: tuple[Call, ...] = ()
    answer: str | None = None
    error: ParseError | None = None
    correction: str = ""

    def __post_init__(self) -> None:
        """Check that it is one of the three."""
        assert (bool(self.calls), self.answer is not None, self.error is not None).count(True) == 1


@dataclass(frozen=True, slots=True)
class Prompt:
    """What an episode begins with.

    Attributes:
        instructions: What is said about calls, results and the answer, the tools included.
        question: The task's.
        brief: The instructions without the tools, for a chat template that describes ``schemas`` itself.
        schemas: Of the tools, as chat templates take them; empty where the instructions are all there is.
    """

    instructions: str
    question: str
    brief: str = ""
    schemas: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Reply:
    """What an environment says to a turn.

    Attributes:
        text: The observation.
        markers: Strings in it that have a meaning; what stands between them is outside text.
        messages: The same as contents of tool messages, where the model's chat template is to frame them; empty where
            the text follows the turn as it is.
    """

    text: str
    markers: tuple[str, ...]
    messages: tuple[str, ...] = ()


class Grammar(Protocol):
    """What environments and agents need of a grammar; `TagGrammar` and `HermesGrammar` are the two kinds."""

    @property
    def name(self) -> str:
        """The preset's name."""
        ...

    def instructions(self, tools: Sequence[Tool]) -> str:
        """What the prompt says about calls, results and the answer."""
        ...

    def prompt(self, tools: Sequence[Tool], question: str) -> Prompt:
        """The beginning of an episode."""
        ...

    def reply(self, observation: str, tool_names: tuple[str, ...]) -> Reply:
        """What an observation, as ``render_results`` wrote it, adds to the context."""
        ...

    def stop_strings(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """Strings that end a turn, themselves included in it; empty where only the message's end does."""
        ...

    def markers(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """Every string with a meaning; outside text holds none of them after ``escape``."""
        ...

    def parse(self, text: str, tool_names: tuple[str, ...]) -> ParsedTurn:
        """Read one turn; total: any string gives calls, an answer or a named error, in time linear in its length."""
        ...

    def escape(self, text: str, tool_names: tuple[str, ...]) -> str:
        """Take the meaning from every marker in a text that the policy did not write."""
        ...

    def render_results(self, outputs: Sequence[str], tool_names: tuple[str, ...]) -> str:
        """The observation that shows outputs of calls, or a correction, to the model."""
        ...

    def render_step(self, step: SolutionStep, tools: Mapping[str, Tool]) -> str:
        """The turn in which an oracle takes ``step``; ``tools`` by name, among which its tool need not be."""
        ...


class ForwardSearch:
    """Finds strings from positions that never decrease, in time linear in the text over all calls together."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.found: dict[str, int] = {}

    def find(self, string: str, start: int) -> int:
        """Return where ``string`` next is at or after ``start``; the text's length where it is not."""
        place = self.found.get(string, -1)
        if place < start:
            place = self.text.find(string, start)
            self.found[string] = place = place if place >= 0 else len(self.text)
        return place


def wrong(error: ParseError, correction: str) -> ParsedTurn:
    """A turn that can't be acted on, and what to tell the model."""
    return ParsedTurn(error=error, correction=correction)


def without_control_tokens(text: str) -> str:
    """Write ``&lt;|`` for each ``<|``, with which control tokens such as ``<|im_end|>`` begin."""
    return text.replace("<|", "&lt;|")


def escaped(text: str, names: tuple[str, ...]) -> str:
    """Write ``&lt;`` for the ``<`` of each tag of these names and of `KNOWN_TAGS`, and of each control token.

    Agents encode outside text without control tokens anyway; this keeps it so where a text goes another way, such as
    over a chat endpoint.
    """
    return tag_start(names).sub("&lt;", text) if "<" in text else text


@lru_cache(maxsize=256)
def tag_start(names: tuple[str, ...]) -> re.Pattern[str]:
    """Match the first character of what `escaped` takes apart."""
    return re.compile(rf"<(?=/?(?:{'|'.join((*KNOWN_TAGS, *names))})>|\|)")
