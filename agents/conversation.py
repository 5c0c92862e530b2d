"""Conversations as tokens: what lets an endpoint that speaks in messages take part in rollouts, which speak in tokens.

A context is a sequence of records. A token below 256 begins one and says its kind; the tokens after it are its text.

    SYSTEM "Reason inside ..."  USER "How much is 2+3?"  ASSISTANT "<calculator>2+3</calculator>"  USER "<result>5..."

Nothing is lost on the way: `read_conversation` gives the messages back.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any

from forkgym.envs.grammar import Prompt, Reply, without_control_tokens

BYTES_PER_TOKEN = 4
VOCABULARY_SIZE = 2 << (8 * BYTES_PER_TOKEN)
FORBIDDEN_IN_NAMES = re.compile(r"[^A-Za-z0-9_-]")
MAX_NAME = 64


class Kind(IntEnum):
    """The tokens that begin a record."""

    SYSTEM = 0
    USER = 1
    ASSISTANT = 2  # the policy's message; a prompt and a reply end with this token, and the turn follows
    TOOLS = 3  # JSON: the schemas of the tools that the endpoint is told of
    CALL = 4  # JSON: a native call of the message before it, [id, name, arguments]
    RESULT = 5  # JSON: what a native call gave, [id, content]


@dataclass(frozen=True, slots=True)
class NativeCall:
    """A call as an endpoint reports it beside the text of a message.

    Attributes:
        id: Names it in the conversation.
        name: Of the tool.
        arguments: JSON as the model wrote it, which need not be any.
    """

    id: str
    name: str
    arguments: str

    @property
    def text(self) -> str:
        """The call as the hermes grammar writes it; a tag in an argument cannot end it."""
        inside = f'{{"name": {json.dumps(self.name)}, "arguments": {self.arguments}}}'
        return "<tool_call>\n" + inside.replace("<", "\\u003c") + "\n</tool_call>"

    @property
    def message(self) -> dict[str, Any]:
        """The call as it is sent back. Servers parse it, so what they would refuse is made harmless."""
        name = FORBIDDEN_IN_NAMES.sub("_", self.name)[:MAX_NAME] or "_"
        arguments = self.arguments if is_json_object(self.arguments) else json.dumps({"malformed": self.arguments})
        return {"id": self.id, "type": "function", "function": {"name": name, "arguments": arguments}}


@dataclass(frozen=True, slots=True)
class Conversation:
    """What an endpoint is asked with.

    Attributes:
        messages: As the chat completions interface takes them.
        tools: Schemas of the tools; empty where the messages describe them.
    """

    messages: tuple[Mapping[str, Any], ...]
    tools: tuple[Mapping[str, Any], ...]


class ConversationCodec:
    """Texts of at most four bytes as tokens, and tokens between messages.

    The endpoint's own tokens are not known. Four bytes are about what a tokenizer makes one of in English, so limits in
    tokens mean about the same as with a model.

    Args:
        native_tools: Whether the endpoint is told of the tools by their schemas, and says calls beside the text. Else
            the instructions describe them, calls are text, and results are a user's messages.
    """

    def __init__(self, *, native_tools: bool = False) -> None:
        self.native_tools = native_tools

    @property
    def opening(self) -> str:
        """Nothing: what the endpoint's template opens is not known."""
        return ""

    def encode_prompt(self, prompt: Prompt) -> tuple[int, ...]:
        """A system and a user's message, and the tools where the endpoint is told of them.

        Control tokens in the question are taken apart: the endpoint's tokenizer would take them for its own. Replies
        are escaped by the environment.
        """
        native = self.native_tools and bool(prompt.schemas)
        instructions = prompt.brief if native else prompt.instructions
        tools = record(Kind.TOOLS, to_json(prompt.schemas)) if native else ()
        messages = record(Kind.SYSTEM, instructions) + record(Kind.USER, without_control_tokens(prompt.question))
        return (*tools, *messages, Kind.ASSISTANT)

    def encode_reply(self, reply: Reply, turn: tuple[int, ...]) -> tuple[int, ...]:
        """A result for each native call of the turn, or a user's message where there was none."""
        _, calls = read_turn(turn)
        contents = reply.messages
        if len(contents) != len(calls):  # one correction for the whole message: every call needs a result all the same
            contents = ("\n\n".join(contents) or reply.text,) * len(calls)
        results = (
            record(Kind.RESULT, to_json([call.id, content])) for call, content in zip(calls, contents, strict=True)
        )
        tokens = tuple(token for result in results for token in result) or record(Kind.USER, reply.text)
        return (*tokens, Kind.ASSISTANT)

    def encode_turn(self, text: str) -> tuple[int, ...]:
        """The text of a message."""
        return text_tokens(text)

    def encode_message(self, text: str, calls: Sequence[NativeCall]) -> tuple[int, ...]:
        """A message of the policy: its text and the calls beside it."""
        tokens = text_tokens(text)
        for call in calls:
            tokens += record(Kind.CALL, to_json([call.id, call.name, call.arguments]))
        return tokens

    def decode(self, tokens: tuple[int, ...]) -> str:
        """The text of a message, native calls after it as the hermes grammar writes them."""
        text, calls = read_turn(tokens)
        return "\n".join([*([text] if text or not calls else []), *(call.text for call in calls)])


