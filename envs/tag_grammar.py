"""Grammars of tags: ``<search>q</search>``, ``<result>...</result>``, ``<answer>...</answer>``."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache

from forkgym.envs.grammar import (
    Call,
    ForwardSearch,
    ParsedTurn,
    ParseError,
    Prompt,
    Reply,
    escaped,
    without_control_tokens,
    wrong,
)
from forkgym.envs.tasks import SolutionStep
from forkgym.tools.base import Tool

UNKNOWN_CALL = re.compile(r"</([A-Za-z_]\w{0,63})>", re.ASCII)


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
            for tool in tools:
                # Its author may be a server.
                description = without_control_tokens(tool.description)
                lines.append(f"<{tool.name}>{argument_hint(tool)}</{tool.name}>: {description}")
            lines.append(f"The output comes back inside <{self.result}>...</{self.result}>; never write that yourself.")
        example = "\\boxed{...}" if self.boxed else "..."
        lines.append(f"Finish with <{self.answer}>{example}</{self.answer}>.")
        return "\n".join(lines)

    def prompt(self, tools: Sequence[Tool], question: str) -> Prompt:
        """The instructions and the question."""
        return Prompt(self.instructions(tools), question)

    def reply(self, observation: str, tool_names: tuple[str, ...]) -> Reply:
        """The observation, right after the turn."""
        return Reply(observation, self.markers(tool_names))

    def stop_strings(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """The closing tag of each call and of the answer."""
        return tuple(f"</{name}>" for name in (*tool_names, self.answer))

    def markers(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """The opening and closing tags of everything."""
        names = (self.thought, self.result, self.answer, *tool_names)
        return tuple(tag for name in names for tag in (f"<{name}>", f"</{name}>"))

    def escape(self, text: str, tool_names: tuple[str, ...]) -> str:
        """See `escaped`."""
        return escaped(text, (self.thought, self.result, self.answer, *tool_names))

    def render_results(self, outputs: Sequence[str], tool_names: tuple[str, ...]) -> str:
        """Each output, escaped, in a result tag of its own."""
        return "".join(f"<{self.result}>{self.escape(text, tool_names)}</{self.result}>" for text in outputs)

    def render_step(self, step: SolutionStep, tools: Mapping[str, Tool]) -> str:
        """A thought, where there is one, then the call or the answer."""
        del tools
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
        if not tool_names:
            return wrong(ParseError.NOTHING, f"The turn held no complete {self.answer}.")
        return wrong(
            ParseError.NOTHING, f"The turn held no complete call and no {self.answer}; the tools are: {known}."
        )


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
