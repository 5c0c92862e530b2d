"""The Hermes grammar: calls are JSON between ``<tool_call>`` tags, results are messages of the model's chat template.

Nous Research's function-calling format, which Qwen's chat templates and many others render and most tool-tuned models
were trained on.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json

from forkgym.envs.grammar import (
    Call,
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

CALL = "tool_call"
RESULT = "tool_response"
THOUGHT = "think"
TAG = re.compile(f"<(/?)({CALL}|{RESULT}|{THOUGHT})>")
MESSAGE = re.compile(f"<{RESULT}>\n(.*?)\n</{RESULT}>", re.DOTALL)
SHAPE = f'<{CALL}>\n{{"name": <function-name>, "arguments": <args-json-object>}}\n</{CALL}>'
FINISH = "Finish with a message that calls no tool and gives the final answer inside \\boxed{...}."
ANSWER = "Give the final answer inside \\boxed{...}."


class WrittenCall(BaseModel):
    """What stands between the markers of a call."""

    model_config = ConfigDict(strict=True)
    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class HermesGrammar:
    r"""A turn is a whole message: several calls, which run side by side, or an answer.

    A message may reason inside ``<think>...</think>``; nothing in there is a call, and a message that begins inside a
    thought which the chat template opened counts as reasoning up to its first ``</think>``. A message without a call
    is the answer: all of it but the reasoning, of which a task reads ``\boxed{...}`` where there is one. A call that
    is malformed makes its whole message malformed, and none of its calls is run.

    Outside text cannot forge anything: every tag and control token in it is escaped, and the codec encodes it without
    control tokens.

    Attributes:
        name: The preset's name.
        max_calls: Calls of one message, at most; a message with more is malformed.
    """

    name: str = "hermes"
    max_calls: int = 16

    def instructions(self, tools: Sequence[Tool]) -> str:
        """The same that a chat template says of its tools, and how to finish."""
        if not tools:
            return ANSWER
        lines = [
            "You may call one or more functions to assist with the user query.",
            "Function signatures are within <tools></tools> XML tags:",
            "<tools>",
            *(json.dumps(schema_of(tool), ensure_ascii=False) for tool in tools),
            "</tools>",
            f"For each function call, return a json object with function name and arguments within <{CALL}></{CALL}> "
            f"XML tags:\n{SHAPE}",
            FINISH,
        ]
        return "\n".join(lines)

    def prompt(self, tools: Sequence[Tool], question: str) -> Prompt:
        """The question, with the tools as schemas for the chat template."""
        instructions = self.instructions(tools)
        return Prompt(instructions, question, FINISH if tools else instructions, tuple(map(schema_of, tools)))

    def reply(self, observation: str, tool_names: tuple[str, ...]) -> Reply:
        """The contents of the observation's results, each for a tool message."""
        return Reply(observation, self.markers(tool_names), messages=tuple(MESSAGE.findall(observation)))

    def stop_strings(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """None: a turn ends with the message."""
        del tool_names
        return ()

    def markers(self, tool_names: tuple[str, ...]) -> tuple[str, ...]:
        """The opening and closing tags of calls, results and thoughts."""
        del tool_names
        return tuple(tag for name in (CALL, RESULT, THOUGHT) for tag in (f"<{name}>", f"</{name}>"))

    def escape(self, text: str, tool_names: tuple[str, ...]) -> str:
        """See `escaped`."""
        del tool_names
        return escaped(text, ())

    def render_results(self, outputs: Sequence[str], tool_names: tuple[str, ...]) -> str:
        """Each output, escaped, in a result tag of its own."""
        return "\n".join(f"<{RESULT}>\n{self.escape(text, tool_names)}\n</{RESULT}>" for text in outputs)

    def render_step(self, step: SolutionStep, tools: Mapping[str, Tool]) -> str:
        """A thought, where there is one, then the call or the answer.

        Raises:
            ValueError: The tool has other arguments than one text, and the step's is no JSON object.
        """
        thought = f"<{THOUGHT}>\n{step.thought}\n</{THOUGHT}>\n\n" if step.thought else ""
        if step.tool is None:
            return f"{thought}\\boxed{{{step.argument}}}"
        written = {"name": step.tool, "arguments": step_arguments(step, tools.get(step.tool))}
        return f"{thought}<{CALL}>\n{json.dumps(written, ensure_ascii=False)}\n</{CALL}>"

    def parse(self, text: str, tool_names: tuple[str, ...]) -> ParsedTurn:
        """Read one message; see the class for the rules."""
        body: list[str] = []
        written: list[str] = []
        for kind, piece in pieces_of(text):
            if isinstance(kind, ParseError):
                return wrong(kind, piece)
            (written if kind == CALL else body).append(piece)
        if len(written) > self.max_calls:
            return wrong(ParseError.CALL_LIMIT, f"{len(written)} calls in a message; at most {self.max_calls}.")
        calls: list[Call] = []
        for inside in written:
            call = read_call(inside, tool_names)
            if isinstance(call, ParsedTurn):
                return call
            calls.append(call)
        if calls:
            return ParsedTurn(calls=tuple(calls))
        answer = "".join(body).strip()
        if answer:
            return ParsedTurn(answer=answer)
        if not tool_names:
            return wrong(ParseError.NOTHING, "The message held no answer.")
        return wrong(
            ParseError.NOTHING, f"The message held no call and no answer; the tools are: {', '.join(tool_names)}."
        )


def schema_of(tool: Tool) -> dict[str, Any]:
    """A tool as chat templates and chat endpoints take it; its author may be a server, so no control token is in it."""
    function = {"name": tool.name, "description": tool.description, "parameters": tool.parameters}
    schema: dict[str, Any] = json.loads(without_control_tokens(json.dumps(function)))
    return {"type": "function", "function": schema}


def step_arguments(step: SolutionStep, tool: Tool | None) -> dict[str, Any]:
    """The arguments of an oracle's call: its one text by name, or the JSON object that it is."""
    if tool is None:
        return {"text": step.argument}
    if tool.text_parameter is not None:
        return {tool.text_parameter: step.argument}
    arguments: dict[str, Any] = json.loads(step.argument)
    return arguments


def pieces_of(text: str) -> Iterator[tuple[str | ParseError, str]]:
    """Split a message into text (kind "") and the insides of calls (kind ``CALL``), without its reasoning.

    Where it is malformed, the last piece is the error with what to tell the model.
    """
    start = 0
    opened = THOUGHT if begins_in_thought(text) else ""
    for tag in TAG.finditer(text):
        closing, name = tag[1] == "/", tag[2]
        if opened:
            if name == opened and closing:
                if opened == CALL:
                    yield CALL, text[start : tag.start()]
                opened, start = "", tag.end()
            elif name == opened == CALL:
                yield ParseError.NESTED, f"{CALL} was opened again before it was closed."
                return
        elif name == RESULT:
            yield ParseError.FORGED_RESULT, "Results are written by the environment, not by you."
            return
        elif closing:
            yield ParseError.UNOPENED, f"{name} was closed but not opened."
            return
        else:
            yield "", text[start : tag.start()]
            opened, start = name, tag.end()
    if opened:
        yield ParseError.UNCLOSED, f"{opened} was opened but not closed."
    else:
        yield "", text[start:]


def begins_in_thought(text: str) -> bool:
    """Whether the chat template opened a thought before the message: it is closed before one is opened."""
    closed, opened = text.find(f"</{THOUGHT}>"), text.find(f"<{THOUGHT}>")
    return closed >= 0 and (opened < 0 or closed < opened)


def read_call(inside: str, tool_names: tuple[str, ...]) -> Call | ParsedTurn:
    """Read what stands between the markers of a call, or say what is wrong with it."""
    if not inside.strip():
        return wrong(ParseError.EMPTY_CALL, "A call was empty.")
    try:
        # Unlike json.loads, it refuses half a surrogate pair, which no tokenizer takes, and deep nesting.
        written = WrittenCall.model_validate(from_json(inside.strip(), allow_inf_nan=False))
    except ValidationError:
        return wrong(ParseError.NOT_JSON, 'A call is a JSON object with the string "name" and the object "arguments".')
    except (TypeError, ValueError) as error:  # TypeError: half a surrogate pair in the text itself
        return wrong(ParseError.NOT_JSON, f"A call was not JSON: {error}.")
    if written.name not in tool_names:
        known = ", ".join(tool_names) or "none"
        return wrong(ParseError.UNKNOWN_TOOL, f"There is no tool {written.name[:64]}; the tools are: {known}.")
    return Call(written.name, inside, written.arguments)
