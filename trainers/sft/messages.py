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
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, ModelWrapValidatorHandler, field_validator, model_validator
from pydantic_core import from_json

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

    ``name`` is a result's tool. ``function_call``, which ``tool_calls`` have replaced, and a ``weight`` of 0 are known
    in order to be refused.
    """

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    thinking: str | None = None
    tool_calls: tuple[WrittenToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
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

    So a null in an object of arguments or of parameters is no value here, except for an argument that is required and
    may be null; any other that is meant has to be in JSON. A result that is null is an empty one.
    """

    @model_validator(mode="wrap")
    @classmethod
    def drop_filling(cls, row: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        """Leave out what fills up; which nulls are values is known once the tools are read."""
        read = handler(without_filling(row))
        meant = {tool.function.name: needed_nulls(tool.function.parameters) for tool in read.tools}
        return handler(without_filling(row, meant)) if any(meant.values()) else read


def without_filling(value: Any, meant: Mapping[str, Collection[str]] | None = None) -> Any:
    """A table's row, or a part of it, without the nulls that are no values.

    Args:
        value: The row.
        meant: By tool, arguments of which null is a value.

    >>> without_filling({"content": None, "arguments": {"a": 2, "query": None, "list": [None, {"b": None}]}})
    {'content': None, 'arguments': {'a': 2, 'list': [None, {}]}}
    >>> without_filling({"name": "add", "arguments": {"a": None, "query": None}}, {"add": ["a"]})
    {'name': 'add', 'arguments': {'a': None}}
    """
    if isinstance(value, list):
        return [without_filling(one, meant) for one in cast("list[object]", value)]
    if not isinstance(value, Mapping):
        return value
    found = cast("Mapping[str, Any]", value)
    values = {"arguments": (meant or {}).get(str(found.get("name")), ())}
    kept = {
        name: without_nulls(one, values.get(name, ())) if name in FREE_FORM else without_filling(one, meant)
        for name, one in found.items()
    }
    if found.get("role") == "tool" and found.get("content") is None:
        kept["content"] = ""
    return kept


def without_nulls(value: Any, values: Collection[str] = ()) -> Any:
    """An object of any keys without its nulls, and those of objects in it; ``values`` are names that may be null."""
    if isinstance(value, list):
        return [without_nulls(one) for one in cast("list[object]", value)]
    if not isinstance(value, Mapping):
        return value
    found = cast("Mapping[str, Any]", value)
    return {name: without_nulls(one) for name, one in found.items() if one is not None or name in values}


def needed_nulls(parameters: Mapping[str, Any]) -> list[str]:
    """The arguments that a JSON schema requires and that may be null."""
    properties = parameters.get("properties")
    schemas: Mapping[str, Any] = cast("Mapping[str, Any]", properties) if isinstance(properties, Mapping) else {}
    return [name for name in required_by(parameters) if isinstance(name, str) and may_be_null(schemas.get(name))]


def may_be_null(schema: object) -> bool:
    """Whether a JSON schema allows null: it says so, or says nothing of types."""
    if not isinstance(schema, Mapping):
        return True
    found = cast("Mapping[str, Any]", schema)
    choices = found.get("anyOf") or found.get("oneOf")
    if isinstance(choices, list):
        return any(may_be_null(choice) for choice in cast("list[object]", choices))
    types = found.get("type")
    return types in (None, "null") or (isinstance(types, list) and "null" in types)


def required_by(parameters: Mapping[str, Any]) -> list[object]:
    """What a JSON schema requires."""
    required = parameters.get("required")
    return cast("list[object]", required) if isinstance(required, list) else []


def escaped_tag(tag: Any) -> str:
    """A tag inside a JSON string, without the character that makes it one."""
    return "\\u003c" + str(tag[0])[1:]


@dataclass(frozen=True, slots=True)
class WaitingCall:
    """A call that has no result yet.

    Attributes:
        place: Among the calls of its message, from 0.
        id: None where the conversation gives it none.
        tool: The tool's name.
    """

    place: int
    id: str | None
    tool: str


def check(conversation: Conversation) -> tuple[Message, ...]:
    """Check a conversation: [system] user, then assistant by turns with tools or the user, and no malformed message.

    Every message of the assistant is read as the environment reads a turn; where the conversation has tools, its calls
    are of those, with the arguments that they list.

    Returns:
        Its messages; the results of several calls in the order of the calls.

    Raises:
        ValueError: It is not so; names the first message with which something is wrong, from 0.
    """
    waiting: Sequence[WaitingCall] = ()
    before, asked = "nothing", 0
    order: list[tuple[int, int]] = []  # by message: whose turn it is or follows, and which of its calls it answers
    for place, message in enumerate(conversation.messages):
        problem, answered = misplaced(message, before, waiting), -1
        if not problem and message.role == "assistant":
            asked = place
            waiting, problem = read(message, conversation.tools)
        elif not problem and message.role == "tool":
            answered, problem = answered_by(message, waiting)
            waiting = [call for call in waiting if call.place != answered]
        if problem:
            raise ValueError(f"messages.{place} {problem}")
        order.append((asked if message.role == "tool" else place, answered))
        before = message.role
    if before != "assistant":
        raise ValueError(f"the conversation ends with {before}, expected an assistant's message")
    return tuple(conversation.messages[place] for place in sorted(range(len(order)), key=order.__getitem__))


def misplaced(message: Message, before: str, waiting: Sequence[WaitingCall]) -> str:
    """What is wrong with a message after one of the role ``before``; empty where nothing is."""
    role = message.role
    if role != "assistant" and message.tool_calls:
        return f"is of the role {role} and has tool_calls, expected them in an assistant's message"
    if message.function_call:
        return "has a function_call, expected it among tool_calls"
    if not (message.content or message.tool_calls or (role == "tool" and message.content == "")):
        return f"is of the role {role} and has no content"
    if role == "tool":
        return "" if waiting else "is a tool's result, but no call before it waits for one"
    if waiting:
        return f"is of the role {role}, while a call before it waits for its result"
    allowed = {"nothing": ("system", "user"), "system": ("user",), "user": ("assistant",), "assistant": ("user",)}
    expected = allowed.get(before, ("assistant",))
    return "" if role in expected else f"is of the role {role} after {before}, expected {' or '.join(expected)}"


def answered_by(result: Message, waiting: Sequence[WaitingCall]) -> tuple[int, str]:
    """The place of the call that a result is of, or what is wrong with it; the latter is empty where nothing is.

    The id decides, then the tool's name, where the result has them, and then the order of the calls.
    """
    known = result.tool_call_id
    same = [call for call in waiting if known is not None and call.id == known]
    possible = same or [call for call in waiting if None in (call.id, known)]
    if not possible:
        ids = ", ".join(repr(call.id) for call in waiting)
        return -1, f"has the tool_call_id {known!r}, expected one of {ids}"
    named = [call for call in possible if result.name in (None, "", call.tool)]
    if not named:
        tools = " or ".join(dict.fromkeys(repr(call.tool) for call in possible))
        return -1, f"has the name {result.name!r}, expected {tools}"
    # A result without an id is rather that of a call without one.
    return min(named, key=lambda call: known is None and call.id is not None).place, ""


def read(message: Message, tools: Sequence[DescribedTool]) -> tuple[Sequence[WaitingCall], str]:
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
    # The calls in the content come first, and have no ids.
    ids = [None] * (len(parsed.calls) - len(message.tool_calls)) + [call.id for call in message.tool_calls]
    numbered = enumerate(zip(parsed.calls, ids, strict=True))
    return [WaitingCall(place, name, call.tool) for place, (call, name) in numbered], ""


def misfit_of(arguments: Mapping[str, Any], parameters: Mapping[str, Any]) -> str:
    """Where the names of arguments do not fit a JSON schema; empty where they do.

    A name that the properties do not list is allowed only where the schema says so: a tool of this package would
    refuse it, and the model is told of no other. A schema without properties allows any.
    """
    properties, given = parameters.get("properties"), list(arguments)
    missing = [name for name in required_by(parameters) if name not in given]
    if missing:
        return f"without the argument {missing[0]!r}, which its parameters require"
    is_open = parameters.get("additionalProperties", False) is not False or OPENING_KEYWORDS & parameters.keys()
    if is_open or not isinstance(properties, Mapping):
        return ""
    listed = [str(name) for name in cast("Mapping[str, Any]", properties)]
    unknown = [name for name in given if name not in listed]
    return f"with the argument {unknown[0]!r}, expected {' or '.join(map(repr, listed)) or 'none'}" if unknown else ""
