r"""What a file of conversations holds, and whether the environment would take what the assistant does in one.

A row has ``messages``, and may have ``tools``::

    {"messages": [{"role": "user", "content": "How much is 2 + 3?"},
                  {"role": "assistant", "content": null, "tool_calls": [
                      {"id": "1", "function": {"name": "add", "arguments": "{\"a\": 2, \"b\": 3}"}}]},
                  {"role": "tool", "tool_call_id": "1", "content": "5"},
                  {"role": "assistant", "content": "\\boxed{5}"}],
     "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, field_validator, model_validator
from pydantic_core import from_json

from forkgym.envs.grammar import Call
from forkgym.envs.hermes import CALL, TAG, THOUGHT, HermesGrammar

HERMES = HermesGrammar()
FREE_FORM = ("arguments", "parameters")  # the fields that hold objects of any keys
# Keywords with which a JSON schema allows names that its properties do not list.
OPENING_KEYWORDS = frozenset({"patternProperties", "$ref", "allOf", "anyOf", "oneOf"})


def checked_json(value: dict[str, Any]) -> dict[str, Any]:
    """Check that an object can be written as JSON, which has no NaN, no infinity and, of tables, no dates.

    Raises:
        ValueError: It can't.
    """
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"expected what JSON can hold: {error}") from error
    return value


JsonObject = Annotated[dict[str, Any], AfterValidator(checked_json)]


class AnyName(tuple[str, ...]):
    """The names of tools that nobody has listed: every name is among them."""

    __slots__ = ()

    def __contains__(self, name: object) -> bool:
        """Whether a tool of this name may be called."""
        return True


class Record(BaseModel):
    """What a file may hold; further fields are left alone."""

    model_config = ConfigDict(frozen=True)


class TextPart(Record):
    """A part of a content that is a list of parts."""

    type: Literal["text"]
    text: str


class WrittenFunction(Record):
    """The tool that is called and its arguments: an object, or that as JSON."""

    name: str
    arguments: JsonObject

    @field_validator("arguments", mode="before")
    @classmethod
    def read_json(cls, arguments: object) -> object:
        """Read JSON; null, and the empty text that some servers write, are no arguments."""
        if arguments is None or arguments == "":
            return {}
        return from_json(arguments) if isinstance(arguments, str) else arguments


class WrittenToolCall(Record):
    """A call beside an assistant's text."""

    id: str | None = None
    function: WrittenFunction


class Message(Record):
    """A message; what the assistant thought before it wrote the content has one of three names, by server.

    ``function_call``, which ``tool_calls`` have replaced, and a ``weight`` of 0 are known in order to be refused.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    tool_calls: tuple[WrittenToolCall, ...] = ()
    tool_call_id: str | None = None
    function_call: object = None
    weight: float | None = None

    @field_validator("content", mode="before")
    @classmethod
    def join_parts(cls, content: object) -> object:
        """Join a list of text parts."""
        if not isinstance(content, list):
            return content
        return "".join(TextPart.model_validate(part).text for part in cast("list[object]", content))

    @field_validator("tool_calls", mode="before")
    @classmethod
    def null_is_absent(cls, calls: object) -> object:
        """Take null, which tables have for what is not there, for no calls."""
        return () if calls is None else calls

    @property
    def thoughts(self) -> tuple[str, ...]:
        """What the assistant thought; more than one where its names differ."""
        found = (self.reasoning_content, self.reasoning, self.thinking)
        return tuple(dict.fromkeys(text.strip() for text in found if text and text.strip()))

    @property
    def text(self) -> str:
        """An assistant's message as the hermes grammar writes it; a tag in an argument cannot end its call."""
        content = self.content or ""
        written = [
            json.dumps(call.function.model_dump(), ensure_ascii=False, allow_nan=False) for call in self.tool_calls
        ]
        calls = [f"<{CALL}>\n{TAG.sub(escaped_tag, inside)}\n</{CALL}>" for inside in written]
        gap = "\n" if calls and content and not content.endswith("\n") else ""
        opened = "".join(f"<{THOUGHT}>\n{thought}\n</{THOUGHT}>\n\n" for thought in self.thoughts)
        return opened + content + gap + "\n".join(calls)


class DescribedFunction(Record):
    """What the model is told of a tool; one without parameters takes no arguments."""

    name: str
    description: str = ""
    parameters: JsonObject = {"type": "object", "properties": {}}

    @model_validator(mode="before")
    @classmethod
    def null_is_absent(cls, function: Any) -> Any:
        """Take null for what is not there."""
        if not isinstance(function, Mapping):
            return function
        return {name: value for name, value in cast("Mapping[str, Any]", function).items() if value is not None}


class DescribedTool(Record):
    """A tool among ``tools``."""

    function: DescribedFunction


class Conversation(Record):
    """A row."""

    messages: tuple[Message, ...]
    tools: tuple[DescribedTool, ...] = ()

    @field_validator("tools", mode="before")
    @classmethod
    def read_json(cls, tools: object) -> object:
        """Read what a table holds as JSON, or does not hold."""
        return json.loads(tools or "[]") if isinstance(tools, str) else tools or ()


