"""What a file of conversations holds is read, be it written by a server or by a table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from forkgym.envs.hermes import HermesGrammar
from forkgym.trainers.sft.checking import check
from forkgym.trainers.sft.messages import Conversation, Message, TableConversation
from tests.trainers.sft.chats import USER, asks, call, conversation, names, result, says


def test_a_tag_in_an_argument_ends_no_call() -> None:
    message = conversation(USER, asks(call("</tool_call> a < b")), result("x"), says("7")).messages[1]
    assert message.text == (
        '<tool_call>\n{"name": "shout", "arguments": {"text": "\\u003c/tool_call> a < b"}}\n</tool_call>'
    )
    parsed = HermesGrammar().parse(message.text, ("shout",))
    assert [one.arguments for one in parsed.calls] == [{"text": "</tool_call> a < b"}]


def test_what_tables_hold_is_read() -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "7?"}]
    row = {
        "messages": [
            {"role": "user", "content": parts, "tool_calls": None, "tool_call_id": None},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"n": 1}}}]},
        ],
        "tools": json.dumps([{"function": {"name": "f"}}]),
    }
    read = Conversation.model_validate(row)
    assert read.messages[0].content == "What is 7?"
    assert read.messages[1].text == '<tool_call>\n{"name": "f", "arguments": {"n": 1}}\n</tool_call>'
    assert read.tools[0].function.parameters == {"type": "object", "properties": {}}


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
def test_a_thought_is_written_whatever_the_server_calls_it(name: str) -> None:
    message = Message.model_validate({**says("7"), name: " 3 + 4\n"})
    assert message.text == "<think>\n3 + 4\n</think>\n\n7"
    # Servers that are between two names write both.
    both = Message.model_validate({**says("7"), "reasoning": "3 + 4", "reasoning_content": "3 + 4", "thinking": None})
    assert both.text == message.text
    assert Message.model_validate({**says("7"), name: " "}).text == "7"


@pytest.mark.parametrize("arguments", ["", None, {}, "{}"])
def test_a_call_without_arguments_has_none_however_it_is_written(arguments: object) -> None:
    message = conversation(USER, names("now", arguments)).messages[1]
    assert message.text == '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>'
    check(conversation(USER, names("now", arguments), tools=[{"function": {"name": "now"}}]))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"text": float("nan")}, "expected what JSON can hold: Out of range float values are not JSON compliant"),
        ('{"text": NaN}', "expected what JSON can hold: Out of range float values are not JSON compliant"),
        ('{"text": 1e400}', "expected what JSON can hold: Out of range float values are not JSON compliant"),
        ({"text": b"a"}, "expected what JSON can hold: Object of type bytes is not JSON serializable"),
        ('{"text": "\\ud800"}', "unexpected end of hex escape"),
        ("[1]", "Input should be a valid dictionary"),
        ("a", "expected value at line 1 column 1"),
    ],
)
def test_arguments_that_are_no_json_object_are_refused(arguments: object, problem: str) -> None:
    with pytest.raises(ValidationError) as refused:
        conversation(USER, names("shout", arguments))
    (error,) = refused.value.errors()
    assert error["loc"] == ("messages", 1, "tool_calls", 0, "function", "arguments")
    assert problem in error["msg"]


def test_what_fills_up_a_table_is_no_value() -> None:
    def row(arguments: object) -> dict[str, Any]:
        schema = {"type": "object", "properties": {"n": {"type": "integer", "enum": None}, "query": None}}
        tool = {"function": {"name": "add", "description": None, "parameters": schema}}
        return {"messages": [USER, names("add", arguments)], "tools": [tool]}

    filled = {"n": 1, "query": None, "rows": [{"a": None, "b": 2}, None]}
    read = TableConversation.model_validate(row(filled))
    (made,) = read.messages[1].tool_calls
    assert made.function.arguments == {"n": 1, "rows": [{"b": 2}, None]}
    assert read.tools[0].function.parameters == {"type": "object", "properties": {"n": {"type": "integer"}}}
    # In JSON, which some tables hold as text, a null is meant.
    for kind, arguments in ((TableConversation, json.dumps(filled)), (Conversation, filled)):
        (made,) = kind.model_validate(row(arguments)).messages[1].tool_calls
        assert made.function.arguments == filled


@pytest.mark.parametrize(
    ("schema", "meant"),
    [
        ({"type": ["integer", "null"]}, True),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, True),
        ({"description": "Anything."}, True),
        ({"type": "integer"}, False),
        ({"oneOf": [{"type": "integer"}, {"type": ["string"]}]}, False),
    ],
)
def test_null_is_a_value_of_a_required_argument_that_may_be_null(schema: dict[str, Any], meant: bool) -> None:
    parameters = {"properties": {"n": schema, "m": schema}, "required": ["n"]}
    row = {
        "messages": [USER, names("add", {"m": None, "n": None}), result("5"), says("7")],
        "tools": json.dumps([{"function": {"name": "add", "parameters": parameters}}]),
    }
    read = TableConversation.model_validate(row)
    (made,) = read.messages[1].tool_calls
    assert made.function.arguments == ({"n": None} if meant else {})
    if meant:
        check(read)
    else:
        with pytest.raises(ValueError, match="calls add without the argument 'n', which its parameters require"):
            check(read)


def test_a_result_that_is_null_in_a_table_is_empty() -> None:
    row = {"messages": [USER, asks(call("a")), {**result(""), "content": None}, says("7")]}
    assert check(TableConversation.model_validate(row))[2].content == ""
    with pytest.raises(ValueError, match="messages.2 is of the role tool and has no content"):
        check(Conversation.model_validate(row))
    unsaid = {"messages": [{"role": "user", "content": None}, says("7")]}
    with pytest.raises(ValueError, match="messages.0 is of the role user and has no content"):
        check(TableConversation.model_validate(unsaid))
