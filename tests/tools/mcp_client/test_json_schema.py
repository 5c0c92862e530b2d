"""Arguments that a JSON schema describes: what is accepted, what is told to the model, and what no schema can do."""

import math
from typing import Any

import pytest

from forkgym.tools.base import FunctionSession, Tool, ToolError
from forkgym.tools.mcp_client.json_schema import MAX_SCHEMA_CHARACTERS, abridged, arguments_model

TEXT = {"type": "object", "properties": {"query": {"type": "string", "minLength": 2}}, "required": ["query"]}
ORDER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "price": {"type": "number", "minimum": 0},
        "count": {"$ref": "#/$defs/Count"},
        "names": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["price"],
    "additionalProperties": False,
    "$defs": {"Count": {"type": "integer"}},
}


def tool_of(schema: dict[str, Any]) -> Tool:
    return Tool("order", "", arguments_model("order", schema), new_session=lambda: FunctionSession(str))


def test_one_text_is_written_as_it_is() -> None:
    tool = tool_of(TEXT)
    assert tool.parameters == TEXT
    assert tool.text_parameter == "query"
    assert tool.arguments_from_text('{"query"') == {"query": '{"query"'}
    assert tool.validate({"query": "ab"}) == {"query": "ab"}


@pytest.mark.parametrize(
    "described",
    [{"type": "string", "enum": ["a"]}, {"type": "string", "const": "a"}, {"type": "integer"}, {}, True],
)
def test_what_is_not_any_text_is_json(described: Any) -> None:
    assert tool_of({"type": "object", "properties": {"a": described}}).text_parameter is None


@pytest.mark.parametrize("name", ["json", "model_dump", "_hidden", "a-b", "1"])
def test_a_text_whose_name_means_something_to_the_library_is_json(name: str) -> None:
    tool = tool_of({"type": "object", "properties": {name: {"type": "string"}}})
    assert tool.text_parameter is None
    assert tool.validate({name: "x"}) == {"root": {name: "x"}}


def test_an_object_keeps_what_was_written_and_no_more() -> None:
    tool = tool_of(ORDER)
    assert tool.parameters == ORDER
    assert tool.text_parameter is None
    assert tool.arguments_from_text('{"price": 2, "count": 3}') == {"root": {"price": 2, "count": 3}}


def test_an_object_without_properties() -> None:
    tool = tool_of({"type": "object"})
    assert tool.parameters == {"type": "object", "properties": {}}
    assert tool.validate({"any": [1]}) == {"root": {"any": [1]}}


MISTAKES: list[tuple[dict[str, Any], Any, str]] = [
    (TEXT, {"query": "a"}, "order: arguments: query: 'a' is too short"),
    (TEXT, {"query": 1}, "order: arguments: query: 1 is not of type 'string'"),
    (TEXT, {}, "order: arguments: 'query' is a required property"),
    (TEXT, {"query": "abc", "other": 1}, "order: other: Extra inputs are not permitted"),
    (TEXT, [], "order takes a JSON object with query"),
    (ORDER, {"count": 1}, "order: arguments: 'price' is a required property"),
    (ORDER, {"price": -1}, "order: arguments: price: -1 is less than the minimum of 0"),
    (ORDER, {"price": 1, "count": "x"}, "order: arguments: count: 'x' is not of type 'integer'"),
    (ORDER, {"price": 1, "names": ["a", 2]}, "order: arguments: names.1: 2 is not of type 'string'"),
    (ORDER, {"price": 1, "pets": 2}, "order: arguments: Additional properties are not allowed ('pets' was unexpected)"),
    (TEXT, {"query": "half \ud83d"}, "order: arguments: it is no JSON value"),
    (ORDER, {"price": math.nan}, "order: arguments: it is no JSON value"),
    (ORDER, {"price": 1, "names": "\ud83d"}, "order: arguments: names: '\\ud83d' is not of type 'array'"),
    (ORDER, {"price": "x" * 1000}, f"order: arguments: price: '{79 * 'x'}...{55 * 'x'}' is not of type 'number'"),
]


@pytest.mark.parametrize(("schema", "arguments", "words"), MISTAKES)
def test_the_models_mistakes_in_words(schema: dict[str, Any], arguments: Any, words: str) -> None:
    with pytest.raises(ToolError) as caught:
        tool_of(schema).validate(arguments)
    assert str(caught.value) == words


def test_patterns_are_left_to_the_server() -> None:
    # Matching this one against that text takes 2^40 steps.
    slow = "^(a+)+$"
    text = "a" * 40 + "b"
    schema = {
        "type": "object",
        "properties": {"one": {"pattern": slow}, "two": {"type": "integer"}},
        "patternProperties": {slow: {"type": "integer"}},
        "additionalProperties": False,
        "unevaluatedProperties": False,
    }
    arguments = {"one": text, text: "x"}
    assert tool_of(schema).validate(arguments) == {"root": arguments}
    with pytest.raises(ToolError, match="two: 'x' is not of type 'integer'"):
        tool_of(schema).validate({"two": "x"})


def test_deep_arguments_are_a_mistake() -> None:
    nested: Any = {}
    for _ in range(2_000):
        nested = {"inner": nested}
    schema = {"type": "object", "properties": {"inner": {"$ref": "#"}}}
    with pytest.raises(ToolError, match="it is nested too deeply"):
        tool_of(schema).validate(nested)


def test_a_reference_to_nothing_inside_is_left_to_the_server() -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/schema"}}}
    assert tool_of(schema).validate({"a": 1}) == {"root": {"a": 1}}


BAD_SCHEMAS: list[tuple[dict[str, Any], str]] = [
    ({"type": "array"}, "describes no object"),
    ({"type": "object", "properties": 5}, "is wrong: 5 is not of type 'object'"),
    ({"type": "nonsense"}, "is wrong: 'nonsense' is not valid"),
    ({"type": "object", "$ref": "#"}, "refers to itself without end"),
    ({"type": "object", "x": "y" * MAX_SCHEMA_CHARACTERS}, "has 20027 characters, at most 20000 are read"),
]


@pytest.mark.parametrize(("schema", "words"), BAD_SCHEMAS)
def test_schemas_that_cannot_be_used(schema: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        arguments_model("order", schema)


def test_abridged() -> None:
    assert abridged("0123456789", 10) == "0123456789"
    assert abridged("0123456789", 4) == "01...89"