class TableConversation(Conversation):
    """A row of a table, in which every object has the keys of those of all rows, filled up with null.

    So a null in an object of arguments or of parameters is no value here; one that is meant has to be in JSON.
    """

    @model_validator(mode="before")
    @classmethod
    def drop_filling(cls, row: Any) -> Any:
        """Leave out what fills up."""
        return without_filling(row)


def without_filling(value: Any, free_form: bool = False) -> Any:
    """A value of a table without the nulls in objects of any keys.

    >>> without_filling({"content": None, "arguments": {"a": 2, "query": None, "list": [None, {"b": None}]}})
    {'content': None, 'arguments': {'a': 2, 'list': [None, {}]}}
    """
    if isinstance(value, list):
        return [without_filling(one, free_form) for one in cast("list[object]", value)]
    if not isinstance(value, Mapping):
        return value
    return {
        name: without_filling(one, free_form or name in FREE_FORM)
        for name, one in cast("Mapping[str, Any]", value).items()
        if not (free_form and one is None)
    }


def escaped_tag(tag: Any) -> str:
    """A tag inside a JSON string, without the character that makes it one."""
    return "\\u003c" + str(tag[0])[1:]


def check(conversation: Conversation) -> None:
    """Check a conversation: [system] user, then assistant by turns with tools or the user, and no malformed message.

    Every message of the assistant is read as the environment reads a turn; where the conversation has tools, its calls
    are of those, with the arguments that they list.

    Raises:
        ValueError: It is not so; names the first message with which something is wrong, from 0.
    """
    waiting: list[str | None] = []  # ids of the calls that have no result yet
    before = "nothing"
    for place, message in enumerate(conversation.messages):
        problem = misplaced(message, before, waiting)
        calls: Sequence[Call] = ()
        if not problem and message.role == "assistant":
            calls, problem = read(message, conversation.tools)
        if problem:
            raise ValueError(f"messages.{place} {problem}")
        if message.role == "assistant":
            ids = [call.id for call in message.tool_calls]
            waiting = [*ids, *[None] * (len(calls) - len(ids))]
        elif message.role == "tool":
            waiting.remove(message.tool_call_id if message.tool_call_id in waiting else waiting[0])
        before = message.role
    if before != "assistant":
        raise ValueError(f"the conversation ends with {before}, expected an assistant's message")


def misplaced(message: Message, before: str, waiting: Sequence[str | None]) -> str:
    """What is wrong with a message after one of the role ``before``; empty where nothing is."""
    role = message.role
    if role != "assistant" and message.tool_calls:
        return f"is of the role {role} and has tool_calls, expected them in an assistant's message"
    if message.function_call:
        return "has a function_call, expected it among tool_calls"
    if not (message.content or message.tool_calls or (role == "tool" and message.content == "")):
        return f"is of the role {role} and has no content"
    if role == "tool":
        if not waiting:
            return "is a tool's result, but no call before it waits for one"
        if message.tool_call_id is not None and None not in waiting and message.tool_call_id not in waiting:
            return f"has the tool_call_id {message.tool_call_id!r}, expected one of {', '.join(map(repr, waiting))}"
        return ""
    if waiting:
        return f"is of the role {role}, while a call before it waits for its result"
    allowed = {"nothing": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
    expected = allowed.get(before, ("assistant",))
    return "" if role in expected else f"is of the role {role} after {before}, expected {' or '.join(expected)}"


def read(message: Message, tools: Sequence[DescribedTool]) -> tuple[Sequence[Call], str]:
    """The calls of an assistant's message, or what is wrong with it; the latter is empty where nothing is."""
    if len(message.thoughts) > 1:
        return (), "has several thoughts, expected one of reasoning_content, reasoning and thinking"
    if message.weight == 0:
        return (), "has the weight 0, expected 1 or none: every message of the assistant is learnt"
    described = {tool.function.name: tool.function.parameters for tool in tools}
    parsed = HERMES.parse(message.text, tuple(described) if described else AnyName())
    if parsed.error is not None:
        return (), f"is malformed: {parsed.correction}"
    for call in parsed.calls if described else ():
        misfit = misfit_of(call.arguments or {}, described[call.tool])
        if misfit:
            return (), f"calls {call.tool} {misfit}"
    return parsed.calls, ""


def misfit_of(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Where the names of arguments do not fit a JSON schema; empty where they do.

    A name that the properties do not list is allowed only where the schema says so: a tool of this package would
    refuse it, and the model is told of no other. A schema without properties allows any.
    """
    properties, required, given = parameters.get("properties"), parameters.get("required"), list(arguments)
    needed = cast("list[object]", required) if isinstance(required, list) else []
    missing = [name for name in needed if name not in given]
    if missing:
        return f"without the argument {missing[0]!r}, which its parameters require"
    is_open = parameters.get("additionalProperties", False) is not False or OPENING_KEYWORDS & parameters.keys()
    if is_open or not isinstance(properties, Mapping):
        return ""
    listed = [str(name) for name in cast("Mapping[str, Any]", properties)]
    unknown = [name for name in given if name not in listed]
    return f"with the argument {unknown[0]!r}, expected {' or '.join(map(repr, listed)) or 'none'}" if unknown else ""
