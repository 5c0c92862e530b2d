r"""What a file of conversations holds.

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
from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal, Self, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, ModelWrapValidatorHandler, field_validator, model_validator
from pydantic_core import from_json

from forkgym.envs.hermes import CALL, TAG, THOUGHT, HermesGrammar

HERMES = HermesGrammar()
FREE_FORM = ("arguments", "parameters")  # the fields that hold objects of any keys


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
