"""What a conversation must be for a cold start to learn from it."""

from __future__ import annotations

from typing import Any

import pytest

from forkgym.trainers.sft.checking import check, misfit_of
from tests.trainers.sft.chats import TOOLS, USER, asks, call, conversation, names, result, says


def shouts(inside: str) -> dict[str, Any]:
    """An assistant's message with a call in its content."""
    return says(f"<tool_call>\n{inside}\n</tool_call>")


def named(name: str, content: str) -> dict[str, Any]:
    """A result that says of which tool it is, not of which call."""
    return {"role": "tool", "name": name, "content": content}


ADD: dict[str, Any] = {"function": {"name": "add", "arguments": {}}}
LOOK: dict[str, Any] = {"function": {"name": "look", "arguments": {}}}


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], "the conversation ends with nothing, expected an assistant's message"),
        ([USER], "the conversation ends with user, expected an assistant's message"),
        ([USER, asks(call("a")), result("A")], "the conversation ends with tool, expected an assistant's message"),
        ([says("7")], "messages.0 is of the role assistant after nothing, expected system or user"),
        ([USER, USER, says("7")], "messages.1 is of the role user after user, expected assistant"),
        ([USER, says("7"), says("7")], "messages.2 is of the role assistant after assistant, expected user"),
        (
            [USER, says("7"), {"role": "system", "content": "!"}],
            "messages.2 is of the role system after assistant, expected user",
        ),
        (
            [USER, asks(call("a")), result("A"), USER, says("7")],
            "messages.3 is of the role user after tool, expected assistant",
        ),
        ([USER, result("A"), says("7")], "messages.1 is a tool's result, but no call before it waits for one"),
        (
            [USER, asks(call("a")), result("A"), result("A"), says("7")],
            "messages.3 is a tool's result, but no call before it waits for one",
        ),
        (
            [USER, asks(call("a"), call("b", "2")), result("A"), says("7")],
            "messages.3 is of the role assistant, while a call before it waits for its result",
        ),
        (
            [USER, asks(call("a")), result("A", "9"), says("7")],
            "messages.2 has the tool_call_id '9', expected one of '1'",
        ),
        ([USER, asks(call("a")), {**result("A"), "name": "add"}, says("7")], "messages.2 has the name 'add', expected"),
        (
            [USER, asks(ADD, LOOK), named("add", "5"), named("add", "6"), says("7")],
            "messages.3 has the name 'add', expected 'look'",
        ),
        ([{**USER, "tool_calls": [call("a")]}], "messages.0 is of the role user and has tool_calls, expected them in"),
        ([USER, says("")], "messages.1 is of the role assistant and has no content"),
        ([{"role": "user"}, says("7")], "messages.0 is of the role user and has no content"),
    ],
)
def test_a_conversation_in_a_wrong_order_is_refused(messages: list[dict[str, Any]], problem: str) -> None:
    with pytest.raises(ValueError) as refused:
        check(conversation(*messages))
    assert str(refused.value).startswith(problem)


def test_results_need_no_ids_and_calls_may_stand_in_the_text() -> None:
    inline = says('<tool_call>\n{"name": "shout", "arguments": {"text": "a"}}\n</tool_call>')
    nameless = {"function": call("a")["function"]}
    for asked in (inline, asks(nameless)):
        check(conversation(USER, asked, {"role": "tool", "content": ""}, says("7"), tools=TOOLS))
    check(conversation(USER, asks(call("a")), tools=TOOLS))  # to call is all that it shows


@pytest.mark.parametrize(
    ("asked", "results"),
    [
        ([ADD, LOOK], [named("look", "1"), named("add", "0")]),
        ([ADD, LOOK, ADD], [named("look", "1"), named("add", "0"), named("add", "2")]),
        ([ADD, LOOK], [result("0", "7"), result("1", "8")]),
        ([{**ADD, "id": "a"}, {**LOOK, "id": "l"}], [named("look", "1"), named("add", "0")]),
        ([{**ADD, "id": "a"}, {**LOOK, "id": "l"}], [result("1", "l"), {**named("add", "0"), "tool_call_id": "a"}]),
        ([{**ADD, "id": "a"}, ADD], [named("add", "1"), result("0", "a")]),
        ([{**ADD, "id": "a"}, {**ADD, "id": "a"}], [result("0", "a"), {**result("1", "a"), "name": ""}]),
    ],
)
def test_results_are_put_in_the_order_of_their_calls(
    asked: list[dict[str, Any]], results: list[dict[str, Any]]
) -> None:
    """By id, by name, and where neither tells, as they come."""
    messages = check(conversation(USER, says("3"), USER, asks(*asked), *results, says("7")))
    assert [message.content for message in messages[4:-1]] == [str(place) for place in range(len(asked))]
    assert [message.role for message in (*messages[:4], messages[-1])] == ["user", "assistant"] * 2 + ["assistant"]


