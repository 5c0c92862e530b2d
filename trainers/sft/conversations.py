r"""Conversations with tool calls, as the chat completions interface writes them, and their tokens in a hermes rollout.

A row of a file has ``messages``, and may have ``tools``::

    {"messages": [{"role": "user", "content": "How much is 2 + 3?"},
                  {"role": "assistant", "content": null, "tool_calls": [
                      {"id": "1", "function": {"name": "add", "arguments": "{\"a\": 2, \"b\": 3}"}}]},
                  {"role": "tool", "tool_call_id": "1", "content": "5"},
                  {"role": "assistant", "content": "\\boxed{5}"}],
     "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]}
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import BaseModel, ConfigDict, Field, Json, field_validator

from forkgym.agents.chat import ChatTemplate, Messages, stand_in
from forkgym.agents.codec import TokenizerCodec
from forkgym.envs.grammar import Prompt, Reply
from forkgym.envs.hermes import CALL, FINISH, TAG, THOUGHT, HermesGrammar
from forkgym.trainers.sft.demonstrations import Demonstration, Spans, after_opening

if TYPE_CHECKING:
    from forkgym.tools.base import Tool

HERMES = HermesGrammar()
MARKERS = HERMES.markers(())
NO_ARGUMENTS = {"type": "object", "properties": dict[str, Any]()}


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
    arguments: dict[str, Any] | Json[dict[str, Any]]


class WrittenToolCall(Record):
    """A call beside an assistant's text."""

    id: str | None = None
    function: WrittenFunction


class Message(Record):
    """A message; ``reasoning_content`` is what the assistant thought before it wrote the content."""

    role: Literal["system", "user", "assistant", "tool"]
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: tuple[WrittenToolCall, ...] = ()
    tool_call_id: str | None = None

    @field_validator("content", mode="before")
    @classmethod
    def join_parts(cls, content: object) -> object:
        """Join a list of text parts."""
        if not isinstance(content, list):
            return content
        return "".join(TextPart.model_validate(part).text for part in cast("list[object]", content))

    @field_validator("tool_calls", mode="before")
    @classmethod
    def none_is_empty(cls, calls: object) -> object:
        """Take null, which tables have for what is not there, for no calls."""
        return () if calls is None else calls

    @property
    def num_calls(self) -> int:
        """Calls of an assistant's message, those that its text writes included."""
        return len(self.tool_calls) + (self.content or "").count(f"<{CALL}>")

    @property
    def text(self) -> str:
        """An assistant's message as the hermes grammar writes it; a tag in an argument cannot end its call."""
        thought = (self.reasoning_content or "").strip()
        content = self.content or ""
        written = [json.dumps(call.function.model_dump(), ensure_ascii=False) for call in self.tool_calls]
        calls = [f"<{CALL}>\n{TAG.sub(escaped_tag, inside)}\n</{CALL}>" for inside in written]
        gap = "\n" if calls and content and not content.endswith("\n") else ""
        opened = f"<{THOUGHT}>\n{thought}\n</{THOUGHT}>\n\n" if thought else ""
        return opened + content + gap + "\n".join(calls)


class DescribedFunction(Record):
    """What the model is told of a tool."""

    name: str
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: NO_ARGUMENTS)


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


def escaped_tag(tag: Any) -> str:
    """A tag inside a JSON string, without the character that makes it one."""
    return "\\u003c" + str(tag[0])[1:]


def check_order(messages: Sequence[Message]) -> None:
    """Check that a conversation is one: [system] user, and then assistant by turns with tools or the user.

    Raises:
        ValueError: It is not; names the first message that is out of place, from 0.
    """
    waiting: list[str | None] = []  # ids of the calls that have no result yet
    before = "nothing"
    for place, message in enumerate(messages):
        problem = misplaced(message, before, waiting)
        if problem:
            raise ValueError(f"messages.{place} {problem}")
        if message.role == "assistant":
            ids = [call.id for call in message.tool_calls]
            waiting = [*ids, *[None] * (message.num_calls - len(ids))]
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