def text_tokens(text: str) -> tuple[int, ...]:
    """Four bytes of UTF-8 each, the last of what is left; half a surrogate pair becomes a question mark.

    The byte 1 before them keeps their number, and keeps the token apart from `Kind`.
    """
    data = text.encode("utf-8", errors="replace")
    pieces = (data[start : start + BYTES_PER_TOKEN] for start in range(0, len(data), BYTES_PER_TOKEN))
    return tuple(int.from_bytes(b"\x01" + piece, "big") for piece in pieces)


def token_bytes(token: int) -> bytes:
    """What `text_tokens` made a token of.

    Raises:
        ValueError: It made none such.
    """
    data = token.to_bytes(BYTES_PER_TOKEN + 1, "big").lstrip(b"\x00") if 0 <= token < VOCABULARY_SIZE else b""
    if len(data) < 2 or data[0] != 1:
        raise ValueError(f"token {token} is none of a conversation")
    return data[1:]


def record(kind: Kind, text: str) -> tuple[int, ...]:
    """A record of a context."""
    return (kind, *text_tokens(text))


def to_json(value: Any) -> str:
    """JSON that stays short in other scripts than Latin."""
    return json.dumps(value, ensure_ascii=False)


def is_json_object(text: str) -> bool:
    """Whether any server reads a JSON object in it."""
    try:
        return isinstance(json.loads(text, parse_constant=refuse_constant), dict)
    except (ValueError, RecursionError):
        return False


def refuse_constant(name: str) -> float:
    """Refuse NaN and Infinity, which Python alone takes for JSON."""
    raise ValueError(f"{name} is no JSON")


def read_records(tokens: Sequence[int]) -> list[tuple[Kind, str]]:
    """The records of a context or of a turn, whose text belongs to a message that is begun before it.

    Raises:
        ValueError: A token is none of this codec's.
    """
    records: list[tuple[Kind, bytearray]] = [(Kind.ASSISTANT, bytearray())]
    for token in tokens:
        if 0 <= token < len(Kind):
            records.append((Kind(token), bytearray()))
        else:
            records[-1][1].extend(token_bytes(token))
    return [(kind, data.decode("utf-8", errors="replace")) for kind, data in records]


def read_turn(tokens: Sequence[int]) -> tuple[str, tuple[NativeCall, ...]]:
    """The text of a turn and the calls beside it."""
    (_, text), *rest = read_records(tokens)
    return text, tuple(NativeCall(*json.loads(written)) for kind, written in rest if kind is Kind.CALL)


def read_conversation(tokens: Sequence[int]) -> Conversation:
    """The messages of a context up to the one that is to be written.

    Raises:
        ValueError: A token is none of this codec's, or the context does not end where a message begins.
    """
    if not tokens or tokens[-1] != Kind.ASSISTANT:
        raise ValueError("the context does not end with the beginning of a message, expected a whole conversation")
    messages: list[dict[str, Any]] = []
    tools: tuple[Mapping[str, Any], ...] = ()
    for kind, text in read_records(tokens)[1:-1]:
        match kind:
            case Kind.TOOLS:
                tools = tuple(json.loads(text))
            case Kind.CALL:
                messages[-1].setdefault("tool_calls", []).append(NativeCall(*json.loads(text)).message)
            case Kind.RESULT:
                call_id, content = json.loads(text)
                messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
            case _:
                messages.append({"role": kind.name.lower(), "content": text})
    return Conversation(tuple(messages), tools)
