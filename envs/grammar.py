"""The grammar of turns: the markers of thoughts, calls, results and answers, and all that follows from them.

One object drives the instructions in the prompt, the strings at which an agent stops, the parser, the rendering and
escaping of tool output, and how an oracle writes. A new tag grammar is one `TagGrammar(...)` with other markers.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Protocol

from forkgym.envs.tasks import SolutionStep
from forkgym.tools.base import Tool


class ParseError(StrEnum):
    """Why a turn holds neither a call that can be run nor an answer."""

    NOTHING = "nothing"
    UNCLOSED = "unclosed"
    UNOPENED = "unopened"
    NESTED = "nested"
    IN_THOUGHT = "in_thought"
    FORGED_RESULT = "forged_result"
    EMPTY_CALL = "empty_call"
    UNKNOWN_TOOL = "unknown_tool"
    BAD_ARGUMENTS = "bad_arguments"


@dataclass(frozen=True, slots=True)
class Call:
    """One call as the policy wrote it: the tool's name and the untouched text between its markers."""

    tool: str
    text: str


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


class Grammar(Protocol):
    """What environments and agents need of a grammar; `TagGrammar` is one."""

    @property
    def name(self) -> str:
        """The preset's name."""
        ...

    def instructions(self, tools: Sequence[Tool]) -> str:
        """What the prompt says about calls, results and the answer."""
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

    def render_step(self, step: SolutionStep) -> str:
        """The turn in which an oracle takes ``step``."""
        ...


