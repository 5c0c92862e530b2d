"""Conversations as tokens and back."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forkgym.agents.conversation import (
    VOCABULARY_SIZE,
    Conversation,
    ConversationCodec,
    Kind,
    NativeCall,
    read_conversation,
    text_tokens,
)
from forkgym.envs.grammar import Prompt, Reply
from forkgym.envs.hermes import HermesGrammar

SCHEMA = {"type": "function", "function": {"name": "add", "description": "Add.", "parameters": {"type": "object"}}}
PROMPT = Prompt("All about tools.", "2+3?", brief="Finish.", schemas=(SCHEMA,))
HERMES = HermesGrammar()


def test_four_bytes_are_a_token() -> None:
    # "abcd" is 0x61626364, "e" is 0x65; each after a byte 1.
    assert text_tokens("abcde") == (0x161626364, 0x165)
    assert text_tokens("") == ()
    assert max(text_tokens("\U0010ffff" * 3)) < VOCABULARY_SIZE == 2**33


@given(st.lists(st.text(), min_size=2, max_size=5))
def test_any_texts_come_back(texts: list[str]) -> None:
    codec = ConversationCodec()
    instructions, question, *rest = texts
    tokens = codec.encode_prompt(Prompt(instructions, question))
    wanted = [{"role": "system", "content": instructions}, {"role": "user", "content": question.replace("<|", "&lt;|")}]
    for text in rest:
        turn = codec.encode_turn(text)
        assert codec.decode(turn) == text
        tokens += turn + codec.encode_reply(Reply(f"r{text}", ()), turn)
        wanted += [{"role": "assistant", "content": text}, {"role": "user", "content": f"r{text}"}]
    assert read_conversation(tokens) == Conversation(tuple(wanted), ())


def test_a_question_holds_no_control_token() -> None:
    tokens = ConversationCodec().encode_prompt(Prompt("", "a<|im_end|>b < |"))
    assert read_conversation(tokens).messages[1]["content"] == "a&lt;|im_end|>b < |"


def test_half_a_surrogate_pair_becomes_a_question_mark() -> None:
    codec = ConversationCodec()
    assert codec.decode(codec.encode_turn("a\ud800b\x00\x1b")) == "a?b\x00\x1b"


def test_tools_are_told_natively_or_by_the_instructions() -> None:
    by_text = read_conversation(ConversationCodec().encode_prompt(PROMPT))
    assert (by_text.messages[0]["content"], by_text.tools) == ("All about tools.", ())
    natively = read_conversation(ConversationCodec(native_tools=True).encode_prompt(PROMPT))
    assert (natively.messages[0]["content"], natively.tools) == ("Finish.", (SCHEMA,))


def test_native_calls_and_their_results() -> None:
    codec = ConversationCodec(native_tools=True)
    calls = [NativeCall("c1", "add", '{"text": "2+3"}'), NativeCall("c2", "add", '{"text": "</tool_call>"}')]
    turn = codec.encode_message("Let me see.", calls)
    text = codec.decode(turn)
    assert text == (
        'Let me see.\n<tool_call>\n{"name": "add", "arguments": {"text": "2+3"}}\n</tool_call>\n'
        '<tool_call>\n{"name": "add", "arguments": {"text": "\\u003c/tool_call>"}}\n</tool_call>'
    )
    parsed = HERMES.parse(text, ("add",))
    assert [call.arguments for call in parsed.calls] == [{"text": "2+3"}, {"text": "</tool_call>"}]
    reply = HERMES.reply(HERMES.render_results(["5", "é"], ("add",)), ("add",))
    messages = read_conversation(codec.encode_prompt(PROMPT) + turn + codec.encode_reply(reply, turn)).messages
    assert messages[2:] == (
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call.message for call in calls]},
        {"role": "tool", "tool_call_id": "c1", "content": "5"},
        {"role": "tool", "tool_call_id": "c2", "content": "é"},
    )
    function = messages[2]["tool_calls"][1]["function"]
    assert function == {"name": "add", "arguments": '{"text": "</tool_call>"}'}


def test_one_correction_answers_every_native_call() -> None:
    codec = ConversationCodec(native_tools=True)
    turn = codec.encode_message("", [NativeCall("a", "x", "{}"), NativeCall("b", "add", "{}")])
    reply = HERMES.reply(HERMES.render_results(["There is no tool x."], ()), ())
    context = codec.encode_prompt(PROMPT) + turn + codec.encode_reply(reply, turn)
    assert read_conversation(context).messages[-2:] == (
        {"role": "tool", "tool_call_id": "a", "content": "There is no tool x."},
        {"role": "tool", "tool_call_id": "b", "content": "There is no tool x."},
    )
    # Without a native call the correction is a user's message.
    turn = codec.encode_message("?", [])
    context = codec.encode_prompt(PROMPT) + turn + codec.encode_reply(reply, turn)
    assert read_conversation(context).messages[-1] == {"role": "user", "content": reply.text}


@pytest.mark.parametrize("arguments", ["", "{", "[1]", "5", '{"a": NaN}', "[" * 100_000, '{"a": 1} x'])
def test_malformed_arguments_go_to_the_environment_as_they_are_and_back_harmless(arguments: str) -> None:
    call = NativeCall("a", "no name</x>\n" + "n" * 100, arguments)
    sent = call.message["function"]
    assert json.loads(sent["arguments"]) == {"malformed": arguments}
    assert sent["name"] == "no_name__x__" + "n" * 52
    assert HERMES.parse(call.text, ("add",)).error is not None
    assert NativeCall("a", "", "{}").message["function"]["name"] == "_"


@pytest.mark.parametrize("token", [-1, len(Kind), 255, 0x200, VOCABULARY_SIZE])
def test_a_token_of_another_codec(token: int) -> None:
    with pytest.raises(ValueError, match=f"token {token} is none of a conversation"):
        read_conversation((Kind.USER, token, Kind.ASSISTANT))


@pytest.mark.parametrize("tokens", [(), (Kind.USER,), (Kind.ASSISTANT, 0x165)])
def test_a_context_in_the_middle_of_a_message(tokens: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="beginning of a message"):
        read_conversation(tokens)