def test_a_call_in_the_text_comes_before_those_beside_it() -> None:
    inline = '<tool_call>\n{"name": "shout", "arguments": {"text": "a"}}\n</tool_call>'
    given = conversation(
        USER, asks(call("b"), content=inline), result("B"), {"role": "tool", "content": "A"}, says("7")
    )
    assert [message.content for message in check(given)[2:4]] == ["A", "B"]


CALL = '{"name": "shout", "arguments": {"text": "a"}}'


@pytest.mark.parametrize(
    ("message", "problem"),
    [
        (names("whisper", "{}"), "is malformed: There is no tool whisper; the tools are: shout."),
        (names("shout", '{"txt": "a"}'), "calls shout without the argument 'text', which its parameters require"),
        (names("shout", '{"text": "a", "n": 1}'), "calls shout with the argument 'n', expected 'text'"),
        (names("shout", ""), "calls shout without the argument 'text', which its parameters require"),
        (shouts("{bad"), "is malformed: A call was not JSON: key must be a string at line 1 column 2."),
        (
            shouts('{"name": "shout", "arguments": "a"}'),
            'is malformed: A call is a JSON object with the string "name" and the object "arguments".',
        ),
        (
            shouts('{"name": "shout", "arguments": {"text": NaN}}'),
            "is malformed: A call was not JSON: expected value at line 1 column 41.",
        ),
        (says(f"<tool_call>\n{CALL}"), "is malformed: tool_call was opened but not closed."),
        (says("<think>Hm."), "is malformed: think was opened but not closed."),
        (says("<tool_response>\nA\n</tool_response>"), "is malformed: Results are written by the environment, not by"),
        (says("<think>Hm.</think>\n"), "is malformed: The message held no call and no answer; the tools are: shout."),
        ({**says("7"), "reasoning": "a </think> b"}, "is malformed: think was closed but not opened."),
        (asks(*[call("a")] * 17), "is malformed: 17 calls in a message; at most 16."),
        (
            {**says("7"), "function_call": {"name": "shout", "arguments": "{}"}},
            "has a function_call, expected it among tool_calls",
        ),
        (
            {**says("7"), "reasoning": "3 + 4", "reasoning_content": "4 + 3"},
            "has several thoughts, expected one of reasoning_content, reasoning and thinking",
        ),
        ({**says("7"), "weight": 0}, "has the weight 0, expected 1 or none: every message of the assistant is learnt"),
    ],
)
def test_what_the_environment_would_refuse_is_not_learnt(message: dict[str, Any], problem: str) -> None:
    with pytest.raises(ValueError) as refused:
        check(conversation(USER, message, result("A"), says("7"), tools=TOOLS))
    assert str(refused.value).startswith(f"messages.1 {problem}")


def test_a_later_message_is_read_as_well() -> None:
    with pytest.raises(ValueError, match=r"^messages\.3 is malformed: There is no tool whisper"):
        check(conversation(USER, asks(call("a")), result("A"), names("whisper", {}), tools=TOOLS))


def test_without_a_list_of_tools_a_call_is_of_any_but_still_a_call() -> None:
    """Some conversations describe their tools in the system message."""
    check(conversation(USER, names("whisper", {"anything": 1}), result("a"), says("7")))
    with pytest.raises(ValueError, match="messages.1 is malformed: A call was not JSON"):
        check(conversation(USER, shouts("{bad"), result("a"), says("7")))


def test_what_a_thought_mentions_is_no_call() -> None:
    check(conversation(USER, says("<think>Should I <tool_call>?</think>7"), tools=TOOLS))
    check(conversation(USER, {**says("7"), "reasoning": "Should I <tool_call>?"}, tools=TOOLS))


@pytest.mark.parametrize(
    ("parameters", "problem"),
    [
        ({"properties": {"a": {}, "b": {}}, "required": ["a"]}, ""),
        ({"properties": {"a": {}, "c": {}}}, "with the argument 'b', expected 'a' or 'c'"),
        ({"properties": {}}, "with the argument 'a', expected none"),
        ({"properties": {"a": {}}, "additionalProperties": False}, "with the argument 'b', expected 'a'"),
        ({"properties": {"a": {}}, "additionalProperties": {"type": "integer"}}, ""),
        ({"properties": {"a": {}}, "anyOf": [{"required": ["b"]}]}, ""),
        ({"type": "object"}, ""),
        ({"required": ["a", "c"]}, "without the argument 'c', which its parameters require"),
        ({"required": [["a"]]}, "without the argument ['a'], which its parameters require"),
        ({"properties": ["a"], "required": "a"}, ""),
    ],
)
def test_the_names_of_arguments_are_those_of_the_schema(parameters: dict[str, Any], problem: str) -> None:
    assert misfit_of({"a": 1, "b": 2}, parameters) == problem
