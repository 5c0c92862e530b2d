"""Conversations grow token by token into what the chat template makes of the whole."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.decoders import ByteLevel, Metaspace
from transformers import PreTrainedTokenizerFast

from forkgym.agents.chat import STAND_IN
from forkgym.agents.codec import TokenizerCodec
from forkgym.agents.loading import load_tokenizer
from forkgym.envs.base import ToolEnv
from forkgym.envs.grammar import Prompt, Reply
from forkgym.envs.hermes import HermesGrammar
from forkgym.tools.base import as_tool

# Renders neither tools nor their results, and wants users and assistants in turn.
PLAIN_TEMPLATE = """{% for message in messages %}{% if message.role not in ('user', 'assistant') %}
{{ raise_exception('only users and assistants') }}{% endif %}<|{{ message.role }}|>{{ message.content }}<|end|>
{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"""
CONTROL = ["<|user|>", "<|assistant|>", "<|end|>"]


def search(query: str) -> str:
    """Look something up."""
    return query


HERMES = HermesGrammar()
TOOLS = (as_tool(search),)
NAMES = ("search",)
QUESTION = "Who wrote 'Ö'?"


def plain_tokenizer() -> PreTrainedTokenizerFast:
    """A byte for each token, and a template that knows no tools."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(alphabet)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, additional_special_tokens=CONTROL, eos_token="<|end|>")
    tokenizer.chat_template = PLAIN_TEMPLATE
    return tokenizer


@lru_cache
def real_tokenizer(folder: Path) -> Any:
    """A tokenizer whose template renders tools, their calls and results."""
    return load_tokenizer(str(folder))


def whole(tokenizer: Any, messages: list[dict[str, Any]]) -> tuple[int, ...]:
    """The conversation as the template renders it at once."""
    schemas = [dict(schema) for schema in HERMES.prompt(TOOLS, "").schemas]
    text = tokenizer.apply_chat_template(messages, tools=schemas, add_generation_prompt=True, tokenize=False)
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def call_message(query: str) -> tuple[str, dict[str, Any]]:
    """A turn of one call as its text and as a message."""
    text = f'<tool_call>\n{{"name": "search", "arguments": {{"query": "{query}"}}}}\n</tool_call>'
    function = {"name": "search", "arguments": {"query": query}}
    return text, {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": function}]}


def test_a_conversation_grows_into_what_the_template_renders(shared_data: Path) -> None:
    tokenizer = real_tokenizer(shared_data / "tokenizer")
    codec = TokenizerCodec(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    prompt = HERMES.prompt(TOOLS, QUESTION)
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": prompt.brief},
        {"role": "user", "content": QUESTION},
    ]
    context = codec.encode_prompt(prompt)
    assert context == whole(tokenizer, messages)
    # One result, two results, results that begin and end with what merges with the template's newlines.
    for outputs in (["A play."], ["Ayr", "Öland"], ["\n\n x", "y \n\n"]):
        text, message = call_message("who?")
        turn = (*codec.encode_turn(text), end)
        reply = HERMES.reply(HERMES.render_results(outputs, NAMES), NAMES)
        context += turn + codec.encode_reply(reply, turn)
        messages += [message, *({"role": "tool", "content": output} for output in outputs)]
        assert context == whole(tokenizer, messages)


def test_a_message_that_was_cut_off_is_ended_and_another_is_not_ended_twice(shared_data: Path) -> None:
    tokenizer = real_tokenizer(shared_data / "tokenizer")
    codec = TokenizerCodec(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    reply = HERMES.reply(HERMES.render_results(["x"], NAMES), NAMES)
    turn = codec.encode_turn("and then")
    assert codec.opening == ""  # the template closes the thought that it opens
    assert codec.encode_reply(reply, turn) == (end, *codec.encode_reply(reply, (*turn, end)))
    assert codec.decode(codec.encode_reply(reply, (*turn, end))) == (
        "\n<|im_start|>user\n<tool_response>\nx\n</tool_response><|im_end|>\n"
        "<|im_start|>assistant\n<think>\n\n</think>\n\n"
    )


@given(st.lists(st.sampled_from(["<|im_end|>", "<|im_start|>", "<tts_pad>", "\n", "a", " "])).map("".join))
def test_outside_text_holds_no_control_token(shared_data: Path, text: str) -> None:
    tokenizer = real_tokenizer(shared_data / "tokenizer")
    codec = TokenizerCodec(tokenizer)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}

    def count(tokens: tuple[int, ...]) -> int:
        return sum(token in special for token in tokens)

    # Not escaped, as where a grammar of a user's own does not.
    for reply in (
        Reply(f"<result>{text}</result>", ("<result>", "</result>")),
        Reply("", (), messages=(text, text)),
    ):
        harmless = Reply(reply.text.replace(text, "a"), reply.markers, tuple("a" for _ in reply.messages))
        assert count(codec.encode_reply(reply, ())) == count(codec.encode_reply(harmless, ()))
    assert count(codec.encode_prompt(Prompt(text, text))) == count(codec.encode_prompt(Prompt("a", "a")))


def test_a_template_without_tools_gets_them_in_words() -> None:
    codec = TokenizerCodec(plain_tokenizer())
    prompt = HERMES.prompt(TOOLS, QUESTION)
    # No system role either: instructions and question are one message.
    assert codec.decode(codec.encode_prompt(prompt)) == (
        f"<|user|>{prompt.instructions}\n\n{QUESTION}<|end|>\n<|assistant|>"
    )
    turn = codec.encode_turn("x<|end|>")
    reply = HERMES.reply(HERMES.render_results(["one", "two"], NAMES), NAMES)
    assert codec.decode(codec.encode_reply(reply, turn)) == (
        "\n<|user|><tool_response>\none\n</tool_response>\n<tool_response>\ntwo\n</tool_response><|end|>\n<|assistant|>"
    )


def test_without_a_chat_template_tools_cannot_be_described() -> None:
    tokenizer = plain_tokenizer()
    tokenizer.chat_template = None  # pyright: ignore[reportAttributeAccessIssue]
    codec = TokenizerCodec(tokenizer)
    with pytest.raises(ValueError, match="the tokenizer has no chat template, which the grammar needs"):
        codec.encode_prompt(HERMES.prompt(TOOLS, QUESTION))
    assert codec.decode(codec.encode_prompt(HERMES.prompt((), QUESTION))).endswith(f"\n\n{QUESTION}\n")


def test_control_tokens_swallow_the_blanks_that_their_tokenizer_says() -> None:
    from tokenizers import AddedToken

    tokenizer = plain_tokenizer()
    token: Any = AddedToken("<|assistant|>", rstrip=True)
    tokenizer.add_special_tokens({"additional_special_tokens": [token]})
    tokenizer.chat_template = PLAIN_TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>\n{% endif %}")
    codec = TokenizerCodec(tokenizer)
    text = "<|user|>a\n\nb<|end|>\n<|assistant|>\n"
    assert codec.encode_prompt(Prompt("a", "b")) == tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


# The tool messages of Llama 3.1: JSON strings, for a text is iterable.
QUOTING_TEMPLATE = """{{ '<|begin|>' }}{% for message in messages %}<|{{ message.role }}|>
{{ message.content | tojson if message.role == 'tool' else message.content | trim }}<|end|>{% endfor %}
{%- if add_generation_prompt %}<|assistant|>
{% endif %}"""
# The conversations of Llama 2, which write a blank before the end of a message.
BLANK_TEMPLATE = """{% for message in messages %}{% if message.role == 'user' -%}
{{ '<|begin|>[INST] ' + message.content.strip() + ' [/INST]' }}{% elif message.role == 'assistant' -%}
{{ ' ' + message.content.strip() + ' <|end|>' }}{% else %}{{ raise_exception('no such role') }}{% endif %}
{%- endfor %}"""


def tokenizer_of(template: str) -> PreTrainedTokenizerFast:
    """A byte for each token, and this template."""
    tokenizer = plain_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": [*CONTROL, "<|begin|>", "<|tool|>", "[/T]"]})
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("output", ["A play.", 'He said "Öx"\n\\n\ttwice'])
def test_results_are_quoted_where_the_template_quotes_them(output: str) -> None:
    tokenizer = tokenizer_of(QUOTING_TEMPLATE)
    codec = TokenizerCodec(tokenizer)
    turn = codec.encode_turn("I look.<|end|>")
    reply = HERMES.reply(HERMES.render_results([output, "b"], NAMES), NAMES)
    messages = [
        {"role": "user", "content": QUESTION},
        {"role": "assistant", "content": "I look."},
        *({"role": "tool", "content": text} for text in (output, "b")),
    ]
    got = turn + codec.encode_reply(reply, turn)
    assert whole(tokenizer, messages)[-len(got) :] == got


def test_a_message_that_the_policy_ended_is_not_ended_again_after_a_blank() -> None:
    codec = TokenizerCodec(tokenizer_of(BLANK_TEMPLATE))
    reply = HERMES.reply(HERMES.render_results(["x"], NAMES), NAMES)
    after = "<|begin|>[INST] <tool_response>\nx\n</tool_response> [/INST]"
    assert codec.decode(codec.encode_reply(reply, codec.encode_turn("I look.<|end|>"))) == after
    assert codec.decode(codec.encode_reply(reply, codec.encode_turn("I look."))) == f" <|end|>{after}"


def test_a_blank_that_a_tokenizer_puts_before_a_text_stands_only_there() -> None:
    letters = sorted({*map(chr, range(32, 127)), "\n", "\u2581"})
    inner = Tokenizer(models.BPE(vocab={letter: place for place, letter in enumerate(letters)}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    inner.decoder = Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, additional_special_tokens=["<|begin|>"], eos_token="<|end|>"
    )
    tokenizer.chat_template = BLANK_TEMPLATE.replace("[INST] ", "[INST]")
    codec = TokenizerCodec(tokenizer)
    messages = [{"role": "user", "content": "a\n\nb"}]
    assert codec.encode_prompt(Prompt("a", "b")) == whole(tokenizer, messages)
    turn = (*codec.encode_turn("c "), cast(int, tokenizer.convert_tokens_to_ids("<|end|>")))
    reply = codec.encode_reply(Reply("", (), messages=("d",)), turn)
    content = "<tool_response>\nd\n</tool_response>"
    messages += [{"role": "assistant", "content": "c"}, {"role": "user", "content": content}]
    assert whole(tokenizer, messages)[-len(reply) :] == reply


def test_a_servers_description_of_a_tool_holds_no_control_token() -> None:
    def leak(text: str) -> str:
        """Say [/T] and <|end|>."""
        return text

    tokenizer = tokenizer_of("{% for tool in tools or () %}{{ tool | tojson }}{% endfor %}" + PLAIN_TEMPLATE)
    codec = TokenizerCodec(tokenizer)
    prompt = HERMES.prompt((as_tool(leak),), QUESTION)
    tokens = codec.encode_prompt(prompt)
    special = {token for token, added in tokenizer.added_tokens_decoder.items() if added.special}
    assert [codec.decode((token,)) for token in tokens if token in special] == ["<|user|>", "<|end|>", "<|assistant|>"]
    assert '"description": "Say [/T] and &lt;|end|>."' in codec.decode(tokens)


def test_without_a_chat_template_a_question_holds_no_control_token() -> None:
    tokenizer = plain_tokenizer()
    tokenizer.chat_template = None  # pyright: ignore[reportAttributeAccessIssue]
    codec = TokenizerCodec(tokenizer)
    end = tokenizer.convert_tokens_to_ids("<|end|>")
    tokens = codec.encode_prompt(Prompt("Write <|end|>.", "What is <|end|>?<|user|>"))
    assert codec.decode(tokens) == "Write <|end|>.\n\nWhat is <|end|>?<|user|>\n"
    assert [token for token in tokens if token in tokenizer.all_special_ids] == [end]


def test_stand_ins_are_of_letters_and_digits() -> None:
    assert STAND_IN.isalnum()
    assert STAND_IN == STAND_IN.lower()


class LookEnv(ToolEnv):
    """Searches."""


def test_an_environment_says_what_its_context_is() -> None:
    env = LookEnv(tools=[search], grammar="hermes")
    observation = f"{env.instructions}\n\n{QUESTION}\n"
    assert env.prompt_of(observation) == HERMES.prompt(TOOLS, QUESTION)
    assert env.reply_of("<tool_response>\nx\n</tool_response>").messages == ("x",)
    arpo = LookEnv(tools=[search])
    assert arpo.prompt_of(f"{arpo.instructions}\n\n{QUESTION}\n") == Prompt(arpo.instructions, QUESTION)
    assert arpo.reply_of("<result>x</result>") == Reply("<result>x</result>", arpo.markers)


def test_a_reply_without_markers_is_encoded_as_one_text() -> None:
    codec = TokenizerCodec(load_tokenizer("embedded"))
    assert codec.encode_reply(Reply("12 and 13", ()), ()) == codec.encode_turn("12 and 13")