class ConversationTemplate(ChatTemplate):
    """A chat template for conversations that may have no system message, and several questions."""

    def encode_start(self, prompt: Prompt) -> list[int]:
        """The beginning of a conversation; as ``encode_prompt``, but without instructions no system message."""
        instructions = prompt.brief if self.describes_tools else prompt.instructions
        if instructions:
            return self.encode_prompt(prompt)
        tools, hidden = self._without_control_tokens(prompt.schemas, first=1) if prompt.schemas else (None, ())
        rendered = self._render([{"role": "user", "content": stand_in(0)}], tools)
        return self._ids(rendered, (prompt.question, *hidden))

    def encode_question(self, question: str, turn: Sequence[int]) -> list[int]:
        """What follows a turn that ends with its end token: a question, the start of the policy's next message."""
        messages: Messages = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": stand_in(0)},
            {"role": "user", "content": stand_in(1)},
        ]
        after = self._render(messages, None).rpartition(stand_in(0))[2]
        end = self.control_tokens.search(after.partition(stand_in(1))[0])
        if end is not None and self._id(end[0]) == turn[-1]:
            after = after[end.end() :]
        return self._ids(after, ("", question))


@dataclass(frozen=True, slots=True)
class Renderer:
    """Makes demonstrations of conversations.

    Attributes:
        codec: Of the policy.
        template: The same tokenizer's.
        end: See `forkgym.trainers.sft.demonstrations.message_end`.
    """

    codec: TokenizerCodec
    template: ConversationTemplate
    end: int

    def render(self, conversation: Conversation) -> Demonstration:
        """The conversation as a rollout would have made it, where the policy had written the assistant's messages.

        No message is rendered again when the next one comes; results are escaped, and control tokens in what the
        policy did not write are taken apart. Every message of the assistant ends with its end token, which the policy
        has to learn.

        Raises:
            ValueError: See `check_order`.
        """
        messages = conversation.messages
        check_order(messages)
        first = next(place for place, message in enumerate(messages) if message.role == "assistant")
        spans = Spans(self.template.encode_start(prompt_of(messages[:first], conversation.tools)))
        place = first
        while place < len(messages):
            text = after_opening(messages[place].text, self.template.opening)
            turn = (*self._encode_written(text), self.end)
            after = place + 1
            while after < len(messages) and messages[after].role != "assistant":
                after += 1
            spans.add(turn, self._encode_between(messages[place + 1 : after], messages[place], turn))
            place = after
        return spans.demonstration()

    def _encode_written(self, text: str) -> Sequence[int]:
        """A message of the assistant; control tokens in it are taken apart, except markers: it did not end there."""
        foreign = [piece for piece in self.codec.control_tokens.split(text)[1::2] if piece.strip() not in MARKERS]
        return self.codec.encode_reply(Reply(text, MARKERS), ()) if foreign else self.codec.encode_turn(text)

    def _encode_between(self, messages: Sequence[Message], asked: Message, turn: Sequence[int]) -> Sequence[int]:
        """What the assistant reads after its message ``asked``: results in the order of its calls, or a question."""
        if not messages:
            return ()
        if messages[0].role == "user":
            return self.template.encode_question(messages[0].content or "", turn)
        ids = [call.id for call in asked.tool_calls]
        if all(message.tool_call_id in ids for message in messages):
            messages = sorted(messages, key=lambda message: ids.index(message.tool_call_id))
        return self.template.encode_results([HERMES.escape(message.content or "", ()) for message in messages], turn)


def prompt_of(messages: Sequence[Message], tools: Sequence[DescribedTool]) -> Prompt:
    """What a conversation begins with: a system message, where there is one, and the first question."""
    system = messages[0].content or "" if messages[0].role == "system" else ""
    # The grammar asks no more of a tool than what there is.
    described = HERMES.prompt(cast("list[Tool]", [tool.function for tool in tools]), "")
    said = described.instructions.removesuffix(FINISH).strip() if tools else ""
    instructions = "\n\n".join(text for text in (system, said) if text)
    return Prompt(instructions, messages[-1].content or "", system, described.schemas)


def make_renderer(codec: TokenizerCodec, end: int, name: str) -> Renderer:
    """Prepare for conversations.

    Args:
        codec: Of the policy.
        end: The token that ends a message.
        name: Of the tokenizer, for messages.

    Raises:
        ValueError: The tokenizer has no chat template.
    """
    if codec.chat is None:
        raise ValueError(f"tokenizer {name!r} has no chat template, which conversations need; expected a chat model's")
    return Renderer(codec, ConversationTemplate(codec.tokenizer), end)