@dataclass(frozen=True, slots=True)
class TagGrammar:
    r"""Calls are ``<tool>argument</tool>``; the answer and the results have tags of their own.

    A turn ends at the first complete call or answer; what follows in the same turn is ignored. A call or an answer
    inside an open thought ends the turn too and is malformed. A tag that is merely mentioned inside a thought (it is
    not closed before the thought is) means nothing.

    Attributes:
        name: The preset's name.
        thought: Tag of the reasoning.
        result: Tag around tool output.
        answer: Tag of the final answer.
        boxed: Whether an answer is asked for, and rendered, inside ``\boxed{}``.
    """

    name: str
    thought: str = "think"
    result: str = "result"
    answer: str = "answer"
    boxed: bool = True

    def instructions(self, tools: Sequence[Tool]) -> str:
        """What the prompt says about calls, results and the answer."""
        lines = [f"Reason inside <{self.thought}>...</{self.thought}>."]
        if tools:
            lines.append("Call a tool by writing its argument between its tags, then stop. Tools:")
            lines += [f"<{tool.name}>{argument_hint(tool)}</{tool.name}>: {tool.description}" for tool in tools]
            lines.append(f"The output comes back inside <{self.result}>...</{self.result}>; never write that yourself.")
        example = "\\boxed{...}" if self.boxed else "..."
        lines.append(f"Finish with <{self.answer}>{example}</{self.answer}>.")
        return "\n".join(lines)

    def stop_strings(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """The closing tag of each call and of the answer."""
        return tuple(f"</{name}>" for name in (*tool_names, self.answer))

    def markers(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """The opening and closing tags of everything."""
        names = (self.thought, self.result, self.answer, *tool_names)
        return tuple(tag for name in names for tag in (f"<{name}>", f"</{name}>"))

    def escape(self, text: str, tool_names: tuple[str, ...]) -> str:
        """Write ``&lt;`` for the first character of each tag in ``text``."""
        return tag_pattern(self, tool_names).sub(lambda tag: "&lt;" + tag[0][1:], text) if "<" in text else text

    def render_results(self, outputs: Sequence[str], tool_names: tuple[str, ...]) -> str:
        """Each output, escaped, in a result tag of its own."""
        return "".join(f"<{self.result}>{self.escape(text, tool_names)}</{self.result}>" for text in outputs)

    def render_step(self, step: SolutionStep) -> str:
        """A thought, where there is one, then the call or the answer."""
        thought = f"<{self.thought}>{step.thought}</{self.thought}>" if step.thought else ""
        if step.tool is not None:
            return f"{thought}<{step.tool}>{step.argument}</{step.tool}>"
        final = f"\\boxed{{{step.argument}}}" if self.boxed else step.argument
        return f"{thought}<{self.answer}>{final}</{self.answer}>"

    def parse(self, text: str, tool_names: tuple[str, ...]) -> ParsedTurn:
        """Read one turn; see the class for the rules."""
        in_thought = False
        problem: ParsedTurn | None = None
        find = ForwardSearch(text).find
        for tag in tag_pattern(self, tool_names).finditer(text):
            closing, name = tag[1] == "/", tag[2]
            if name == self.thought:
                in_thought = not closing
            elif closing:
                if not in_thought and name in tool_names and problem is None:
                    problem = wrong(ParseError.UNOPENED, f"{name} was closed but not opened.")
            elif name == self.result:
                if not in_thought:
                    return wrong(ParseError.FORGED_RESULT, "Results are written by the environment, not by you.")
            else:
                start, close = tag.end(), find(f"</{name}>", tag.end())
                if close < len(text) and not (in_thought and find(f"</{self.thought}>", start) < close):
                    return self._complete(name, text[start:close], tool_names, in_thought=in_thought)
                if close == len(text) and not in_thought and name != self.answer:
                    return wrong(ParseError.UNCLOSED, f"{name} was opened but not closed.")
        return problem or self._nothing(text, tool_names)

    def _complete(self, name: str, inside: str, tool_names: tuple[str, ...], *, in_thought: bool) -> ParsedTurn:
        if f"<{name}>" in inside:
            return wrong(ParseError.NESTED, f"{name} was opened again before it was closed.")
        if in_thought:
            return wrong(ParseError.IN_THOUGHT, f"Close {self.thought} before you write {name}.")
        if name == self.answer:
            if any(f"</{tool}>" in inside for tool in tool_names):
                return wrong(ParseError.NESTED, f"A call stood inside {self.answer}.")
            return ParsedTurn(answer=inside)
        if not inside.strip():
            return wrong(ParseError.EMPTY_CALL, f"The call of {name} was empty.")
        return ParsedTurn(calls=(Call(name, inside),))

    def _nothing(self, text: str, tool_names: tuple[str, ...]) -> ParsedTurn:
        known = ", ".join(tool_names) or "none"
        unknown = UNKNOWN_CALL.search(text)
        if unknown is not None and unknown[1] not in (*tool_names, self.thought, self.answer, self.result):
            return wrong(ParseError.UNKNOWN_TOOL, f"There is no tool {unknown[1]}; the tools are: {known}.")
        return wrong(
            ParseError.NOTHING, f"The turn held no complete call and no {self.answer}; the tools are: {known}."
        )


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


UNKNOWN_CALL = re.compile(r"</([A-Za-z_]\w{0,63})>", re.ASCII)

GRAMMARS: dict[str, TagGrammar] = {
    "arpo": TagGrammar("arpo"),
    "search_r1": TagGrammar("search_r1", result="information", boxed=False),
}


def wrong(error: ParseError, correction: str) -> ParsedTurn:
    """A turn that can't be acted on, and what to tell the model."""
    return ParsedTurn(error=error, correction=correction)


def argument_hint(tool: Tool) -> str:
    """What stands between a tool's tags in the instructions: the argument's name, or the JSON object's shape."""
    if tool.text_parameter is not None:
        return tool.text_parameter
    return "{" + ", ".join(f'"{name}": ...' for name in tool.parameters["properties"]) + "}"


@lru_cache(maxsize=256)
def tag_pattern(grammar: TagGrammar, tool_names: tuple[str, ...]) -> re.Pattern[str]:
    """Match any tag of the grammar: group 1 is the slash of a closing one, group 2 the name."""
    names = "|".join((grammar.thought, grammar.result, grammar.answer, *tool_names))
    return re.compile(f"<(/?)({names})>")


def resolve_grammar(grammar: str | Grammar) -> Grammar:
    """Return a preset by name; a grammar object is returned as it is.

    Raises:
        ValueError: No preset has that name.
    """
    if not isinstance(grammar, str):
        return grammar
    try:
        return GRAMMARS[grammar]
    except KeyError:
        raise ValueError(f"grammar {grammar!r}: expected one of {', '.join(sorted(GRAMMARS))}") from None
